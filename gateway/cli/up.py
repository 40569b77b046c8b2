"""`triserve up`: starts every part on this machine, waits until they are ready, keeps them running until Ctrl-C.

Each part is a process of its own on loopback. One that dies or hangs is started again; all of them end with this command, however it ends.
Settings of a part that have no option here are taken from its variables, such as COMPUTE_..., as they are.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path

from gateway.cli.api import API_KEY_VARIABLE, ApiClient, ApiError
from gateway.cli.chat import Conversation, show_answer
from gateway.cli.console import Console
from gateway.cli.extras import EXTRA_OF, MissingExtra, require_installed
from gateway.cli.hardware import num_cores
from gateway.cli.local.hang_watch import HangLimits
from gateway.cli.local.local_parts import PipelineConfig, plan_parts
from gateway.cli.local.part import PartFailed
from gateway.cli.local.ports import HOST, PortTaken, free_ports, require_free
from gateway.cli.local.redis_server import RedisChoice, find_redis
from gateway.cli.local.semantic_choice import choose_embedder
from gateway.cli.local.supervisor import Supervisor
from gateway.cli.model_files.model_folder import ModelFolder, ModelUnavailable, download_from_hub, resolve_model
from gateway.cli.options import real, whole

DEFAULT_PORT = 8000
# A small model may repeat itself until its context is full, which takes minutes on a CPU.
_SHOWN_PIECES = 512
_SEMANTIC_TRIES = 50
_SEMANTIC_TRY_S = 0.1
_MAX_HANG_TIMEOUT_S = 86_400


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="a model folder, a GGUF file, org/name of the Hugging Face hub, or tiny, the small model of this project's tests "
        "(default: SmolLM2-135M-Instruct, if it is installed)",
    )
    parser.add_argument(
        "--port",
        type=whole(0, 65535),
        default=DEFAULT_PORT,
        metavar="N",
        help="port of the HTTP API; 0 = any free one (default: %(default)s)",
    )
    parser.add_argument(
        "--grpc-port", type=whole(0, 65535), default=0, metavar="N", help="port of the gRPC API; 0 = any free one (default: %(default)s)"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="what is computed in, and KV cached unless COMPUTE_KV_FORMAT says otherwise (default: the compute stage decides)",
    )
    parser.add_argument(
        "--max-model-len", type=whole(2), metavar="N", help="most tokens of prompt and answer together (default: the model's)"
    )
    parser.add_argument("--tokenizers", type=whole(1), default=1, metavar="N", help="processes that tokenize (default: %(default)s)")
    parser.add_argument(
        "--samplers", type=whole(1), default=1, metavar="N", help="processes that sample and detokenize (default: %(default)s)"
    )
    parser.add_argument("--computes", type=whole(1), default=1, metavar="N", help="compute replicas (default: %(default)s)")
    parser.add_argument(
        "--hang-timeout",
        type=real(0, _MAX_HANG_TIMEOUT_S),
        default=HangLimits().silence_s,
        metavar="SECONDS",
        help="start a part again that answers nothing for so long; 0 = never, for debuggers (default: %(default)g)",
    )
    parser.add_argument("--no-cache", action="store_true", help="remember no answers")
    parser.add_argument(
        "--semantic-cache",
        action="store_true",
        help="answer a question from what was said to one that means the same, with the embedder that is installed",
    )
    parser.add_argument("--ask", metavar="QUESTION", help="when all is ready, ask this and show the answer, of a long one the beginning")
    parser.add_argument("--exit-after-ask", action="store_true", help="stop when the answer to --ask is complete")


def run(arguments: argparse.Namespace) -> int:
    """Runs the pipeline until it is told to stop; returns the exit status."""
    try:
        require_installed(EXTRA_OF)
        if arguments.exit_after_ask and arguments.ask is None:
            raise ValueError("--exit-after-ask needs --ask")
        if arguments.semantic_cache and arguments.no_cache:
            raise ValueError("--semantic-cache and --no-cache are both given")
        model = resolve_model(arguments.model, download_from_hub, os.environ)
        with tempfile.TemporaryDirectory(prefix="triserve-") as runtime:
            return asyncio.run(_Up(arguments, model, Path(runtime)).run())
    except PartFailed as error:
        sys.stderr.write(f"triserve up: {_by_options(str(error), arguments)}\n")
        return 1
    except (MissingExtra, ModelUnavailable, PortTaken, ApiError, ValueError, OSError) as error:
        sys.stderr.write(f"triserve up: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130


def _by_options(message: str, arguments: argparse.Namespace) -> str:
    """What a part says, with the options that were given in place of the variables they set."""
    for variable, option, value in (
        ("COMPUTE_MAX_MODEL_LEN_TOKENS", "--max-model-len", arguments.max_model_len),
        ("COMPUTE_DTYPE", "--dtype", arguments.dtype),
    ):
        if value is not None:
            message = message.replace(variable, option)
    return message


class _Up:
    """One run of the command."""

    def __init__(self, arguments: argparse.Namespace, model: ModelFolder, runtime: Path) -> None:
        self._arguments = arguments
        self._stop = asyncio.Event()
        self._redis = find_redis() if not arguments.no_cache else RedisChoice(None, "off")
        self._embedder = choose_embedder(os.environ) if arguments.semantic_cache else None
        port, grpc_port = _gateway_ports(arguments.port, arguments.grpc_port)
        self._config = PipelineConfig(
            model=model,
            port=port,
            grpc_port=grpc_port,
            num_tokenizers=arguments.tokenizers,
            num_samplers=arguments.samplers,
            num_computes=arguments.computes,
            dtype=arguments.dtype,
            max_model_len=arguments.max_model_len,
            cache=not arguments.no_cache,
            redis_program=self._redis.program,
            cache_secret=secrets.token_hex(32),
            num_cores=num_cores(),
            runtime=runtime,
            hang=HangLimits(silence_s=arguments.hang_timeout) if arguments.hang_timeout else None,
            embedder=self._embedder.setting if self._embedder is not None else None,
        )
        self._url = f"http://{HOST}:{port}"
        parts = plan_parts(self._config, free_ports(self._config.num_internal_ports), os.environ)
        terminal = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self._console = Console(sys.stdout, terminal=terminal, names=tuple(part.name for part in parts))
        self._supervisor = Supervisor(parts, self._console, hang=self._config.hang)

    async def run(self) -> int:
        """Runs until a signal or the end of the question asked with --exit-after-ask."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal)
        for line in self._introduction():
            self._console.line(line)
        await self._supervisor.run(self._stop, self._on_ready)
        self._console.line("Everything has stopped.")
        return 0

    def _introduction(self) -> list[str]:
        """What one wants to know at once: what is served and where, how to talk to it, how to end it."""
        config = self._config
        return [
            f"Serving {config.model.name} from {config.model.folder}",
            f"  page    {self._url}",
            f"  API     {self._url}/v1 (OpenAI's), {HOST}:{config.grpc_port} (gRPC)",
            f"  chat    {_chat_command(config.port)}",
            "  stop    Ctrl-C",
            f"  cache   {self._cache_words()}",
            *([f"  similar questions: embedder {self._embedder.words}"] if self._embedder is not None else []),
            "",
        ]

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._supervisor.kill()
        else:
            self._console.line("Stopping. Once more to kill.")
            self._stop.set()

    def _cache_words(self) -> str:
        if not self._config.cache:
            return "off"
        return self._redis.reason if self._redis.program else f"in the gateway's memory alone, {self._redis.reason} was found"

    async def _on_ready(self) -> None:
        if self._arguments.ask is not None:
            await self._ask_first(self._url)
            if self._arguments.exit_after_ask:
                self._stop.set()
                return
        if self._embedder is not None:
            self._console.line(await _semantic_words(self._url))
        for line in _how_to_ask(self._url, self._config.model.name, self._config.port):
            self._console.line(line)

    async def _ask_first(self, url: str) -> None:
        try:
            with self._console.held():
                await _ask(url, self._arguments.ask)
        except ApiError as error:
            if self._arguments.exit_after_ask:
                raise
            self._console.line(f"The question got no answer: {error}")


