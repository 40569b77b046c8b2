"""Whether two answers of the model say the same: a heuristic for counting wrong hits, not a judge.

It errs towards "not the same": a right hit counted as wrong costs hits, a wrong one counted as right hides harm.
"""

from __future__ import annotations

import re

from prompt_cache.semantic.normalise import folded, normalise

# Up to here an answer is a fact, and must be the same words.
_SHORT_WORDS = 12
_LEAST_COSINE = 0.88
_LEAST_OVERLAP = 0.8
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_WORD = re.compile(r"[^\W\d_]+|[\u4e00-\u9fff]")
_NEGATION = re.compile(
    r"\b(?:not|no|never|none|cannot|without|nicht|kein\w*|nie|ohne|nunca|sin|ningún|ninguna?)\b|n't\b|n’t\b|[不没無无未]", re.IGNORECASE
)
_VERDICTS = {
    "yes": True,
    "no": False,
    "ja": True,
    "nein": False,
    "sí": True,
    "si": True,
    "是": True,
    "不": False,
    "否": False,
    "true": True,
    "false": False,
}


def is_same_answer(first: str, second: str, cosine: float | None) -> bool:
    """Whether the second answer would have done in place of the first.

    Short answers must be equal but for case, marks and a sentence around them; long ones must hold the same numbers, deny as often, agree on
    yes or no, and be near.

    Args:
        cosine: Between their embeddings; None where there is none: then most of their words must be the same.
    """
    mine, theirs = folded(first), folded(second)
    if mine == theirs:
        return True
    if not mine or not theirs or _numbers(mine) != _numbers(theirs) or _denials(first) != _denials(second) or not _agree(mine, theirs):
        return False
    left, right = _WORD.findall(mine), _WORD.findall(theirs)
    shorter, longer = sorted((left, right), key=len)
    if len(shorter) <= _SHORT_WORDS:
        return len(longer) <= 2 * _SHORT_WORDS and _is_around(longer, shorter)
    if cosine is not None:
        return cosine >= _LEAST_COSINE
    return len(set(left) & set(right)) >= _LEAST_OVERLAP * len(set(left) | set(right))


def _numbers(text: str) -> list[str]:
    return sorted(_NUMBER.findall(text))


def _denials(text: str) -> int:
    return len(_NEGATION.findall(normalise(text)))


def _agree(mine: str, theirs: str) -> bool:
    verdicts = {_VERDICTS[word] for text in (mine, theirs) if (word := (_WORD.findall(text) or [""])[0]) in _VERDICTS}
    return len(verdicts) < 2


def _is_around(longer: list[str], shorter: list[str]) -> bool:
    """Whether the shorter stands in the longer, word by word: "Paris" in "The capital is Paris"."""
    return any(longer[place : place + len(shorter)] == shorter for place in range(len(longer) - len(shorter) + 1))
