"""`triserve chat`: asks a server on the terminal, with history, and shows its answers as they come."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, TextIO

from gateway.cli.api import API_KEY_VARIABLE, ApiClient, ApiError, Thought
from gateway.cli.options import api_key, certificates_file, real, schema_file, server_url, whole

with contextlib.suppress(ImportError):
    # Gives `input` a history and editing keys, where the platform has it.
    import readline  # noqa: F401

DEFAULT_URL = "http://127.0.0.1:8000"

_HELP = """\
/new          forget the conversation
/system TEXT  set the system prompt and begin anew; without TEXT, remove it
/help         this list
/exit         leave, as does Ctrl-D
Ctrl-C        stop the answer that is being written"""
# Fields of a request, each an option of the same name with dashes.
_PARAMETERS = ("model", "temperature", "top_p", "top_k", "seed", "max_tokens", "priority")
# What --schema sets.
_FORM = "response_format"
_COMMANDS = ("/new", "/system", "/help", "/exit")


class Conversation:
    """A chat so far. Pure.

    Args:
        system: the system prompt; empty = none.
    """

    def __init__(self, system: str) -> None:
        self.system = system
        self._turns: list[dict[str, str]] = []

    def begin(self, system: str | None = None) -> None:
        """Forgets all turns, and replaces the system prompt if one is given."""
        self._turns = []
        if system is not None:
            self.system = system

    def messages_with(self, question: str) -> list[dict[str, str]]:
        """What to send to get the next answer."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self._turns, {"role": "user", "content": question}]

    def add(self, question: str, answer: str) -> None:
        """Remembers a question with its answer, or with as much of it as came; a question without any answer is forgotten."""
        if answer:
            self._turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def printable(text: str) -> str:
    """The text without control characters, which could do anything to a terminal."""
    return "".join(character if character.isprintable() or character in "\n\t" else "�" for character in text)


async def show_answer(pieces: AsyncGenerator[str, None], output: TextIO, received: list[str]) -> None:
    """Writes an answer as it comes, and ends its line.

    Args:
        pieces: of its text.
        output: where to.
        received: is given every piece but thoughts, so that the caller has what came if this is cancelled.
    """
    is_thinking = False
    try:
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                if is_thinking and not isinstance(piece, Thought):
                    output.write("\n\n")
                is_thinking = isinstance(piece, Thought)
                if not is_thinking:
                    received.append(piece)
                output.write(printable(piece))
                output.flush()
    finally:
        output.write("\n")
        output.flush()


