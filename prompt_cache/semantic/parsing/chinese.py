"""Takes a Chinese question apart: the longest known words from the left, single characters where none is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prompt_cache.semantic.parsing.items import Item
from prompt_cache.semantic.parsing.lexicon import Lexicon
from prompt_cache.semantic.parsing.quantities import HAN_NUMERAL, han_value, number_item, read_quantity
from prompt_cache.semantic.parsing.tables.lexicons import LEXICONS
from prompt_cache.semantic.parsing.tokens import Token

_LONGEST = 8
# Whole questions; inside one their last character begins another word: 怎么 + 办理.
_AT_END = frozenset({"怎么办", "怎么做", "怎么弄", "怎么处理", "应该怎么处理", "怎么卖"})


def chinese_items(found: Sequence[Token]) -> list[Item]:
    """The items of a text whose language is Chinese; Latin words in it are names."""
    result: list[Item] = []
    for place, token in enumerate(found):
        if token.kind == "pause":
            result.append(Item("pause", frozenset({"stop" if token.ends_sentence else "comma"}), token.surface))
        elif token.kind == "verbatim":
            result.append(Item("verbatim", frozenset({token.surface}), token.surface, is_name=True))
        elif token.kind == "number":
            quantity = read_quantity(found, place, "zh")
            assert quantity is not None, "a token of digits is a number"
            result.append(quantity.number)
            if quantity.unit:
                result.append(_content(quantity.unit, LEXICONS["zh"]))
        elif token.kind == "word":
            result.append(Item("content", frozenset({token.lower}), token.surface, is_name=True))
        else:
            result.extend(_segmented(token.surface, LEXICONS["zh"]))
    return result


def chinese_courtesy(found: Sequence[Token]) -> tuple[str, ...]:
    """The characters of words of greeting, thanks and the like."""
    text = "".join(token.surface if token.kind == "han" else " " for token in found)
    lexicon = LEXICONS["zh"]
    said: list[str] = []
    place = 0
    while place < len(text):
        lengths = (length for length in range(_LONGEST, 1, -1) if _is_empty(lexicon, text[place : place + length]))
        length = next(lengths, 0)
        said += text[place : place + length]
        place += length or 1
    return tuple(said)


def _is_empty(lexicon: Lexicon, word: str) -> bool:
    return any(not rule.items for rule in lexicon.single(word))


def _segmented(text: str, lexicon: Lexicon) -> Iterator[Item]:
    place = 0
    while place < len(text):
        for length in range(min(_LONGEST, len(text) - place), 0, -1):
            word = text[place : place + length]
            if word in _AT_END and text[place + length : place + length + 1].strip("吗呢啊呀了"):
                continue
            rules = lexicon.single(word)
            if length > 1 and _is_numeral(word):
                yield number_item(han_value(word), word)
            elif rules and not (length == 1 and _is_numeral(word)):
                yield from rules[0].items
            elif word in lexicon.synonyms:
                yield _content(word, lexicon)
            elif length == 1:
                yield number_item(han_value(word), word) if _is_numeral(word) and word != "一" else _content(word, lexicon)
            else:
                continue
            place += length
            break


def _is_numeral(word: str) -> bool:
    return HAN_NUMERAL.fullmatch(word) is not None


def _content(word: str, lexicon: Lexicon) -> Item:
    return Item("content", lexicon.forms(word), word)
