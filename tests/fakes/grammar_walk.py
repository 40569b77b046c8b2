"""Draws any answer that a grammar allows, as a sampler that bans all else would let a model draw it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np

from sampler_svc.grammars import GrammarCompiler
from sampler_svc.text.vocabulary import Vocabulary, load_tokenizer
from tests.fakes.sampler_tokenizers import byte_tokenizer
from triserve.rpc.sampling import Grammar
from triserve.rpc.token_mask import unpacked
from triserve.v1 import common_pb2

_EOS = "<eos>"
# What ends strings, numbers and lists: without a liking for them few answers would end.
_ENDING = frozenset(b'"}])0')
_MOST_TOKENS = 500


class Walker:
    """Walks through grammars, over bytes and special tokens.

    Args:
        folder: of its own.
        special: names of special tokens; others are written out.
    """

    def __init__(self, folder: Path, special: Sequence[str] = ()) -> None:
        path = folder / "tokenizer.json"
        byte_tokenizer(special=(_EOS, *special)).save(str(path))
        vocabulary = Vocabulary(load_tokenizer(path))
        self._names = vocabulary.special_names
        self._eos = next(token for token, name in self._names.items() if name == _EOS)
        self._width = 256 + len(self._names)
        self._compiler = GrammarCompiler(path, vocabulary)

    def walk(self, grammar: common_pb2.Grammar, random: Random) -> str | None:
        """The text of an answer, names of special tokens in it; None = it was cut off."""
        state = self._compiler.open(Grammar.read(grammar), self._width, [self._eos], [])
        text = b""
        for _ in range(_MOST_TOKENS):
            allowed = np.flatnonzero(unpacked(state.allowed(), self._width)).tolist()
            ending = [token for token in allowed if token in _ENDING]
            token = random.choice(ending if ending and random.random() < 0.4 else allowed)
            if token == self._eos or (self._eos in allowed and random.random() < 0.2):
                return text.decode()
            text += self._names[token].encode() if token in self._names else bytes([token])
            assert state.advance([token])
            if state.is_over:
                return text.decode()
        return None

    def allows(self, grammar: common_pb2.Grammar, text: str) -> bool:
        """Whether a text, with the names of special tokens in it, is of the grammar."""
        state = self._compiler.open(Grammar.read(grammar), self._width, [self._eos], [])
        return all(state.advance([token]) for token in self._tokens(text)) and state.is_whole

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = []
        while text:
            token = next((token for token, name in self._names.items() if text.startswith(name)), None)
            ids += text[0].encode() if token is None else [token]
            text = text[1:] if token is None else text.removeprefix(self._names[token])
        return ids