class Chat:
    """The interactive program.

    Args:
        client: the server.
        conversation: to go on with.
        parameters: further fields of each request.
        read_line: asks for a line; raises EOFError at the end and KeyboardInterrupt on Ctrl-C, as `input` does.
        output: where answers go.
    """

    def __init__(
        self,
        client: ApiClient,
        conversation: Conversation,
        parameters: Mapping[str, Any],
        *,
        read_line: Callable[[str], str],
        output: TextIO,
    ) -> None:
        self._client = client
        self._conversation = conversation
        self._parameters = parameters
        self._read_line = read_line
        self._output = output

    def run(self, runner: asyncio.Runner) -> None:
        """Reads and answers until the end of input or /exit.

        Args:
            runner: runs each answer; it turns Ctrl-C into the end of that answer.
        """
        while True:
            try:
                line = self._read_line("> ").strip()
            except EOFError:
                self._say("")
                return
            except KeyboardInterrupt:
                self._say("\nCtrl-D or /exit leaves.")
                continue
            if line == "/exit":
                return
            if line.startswith("/"):
                self._command(line)
            elif line:
                self._ask(line, runner)

    def _command(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        if name == "/new":
            self._conversation.begin()
            self._say("A new conversation.")
        elif name == "/system":
            self._conversation.begin(rest.strip())
            self._say("A new conversation, with that system prompt." if rest.strip() else "A new conversation, without a system prompt.")
        elif name == "/help":
            self._say(_HELP)
        else:
            self._say(f"There is no {name}; there are {', '.join(_COMMANDS)}.")

    def _ask(self, question: str, runner: asyncio.Runner) -> None:
        received: list[str] = []
        try:
            pieces = self._client.stream_chat(self._conversation.messages_with(question), self._parameters)
            runner.run(show_answer(pieces, self._output, received))
        except KeyboardInterrupt:
            self._say("(stopped)")
        except ApiError as error:
            self._say(f"({explain(error)})")
        self._conversation.add(question, "".join(received))

    def _say(self, text: str) -> None:
        self._output.write(f"{text}\n")
        self._output.flush()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_server_arguments(parser)
    parser.add_argument("--system", metavar="TEXT", default="", help="system prompt")
    parser.add_argument("--question", metavar="TEXT", help="ask this, show the answer, and leave")
    parser.add_argument("--model", metavar="NAME", help="name of the model (default: the one that is served)")
    parser.add_argument(
        "--schema", type=schema_file, metavar="FILE", help="answers are JSON that the JSON schema in this file allows (default: any text)"
    )
    parser.add_argument("--temperature", type=real(0), help="0 = always the likeliest token (default: the model author's)")
    parser.add_argument("--top-p", type=real(0, 1), dest="top_p", help="draw from the likeliest tokens that together have this probability")
    parser.add_argument("--top-k", type=whole(-1), dest="top_k", help="draw from so many of the likeliest tokens")
    parser.add_argument("--seed", type=whole(-(2**63), 2**63 - 1), help="the same seed gives the same answer")
    parser.add_argument("--max-tokens", type=whole(1), dest="max_tokens", help="longest answer (default: as long as the model can)")
    parser.add_argument(
        "--priority", type=whole(-(2**31), 2**31 - 1), help="lower is sooner; a number below 0 needs a key that grants it (default: 0)"
    )


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of every command that asks a server."""
    parser.add_argument(
        "--url", type=server_url, default=DEFAULT_URL, metavar="HOST:PORT", help="address of the server (default: %(default)s)"
    )
    parser.add_argument(
        "--api-key",
        type=api_key,
        metavar="KEY",
        default=os.environ.get(API_KEY_VARIABLE, ""),
        help=f"key of the server, if it asks for one (default: the variable {API_KEY_VARIABLE})",
    )
    parser.add_argument(
        "--ca",
        type=certificates_file,
        metavar="FILE",
        help="what the certificate of an https:// server is checked against (default: what this machine trusts, or the variable SSL_CERT_FILE)",
    )


def request_parameters(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of a request that the options set."""
    parameters = {name: value for name in _PARAMETERS if (value := getattr(arguments, name)) is not None}
    if arguments.schema is not None:
        parameters[_FORM] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": arguments.schema}}
    return parameters


def explain(error: ApiError) -> str:
    """What went wrong, with the option before it that set what the server refuses."""
    if error.field.partition(".")[0] == _FORM:
        return f"--schema: {error}"
    return f"--{error.field.replace('_', '-')}: {error}" if error.field in _PARAMETERS else str(error)


def run(arguments: argparse.Namespace) -> int:
    """Chats; returns the exit status."""
    conversation = Conversation(arguments.system)
    parameters = request_parameters(arguments)
    with asyncio.Runner() as runner:
        client = runner.run(_make_client(arguments))
        try:
            if arguments.question is not None:
                pieces = client.stream_chat(conversation.messages_with(arguments.question), parameters)
                runner.run(show_answer(pieces, sys.stdout, []))
                return 0
            sys.stdout.write(f"Chatting with {arguments.url}. /help shows what else there is.\n")
            Chat(client, conversation, parameters, read_line=input, output=sys.stdout).run(runner)
            return 0
        except ApiError as error:
            sys.stderr.write(f"triserve chat: {explain(error)}\n")
            return 1
        except KeyboardInterrupt:
            return 130
        finally:
            runner.run(client.close())


async def _make_client(arguments: argparse.Namespace) -> ApiClient:
    return ApiClient(arguments.url, api_key=arguments.api_key, ca=arguments.ca)
