"""The conversation remembers what was said; the interactive program does what is typed."""

from __future__ import annotations

import argparse
import asyncio
import io
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest

from gateway.cli.api import ApiClient, ApiError, Thought
from gateway.cli.chat import Chat, Conversation, add_arguments, explain, printable, request_parameters


class FakeClient(ApiClient):
    """Answers with the number of messages it was sent; breaks off when asked to."""

    def __init__(self) -> None:
        self.sent: list[list[dict[str, str]]] = []

    async def stream_chat(self, messages: object, parameters: object) -> AsyncGenerator[str, None]:
        """The answer, in two pieces."""
        assert isinstance(messages, list)
        self.sent.append(messages)
        question = messages[-1]["content"]
        if question == "think":
            yield Thought("H")
            yield Thought("m.")
        yield f"{len(messages)} "
        if question == "break off":
            raise ApiError("the server broke the answer off")
        if question == "interrupt":
            raise KeyboardInterrupt
        yield "messages"


def type_lines(*lines: str | type[BaseException]) -> tuple[FakeClient, str]:
    """Runs the program on some lines; returns the client and what was shown."""
    typed: Iterator[str | type[BaseException]] = iter([*lines, EOFError])

    def read_line(prompt: str) -> str:
        line = next(typed)
        if isinstance(line, str):
            return line
        raise line

    client, output = FakeClient(), io.StringIO()
    with asyncio.Runner() as runner:
        Chat(client, Conversation(""), {}, read_line=read_line, output=output).run(runner)
    return client, output.getvalue()


def test_an_answer_is_remembered_with_its_question() -> None:
    client, shown = type_lines("a", "b")
    assert client.sent[1] == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "1 messages"},
        {"role": "user", "content": "b"},
    ]
    assert "3 messages\n" in shown


def test_what_the_model_thinks_is_shown_and_no_part_of_its_answer() -> None:
    client, shown = type_lines("think", "b")
    assert "Hm.\n\n1 messages\n" in shown
    assert client.sent[1][1] == {"role": "assistant", "content": "1 messages"}


def test_a_new_conversation_forgets_the_old_one() -> None:
    client, _ = type_lines("a", "/new", "b")
    assert client.sent[1] == [{"role": "user", "content": "b"}]


def test_a_system_prompt_begins_a_new_conversation_with_it() -> None:
    client, _ = type_lines("a", "/system Be brief.", "b", "/system", "c")
    assert client.sent[1] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "b"}]
    assert client.sent[2] == [{"role": "user", "content": "c"}]


def test_what_came_of_a_broken_answer_is_remembered_and_the_program_goes_on() -> None:
    client, shown = type_lines("break off", "b")
    assert client.sent[1][1] == {"role": "assistant", "content": "1 "}
    assert "(the server broke the answer off)" in shown


def test_control_c_stops_the_answer_and_not_the_program() -> None:
    client, shown = type_lines("interrupt", "b")
    assert "(stopped)" in shown
    assert len(client.sent) == 2


def test_control_c_while_nothing_is_written_says_how_to_leave() -> None:
    client, shown = type_lines(KeyboardInterrupt, "a")
    assert "Ctrl-D or /exit leaves" in shown
    assert len(client.sent) == 1


def test_exit_leaves_and_empty_lines_ask_nothing() -> None:
    client, _ = type_lines("", "  ", "/exit", "never asked")
    assert client.sent == []


def test_an_unknown_command_is_not_sent_to_the_model() -> None:
    client, shown = type_lines("/nwe", "/help")
    assert client.sent == []
    assert "There is no /nwe" in shown and "/system TEXT" in shown


def test_a_question_without_any_answer_is_forgotten() -> None:
    conversation = Conversation("")
    conversation.add("a", "")
    assert conversation.messages_with("b") == [{"role": "user", "content": "b"}]


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert printable("a\x1b[2Jb\x07\tc\nd é 好") == "a�[2Jb�\tc\nd é 好"


def test_a_schema_is_the_form_of_every_answer(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text('{"type": "object", "title": "é"}')
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    parameters = request_parameters(parser.parse_args(["--schema", str(file)]))
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object", "title": "é"}}}
    assert parameters == {"response_format": form}
    assert explain(ApiError("cannot be held", field="response_format")) == "--schema: cannot be held"


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"{", "is no JSON: Expecting"), (b"[]", "holds no object"), (b"\xff", "no text in UTF-8"), (b"[" * 100_000, "nested too deep")],
    ids=["no JSON", "no object", "no text", "too deep"],
)
def test_a_file_that_is_no_schema_is_refused_by_what_is_wrong_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, says: str
) -> None:
    file = tmp_path / "schema.json"
    file.write_bytes(content)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--schema", str(file)])
    told = capsys.readouterr().err
    assert "--schema" in told and says in told


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ([], {}),
        (["--temperature", "0", "--seed", "0"], {"temperature": 0.0, "seed": 0}),
        (["--max-tokens", "5", "--priority", "-2"], {"max_tokens": 5, "priority": -2}),
    ],
)
def test_only_options_that_were_given_are_sent(line: list[str], expected: dict[str, float]) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert request_parameters(parser.parse_args(line)) == expected
