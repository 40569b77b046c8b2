"""Grammars: what is allowed is what can go on to a whole text, what is refused says why, and an answer ends when nothing can follow."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampler_svc.grammar_check.checker import Checked
from sampler_svc.grammar_check.source import Written, source_of
from sampler_svc.grammars import GrammarCompiler, GrammarState
from sampler_svc.text.vocabulary import Vocabulary, load_tokenizer
from tests.fakes.sampler_tokenizers import byte_tokenizer, llama_decoder, tokenizer_of
from triserve.rpc.errors import InvalidRequest
from triserve.rpc.sampling import Grammar
from triserve.rpc.token_mask import MAX_FORCED_TOKENS, unpacked

WORDS = ("true", '{"', '":', "10", "name", "ab", "abc")
WIDTH = 256 + len(WORDS) + 1
EOS = WIDTH - 1


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> GrammarCompiler:
    path = tmp_path_factory.mktemp("model") / "tokenizer.json"
    byte_tokenizer(*WORDS).save(str(path))
    return GrammarCompiler(path, Vocabulary(load_tokenizer(path)))


def text_of(tokens: Sequence[int]) -> str:
    return b"".join(bytes([token]) if token < 256 else WORDS[token - 256].encode() for token in tokens).decode()


def allowed(state: GrammarState, width: int = WIDTH) -> list[int]:
    return np.flatnonzero(unpacked(state.allowed(), width)).tolist()


def opened(
    compiler: GrammarCompiler, kind: str, text: str, *, stops: Sequence[int] = (EOS,), generated: Sequence[int] = ()
) -> GrammarState:
    return compiler.open(Grammar(kind, text), WIDTH, stops, generated)


def refusal(compiler: GrammarCompiler, kind: str, text: str) -> str:
    with pytest.raises(InvalidRequest) as caught:
        opened(compiler, kind, text)
    assert caught.value.field == "grammar"
    return caught.value.message


def walk(state: GrammarState, pick: st.DataObject, most: int = 200) -> str | None:
    """Any allowed tokens to the end; None = it has not ended."""
    tokens: list[int] = []
    while len(tokens) < most:
        ids = allowed(state)
        assert ids, "something is always allowed until the text is whole"
        token = pick.draw(st.sampled_from(ids))
        if token == EOS:
            return text_of(tokens)
        tokens.append(token)
        assert state.advance([token])
        if state.is_over:
            return text_of(tokens)
    return None


def test_every_token_that_can_go_on_is_allowed_and_no_other(compiler: GrammarCompiler) -> None:
    state = opened(compiler, "regex", "(abc|ab!)x?")
    ab, abc = 256 + WORDS.index("ab"), 256 + WORDS.index("abc")
    assert allowed(state) == [ord("a"), ab, abc]
    state.advance([ab])
    assert allowed(state) == [ord("!"), ord("c")]
    state.advance([ord("!")])
    assert allowed(state) == [ord("x"), EOS], "it may end here, and may go on"
    assert state.is_whole and not state.is_over
    state.advance([ord("x")])
    assert state.is_over


def test_stop_ids_are_allowed_where_the_text_is_whole_and_nowhere_else(compiler: GrammarCompiler) -> None:
    state = opened(compiler, "regex", "a+", stops=(EOS, ord("a"), 7))
    assert allowed(state) == [], "one that would end it before it is whole cannot be drawn"
    state = opened(compiler, "regex", "a+", stops=(EOS, 6, 7))
    assert allowed(state) == [ord("a")]
    state.advance([ord("a")])
    assert allowed(state) == [6, 7, ord("a"), EOS]


def test_a_token_that_is_not_allowed_is_told(compiler: GrammarCompiler) -> None:
    assert not opened(compiler, "regex", "ab").advance([ord("b")])


def test_an_answer_goes_on_behind_what_was_generated_before(compiler: GrammarCompiler) -> None:
    state = opened(compiler, "regex", "abc", generated=[ord("a"), ord("b")])
    assert allowed(state) == [ord("c")]
    for generated, says in ([[ord("b")], "does not allow"], [[ord("a"), ord("b"), ord("c")], "has ended"]):
        with pytest.raises(InvalidRequest, match=str(says)):
            opened(compiler, "regex", "abc", generated=generated)  # type: ignore[arg-type]


def test_states_of_one_grammar_do_not_share_where_they_are(compiler: GrammarCompiler) -> None:
    first, second = opened(compiler, "regex", "[xy]z|y"), opened(compiler, "regex", "[xy]z|y")
    first.advance([ord("x")])
    assert allowed(first) == [ord("z")]
    assert allowed(second) == [ord("x"), ord("y")]


def test_a_text_of_which_there_is_only_one_is_written_in_as_few_tokens_as_there_are(compiler: GrammarCompiler) -> None:
    state = opened(compiler, "regex", "x?ab10")
    state.advance([ord("x")])
    assert allowed(state) == [256 + WORDS.index("ab")]


@pytest.mark.parametrize("width", [100, WIDTH, 1000])
def test_a_mask_has_a_bit_for_each_logit_whatever_the_tokenizers_size(compiler: GrammarCompiler, width: int) -> None:
    mask = compiler.open(Grammar("regex", "[a-z]+"), width, (), ()).allowed()
    assert len(mask) == -(-width // 8)
    assert allowed(compiler.open(Grammar("regex", "a"), width, (), ()), width) == ([ord("a")] if width > ord("a") else [])


def test_what_can_but_come_next_is_told_and_is_what_masks_would_allow_one_by_one(compiler: GrammarCompiler) -> None:
    state = opened(compiler, "regex", '\\{"name": (10|ab)!')
    run = state.forced()
    assert text_of(run) == '{"name": '
    assert state.forced() == run and allowed(state) == run[:1], "it is told without going on"
    assert state.advance(run[:2]) and state.forced() == run[2:]
    assert state.advance(run[2:]) and state.forced() == []
    assert state.advance([ord("a")])
    assert text_of(state.forced()) == "b!" and not state.is_over
    assert state.advance(state.forced()) and state.is_over and state.forced() == []


def test_what_can_but_come_next_is_no_more_than_so_much_and_nothing_else_may_come(compiler: GrammarCompiler) -> None:
    state = opened(compiler, "regex", "!{100}")
    assert state.forced() == [ord("!")] * MAX_FORCED_TOKENS
    assert state.advance([ord("!")] * 50) and len(state.forced()) == 50
    assert not state.advance([ord("?")])


def test_where_the_text_may_end_there_is_a_choice(compiler: GrammarCompiler) -> None:
    assert text_of(opened(compiler, "regex", "x(yz)?").forced()) == "x"
    assert text_of(opened(compiler, "regex", "x(yz)?", stops=()).forced()) == "xyz", "unless nothing can end it"


def test_too_complex_a_text_ahead_is_told_where_the_answer_comes_to_it(compiler: GrammarCompiler) -> None:
    state = opened(compiler, "lark", 'start: s\ns: s s s s | s s s | s s | "!"', stops=())
    run: list[int] = []
    while more := state.forced():
        run += more
        assert state.advance(more)
    assert len(run) > 5
    with pytest.raises(InvalidRequest, match="too complex"):
        state.advance([ord("!")])


@given(st.data(), st.sampled_from(["(abc|ab!)x?", '\\{"name": (true|10)\\}', "(ab|abab)*!!!", "[0-9]{2}-true-[ab]"]))
def test_looking_ahead_changes_no_mask(compiler: GrammarCompiler, pick: st.DataObject, expression: str) -> None:
    ahead, plain = opened(compiler, "regex", expression), opened(compiler, "regex", expression)
    for _ in range(30):
        run = ahead.forced() if pick.draw(st.booleans()) else []
        if len(run) > 1:
            assert allowed(plain) == run[:1]
        assert (ahead.allowed(), ahead.is_whole, ahead.is_over) == (plain.allowed(), plain.is_whole, plain.is_over)
        token = pick.draw(st.sampled_from(allowed(plain)))
        if token == EOS:
            break
        assert ahead.advance([token]) and plain.advance([token])
        if plain.is_over:
            break
    assert ahead.is_over == plain.is_over


SCHEMAS = [
    {"type": "object", "properties": {"name": {"type": "string", "maxLength": 5}, "n": {"type": "integer"}}, "required": ["name", "n"]},
    {"type": "object", "properties": {"a": {"enum": ["x", 1, None, True]}}, "required": ["a"], "additionalProperties": False},
    {
        "type": "array",
        "items": {"anyOf": [{"type": "boolean"}, {"type": "number", "minimum": 0, "maximum": 99}]},
        "minItems": 1,
        "maxItems": 3,
    },
    {"$defs": {"t": {"type": "object", "properties": {"t": {"$ref": "#/$defs/t"}}, "additionalProperties": False}}, "$ref": "#/$defs/t"},
    {"type": "string", "pattern": "^[0-9]{2}-[a-f]+$"},
    {"type": "string", "format": "date"},
    {"const": {"k": [1, "ü"]}},
]


@given(st.data(), st.sampled_from(SCHEMAS))
def test_whatever_is_drawn_a_text_that_has_ended_is_what_its_schema_allows(
    compiler: GrammarCompiler, pick: st.DataObject, schema: dict[str, object]
) -> None:
    text = walk(opened(compiler, "json_schema", json.dumps(schema)), pick)
    if text is not None:
        jsonschema.validate(json.loads(text), schema)


@given(st.data(), st.sampled_from(["[a-c]{2,5}", "(ab|abc)*d", "yes|no", r"[0-9]{1,3}(\.[0-9]+)?"]))
def test_whatever_is_drawn_a_text_that_has_ended_is_what_its_expression_matches(
    compiler: GrammarCompiler, pick: st.DataObject, expression: str
) -> None:
    text = walk(opened(compiler, "regex", expression), pick, most=40)
    assert text is None or re.fullmatch(expression, text)


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        ("regex", "(", "unclosed group"),
        ("regex", "a(?=b)", "look-around"),
        ("lark", "start: x", "unknown name"),
        ("lark", "nothing", "grammar cannot be held"),
        ("json_schema", "[1", "it is no JSON"),
        ("json_schema", "[" * 100_000, "it is no JSON"),
        ("json_schema", "3", "neither an object nor a boolean"),
        ("json_schema", "false", "grammar cannot be held"),
        ("json_schema", '{"allOf":[' * 500 + "{}" + "]}" * 500, "it is no JSON"),
        ("regex", "", "the empty text alone"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_held_is_refused_and_says_why(compiler: GrammarCompiler, kind: str, text: str, says: str) -> None:
    message = refusal(compiler, kind, text)
    assert says in message
    assert len(message) < 400 and message.isprintable()


def test_a_grammar_that_grows_too_complex_ends_its_answer_with_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    byte_tokenizer(*WORDS).save(str(path))
    few = GrammarCompiler(path, Vocabulary(load_tokenizer(path)), {"max_lexer_states": 30})
    state = few.open(Grammar("regex", "(a|b)*a(a|b){9}"), WIDTH, [EOS], [])
    with pytest.raises(InvalidRequest, match=r"too many states[^<⟦]*$"):
        for step in range(200):
            assert state.advance([ord("a") if step % 3 else ord("b")])


def test_a_grammar_that_can_be_read_in_ever_more_ways_ends_its_answer_with_a_reason(compiler: GrammarCompiler) -> None:
    state = opened(compiler, "lark", 'start: s\ns: s s s | s s | "a" | "aa" | "aaa" | "b"')
    with pytest.raises(InvalidRequest, match="too complex"):
        for step in range(500):
            assert state.advance([ord("ab"[step % 3 == 1])]), "it is allowed"


def test_an_id_behind_the_tokenizers_last_is_never_allowed(compiler: GrammarCompiler) -> None:
    state = compiler.open(Grammar("regex", "a?"), WIDTH + 8, [], [])
    assert state.is_whole and allowed(state, WIDTH + 8) == [ord("a")]


def test_compiled_grammars_are_kept_and_only_so_many(compiler: GrammarCompiler) -> None:
    for number in range(1100):
        opened(compiler, "regex", f"a{{{number + 1}}}")
    assert len(compiler._kept) <= 1024
    assert Grammar("regex", "a{1100}") in compiler._kept and Grammar("regex", "a{1}") not in compiler._kept


def test_compiled_grammars_are_kept_while_their_memory_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    byte_tokenizer(*WORDS).save(str(path))
    compiler = GrammarCompiler(path, Vocabulary(load_tokenizer(path)))
    for number in range(4):
        grammar = Grammar("regex", f"a{{{number + 1}}}")
        compiler.open(grammar, WIDTH, (EOS,), (), Checked(source_of(Written(grammar.kind, grammar.text), {}), 30 << 20))
    assert [grammar.text for grammar in compiler._kept] == ["a{3}", "a{4}"]


def test_tokenizers_that_write_spaces_in_their_own_way_are_bound_too(tmp_path: Path) -> None:
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁yes", "yes", "▁no", "no"]
    path = tmp_path / "tokenizer.json"
    tokenizer_of(pieces, llama_decoder(), special=("</s>",)).save(str(path))
    state = GrammarCompiler(path, Vocabulary(load_tokenizer(path))).open(Grammar("regex", " ?yes"), len(pieces) + 1, [len(pieces)], [])
    assert {pieces[token] for token in allowed(state, len(pieces) + 1)} == {"▁yes", "yes", "<0x20>", "<0x79>"}


def test_a_refusal_quotes_no_line_of_the_grammar(compiler: GrammarCompiler) -> None:
    message = refusal(compiler, "lark", 'start: "secret" args\nargs: %json {"not": {}}')
    assert "not" in message and "secret" not in message


MARKS = ("<call>", "[T]")
NAMED = WIDTH - 1


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> GrammarCompiler:
    path = tmp_path_factory.mktemp("marked") / "tokenizer.json"
    byte_tokenizer(*WORDS, special=("<call>", "<eos>")).save(str(path))
    return GrammarCompiler(path, Vocabulary(load_tokenizer(path)))


def is_whole(compiler: GrammarCompiler, grammar: Grammar, text: Sequence[int | str]) -> bool:
    state = compiler.open(grammar, WIDTH + 1, (WIDTH,), ())
    tokens = [token for part in text for token in ([part] if isinstance(part, int) else part.encode())]
    return all(state.advance([token]) for token in tokens) and state.is_whole


@pytest.mark.parametrize(("number", "mark"), [(0, NAMED), (1, "[T]")], ids=["a special token", "text"])
def test_a_marker_is_its_special_token_or_else_its_text(marked: GrammarCompiler, number: int, mark: int | str) -> None:
    state = marked.open(Grammar("lark", f"start: marker_{number}", "", MARKS), WIDTH + 1, (WIDTH,), ())
    assert allowed(state, WIDTH + 1) == [mark if isinstance(mark, int) else ord("[")]
    until = Grammar("lark", f'start: until_{number} "!"', "", MARKS)
    for before in ("", "a", "<<cal<call", "[[T", "é漢\n"):
        assert is_whole(marked, until, [before, mark, "!"])
    assert not is_whole(marked, until, ["a!"]) and not is_whole(marked, until, ["a", mark, "b!"])
    if isinstance(mark, int):
        assert not is_whole(marked, until, ["<call>!"]), "its letters are not the token"


@pytest.mark.parametrize("marker", ["<call>", "[T]", "x", "ab<ab", "aab", "<" + "c" * 63])
@given(st.data())
def test_a_text_without_a_marker_is_any_other_text(compiler: GrammarCompiler, marker: str, pick: st.DataObject) -> None:
    text = pick.draw(st.lists(st.sampled_from([*marker, marker, marker[:-1], "é", "\n"]), max_size=12).map("".join))
    grammar = Grammar("lark", "start: WITHOUT_0", "", (marker,))
    state = compiler.open(grammar, WIDTH, (EOS,), ())
    assert (all(state.advance([token]) for token in text.encode()) and state.is_whole) is (marker not in text)


FRAMED = {"json_schema": ('{"const": {"a": 1}}', '{"a": 1}'), "regex": ("a[/]b+", "a/bb"), "lark": ('start: x\nx: "(" x? ")"', "(())")}


@pytest.mark.parametrize("kind", FRAMED)
def test_a_frame_says_what_stands_around_a_text_of_any_kind(marked: GrammarCompiler, kind: str) -> None:
    grammar, text = FRAMED[kind]
    framed = Grammar(kind, grammar, 'start: (marker_0 until_1)? @text "!"?', frame_markers=MARKS)
    wholes: list[list[int | str]] = [[text], [text, "!"], [NAMED, "[T]", text], [NAMED, "so [T", "[T]", text, "!"]]
    others: list[list[int | str]] = [[], ["so ", text], [NAMED, text], [NAMED, "[T]x"]]
    assert all(is_whole(marked, framed, whole) for whole in wholes)
    assert not any(is_whole(marked, framed, other) for other in others)


def test_a_special_token_that_no_marker_names_is_never_allowed(marked: GrammarCompiler) -> None:
    state = marked.open(Grammar("lark", "start: until_1", "", MARKS), WIDTH + 1, (WIDTH,), ())
    assert not {NAMED, WIDTH} & set(allowed(state, WIDTH + 1))


@pytest.mark.parametrize("frame", ["start: @nothing", "start: marker_2", "start"])
def test_a_frame_that_refers_to_what_there_is_not_is_refused(compiler: GrammarCompiler, frame: str) -> None:
    with pytest.raises(InvalidRequest, match="grammar cannot be held"):
        compiler.open(Grammar("regex", "a", frame, frame_markers=MARKS), WIDTH, (EOS,), ())
