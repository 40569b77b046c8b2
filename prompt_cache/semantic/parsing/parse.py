"""Takes a question apart: tokens, then numbers and phrases, then single words."""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from functools import lru_cache

from prompt_cache.semantic.parsing.chinese import chinese_courtesy, chinese_items
from prompt_cache.semantic.parsing.english_clauses import with_conditions, with_plain_clauses
from prompt_cache.semantic.parsing.english_grammar import as_active, with_main_verbs, with_plain_prepositions
from prompt_cache.semantic.parsing.german_grammar import with_whole_verbs
from prompt_cache.semantic.parsing.items import Item, Question
from prompt_cache.semantic.parsing.languages import language_of
from prompt_cache.semantic.parsing.lexicon import Lexicon, Phrase
from prompt_cache.semantic.parsing.quantities import number_item, read_quantity
from prompt_cache.semantic.parsing.small_talk import unwrapped
from prompt_cache.semantic.parsing.tables.english_forms import is_past
from prompt_cache.semantic.parsing.tables.english_phrases import ENGLISH_HOMOGRAPHS
from prompt_cache.semantic.parsing.tables.lexicons import LEXICONS
from prompt_cache.semantic.parsing.tokens import Token, expanded, tokens

# A longer question is compared as a whole: comparing words costs more than proportionally, and embedders do not read so far.
MAX_CHARS = 2000
# Single words of courtesy. Those of phrases are known by being several.
_COURTESY_WORDS = (
    "please kindly hello hi hey dear thanks cheers sorry bitte hallo danke hola gracias perdón perdone perdona disculpe disculpa"
)
_COURTESY = frozenset(_COURTESY_WORDS.split())
# They are courtesy at the beginning and after a pause alone: "how do I say thanks".
_GREETINGS = _COURTESY - {"please", "kindly", "bitte"} | {"thank", "many", "good", "excuse"}
# How far a particle may stand from its verb: "turn the dark mode of the app on".
_SEPARABLE_REACH = 7
# Megabits; megabytes have a capital B, or no capital at all.
_BITS = re.compile("[KMGT]i?b")
# First words of "can you" and its like.
_ASKING = frozenset(
    ["can", "could", "would", "will", "kannst", "können", "könntest", "könnten", "würdest", "würden", "puedes", "podrías", "podría"]
)


@lru_cache(maxsize=512)
def parse(text: str) -> Question:
    """The parts of a normalised question. The last few are remembered: one question is compared with several."""
    if len(text) > MAX_CHARS:
        return Question(text, None, ())
    found = tokens(text)
    language = language_of(text, [token.lower.partition("'")[0] for token in found if token.kind == "word"])
    if language == "zh":
        return Question(text, language, tuple(chinese_items(found)), chinese_courtesy(found))
    if language == "de":
        found = with_whole_verbs(found, LEXICONS["de"].separable)
    if language != "en":
        parser = _Parser(found, language)
        return Question(text, language, tuple(parser.items()), tuple(parser.courtesy))
    bare = unwrapped(expanded(found))
    parser = _Parser(bare.tokens, language, bare.yes_no)
    items = with_conditions(with_main_verbs(with_plain_prepositions(parser.items())))
    items = as_active(with_plain_clauses(items))
    return Question(text, language, tuple(items), (*bare.said, *parser.courtesy))


