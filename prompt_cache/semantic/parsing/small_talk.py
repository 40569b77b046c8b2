"""What English questions are wrapped in and what says nothing of them: greetings, thanks, "I'd appreciate it if you could"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from prompt_cache.semantic.parsing.tables.english_phrases import ENGLISH_REQUESTS
from prompt_cache.semantic.parsing.tokens import Token

# A sentence made of these alone says nothing about what is asked.
_SMALL_TALK_WORDS = """
hello hi hey dear good morning afternoon evening day everyone everybody all folks guys team support there sir madam thanks thank you many a lot so very much
for your help time patience support reply answer assistance earlier again in advance cheers sorry to bother disturb trouble if this is it might be may sounds
an silly stupid dumb basic simple obvious strange odd question questions but i am have one more quick last small short simple other another thing just bit little
stuck confused here hope doing well fine nice great please any are you would appreciated greatly appreciate kind warm best regards wishes
"""
_SMALL_TALK = frozenset(_SMALL_TALK_WORDS.split())
# One of these must be there: "so am I" is no small talk.
_MARKS_WORDS = """
hello hi hey dear thanks thank cheers sorry question questions thing regards wishes morning afternoon evening stuck confused one appreciated appreciate hope please
"""
_MARKS = frozenset(_MARKS_WORDS.split())
_SIGN_OFFS = frozenset({"regards", "wishes", "thanks", "cheers"})

_ADVERBS = r"(?:\ (?:please|kindly|possibly|perhaps|maybe|just|quickly|be\ able\ to))*"
_SOMEBODY = "(?:you|someone|anyone|anybody|somebody)"
_WORTH_SAYING = r"(?:wondering|curious|interested|keen|unsure|not\ sure|not\ certain|trying\ to\ (?:find\ out|figure\ out|understand|work\ out|determine))"
_VERBS = "|".join(sorted(ENGLISH_REQUESTS))
# Always a wrapping, whatever follows.
_REQUEST = re.compile(
    rf"""(?:
      i\ would\ (?:really\ |greatly\ )?(?:appreciate\ it|be\ (?:very\ |so\ |most\ )?(?:grateful|glad|happy|thankful))\ if\ you\ (?:could|would|can)
    | (?:i|we)\ (?:want|need|would\ like)\ you\ to
    | (?:could|would)\ you\ be\ (?:so\ kind\ as\ to|kind\ enough\ to)
    | (?:is\ there\ )?(?:any|a)\ (?:chance|possibility)\ (?:that\ )?{_SOMEBODY}\ (?:could|can|would|might)
    | i\ (?:was|am)\ (?:just\ )?wondering\ (?:if|whether)\ you\ (?:could|can|would|might)
    | i\ wonder\ (?:if|whether)\ you\ (?:could|can|would|might)
    | (?:do|would)\ you\ (?:think|suppose)\ you\ (?:could|can)
    | (?:can|could|would|will)\ you{_ADVERBS}(?=\ (?:{_VERBS})\b)
    | (?:can|could|would|will)\ {_SOMEBODY}{_ADVERBS}(?=\ (?:tell|explain|help|recommend|suggest|clarify|(?:show|give|teach)\ me)\b)
    | please\ (?:can|could|would|will)\ you
    | (?:can|could|would|will)\ you\ (?:please|kindly)
    | would\ you\ mind(?=\ \w+ing\b)
    )(?:{_ADVERBS})\ """,
    re.VERBOSE,
)  # fmt: skip
# A wrapping where a question word, "if" or "whether" follows.
_ASKING = re.compile(
    rf"""(?:
      (?:please\ )?(?:(?:can|could|would|will)\ {_SOMEBODY}{_ADVERBS}\ )?(?:please\ )?(?:tell|remind|inform|advise|enlighten)\ (?:me|us)(?:\ please)?
    | (?:please\ )?(?:(?:can|could|would|will)\ {_SOMEBODY}{_ADVERBS}\ )?let\ (?:me|us)\ know
    | (?:please\ )?(?:can|could|would|will)\ {_SOMEBODY}{_ADVERBS}\ explain(?:\ to\ (?:me|us))?
    | (?:may|might|can|could)\ (?:i|we)(?:\ (?:please|just|quickly))*\ (?:ask|know|find\ out|inquire|enquire)(?:\ you)?
    | (?:do|does|would|might|did)\ {_SOMEBODY}(?:\ (?:happen\ to|perhaps|maybe|by\ any\ chance))*\ (?:know|recall|have\ (?:any|an)\ idea|have\ a\ clue)
    | i\ (?:am|was)(?:\ (?:just|a\ bit|really|simply|also))*\ {_WORTH_SAYING}(?:\ (?:to\ know|about|as\ to|in\ knowing))?
    | i\ wonder | i\ wondered | i\ have\ been\ wondering
    | i\ (?:just\ |really\ |also\ )*(?:want|need|would\ like|would\ love|wish|wanted)\ to\ (?:know|find\ out|understand|ask)
    )[ ]""",
    re.VERBOSE,
)  # fmt: skip
_QUESTION_WORD = re.compile(r"(?:what|which|who|whom|whose|when|where|why|how)(?: |$)")
_YES_OR_NO = re.compile(r"(?:if|whether) ")
_CONNECTIVE = re.compile(r"(?:(?:and|so|but|well|ok|okay|then|also|now)(?: ,)? )?")
# What is left of a word that is written together with another.
_CONTRACTED = {"am": "m", "would": "d", "will": "ll", "have": "ve", "is": "s", "are": "re", "not": "t"}


class Unwrapped(NamedTuple):
    """A question without its wrapping.

    Attributes:
        tokens: What is left.
        said: The words that were taken away.
        yes_no: Places of tokens that say "whether".
    """

    tokens: list[Token]
    said: list[str]
    yes_no: frozenset[int]


def unwrapped(found: Sequence[Token]) -> Unwrapped:
    """Takes greetings, thanks and apologies before and behind a question away, and the frame it begins with."""
    start, end = _without_small_talk(found)
    said = [token.lower for token in (*found[:start], *found[end:]) if token.kind != "pause"]
    kept: list[Token] = []
    yes_no: set[int] = set()
    opening = True
    place = start
    while place < end:
        if opening and found[place].kind == "word":
            length, asks_yes_no = _frame(found, place, end)
            said += [token.lower for token in found[place : place + length] if token.kind != "pause"]
            place += length
            if asks_yes_no:
                yes_no.add(len(kept))
        token = found[place]
        opening = token.kind == "pause" and token.ends_sentence
        kept.append(token)
        place += 1
    said += [_CONTRACTED[word] for word in said if word in _CONTRACTED]
    return Unwrapped(kept, said, frozenset(yes_no))


def _without_small_talk(found: Sequence[Token]) -> tuple[int, int]:
    """Where the question begins and ends."""
    start, end = 0, len(found)
    while (after := _small_talk_from(found, start)) is not None:
        start = after
    while (before := _small_talk_until(found, start, end)) is not None:
        end = before
    return start, end


def _small_talk_from(found: Sequence[Token], start: int) -> int | None:
    """Where the first piece ends, if it is small talk and something follows."""
    place = start
    while place < len(found) and found[place].kind == "word":
        if found[place].lower == "but" and place > start + 1:
            break
        place += 1
    if (
        place >= len(found) - 1
        or "?" in found[place].surface
        or (found[place].kind != "pause" and found[place].lower != "but")
        or not _is_small_talk(found[start:place])
    ):
        return None
    return place + 2 if found[place + 1].lower == "but" and place + 2 < len(found) else place + 1


def _small_talk_until(found: Sequence[Token], start: int, end: int) -> int | None:
    """Where the last piece begins, if it is small talk and a question or a sentence ends before it."""
    last = end
    while last > start and found[last - 1].kind == "pause":
        last -= 1
    place = last
    while place > start and found[place - 1].kind == "word":
        place -= 1
    asks = any("?" in token.surface for token in found[last:end])
    if asks or place <= start or found[place - 1].kind != "pause" or place == last:
        return None
    piece = found[place:last]
    if found[place - 1].ends_sentence:
        return place if _is_small_talk(piece) else None
    # "Best regards, Anna".
    before = place - 1
    while before > start and found[before - 1].kind == "word":
        before -= 1
    signed = found[before : place - 1]
    is_sign_off = len(piece) <= 2 and bool(signed) and signed[-1].lower in _SIGN_OFFS and _is_small_talk(signed)
    return before if is_sign_off and before > start and found[before - 1].ends_sentence else None


def _is_small_talk(piece: Sequence[Token]) -> bool:
    words = [token.lower for token in piece]
    return bool(words) and _SMALL_TALK.issuperset(words) and not _MARKS.isdisjoint(words)


def _frame(found: Sequence[Token], start: int, end: int) -> tuple[int, bool]:
    """How many tokens of a frame begin at a place, and whether they ask for yes or no."""
    # One piece without a space for each token.
    text = " ".join(
        token.lower if token.kind == "word" else "," if token.kind == "pause" else "#" for token in found[start : min(end, start + 24)]
    )
    taken = 0
    while True:
        rest = text[taken:]
        connective = _CONNECTIVE.match(rest)
        assert connective is not None, "it matches nothing too"
        skipped = connective.end()
        if (request := _REQUEST.match(rest, skipped)) is not None:
            taken += request.end()
            continue
        asking = _ASKING.match(rest, skipped)
        if asking is None:
            break
        after = asking.end() + (2 if rest.startswith(", ", asking.end()) else 0)
        if _YES_OR_NO.match(rest, after):
            return text[: taken + after].count(" "), True
        if not _QUESTION_WORD.match(rest, after):
            break
        taken += after
        break
    return text[:taken].count(" "), False
