"""Texts of sequences that were found are those that samplers write of drawn answers, and special tokens are told apart with few questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from gateway.flow.search.steps import Candidate, Step
from gateway.flow.search.writing import Sequenced, special_among, write
from sampler_svc.text.detokenizer import open_detokenizer
from sampler_svc.text.vocabulary import Vocabulary
from triserve.v1 import common_pb2, tokenizer_pb2

TINY = Path(__file__).parents[5] / "tests" / "tiny_model" / "tokenizer.json"


class Decoders:
    """The tokenizer stage on a library's tokenizer; counts what it is asked."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.num_asked = 0

    async def decode(self, request: tokenizer_pb2.DecodeRequest) -> tokenizer_pb2.DecodeResponse:
        """Decodes."""
        self.num_asked += 1
        text = self._tokenizer.decode(list(request.token_ids), skip_special_tokens=request.skip_special_tokens)
        return tokenizer_pb2.DecodeResponse(text=text)


def sentencepiece() -> Tokenizer:
    """Pieces with a mark for a space, bytes for what has no piece, and special tokens: as Llama 2 has it."""
    pieces = {"<unk>": 0, "<s>": 1, "</s>": 2, "\u2581Hello": 3, "\u2581": 4, "wor": 5, "ld": 6, "<think>": 7}
    pieces |= {f"<0x{byte:02X}>": 8 + byte for byte in range(256)}
    definition: dict[str, Any] = json.loads(TINY.read_text())
    definition["model"] = {
        "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None,
        "fuse_unk": True, "byte_fallback": True, "ignore_merges": False, "vocab": pieces, "merges": [],
    }  # fmt: skip
    definition["added_tokens"] = [
        {"id": pieces[name], "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for name in ("<unk>", "<s>", "</s>", "<think>")
    ]
    steps = [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    definition["decoder"] = {"type": "Sequence", "decoders": [*steps, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
    definition["pre_tokenizer"] = definition["normalizer"] = definition["post_processor"] = None
    return Tokenizer.from_str(json.dumps(definition))


def steps_of(tokens: list[int], vocabulary: Vocabulary) -> list[Step]:
    return [Step(Candidate(token, -0.5, vocabulary.own_bytes(token)), ()) for token in tokens]


CASES: list[tuple[str, Tokenizer, list[int], list[int]]] = [
    ("byte-level", Tokenizer.from_file(str(TINY)), [300, 301], [*range(400, 440), 1, *range(5, 60), 4000]),
    ("sentencepiece", sentencepiece(), [3, 5], [3, 4, 5, 6, 8 + 0xC3, 8 + 0xA9, 1, 3, 7, 5, 8 + 0xF0, 8 + 0x9F, 8 + 0x99, 8 + 0x82, 6]),
]


@pytest.mark.parametrize(("tokenizer", "prompt", "tokens"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
@pytest.mark.parametrize("shows", [False, True])
async def test_a_text_is_what_a_sampler_writes_of_the_same_tokens(
    tokenizer: Tokenizer, prompt: list[int], tokens: list[int], shows: bool
) -> None:
    vocabulary = Vocabulary(tokenizer)
    drawn = open_detokenizer(vocabulary.with_special_tokens if shows else vocabulary, prompt)
    stopping = common_pb2.StoppingParams(skip_special_tokens=False if shows else None)
    (found,) = await write([Sequenced(steps_of(tokens, vocabulary), stops=False)], stopping, Decoders(tokenizer), with_logprobs=True)
    assert found.text == "".join(map(drawn.feed, tokens)) + drawn.flush()
    assert "".join(one.text for one in found.logprobs) == found.text
    offset = 0
    for one in found.logprobs:
        assert one.text_offset == offset
        offset += len(one.text)


async def test_names_that_a_parser_looks_for_are_text() -> None:
    tokenizer = sentencepiece()
    steps = steps_of([7, 3, 1], Vocabulary(tokenizer))
    stopping = common_pb2.StoppingParams(spoken_tokens=["<think>"])
    (found,) = await write([Sequenced(steps, stops=False)], stopping, Decoders(tokenizer), with_logprobs=False)
    assert (found.text, found.logprobs, found.finish_reason) == ("<think> Hello", [], "length")


@pytest.mark.parametrize(("tokens", "special", "asked"), [([], set(), 0), ([3, 4, 5], set(), 2), ([3, 1, 7, 4], {1, 7}, 2 + 2 * 4)])
async def test_special_tokens_are_asked_for_one_by_one_only_where_there_are_some(tokens: list[int], special: set[int], asked: int) -> None:
    decoders = Decoders(sentencepiece())
    assert await special_among(tokens, decoders) == special
    assert decoders.num_asked == asked


async def test_the_token_that_ends_an_answer_is_a_token_and_no_text() -> None:
    tokenizer = sentencepiece()
    steps = steps_of([3, 6, 2], Vocabulary(tokenizer))
    for shows in (True, False):
        stopping = common_pb2.StoppingParams(skip_special_tokens=not shows)
        (found,) = await write([Sequenced(steps, stops=True)], stopping, Decoders(tokenizer), with_logprobs=True)
        assert (found.text, found.token_ids, len(found.logprobs), found.finish_reason) == (" Hellold", [3, 6, 2], 2, "stop")
