"""Code, addresses and operators: one character more is another thing."""

from __future__ import annotations

import re
from collections import Counter

from prompt_cache.semantic.parsing.items import Question

# Operators and brackets of programs and formulas; a hyphen and a slash between words are neither.
_SYMBOLS = re.compile(
    r"(?<!\d)(?<!\d )%|&&|(?<![^\W\d]\s)&|[+*^=<>|\\{}\[\]~@#×÷≤≥≠√∑∫π]|(?<!\w)-(?=\d)|(?<=\s)[-−](?=\s)|(?<![^\W\d])/|/(?![^\W\d])"
)

_CODE_MARK = re.compile(r"[{}\[\]\\^=<>|;*$&](?=.)|\w[$^*]$|\(\)")


def check(asked: Question, kept: Question) -> str | None:
    """Refuses unless each piece of code, path, address, flag and identifier of one stands in the other, with the same operators around."""
    for one, other in ((asked, kept), (kept, asked)):
        pieces = {item.surface for item in other.of("verbatim")}
        for item in one.of("verbatim"):
            if item.surface not in pieces and not _stands_in(item.surface, other.text):
                return f"{item.surface!r} in one alone"
    mine, theirs = _code_words(asked.text), _code_words(kept.text)
    if mine != theirs:
        return f"{' '.join((mine - theirs).elements()) or 'no code'} against {' '.join((theirs - mine).elements()) or 'no code'}"
    mine, theirs = Counter(_SYMBOLS.findall(asked.text)), Counter(_SYMBOLS.findall(kept.text))
    if mine != theirs:
        return f"symbols {' '.join((mine - theirs).elements()) or 'none'} against {' '.join((theirs - mine).elements()) or 'none'}"
    return None


def _code_words(text: str) -> Counter[str]:
    """Words that hold marks of programs, without the punctuation of the sentence."""
    return Counter(word.strip(".,!?:;\"'`") for word in text.split() if _CODE_MARK.search(word))


def _stands_in(piece: str, text: str) -> bool:
    before = r"(?<![\w/.-])" if piece[:1].isalnum() or piece[:1] in "/-_." else ""
    after = r"(?![\w/-])" if piece[-1:].isalnum() or piece[-1:] in "/-_" else ""
    return re.search(before + re.escape(piece) + after, text) is not None
