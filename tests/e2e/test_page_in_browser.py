"""The chat page in a real browser: what a person sees, types and presses. Needs a Chromium on the PATH; `make setup` does not install one."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, Protocol

import pytest

from tests.fakes.chat_page import ask, prompt_of, says, scripted, settled
from tests.fakes.chromium import Page, connected, find_chromium, running_chromium
from tests.fakes.fake_compute import FakeCompute, Script
from tests.fakes.gateway_fleet import GatewayFleet, eventually, running_fleet
from triserve.rpc.errors import Overloaded

PROGRAM = find_chromium()
pytestmark = [
    pytest.mark.skipif(
        PROGRAM is None, reason="no chromium, chromium-browser or google-chrome on the PATH: the page is not tried in a browser"
    ),
    pytest.mark.timeout(180),
]


class Opener(Protocol):
    """Opens the page of a gateway whose model follows a script. See `opened`."""

    def __call__(self, script: Script, **settings: Any) -> AbstractAsyncContextManager[tuple[Page, GatewayFleet]]:
        """The page and what is behind it."""


@pytest.fixture(scope="module")
def browser_address() -> Iterator[str]:
    assert PROGRAM is not None
    with running_chromium(PROGRAM) as address:
        yield address


@pytest.fixture
def opened(browser_address: str) -> Opener:
    return partial(_opened, browser_address)


@asynccontextmanager
async def _opened(browser_address: str, script: Script, **settings: Any) -> AsyncIterator[tuple[Page, GatewayFleet]]:
    """The page of a gateway whose model follows a script. At its end the browser must have had nothing to complain of."""
    info = settings.pop("info", {})
    view = {name: settings.pop(name) for name in ("width", "height", "dark") if name in settings}
    async with (
        running_fleet(computes=[FakeCompute(script, **info)], **{"cache": False, **settings}) as fleet,
        connected(browser_address) as browser,
    ):
        page = await browser.open(f"{fleet.url}/", **view)
        await page.until("document.title === 'tiny · Triserve' || !document.querySelector('#key-form').hidden")
        yield page, fleet
        assert page.complaints == []
        assert {address.removeprefix(fleet.url)[0] for address in page.requests} == {"/"}, "nothing is asked of anybody else"


MARKDOWN = """# Title

