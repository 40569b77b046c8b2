"""What each token id stands for: its bytes, whether it is text at all, and whether its neighbours change it."""

from __future__ import annotations

import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")
# Stands before a token where its text is asked for, so that it is not taken for the beginning of a text.
_ANCHOR = "a"


def load_tokenizer(path: Path) -> Tokenizer:
    """Loads a tokenizer.json for decoding alone.

    Merges of a BPE model are left out: only encoding needs them, and they take 40 MB for 150,000 ids.
    """
    definition = json.loads(path.read_text(encoding="utf-8"))
    if definition["model"].get("type") == "BPE":
        definition["model"]["merges"] = []
    return Tokenizer.from_str(json.dumps(definition))


class Vocabulary:
    """The vocabulary of one tokenizer, looked up as it is needed.

    Most decoders write each token as bytes of its own, whatever stands beside it (`independent`). Others, WordPiece for one,
    decide about spaces by the neighbours, and there only `decode` knows the text.

    Args:
        tokenizer: as loaded.
        shows_special_tokens: whether the names of special tokens are text.
    """

    def __init__(self, tokenizer: Tokenizer, *, shows_special_tokens: bool = False) -> None:
        self._tokenizer = tokenizer
        self.shows_special_tokens = shows_special_tokens
        self._decoder = tokenizer.decoder
        # The decoder's own state is small, where the tokenizer's is all its vocabulary.
        steps = [] if self._decoder is None else _steps(json.loads(self._decoder.__getstate__()))
        self._byte_level = [step["type"] for step in steps] == ["ByteLevel"]
        self._byte_fallback = any(step["type"] == "ByteFallback" for step in steps)
        self.independent = self._byte_level or _is_independent(steps)
        """Whether the bytes of a text are those of its tokens one after the other, but for its very beginning."""
        self.one_replacement_per_byte = self._byte_fallback
        """Whether each byte that is no character becomes a U+FFFD, rather than each run that could have begun one."""
        self.texts: dict[int, str] = {}
        """Texts of the tokens met so far whose bytes are whole characters. Filled by `text_bytes`."""
        self.special_names = {token: added.content for token, added in tokenizer.get_added_tokens_decoder().items() if added.special}
        """Special tokens by their ids. They are no text, unless they are shown."""
        self._bytes: dict[int, bytes] = {}
        self._byte_of_char = _byte_level_alphabet() if self._byte_level else {}

    def is_text(self, token: int) -> bool:
        """Whether an id gives text: it is in the vocabulary, and not special or shown all the same."""
        is_shown = self.shows_special_tokens or token not in self.special_names
        return is_shown and self._tokenizer.id_to_token(token) is not None

    @cached_property
    def with_special_tokens(self) -> Vocabulary:
        """The same, with the names of special tokens as text."""
        return self if self.shows_special_tokens else Vocabulary(self._tokenizer, shows_special_tokens=True)

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens as the library has it, special tokens left out unless they are shown."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=not self.shows_special_tokens))

    def text_bytes(self, token: int) -> bytes:
        """What a token adds to a text that has begun, if the vocabulary is `independent`; nothing for an id that is no text."""
        found = self._bytes.get(token)
        if found is None:
            found = self._bytes[token] = self._piece_bytes(self._piece(token)) if self.is_text(token) else b""
            text = found.decode(errors="ignore")
            if text.encode() == found:
                self.texts[token] = text
        return found

    def first_bytes(self, token: int) -> bytes:
        """What a token adds as the first of a text: some decoders drop a space there."""
        if self._byte_level or not self.is_text(token) or self._is_byte(self._piece(token)):
            return self.text_bytes(token)
        return self.decode([token]).encode()

    def own_bytes(self, token: int) -> bytes:
        """The bytes by which log-probabilities name a token: its text in a text, a special token's name, nothing for an unknown id."""
        if token in self.special_names:
            return self._piece(token).encode()
        return self.text_bytes(token) if self.independent else self._after_anchor(self._piece(token)).encode()

    def _piece(self, token: int) -> str:
        """How the vocabulary writes a token; empty for an unknown id."""
        return self._tokenizer.id_to_token(token) or ""

    def _piece_bytes(self, piece: str) -> bytes:
        if self._byte_level:
            # As in the library, a piece with any other character is taken as it is.
            known = all(character in self._byte_of_char for character in piece)
            return bytes(self._byte_of_char[character] for character in piece) if known else piece.encode()
        return bytes([int(piece[3:5], 16)]) if self._is_byte(piece) else self._after_anchor(piece).encode()

    def _is_byte(self, piece: str) -> bool:
        return self._byte_fallback and _BYTE_TOKEN.fullmatch(piece) is not None

    def _after_anchor(self, piece: str) -> str:
        if not piece or self._decoder is None:
            return piece
        return str(self._decoder.decode([_ANCHOR, piece])).removeprefix(_ANCHOR)


def _steps(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    if decoder["type"] == "Sequence":
        return [step for inner in decoder["decoders"] for step in _steps(inner)]
    return [decoder]


def _is_independent(steps: list[dict[str, Any]]) -> bool:
    """Whether no step looks across tokens, but for one space or so at the beginning of the text."""
    fused = False
    for step in steps:
        kind = step["type"]
        if kind == "Strip":
            # More than one character may come from more than the first token; the end of a text is not known while it grows.
            if step["stop"] != 0 or step["start"] > 1:
                return False
        elif kind == "Fuse":
            fused = True
        elif kind not in ("Replace", "ByteFallback", "Metaspace") or fused:
            return False
    return bool(steps)


def _byte_level_alphabet() -> dict[str, int]:
    """The characters by which byte-level tokenizers write the 256 bytes: printable ones as they are, the others from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(others)}
