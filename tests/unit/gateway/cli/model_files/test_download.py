"""A download goes on where it ended, and no file gets its name before all of it is right."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.cli.model_files.download import DownloadFailed, Place, download
from tests.fakes.file_server import FileServer, serving

BODY = bytes(range(256)) * 64
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving(FileServer({"/model.gguf": BODY})) as running:
        yield running


def get(server: FileServer, path: Path, *, sha256: str = SHA256, token: str = "") -> list[tuple[int, int | None]]:
    told: list[tuple[int, int | None]] = []
    download(Place(f"{server.url}model.gguf", token), path, sha256, lambda received, length: told.append((received, length)))
    return told


def test_a_file_is_there_under_its_name_alone(server: FileServer, tmp_path: Path) -> None:
    told = get(server, tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").read_bytes() == BODY
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    assert told[-1] == (len(BODY), len(BODY))


def test_a_connection_that_ends_leaves_a_beginning_and_no_file(server: FileServer, tmp_path: Path) -> None:
    server.cut_after["/model.gguf"] = 5000
    with pytest.raises(DownloadFailed, match=f"ended after 5000 of {len(BODY)} bytes"):
        get(server, tmp_path / "model.gguf")
    assert [path.name for path in tmp_path.iterdir()] == [".model.gguf.part"]


def test_the_next_try_asks_for_the_rest_alone(server: FileServer, tmp_path: Path) -> None:
    server.cut_after["/model.gguf"] = 5000
    with pytest.raises(DownloadFailed):
        get(server, tmp_path / "model.gguf")
    told = get(server, tmp_path / "model.gguf")
    assert server.asked[1][1] == "bytes=5000-"
    assert told[-1] == (len(BODY), len(BODY))
    assert (tmp_path / "model.gguf").read_bytes() == BODY


def test_a_server_without_ranges_is_asked_for_all_of_it_again(server: FileServer, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / ".model.gguf.part").write_bytes(b"the beginning of something else")
    get(server, tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").read_bytes() == BODY


def test_a_beginning_longer_than_the_file_is_thrown_away(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / ".model.gguf.part").write_bytes(BODY + b"more")
    get(server, tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").read_bytes() == BODY


def test_a_beginning_of_another_file_fails_once_and_is_thrown_away(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / ".model.gguf.part").write_bytes(b"another file")
    with pytest.raises(DownloadFailed, match="it should be"):
        get(server, tmp_path / "model.gguf")
    get(server, tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").read_bytes() == BODY


def test_another_file_than_wanted_gets_no_name_and_replaces_none(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"from before")
    with pytest.raises(DownloadFailed, match=f"has sha256 {SHA256}, it should be {'0' * 64}"):
        get(server, tmp_path / "model.gguf", sha256="0" * 64)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("model.gguf", b"from before")]


def test_a_file_that_is_not_there_is_said_by_its_address(server: FileServer, tmp_path: Path) -> None:
    server.files.clear()
    with pytest.raises(DownloadFailed, match=rf"{server.url}model\.gguf: 404 Not Found$"):
        get(server, tmp_path / "model.gguf")


def test_who_is_refused_hears_that_a_token_may_be_needed(server: FileServer, tmp_path: Path) -> None:
    server.token = "secret"
    with pytest.raises(DownloadFailed, match=r"401 Unauthorized; it may need a token$"):
        get(server, tmp_path / "model.gguf")
    get(server, tmp_path / "model.gguf", token="secret")
    assert (tmp_path / "model.gguf").is_file()


def test_nobody_who_listens_is_said(tmp_path: Path) -> None:
    with serving(FileServer()) as gone:
        url = gone.url
    with pytest.raises(DownloadFailed, match="refused"):
        download(Place(f"{url}model.gguf"), tmp_path / "model.gguf", SHA256, lambda received, length: None)


def test_a_token_follows_a_redirect_within_its_host(server: FileServer, tmp_path: Path) -> None:
    server.redirects["/model.gguf"] = "/moved"
    server.files["/moved"] = BODY
    get(server, tmp_path / "model.gguf", token="secret")
    assert [said for _, _, said in server.asked] == ["Bearer secret", "Bearer secret"]


def test_a_token_does_not_follow_a_redirect_to_another_host(server: FileServer, tmp_path: Path) -> None:
    with serving(FileServer({"/elsewhere": BODY})) as other:
        server.redirects["/model.gguf"] = f"{other.url}elsewhere"
        get(server, tmp_path / "model.gguf", token="secret")
    assert [said for _, _, said in other.asked] == [""]


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/model.gguf"])
def test_a_redirect_to_anything_but_http_is_not_followed(server: FileServer, tmp_path: Path, target: str) -> None:
    server.redirects["/model.gguf"] = target
    with pytest.raises(DownloadFailed, match=r"it redirects to|is not allowed"):
        get(server, tmp_path / "model.gguf")
