"""How many bytes of a text one token can stand for at most: the length of a text then says that it has too many tokens, before it is encoded.

The bound never refuses a text that would fit. It exists for the tokenizers of most language models, which drop nothing: byte-level BPE and
pieces with bytes as a last resort. One that may drop or merge any stretch of text, such as white space or unknown words, has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

# Unicode's normal forms and lower case make at most four bytes one: a mathematical digit becomes a digit. NFC of a letter with its
# accents makes at most 3.5 bytes one. Checked over all of Unicode by the tests.
UNICODE_SHRINKS = 4.0
_UNICODE_NORMALIZERS = frozenset({"NFC", "NFD", "NFKC", "NFKD", "Lowercase"})
# Those that keep every character, whatever they do at its borders.
_KEEPING_PRE_TOKENIZERS = frozenset({"ByteLevel", "Metaspace", "Digits", "Punctuation", "Split"})
_BYTES = 256
_SPACES = tuple(chr(code) for code in range(0x3001) if chr(code).isspace())


class TokenReach(NamedTuple):
    """How much of a text one token can stand for at most.

    Attributes:
        num_bytes: of UTF-8.
        swallows_space: whether it can stand for any amount of white space besides.
    """

    num_bytes: float
    swallows_space: bool

    def is_exceeded(self, text: str, max_tokens: int) -> bool:
        """Whether a text certainly has more tokens. Quick: a few passes over the text."""
        limit = max_tokens * self.num_bytes
        # Most texts are short: no character has more than four bytes.
        if 4 * len(text) <= limit:
            return False
        num_bytes = len(text) if text.isascii() else len(text.encode())
        if self.swallows_space:
            num_bytes -= sum(text.count(space) * len(space.encode()) for space in _SPACES)
        return num_bytes > limit


def token_reach(definition: Mapping[str, Any], *, aliases: Mapping[str, str]) -> TokenReach | None:
    """What one token can stand for; None = there is no bound, or none is known.

    Args:
        definition: as `tokenizer_definition.prepare` returns it.
        aliases: under which names special tokens stand in texts too.
    """
    model = definition["model"]
    shrinks = _shrinking(definition.get("normalizer"))
    kinds = _pre_tokenizers(definition.get("pre_tokenizer"))
    if shrinks is None or kinds is None:
        return None
    vocab = _pieces(model["vocab"])
    if "ByteLevel" in kinds:
        # A letter of a piece is a byte.
        knows_all = _knows_byte_letters(vocab)
        reach = max(map(len, vocab), default=1)
    else:
        knows_all = bool(model.get("byte_fallback")) and all(f"<0x{byte:02X}>" in vocab for byte in range(_BYTES))
        reach = max((len(piece.encode()) for piece in vocab), default=1)
    if model.get("type", "BPE") not in ("BPE", "Unigram") or not knows_all:
        return None
    added = definition["added_tokens"]
    names = (*(token["content"] for token in added), *aliases.values(), "")
    swallows_space = any(token.get("lstrip") or token.get("rstrip") for token in added)
    return TokenReach(max(reach, *(len(name.encode()) for name in names)) * shrinks, swallows_space)


def _shrinking(normalizer: Mapping[str, Any] | None) -> float | None:
    """How many bytes a normalizer makes one at most; None = any number."""
    if normalizer is None:
        return 1.0
    kind = normalizer.get("type")
    if kind == "Sequence":
        product = 1.0
        for one in normalizer["normalizers"]:
            shrinks = _shrinking(one)
            if shrinks is None:
                return None
            product *= shrinks
        return product
    if kind in _UNICODE_NORMALIZERS:
        return UNICODE_SHRINKS
    if kind in ("Prepend", "ByteLevel"):
        return 1.0
    if kind == "Replace":
        pattern, content = normalizer["pattern"].get("String"), normalizer["content"]
        return max(1.0, len(pattern.encode()) / len(content.encode())) if pattern and content else None
    return None


def _pre_tokenizers(pre_tokenizer: Mapping[str, Any] | None) -> frozenset[str] | None:
    """The kinds of pre-tokenizer in use; None = one of them drops text, or is not known."""
    if pre_tokenizer is None:
        return frozenset()
    kind = str(pre_tokenizer.get("type"))
    if kind == "Sequence":
        kinds = [_pre_tokenizers(one) for one in pre_tokenizer["pretokenizers"]]
        return None if None in kinds else frozenset().union(*(one for one in kinds if one is not None))
    if kind not in _KEEPING_PRE_TOKENIZERS or pre_tokenizer.get("behavior") == "Removed":
        return None
    return frozenset({kind})


def _pieces(vocab: Mapping[str, int] | list[list[Any]]) -> frozenset[str]:
    return frozenset(vocab) if isinstance(vocab, Mapping) else frozenset(piece for piece, _ in vocab)


def _knows_byte_letters(vocab: frozenset[str]) -> bool:
    """Whether all letters that stand for bytes are pieces: printable Latin-1 as itself, the other bytes from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return all(chr(code) in vocab for code in (*printable, *range(0x100, 0x100 + _BYTES - len(printable))))
