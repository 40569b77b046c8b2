"""Splits a question into words, numbers, marks and what must be read to the letter."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

TokenKind = Literal["word", "number", "verbatim", "han", "pause"]


class Token(NamedTuple):
    """A piece of a question.

    Attributes:
        kind: What it is.
        surface: As written, without the marks around code.
        lower: Folded, for the tables.
        ends_sentence: A pause that is more than a comma.
    """

    kind: TokenKind
    surface: str
    lower: str
    ends_sentence: bool = False


_HAN = "\u3400-\u4dbf\u4e00-\u9fff\u3007"
_TOKEN = re.compile(
    rf"""
    (?P<code>```.+?```|`[^`]+`)
  | (?P<url>(?:https?|ftp|wss?)://[^\s<>"'`）)]*[^\s<>"'`）).,;:!?]|\bwww\.[^\s<>"')]*\w)
  | (?P<email>[\w.+-]{1, 64}@[\w-]{1, 64}(?:\.[\w-]{1, 64})+)
  | (?P<path>(?<![\w/.])(?:~|\.{{1,2}})?/[\w.*-]*\w(?:/[\w.*-]*\w)*/?|\b[A-Za-z]:\\\S+)
  | (?P<flag>(?<![\w-])--?[A-Za-z][\w-]*)
  | (?P<call>[A-Za-z_]\w*(?:(?:\.|::|->)\w+)*\(\)?(?:[^()\s]*\))?(?<=\)))
  | (?P<name>[A-Za-z]\w*(?:::|->)[\w:>-]*\w|[^\W_{_HAN}]*_\w+|(?<![\w.])[A-Za-z]{{2,}}(?:\.[A-Za-z]\w+)+)
  | (?P<number>[$€£¥]?(?<![\w.])-?\d[\d.,:]*\d(?:[a-z]{{1,4}}\b|%|°[CF]?)?|[$€£¥]?(?<![\w.])-?\d(?:[a-z]{{1,4}}\b|%|°[CF]?)?)(?![A-Za-z\d_])[%€£¥]?
  | (?P<mixed>[^\W_{_HAN}]*\d[^\W_{_HAN}]*)
  | (?P<han>[{_HAN}]+)
  | (?P<word>[^\W\d_{_HAN}]+(?:['’][^\W\d_]+)*(?:\+\+|\#)?)
  | (?P<stop>[.!?;。！？；…¿¡]+)
  | (?P<pause>[,:，、：—–()（）]|(?<=\s)-(?=\s))
    """,
    re.VERBOSE | re.DOTALL,
)
_VERBATIM = frozenset({"code", "url", "email", "path", "flag", "call", "name"})
# First halves that belong to the word after the hyphen.
_JOINED_LIST = """
e wi on off co re pre hi non un in de dis anti multi sub over under semi auto self
"""
_JOINED = frozenset(_JOINED_LIST.split())


def tokens(text: str) -> list[Token]:
    """The pieces of a normalised text, in order; marks that mean nothing here are left out."""
    return list(_joined(_TOKEN.finditer(text), text))


def _joined(matches: Iterator[re.Match[str]], text: str) -> Iterator[Token]:
    prefix = ""
    for match in matches:
        kind, piece = match.lastgroup, match.group()
        if kind == "word" and text[match.end() : match.end() + 1] == "-" and piece.lower() in _JOINED and not prefix:
            prefix = piece
            continue
        if prefix and kind != "word":
            yield Token("word", prefix, prefix.casefold())
            prefix = ""
        if kind in _VERBATIM:
            plain = piece.strip("`").strip()
            yield Token("verbatim", plain, plain)
        elif kind in ("number", "mixed"):
            yield Token("number", piece, piece.casefold())
        elif kind == "han":
            yield Token("han", piece, piece)
        elif kind in ("stop", "pause"):
            yield Token("pause", piece, piece, kind == "stop")
        else:
            word = prefix + piece
            prefix = ""
            yield Token("word", word, word.casefold().replace("’", "'"))
    if prefix:
        yield Token("word", prefix, prefix.casefold())


_CONTRACTED = {"can't": "can not", "won't": "will not", "cannot": "can not", "shan't": "shall not", "let's": "let", "y'all": "you"}
_ENDINGS = {"re": "are", "ve": "have", "ll": "will", "d": "would", "m": "am"}
_TAKE_IS = frozenset(["what", "who", "where", "when", "why", "how", "that", "it", "there", "here", "he", "she", "this", "which", "whats"])


def expanded(found: list[Token]) -> list[Token]:
    """English tokens without contractions and possessive endings."""
    result = []
    for token in found:
        if token.kind != "word" or ("'" not in token.lower and token.lower not in _CONTRACTED):
            result.append(token)
            continue
        stem, _, ending = token.lower.rpartition("'")
        if token.lower in _CONTRACTED:
            words = _CONTRACTED[token.lower].split()
        elif ending == "t" and stem.endswith("n"):
            words = [stem[:-1], "not"]
        elif ending in _ENDINGS:
            words = [stem, _ENDINGS[ending]]
        elif ending == "s":
            words = [stem, "is"] if stem in _TAKE_IS else [stem]
        else:
            words = [token.lower]
        surface = token.surface[: len(words[0])] if words[0] == stem or token.lower.startswith(words[0]) else words[0]
        result.append(Token("word", surface, words[0]))
        result.extend(Token("word", word, word) for word in words[1:])
    return result
