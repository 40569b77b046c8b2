"""The chat page: one static file set, nothing from elsewhere, no markup made of text."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

import gateway
from tests.fakes.gateway_fleet import running_fleet

STATIC = Path(gateway.__file__).parent / "static"
FILES = sorted(path.name for path in STATIC.iterdir())


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with running_fleet() as fleet, aiohttp.ClientSession(fleet.url) as session:
        yield session


async def test_the_page_is_served_with_a_policy_that_allows_nothing_from_elsewhere(session: aiohttp.ClientSession) -> None:
    async with session.get("/") as response:
        assert response.status == 200
        assert response.content_type == "text/html"
        policy = dict(part.strip().partition(" ")[::2] for part in response.headers["Content-Security-Policy"].split(";"))
        assert {policy[name] for name in ("default-src", "script-src", "style-src", "connect-src", "img-src")} == {"'self'"}
        assert {policy[name] for name in ("object-src", "base-uri", "form-action", "frame-ancestors", "trusted-types")} == {"'none'"}
        assert policy["require-trusted-types-for"] == "'script'"
        assert "<textarea" in await response.text()


async def test_every_file_the_page_names_is_served_with_its_type(session: aiohttp.ClientSession) -> None:
    named = set(re.findall(r'(?:src|href)="(/[^"]*)"', (STATIC / "index.html").read_text()))
    assert {Path(path).name for path in named} == set(FILES) - {"index.html"}
    for path in named:
        async with session.get(path) as response:
            assert response.status == 200
            assert response.content_type in ("text/css", "text/javascript", "image/svg+xml")


def test_every_module_that_is_imported_is_a_file_of_the_page() -> None:
    imported = {name for file in FILES if file.endswith(".js") for name in re.findall(r'from "\./([^"]*)"', (STATIC / file).read_text())}
    assert imported and imported <= set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_no_file_of_the_page_is_long(name: str) -> None:
    assert len((STATIC / name).read_text().splitlines()) <= (400 if name.endswith(".js") else 500)


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_loaded_from_elsewhere_and_no_text_becomes_markup(name: str) -> None:
    text = (STATIC / name).read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?:|//cdn|@import|url\(", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|\son\w+=|style=", text)


def test_every_control_has_a_name() -> None:
    page = (STATIC / "index.html").read_text()
    for control in re.findall(r'<(?:textarea|input|select)[^>]*id="([\w-]+)"', page):
        assert f'<label for="{control}"' in page


@pytest.mark.parametrize(
    "path",
    [
        "/static/../settings.py",
        "/static/..%2fsettings.py",
        "/static/%2e%2e/app.py",
        "/static/",
        "/static/nothing.js",
        "/static//etc/passwd",
    ],
)
async def test_no_path_leads_out_of_the_file_set(session: aiohttp.ClientSession, path: str) -> None:
    base = session._base_url
    assert base is not None
    async with session.get(URL(f"{base.origin()}{path}", encoded=True)) as response:
        assert response.status == 404
        assert (await response.json())["error"]["code"] == "route_not_found"