class _Parser:
    """One pass over the tokens of a question in a language that is written with spaces, or in none that is covered."""

    def __init__(self, found: Sequence[Token], language: str | None, yes_no: Set[int] = frozenset()) -> None:
        self._tokens = found
        self._yes_no = yes_no
        self._language = language
        self._lexicon: Lexicon | None = LEXICONS.get(language) if language else None
        self._found: list[Item] = []
        self.courtesy: list[str] = []
        self._sentence_start = True
        # Nothing but politeness stands before this place in its sentence.
        self._opening = True
        words = [token.surface for token in found if token.kind == "word"]
        self._is_shouted = sum(word.isupper() for word in words) * 2 > len(words)
        long = [word for word in words if len(word) > 3]
        self._is_title = len(long) > 3 and sum(word[0].isupper() for word in long) * 5 > len(long) * 4
        self._particles = self._separable_particles()

    def items(self) -> list[Item]:
        position = 0
        while position < len(self._tokens):
            position += self._read(position)
        return self._with_yes_no()

    def _read(self, position: int) -> int:
        """Reads what begins at a token; returns the number of tokens."""
        token = self._tokens[position]
        if token.kind == "pause":
            self._found.append(Item("pause", frozenset({"stop" if token.ends_sentence else "comma"}), token.surface))
            self._sentence_start |= token.ends_sentence
            self._opening |= token.ends_sentence or self._is_fronted()
            return 1
        if token.kind == "verbatim":
            self._add(Item("verbatim", frozenset({token.surface}), token.surface, is_name=True))
            return 1
        if position in self._yes_no:
            self._add(Item("wh", frozenset({"yesno"}), token.surface))
            return 1
        if position in self._particles:
            self._add(*self._particles[position])
            return 1
        if token.lower == "one" and self._language == "en" and self._is_numeral(position):
            self._add(number_item(1, token.surface))
            return 1
        if self._lexicon is not None and (phrase := self._phrase(position)) is not None:
            if phrase.items:
                self._add(*phrase.items)
            elif len(phrase.words) > 1 or token.lower in _COURTESY:
                self.courtesy += phrase.words
            return len(phrase.words)
        quantity = read_quantity(self._tokens, position, self._language)
        if quantity is not None:
            self._add(quantity.number)
            if quantity.unit:
                unit = quantity.unit if quantity.unit not in token.lower else token.surface[-len(quantity.unit) :]
                self._add(self._word(Token("word", unit, quantity.unit)))
            return quantity.num_tokens
        self._add(self._word(token))
        return 1

    def _is_fronted(self) -> bool:
        """Whether nothing stands before this place in its sentence but a phrase that could stand at its end: "in two sentences, ..."."""
        sentence: list[Item] = []
        for item in reversed(self._found):
            if item.kind == "pause" and "stop" in item.forms:
                break
            sentence.append(item)
        first = next((item.kind for item in reversed(sentence) if item.kind != "pause"), None)
        return first is None or (first in ("preposition", "conjunction") and not any(item.kind in ("wh", "modal") for item in sentence))

    def _add(self, *items: Item) -> None:
        self._found.extend(items)
        self._sentence_start = self._opening = False

    def _phrase(self, position: int) -> Phrase | None:
        assert self._lexicon is not None, "only covered languages have phrases"
        token = self._tokens[position]
        # "US", "IT" and the A of "from A to B" are no pronouns and no article.
        is_acronym = (
            token.surface.isupper() and not self._is_shouted and (len(token.surface) > 1 or (token.surface == "A" and self._is_name(token)))
        )
        looks_like_name = self._is_name(token) and token.lower in ENGLISH_HOMOGRAPHS
        following = self._tokens[position + 1].lower if position + 1 < len(self._tokens) else ""
        for phrase in self._lexicon.phrases_from(token.lower, following):
            if phrase.is_opening and not (self._opening and self._is_request(position, phrase)):
                continue
            if not phrase.items and token.lower in _GREETINGS and not (self._opening or self._tokens[position - 1].kind == "pause"):
                continue
            if len(phrase.words) == 1 and (is_acronym or looks_like_name) and not any(item.kind == "content" for item in phrase.items):
                continue
            if token.lower == "a" and len(phrase.words) == 1 and self._is_particle(position):
                # The a of "the ratio of a to b": no noun follows.
                continue
            if self._follows(position, phrase):
                return phrase
        return None

    def _is_numeral(self, position: int) -> bool:
        """Whether "one" counts what stands behind it: "one item", and not "does one tip"."""
        assert self._lexicon is not None, "only covered languages have phrases"
        before = self._tokens[position - 1].lower if position else ""
        after = self._tokens[position + 1] if position + 1 < len(self._tokens) else None
        is_subject = any(item.kind in ("auxiliary", "modal") for phrase in self._lexicon.single(before) for item in phrase.items)
        return not is_subject and after is not None and after.kind == "word" and not self._lexicon.single(after.lower)

    def _is_request(self, position: int, phrase: Phrase) -> bool:
        """Whether "can you" asks for something, rather than whether one can: a verb says so, next or, in German, in the sentence."""
        assert self._lexicon is not None, "only covered languages have phrases"
        if phrase.items or phrase.words[0] not in _ASKING:
            return True
        after = self._tokens[position + len(phrase.words) :]
        reach = after if self._language == "de" else after[:2]
        return any(token.lower in self._lexicon.requests for token in reach)

    def _follows(self, position: int, phrase: Phrase) -> bool:
        if position + len(phrase.words) > len(self._tokens):
            return False
        rest = self._tokens[position + 1 : position + len(phrase.words)]
        return all(token.lower == word and token.kind in ("word", "number") for token, word in zip(rest, phrase.words[1:], strict=True))

    def _separable_particles(self) -> dict[int, tuple[Item, ...]]:
        """Places of verbs that have their particle later, with what they mean; places of those particles, with nothing."""
        if self._lexicon is None or not self._lexicon.separable:
            return {}
        found: dict[int, tuple[Item, ...]] = {}
        for place, token in enumerate(self._tokens):
            for verb in self._lexicon.base_forms(token.lower) if token.kind == "word" else ():
                for later in range(place + 1, min(place + 1 + _SEPARABLE_REACH, len(self._tokens))):
                    meaning = self._lexicon.separable.get((verb, self._tokens[later].lower))
                    if meaning is not None and place not in found and self._is_particle(later):
                        found[place] = (
                            Item("content", self._lexicon.forms(meaning[1:]), f"{token.surface} {self._tokens[later].surface}"),
                        )
                        found[later] = ()
                        if self._tokens[later].lower == "out" and later + 1 < len(self._tokens) and self._tokens[later + 1].lower == "of":
                            found[later + 1] = (Item("preposition", frozenset({"from"}), "out of"),)
                    if self._tokens[later].kind == "pause":
                        break
        return found

    def _is_particle(self, place: int) -> bool:
        """Whether a word at a place can end a verb: nothing follows that it could be the preposition of, unless it stands before "of"."""
        if place + 1 >= len(self._tokens) or self._tokens[place + 1].kind == "pause":
            return True
        following = self._tokens[place + 1].lower
        assert self._lexicon is not None, "only covered languages have particles"
        kinds = {item.kind for phrase in self._lexicon.single(following) for item in phrase.items}
        return bool(kinds & {"preposition", "conjunction", "wh"})

    def _is_name(self, token: Token) -> bool:
        surface = token.surface
        if not any(char.isupper() for char in surface) or self._is_shouted:
            return False
        if any(char.isupper() for char in surface[1:]):
            return True
        capitals = self._lexicon is None or self._lexicon.names_are_capitalised
        return capitals and not self._sentence_start and not self._is_title

    def _word(self, token: Token) -> Item:
        is_name = self._is_name(token)
        if self._lexicon is None:
            return Item("content", frozenset({token.lower}), token.surface, is_name)
        forms = self._lexicon.forms(token.lower)
        if _BITS.fullmatch(token.surface):
            return Item("content", frozenset({token.lower + "it"}), token.surface)
        if is_name:
            forms = frozenset({token.lower}) | frozenset(form for form in self._lexicon.synonyms.get(token.lower, ()))
        past = self._language == "en" and not is_name and is_past(token.lower)
        return Item("content", forms, token.surface, is_name, past, self._sentence_start)

    def _with_yes_no(self) -> list[Item]:
        """Marks sentences that begin with an auxiliary: they ask for yes or no."""
        result: list[Item] = []
        has_word = False
        for place, item in enumerate(self._found):
            if item.kind == "pause":
                has_word &= "stop" not in item.forms
            starts = place == 0 or self._found[place - 1].kind == "pause"
            if starts and not has_word and item.kind in ("auxiliary", "modal"):
                result.append(Item("wh", frozenset({"yesno"}), item.surface))
            has_word |= item.kind == "wh"
            result.append(item)
        return _without_shells(result)


def _without_shells(items: list[Item]) -> list[Item]:
    """Without "explain" before another question word, and without the "what" of "what is the safest way to"."""
    result: list[Item] = []
    for place, item in enumerate(items):
        if item.kind == "wh":
            following = items[place + 1] if place + 1 < len(items) else None
            if item.forms == {"explain"} and following is not None and following.kind == "wh":
                continue
            if "explain" in item.forms and _asks_for_way(items, place + 1):
                continue
        result.append(item)
    return result


def _asks_for_way(items: list[Item], start: int) -> bool:
    for item in items[start:]:
        if item.kind == "wh":
            return "how" in item.forms and item.surface != "how"
        if item.kind not in ("auxiliary", "content", "quantifier"):
            return False
    return False
