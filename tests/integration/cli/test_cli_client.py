"""`triserve chat` and `triserve bench`, as processes, against a small server of OpenAI's API."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aiohttp import web

from gateway.cli.__main__ import main
from gateway.cli.api import ApiClient, ApiError, Thought
from gateway.cli.measuring.load import make_target, read_exchange, send
from gateway.cli.measuring.measurement import Failed, Measured
from gateway.cli.measuring.workload import PlannedRequest

REQUEST = PlannedRequest(index=0, arrival_s=0.0, prompt_token_ids=[1, 2], output_tokens=3)


class FakeServer:
    """Answers with as many tokens as are asked for; misbehaves where a test says so."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.extra_tokens = 0
        self.status = 200
        # What /v1/models says of the model, and whether chats end in usage.
        self.model: dict[str, Any] = {"id": "fake", "max_model_len": 4096, "vocab_size": 100}
        self.tells_usage = False
        # Keys that are let in; empty = everybody is.
        self.keys: set[str] = set()
        # Set once a client left in the middle of an answer.
        self.client_left = asyncio.Event()

    async def start(self) -> tuple[web.AppRunner, str]:
        """Listens on a free port."""
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_post("/v1/chat/completions", self._chat)
        runner = web.AppRunner(app, shutdown_timeout=0, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def _models(self, request: web.Request) -> web.Response:
        if self.keys and request.headers.get("Authorization", "").removeprefix("Bearer ") not in self.keys:
            return self._keyless()
        return web.json_response({"object": "list", "data": [self.model]})

    def _keyless(self) -> web.Response:
        return web.json_response({"error": {"message": "send it as `Authorization: Bearer KEY`"}}, status=401)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body = await self._accept(request)
        if self.status != 200:
            return web.json_response({"error": {"message": "the queue is full"}}, status=self.status)
        stream = await _open_stream(request)
        count = body["max_tokens"] + self.extra_tokens
        for index in range(count):
            choice = {"text": "a", "token_ids": [7], "finish_reason": "length" if index == count - 1 else None}
            await _send_event(stream, {"choices": [choice]})
        await _send_event(stream, {"choices": [], "usage": {"prompt_tokens": len(body["prompt"]), "completion_tokens": count}})
        await stream.write(b"data: [DONE]\n\n")
        return stream

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await self._accept(request)
        if self.status != 200:
            error = {"message": "temperature is 200, the range is [0, 100]", "param": "temperature"}
            return web.json_response({"error": error}, status=self.status)
        if self.keys and request.headers.get("Authorization", "").removeprefix("Bearer ") not in self.keys:
            return self._keyless()
        question = body["messages"][-1]["content"]
        stream = await _open_stream(request)
        if question == "think":
            await _send_event(stream, {"choices": [{"delta": {"reasoning_content": "Hm."}}]})
        for text in ("You said ", question, "."):
            await _send_event(stream, {"choices": [{"delta": {"content": text}}]})
        if question == "fail":
            await _send_event(stream, {"error": {"message": "the compute stage is gone"}})
        elif question == "hang":
            try:
                await asyncio.Event().wait()
            finally:
                self.client_left.set()
        elif question != "break off":
            if self.tells_usage:
                await _send_event(stream, {"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 5}})
            await stream.write(b"data: [DONE]\n\n")
        return stream

    async def _accept(self, request: web.Request) -> dict[str, Any]:
        body: dict[str, Any] = await request.json()
        self.bodies.append(body)
        return body


async def _open_stream(request: web.Request) -> web.StreamResponse:
    stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await stream.prepare(request)
    return stream


async def _send_event(stream: web.StreamResponse, event: object) -> None:
    await stream.write(b"data: " + json.dumps(event).encode() + b"\n\n")


class Server(NamedTuple):
    """A fake that runs."""

    fake: FakeServer
    url: str


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    fake = FakeServer()
    runner, url = await fake.start()
    yield Server(fake, url)
    await runner.cleanup()


class Ended(NamedTuple):
    """What a command did."""

    status: int
    output: str
    errors: str


async def triserve(*arguments: str, typed: str = "") -> Ended:
    """Runs a command to its end."""
    async with started(*arguments) as process:
        output, errors = await process.communicate(typed.encode())
    assert process.returncode is not None
    return Ended(process.returncode, output.decode(), errors.decode())


@asynccontextmanager
async def started(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A command under way."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "gateway.cli", *arguments, stdin=pipe, stdout=pipe, stderr=pipe)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_one_question_is_answered_on_standard_output(server: Server) -> None:
    ended = await triserve("chat", "--url", server.url, "--question", "Why?", "--system", "Be brief.", "--temperature", "0")
    assert ended == Ended(0, "You said Why?.\n", "")
    (body,) = server.fake.bodies
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    assert (body["temperature"], body["stream"]) == (0.0, True)


async def test_a_conversation_goes_on_until_the_end_of_input(server: Server) -> None:
    ended = await triserve("chat", "--url", server.url, typed="one\nfail\ntwo\n")
    assert ended.status == 0
    assert "You said one." in ended.output and "(the server broke the answer off: the compute stage is gone)" in ended.output
    assert [message["content"] for message in server.fake.bodies[2]["messages"]] == [
        "one",
        "You said one.",
        "fail",
        "You said fail.",
        "two",
    ]


async def test_control_c_stops_the_answer_tells_the_server_and_goes_on(server: Server) -> None:
    async with started("chat", "--url", server.url) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"hang\n")
        await process.stdout.readuntil(b"You said hang.")
        process.send_signal(signal.SIGINT)
        await server.fake.client_left.wait()
        await process.stdout.readuntil(b"(stopped)")
        process.stdin.write(b"again\n")
        await process.stdout.readuntil(b"You said again.")
        process.stdin.write_eof()
        assert await process.wait() == 0


@pytest.mark.parametrize(
    ("question", "message"),
    [("fail", "the server broke the answer off: the compute stage is gone"), ("break off", "the server broke the answer off")],
)
async def test_an_answer_that_breaks_off_is_an_error(server: Server, question: str, message: str) -> None:
    async with ApiClient(server.url, api_key="") as client:
        with pytest.raises(ApiError, match=message):
            async for _ in client.stream_chat([{"role": "user", "content": question}], {}):
                pass


async def test_what_the_model_thinks_is_told_apart_from_its_answer(server: Server) -> None:
    async with ApiClient(server.url, api_key="") as client:
        pieces = [piece async for piece in client.stream_chat([{"role": "user", "content": "think"}], {})]
    assert [(str(piece), isinstance(piece, Thought)) for piece in pieces] == [
        ("Hm.", True),
        ("You said ", False),
        ("think", False),
        (".", False),
    ]


async def test_a_refusal_is_shown_as_the_server_worded_it(server: Server) -> None:
    server.fake.status = 400
    ended = await triserve("chat", "--url", server.url, "--question", "a", "--temperature", "200")
    assert (ended.status, ended.errors) == (1, "triserve chat: --temperature: temperature is 200, the range is [0, 100]\n")


async def test_without_a_server_chat_says_how_to_start_one() -> None:
    ended = await triserve("chat", "--url", "http://127.0.0.1:1", "--question", "a")
    assert (ended.status, ended.errors) == (1, "triserve chat: no server answers at http://127.0.0.1:1; start one with: triserve up\n")


async def test_a_run_is_measured_and_written_down(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    ended = await triserve(
        "bench", "--url", server.url, "--requests", "12", "--max-output", "9", "--concurrency", "3", "--output", str(file)
    )
    assert ended.status == 0, ended.errors
    assert "12 of 12 completed" in ended.output and "TTFT" in ended.output
    assert "12/12" in ended.errors
    document = json.loads(file.read_text())
    assert (document["figures"]["completed"], document["model"]["name"], len(document["requests"])) == (12, "fake", 12)
    assert document["figures"]["output_tokens"] == sum(body["max_tokens"] for body in server.fake.bodies)
    assert document["command"].startswith("triserve bench --url") and document["client_hardware"]["cores"] >= 1
    assert all(max(body["prompt"]) < 100 for body in server.fake.bodies)


async def test_requests_come_at_a_rate(server: Server) -> None:
    ended = await triserve("bench", "--url", server.url, "--requests", "5", "--max-output", "2", "--rate", "1000")
    assert ended.status == 0, ended.errors
    assert len(server.fake.bodies) == 5


async def test_a_server_that_sends_another_number_of_tokens_gets_no_figures(server: Server, tmp_path: Path) -> None:
    server.fake.extra_tokens = 1
    file = tmp_path / "figures.json"
    ended = await triserve("bench", "--url", server.url, "--requests", "3", "--max-output", "4", "--output", str(file))
    assert ended.status == 1
    assert "3 of 3 answers are wrong" in ended.errors and "tokens came" in ended.errors
    assert "TTFT" not in ended.output and not file.exists()


async def test_refusals_are_counted_and_a_run_without_any_answer_fails(server: Server) -> None:
    server.fake.status = 429
    ended = await triserve("bench", "--url", server.url, "--requests", "3", "--max-output", "4")
    assert ended.status == 1
    assert "3 x HTTP 429: the queue is full" in ended.output


async def test_requests_longer_than_the_models_context_are_refused_before_any_is_sent(server: Server) -> None:
    ended = await triserve("bench", "--url", server.url, "--requests", "3", "--scale", "1000")
    assert ended.status == 1
    assert "longer than the 4096 tokens of fake" in ended.errors and "--max-output" in ended.errors
    assert server.fake.bodies == []


async def test_a_measured_request_has_one_time_for_each_delta(server: Server) -> None:
    target = make_target(server.url, model="fake", api_key="", timeout_s=30)
    outcome = read_exchange(await send(target, REQUEST), began_s=0.0)
    assert isinstance(outcome, Measured)
    assert outcome.delta_tokens == (1, 1, 1)
    assert list(outcome.delta_at_s) == sorted(outcome.delta_at_s) and outcome.sent_at_s <= outcome.delta_at_s[0]


async def test_a_server_that_is_not_there_is_a_failure() -> None:
    target = make_target("http://127.0.0.1:1", model="fake", api_key="", timeout_s=30)
    outcome = read_exchange(await send(target, REQUEST), began_s=0.0)
    assert isinstance(outcome, Failed)
    assert outcome.reason.startswith("no connection: ")


async def test_an_answer_that_does_not_come_in_time_is_a_failure() -> None:
    async def keep_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        await writer.wait_closed()
        left.set()

    left = asyncio.Event()
    silent = await asyncio.start_server(keep_silent, "127.0.0.1", 0)
    target = make_target(f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}", model="m", api_key="", timeout_s=0.05)
    assert read_exchange(await send(target, REQUEST), began_s=0.0) == Failed(REQUEST, "no whole answer within 0.05 s")
    await left.wait()
    silent.close()
    await silent.wait_closed()


@pytest.mark.parametrize(
    "arguments",
    [
        ["bench", "--requests", "0"],
        ["bench", "--rate", "-1"],
        ["bench", "--rate", "nan"],
        ["bench", "--concurrency", "0"],
        ["bench", "--scale", "0"],
        ["bench", "--max-input", "0"],
        ["bench", "--max-output", "-4"],
        ["bench", "--timeout", "inf"],
        ["bench", "--seed", "x"],
        ["bench", "--lengths", "/no/such/file"],
        ["bench", "--output", "/no/such/folder/file"],
        ["bench", "--url", "ftp://host"],
        ["chat", "--url", "host:99999"],
        ["chat", "--api-key", "two\nlines"],
        ["chat", "--temperature", "hot"],
        ["chat", "--top-p", "1.5"],
        ["chat", "--top-k", "-2"],
        ["chat", "--max-tokens", "0"],
        ["chat", "--priority", "1.5"],
        ["chat", "--schema", "/no/such/file"],
        ["pin", "--system-file", "/no/such/file"],
        ["pin", "--compute", "host"],
        ["pin", "--timeout", "0"],
        ["up", "--exit-after-ask"],
        ["up", "--model", "no such"],
        ["up", "--port", "70000"],
        ["up", "--grpc-port", "-1"],
        ["up", "--computes", "0"],
        ["up", "--max-model-len", "0"],
        ["up", "--hang-timeout", "-1"],
    ],
    ids=" ".join,
)
def test_bad_options_end_with_a_message_that_names_them_and_status_1(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    errors = capsys.readouterr().err
    assert ended.value.code == 1
    assert errors.startswith(f"triserve {arguments[0]}: ")
    named = "no such" if "--model" in arguments else arguments[1]
    assert named in errors and "Traceback" not in errors


async def test_a_bad_option_is_all_that_a_process_says() -> None:
    ended = await triserve("bench", "--requests", "0")
    assert (ended.status, ended.output) == (1, "")
    assert ended.errors.startswith("triserve bench: ") and "--requests" in ended.errors and "Traceback" not in ended.errors


async def test_output_that_nobody_reads_any_more_ends_the_command_quietly(server: Server) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway.cli", "chat", "--url", server.url, "--question", "a"),
        stdout=writing,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(writing)
    _, errors = await process.communicate()
    assert (process.returncode, errors) == (141, b"")


async def test_without_a_command_the_help_is_shown() -> None:
    ended = await triserve()
    assert ended.status == 0
    assert all(name in ended.output for name in ("usage: triserve", "up ", "chat ", "bench ", "pin "))


async def test_an_address_needs_no_http_before_it(server: Server) -> None:
    bare = server.url.removeprefix("http://")
    ended = await triserve("chat", "--url", bare, "--question", "Why?")
    assert ended == Ended(0, "You said Why?.\n", "")


async def test_a_server_that_asks_for_a_key_is_told_of_by_the_option(server: Server) -> None:
    server.fake.keys = {"right"}
    for arguments, message in (
        (["chat", "--question", "a"], "asks for an API key: use --api-key or the variable TRISERVE_API_KEY"),
        (["bench", "--requests", "1"], "asks for an API key: use --api-key or the variable TRISERVE_API_KEY"),
        (["chat", "--question", "a", "--api-key", "wrong"], "does not know the key of --api-key or the variable TRISERVE_API_KEY"),
    ):
        ended = await triserve(*arguments, "--url", server.url)
        assert ended.status == 1
        assert ended.errors.splitlines()[-1] == f"triserve {arguments[0]}: {server.url} {message}"
    ended = await triserve("chat", "--question", "a", "--api-key", "right", "--url", server.url)
    assert ended == Ended(0, "You said a.\n", "")


@pytest.mark.parametrize("tells_usage", [True, False], ids=["usage", "no usage"])
async def test_any_server_of_openais_api_is_measured_by_what_its_streams_tell(server: Server, tells_usage: bool) -> None:
    server.fake.model, server.fake.tells_usage = {"id": "other"}, tells_usage
    ended = await triserve("bench", "--url", server.url, "--requests", "3", "--max-output", "5", "--max-input", "7")
    assert ended.status == 0, ended.errors
    assert "3 of 3 completed" in ended.output and "TTFT" in ended.output
    assert ("33 in, 15 out" if tells_usage else "9 out") in ended.output
    assert ("without usage" in ended.output) != tells_usage
    assert "is measured as any server of OpenAI's API" in ended.errors
    for body in server.fake.bodies:
        assert (body["model"], body["stream_options"]) == ("other", {"include_usage": True})
        assert not {"min_tokens", "ignore_eos", "return_token_ids"} & body.keys()
        assert len(body["messages"][0]["content"].split()) <= 7


async def test_the_model_to_measure_can_be_named(server: Server) -> None:
    ended = await triserve("bench", "--url", server.url, "--model", "another")
    assert (ended.status, ended.errors) == (1, f"triserve bench: --model: {server.url} serves no another; it lists fake\n")