async def _semantic_words(url: str) -> str:
    """What the semantic cache works with, once it does."""
    async with ApiClient(url, api_key=os.environ.get(API_KEY_VARIABLE, "")) as client:
        for _ in range(_SEMANTIC_TRIES):
            try:
                semantic = (await client.ask("GET", "/v1/cache"))["semantic"]
            except ApiError as error:
                return f"Semantic cache: on; it does not say with what: {error}"
            if semantic and semantic["store"]:
                weak = " (weak: compares spelling)" if semantic["is_weak"] else ""
                return f"Semantic cache: {semantic['mode']}, embedder {semantic['embedder']}{weak}, vectors in {semantic['store']}"
            await asyncio.sleep(_SEMANTIC_TRY_S)
    return "Semantic cache: not ready yet; the gateway's log says why"


def _gateway_ports(port: int, grpc_port: int) -> tuple[int, int]:
    """The ports of the HTTP and the gRPC API, free ones for zeros.

    Raises:
        PortTaken: somebody listens on a port that was asked for.
        ValueError: both are the same.
    """
    for name, value in (("--port", port), ("--grpc-port", grpc_port)):
        if value:
            require_free(value, option=name)
    if port and port == grpc_port:
        raise ValueError(f"--port and --grpc-port are both {port}")
    free_http, free_grpc = free_ports(2)
    return port or free_http, grpc_port or free_grpc


async def _ask(url: str, question: str) -> None:
    """Asks one question and shows the answer on standard output."""
    sys.stdout.write(f"\n> {question}\n")
    key = os.environ.get(API_KEY_VARIABLE, "")
    async with ApiClient(url, api_key=key, key_from=f"the variable {API_KEY_VARIABLE}") as client:
        pieces = client.stream_chat(Conversation("").messages_with(question), {})
        await show_answer(_beginning(pieces), sys.stdout, [])
    sys.stdout.write("\n")
    sys.stdout.flush()


async def _beginning(pieces: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """The first pieces of an answer, whose request ends with the last of them."""
    number = 0
    async with contextlib.aclosing(pieces):
        async for piece in pieces:
            yield piece
            number += 1
            if number == _SHOWN_PIECES:
                yield " ..."
                return


def _chat_command(port: int) -> str:
    return "triserve chat" if port == DEFAULT_PORT else f"triserve chat --url {HOST}:{port}"


def _how_to_ask(url: str, model: str, port: int) -> list[str]:
    return [
        "",
        f"Ready. Open {url} for a chat page, or ask with:",
        f"  {_chat_command(port)}",
        f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\",
        f"""    -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "What is Triserve?"}}], "stream": true}}'""",
        "Ctrl-C stops everything.",
        "",
    ]
