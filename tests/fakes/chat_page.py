"""What a person does on the chat page, and models that follow a script for it."""

from __future__ import annotations

from collections.abc import Sequence

from tests.fakes.chromium import Page
from tests.fakes.fake_compute import Say, Script
from tests.fakes.fake_tokenizer import EOS
from tests.fakes.gateway_fleet import GatewayFleet
from triserve.rpc.errors import ServiceError
from triserve.v1 import common_pb2, compute_pb2

DONE = Say("", [EOS], common_pb2.FINISH_REASON_STOP)


def says(*texts: str, last: Say | ServiceError = DONE) -> Script:
    """A model that always answers so, a token for each text."""
    return lambda request: [*(Say(text, [65]) for text in texts), last]


def scripted(*scripts: Script) -> Script:
    """A model that answers each request by the next script, and the last one from then on."""
    left = list(scripts)

    def script(request: compute_pb2.SubmitRequest) -> Sequence[Say | ServiceError]:
        return (left.pop(0) if len(left) > 1 else left[0])(request)

    return script


async def ask(page: Page, text: str) -> None:
    """Writes a question and sends it."""
    await page.run("document.querySelector('#question').focus()")
    await page.type(text)
    await page.press("Enter")


async def settled(page: Page, num_turns: int) -> None:
    """Returns when so many turns are there and no answer is under way."""
    await page.until(f"document.querySelectorAll('.turn').length === {num_turns} && !document.querySelector('#send').hidden")


def prompt_of(fleet: GatewayFleet, index: int = -1) -> str:
    """The prompt of a request that compute got."""
    return bytes(fleet.compute.submitted[index].token_ids).decode()