A **bold** and *italic* `code` [link](https://example.org/a_(b)) and [trap](javascript:alert(1)).

- one
  1. inner
- two

> quoted

| a | b |
|---|--:|
| 1 | 2 |

```python
x = "<b>"
```
<img src=x onerror="window.hacked = 1"><script>window.hacked = 1</script>"""


async def test_an_answer_is_rendered_from_markdown_and_markup_in_it_stays_text(opened: Opener) -> None:
    async with opened(says(*(MARKDOWN[at : at + 3] for at in range(0, len(MARKDOWN), 3)))) as (page, _):
        await ask(page, "**not bold** <b>x</b>")
        await settled(page, 2)
        assert await page.text(".user .bubble") == ["**not bold** <b>x</b>"], "a question is shown as it was written"
        answer = ".assistant .bubble"
        shown = {
            tag: await page.text(f"{answer} {tag}")
            for tag in ("h3", "strong", "em", "p code", "a", "ul > li > ol > li", "blockquote", "td")
        }
        assert shown == {
            "h3": ["Title"],
            "strong": ["bold"],
            "em": ["italic"],
            "p code": ["code"],
            "a": ["link"],
            "ul > li > ol > li": ["inner"],
            "blockquote": ["quoted"],
            "td": ["1", "2"],
        }
        assert await page.text(f"{answer} pre") == ['x = "<b>"']
        link = await page.run(f"[...document.querySelectorAll('{answer} a')].map((one) => [one.href, one.rel, one.target])")
        assert link == [["https://example.org/a_(b)", "noopener noreferrer", "_blank"]]
        whole = (await page.text(answer))[0]
        assert "[trap](javascript:alert(1))" in whole and "<script>window.hacked = 1</script>" in whole
        assert await page.run("window.hacked ?? document.querySelectorAll('#log img, #log script').length") == 0


async def test_what_is_there_already_is_not_made_anew_while_the_answer_comes(opened: Opener) -> None:
    async with opened(says("First *one*.\n\n", "Second", " goes", " on")) as (page, fleet):
        fleet.compute.flowing.clear()
        await ask(page, "a")
        fleet.compute.let_through(2)
        await page.until("document.querySelectorAll('.assistant p').length === 2")
        await page.run("window.before = [...document.querySelectorAll('.assistant p, .assistant em')]; window.text = before[2].firstChild")
        fleet.compute.flowing.set()
        await settled(page, 2)
        assert (await page.text(".assistant p"))[1] == "Second goes on"
        same = "[...document.querySelectorAll('.assistant p, .assistant em')].every((one, at) => one === before[at]) && before[2].firstChild === text"
        assert await page.run(same)


async def test_code_and_answers_are_copied_as_they_were_written(opened: Opener) -> None:
    async with opened(says("```py\nx = 1\n```\n", "and *this*")) as (page, _):
        await ask(page, "my question")
        await settled(page, 2)
        for button, copied in (
            (".copy-code", "x = 1"),
            (".assistant .action", "```py\nx = 1\n```\nand *this*"),
            (".user .action", "my question"),
        ):
            await page.click(button)
            await page.until(f"document.querySelector('{button}').textContent === 'Copied'")
            assert await page.run("navigator.clipboard.readText()") == copied


async def test_the_speed_shown_is_the_servers_and_none_where_it_has_none(opened: Opener) -> None:
    async with opened(says("a", "b", "c")) as (page, _):
        await ask(page, "a")
        await settled(page, 2)
        (facts,) = await page.text(".facts")
        # Tokenized in 1.5 ms, queued 3 ms, prefilled in 7 ms, as the fakes say; all of it came in one read.
        told = re.fullmatch(r"first token 12 ms(?: · (\d+\.\d) tokens/s)? · 4 tokens", facts)
        # A decode of under 20 ms says nothing of speed: only a slow machine shows one, and never more than this.
        assert told and (told[1] is None or float(told[1]) <= 4 / 0.02), facts


async def test_a_refused_question_goes_back_into_the_box_and_is_no_part_of_the_chat(opened: Opener) -> None:
    async with opened(scripted(says(last=Overloaded("the queue is full")), says("fine"))) as (page, fleet):
        await ask(page, "my question")
        await page.until("document.querySelector('.failure')")
        assert "the queue is full" in (await page.text(".failure"))[0]
        assert await page.run("document.querySelector('#question').value") == "my question"
        await settled(page, 0)
        await page.press("Enter")
        await settled(page, 2)
        assert await page.text(".failure") == []
        assert prompt_of(fleet) == "user: my question\nassistant: "


async def test_an_answer_that_breaks_off_keeps_what_came(opened: Opener) -> None:
    async with opened(says("half", last=Overloaded("gone"))) as (page, _):
        await ask(page, "a")
        await page.until("document.querySelector('.failure')")
        assert await page.text(".assistant .bubble") == ["half"]
        assert (await page.text(".failure"))[0].startswith("The answer broke off: gone")


async def test_a_full_context_lets_the_oldest_turns_go(opened: Opener) -> None:
    async with opened(says("answer"), info={"max_model_len_tokens": 90}) as (page, fleet):
        for number in (1, 2):
            await ask(page, f"question {number}")
            await settled(page, 2 * number)
        await ask(page, "a third question that is long, and too long")
        await page.until("document.querySelector('.failure button')")
        assert await page.text(".failure button") == ["Leave out the oldest turns and ask again", "New chat with this question"]
        await page.click(".failure button")
        await settled(page, 6)
        # Two had to go: the pair that is left alone was too long with it as well.
        assert prompt_of(fleet) == "user: a third question that is long, and too long\nassistant: "
        assert len(await page.text(".left-out")) == 4
        assert await page.text(".failure") == []


async def test_a_question_too_long_for_any_context_can_begin_anew_but_offers_no_turns_to_leave_out(opened: Opener) -> None:
    async with opened(says("answer"), info={"max_model_len_tokens": 40}) as (page, _):
        await ask(page, "x" * 60)
        await page.until("document.querySelector('.failure button')")
        assert await page.text(".failure button") == ["New chat with this question"]


async def test_an_answer_can_be_stopped_by_the_button_and_by_escape(opened: Opener) -> None:
    async with opened(says(*"abcdefgh")) as (page, fleet):
        fleet.compute.flowing.clear()

        def told(count: int) -> Callable[[], bool]:
            return lambda: len(fleet.compute.cancelled) == count

        presses: list[Callable[[], Any]] = [lambda: page.click("#stop"), lambda: page.press("Escape")]
        for number, press in enumerate(presses, start=1):
            await ask(page, "a")
            fleet.compute.let_through(2)
            await page.until(
                f"document.querySelectorAll('.assistant').length === {number} && [...document.querySelectorAll('.assistant .bubble')].at(-1).innerText === 'ab'"
            )
            await press()
            await settled(page, 2 * number)
            await eventually(told(number), "compute was told")
            assert (await page.text(".facts"))[-1] == "stopped"


async def test_retry_asks_the_same_question_again_in_place_of_the_answer(opened: Opener) -> None:
    async with opened(scripted(says("first"), says("second"))) as (page, fleet):
        await ask(page, "a")
        await settled(page, 2)
        await page.run("[...document.querySelectorAll('.assistant .action')].find((one) => one.textContent === 'Retry').click()")
        await page.until("document.querySelector('.assistant .bubble').innerText === 'second'")
        await settled(page, 2)
        assert prompt_of(fleet, 0) == prompt_of(fleet, 1) == "user: a\nassistant: "


async def test_a_question_can_be_edited_by_keyboard_and_the_chat_goes_on_from_there(opened: Opener) -> None:
    async with opened(says("answer")) as (page, fleet):
        for number, text in enumerate(("first", "second"), start=1):
            await ask(page, text)
            await settled(page, 2 * number)
        await page.run("[...document.querySelectorAll('.user .action')].find((one) => one.textContent === 'Edit').focus()")
        await page.press("Enter")
        await page.until("document.activeElement.closest('.edit')")
        await page.type(" anew")
        await page.press("Enter")
        await settled(page, 2)
        assert prompt_of(fleet) == "user: first anew\nassistant: "


async def test_settings_are_sent_and_what_is_empty_is_left_to_the_model(opened: Opener) -> None:
    async with opened(says("answer")) as (page, fleet):
        await page.click("#settings")
        for name, value in (("system", "Be brief."), ("temperature", "0.5"), ("max_tokens", "7"), ("seed", "11")):
            await page.run(f"document.querySelector('#{name}').focus()")
            await page.type(value)
        await page.click("#settings-dialog button[type=submit]")
        await ask(page, "a")
        await settled(page, 2)
        sent = fleet.compute.submitted[-1]
        assert prompt_of(fleet) == "system: Be brief.\nuser: a\nassistant: "
        assert (sent.sampling.temperature, sent.sampling.seed, sent.stopping.max_tokens) == (0.5, 11, 7)
        assert sent.sampling.top_p in (0, 1)


async def test_answers_are_json_by_a_schema_that_is_one(opened: Opener) -> None:
    async with opened(says("{}")) as (page, fleet):
        await page.click("#settings")
        await page.run("const form = document.querySelector('#form'); form.value = 'schema'; form.dispatchEvent(new Event('change'))")
        await page.run("document.querySelector('#schema').focus()")
        await page.type('{"type": ')
        await page.click("#settings-dialog button[type=submit]")
        assert "This is no JSON" in await page.run("document.querySelector('#schema').validationMessage")
        await page.type('"object"}')
        await page.click("#settings-dialog button[type=submit]")
        await ask(page, "a")
        await settled(page, 2)
        assert fleet.compute.submitted[-1].sampling.grammar.json_schema == '{"type":"object"}'


async def test_an_answer_from_the_cache_says_so_and_a_fresh_one_can_be_had(opened: Opener) -> None:
    async with opened(scripted(says("first"), says("second")), cache=True) as (page, fleet):
        await page.click("#settings")
        await page.run("document.querySelector('#temperature').focus()")
        await page.type("0")
        await page.click("#settings-dialog button[type=submit]")
        await ask(page, "a")
        await settled(page, 2)
        assert await page.text(".source:not([hidden])") == []
        await page.click("#new")
        await ask(page, "a")
        await settled(page, 2)
        (card,) = await page.text(".source:not([hidden])")
        assert "for the same question" in card and await page.text(".assistant .bubble") == ["first"]
        await page.load()
        await settled(page, 2)
        assert len(await page.text(".source:not([hidden])")) == 1
        await page.click(".source button")
        await page.until("document.querySelector('.assistant .bubble').textContent.trim() === 'second'")
        await settled(page, 2)
        assert await page.text(".source:not([hidden])") == [] and len(fleet.compute.submitted) == 2


async def test_the_chat_is_kept_until_a_new_one_and_not_where_that_is_turned_off(opened: Opener) -> None:
    async with opened(says("answer *one*")) as (page, fleet):
        await ask(page, "a")
        await settled(page, 2)
        await page.load()
        await settled(page, 2)
        assert await page.text(".assistant em") == ["one"]
        await ask(page, "b")
        await settled(page, 4)
        assert prompt_of(fleet) == "user: a\nassistant: answer *one*\nuser: b\nassistant: "
        await page.click("#settings")
        await page.click("#keep")
        await page.click("#settings-dialog button[type=submit]")
        assert json.loads(await page.run("localStorage.getItem('triserve.chat')")) == {"isKept": False}
        await page.load()
        await settled(page, 0)
        assert await page.run("document.querySelector('#welcome').checkVisibility()")
        await page.click("#settings")
        await page.click("#keep")
        await page.click("#settings-dialog button[type=submit]")
        await ask(page, "c")
        await settled(page, 2)
        await page.click("#new")
        await settled(page, 0)
        assert json.loads(await page.run("localStorage.getItem('triserve.chat')"))["turns"] == []


@pytest.mark.parametrize(
    "kept", ["{", "[]", '{"turns": 5}', '{"turns": [{"role": "system", "text": 1}]}', '{"settings": {"seed": {}}}', "null"]
)
async def test_what_others_left_in_its_place_does_not_hurt_the_page(opened: Opener, kept: str) -> None:
    async with opened(says("answer")) as (page, _):
        await page.run(f"localStorage.setItem('triserve.chat', {json.dumps(kept)})")
        await page.run("window.addEventListener('pagehide', (event) => event.stopImmediatePropagation(), true)")
        await page.load()
        await page.until("document.title === 'tiny · Triserve'")
        await ask(page, "a")
        await settled(page, 2)


async def test_examples_ask_and_name_the_model(opened: Opener) -> None:
    async with opened(says("answer")) as (page, fleet):
        assert await page.text("#greeting") == ["Chat with tiny"]
        examples = await page.text(".example")
        assert len(examples) >= 3
        await page.click(".example")
        await settled(page, 2)
        assert prompt_of(fleet) == f"user: {examples[0]}\nassistant: "


async def test_everything_is_reached_by_keyboard(opened: Opener) -> None:
    async with opened(says("[link](https://example.org) and\n```\ncode\n```")) as (page, _):
        await ask(page, "a")
        await settled(page, 2)
        reached = set()
        for _ in range(24):
            await page.press("Tab")
            reached.add(await page.run("document.activeElement.id || document.activeElement.textContent.trim()"))
        assert {"settings", "new", "log", "question", "send", "link", "Copy", "Edit", "Retry", "code"} <= reached


@pytest.mark.parametrize(("width", "dark"), [(360, False), (360, True), (1200, True)])
async def test_nothing_is_wider_than_the_window_and_text_stands_out(opened: Opener, width: int, dark: bool) -> None:
    wide = "| " + " | ".join(["column"] * 30) + " |\n" + "|---" * 30 + "|\n\n```\n" + "x" * 500 + "\n```\n" + "y" * 500
    async with opened(says(wide), width=width, dark=dark) as (page, _):
        await ask(page, "z" * 300)
        await settled(page, 2)
        assert await page.run(
            "document.documentElement.scrollWidth <= innerWidth && document.querySelector('#log').scrollWidth <= innerWidth"
        )
        lightness = "(colour) => colour.match(/\\d+/g).slice(0, 3).reduce((sum, one) => sum + Number(one), 0) / 765"
        contrast = f"((of) => {{ const style = getComputedStyle(of); const light = {lightness}; return Math.abs(light(style.color) - light(style.backgroundColor)); }})"
        for selector in (".user .bubble", ".assistant .bubble"):
            assert await page.run(f"{contrast}(document.querySelector('{selector}'))") > 0.4
        assert await page.run("getComputedStyle(document.body).backgroundColor") == ("rgb(17, 20, 25)" if dark else "rgb(246, 247, 249)")


async def test_a_key_is_asked_for_and_used(opened: Opener, tmp_path: Any) -> None:
    keys = tmp_path / "keys"
    keys.write_text("acme 2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683\n")
    async with opened(says("answer"), api_keys_file=keys) as (page, _):
        await page.until("!document.querySelector('#key-form').hidden")
        await page.run("document.querySelector('#key').focus()")
        await page.type("key")
        await page.press("Enter")
        await page.until("document.title === 'tiny · Triserve'")
        await ask(page, "a")
        await settled(page, 2)


async def test_the_policy_of_the_page_stops_scripts_that_are_not_its_own(opened: Opener) -> None:
    async with opened(says("answer")) as (page, _):
        broken = """(async () => {
            const inline = document.createElement("script");
            try { inline.text = "window.hacked = 1"; document.body.append(inline); } catch {}
            const button = document.createElement("button");
            try { button.setAttribute("onclick", "window.hacked = 1"); button.click(); } catch {}
            let markup = "made";
            try { document.createElement("div").innerHTML = "<b>x</b>"; } catch { markup = "refused"; }
            return [window.hacked ?? 0, markup];
        })()"""
        assert await page.run(broken) == [0, "refused"]
        assert page.complaints
        page.complaints.clear()


HOSTILE = {
    "brackets": "[" * 10_000 + "]" * 10_000,
    "open links": "[a](" * 10_000,
    "stars": "*a **b " * 10_000,
    "quotes": "> " * 10_000 + "x",
    "lists": "\n".join(" " * depth + "- a" for depth in range(300)),
    "table": "a|" * 5_000 + "\n" + "-|" * 5_000 + "\n" + "|\n" * 5_000,
    "many rows": "a|" * 60 + "\n" + "-|" * 60 + "\n" + "|\n" * 2_000,
    "ticks": "".join("`" * length + "a" for length in range(1, 200)),
    "tags": "<b><script>" * 5_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
async def test_an_answer_made_to_hurt_the_page_does_not(opened: Opener, text: str) -> None:
    async with opened(says(text)) as (page, _):
        await ask(page, "a")
        await settled(page, 2)
        assert await page.run("document.querySelectorAll('.assistant .bubble *').length") < 60_000
        deepest = "(() => { let deep = 0; for (const one of document.querySelectorAll('.assistant *')) { let at = 0; for (let up = one; up; up = up.parentElement) at += 1; deep = Math.max(deep, at); } return deep; })()"
        assert await page.run(deepest) < 64
