"""Reads numbers, however they are written: digits, words, ordinals, times, percentages, and units that are glued to them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from prompt_cache.semantic.parsing.items import Item
from prompt_cache.semantic.parsing.tokens import Token


class Quantity(NamedTuple):
    """What was read.

    Attributes:
        number: Its value, as an item.
        unit: A word to be read next, "" if none is glued to the number.
        num_tokens: How many were read.
    """

    number: Item
    unit: str
    num_tokens: int


_GLUED = re.compile(r"(?P<sign>[$€£¥])?(?P<digits>-?\d(?:[\d.,:]*\d)?)(?P<unit>[a-z]{1,4}|%|°[cf]?|[€£¥])?")
_SIGNS = {"$": "dollar", "€": "euro", "£": "gbp", "¥": "yen", "%": "percent", "°c": "celsius", "°f": "fahrenheit", "°": "degree"}
_UNITS_LIST = """
km m cm mm mi ft in kg g mg mcg lb lbs oz l ml dl s sec min h hr hrs ms kb mb gb tb hz khz mhz ghz w kw kwh v mv a mah px pt x k c
f mph kmh kph usd eur gbp
"""
_UNITS = frozenset(_UNITS_LIST.split())
_MULTIPLIERS = {"k": 3, "m": 6, "bn": 9}
_ORDINAL_ENDINGS = frozenset({"st", "nd", "rd", "th", "º", "ª"})

_UNITS_EN = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS_EN = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_UNITS_ES = [
    "cero",
    "uno",
    "dos",
    "tres",
    "cuatro",
    "cinco",
    "seis",
    "siete",
    "ocho",
    "nueve",
    "diez",
    "once",
    "doce",
    "trece",
    "catorce",
    "quince",
    "dieciséis",
    "diecisiete",
    "dieciocho",
    "diecinueve",
    "veinte",
    "veintiuno",
    "veintidós",
    "veintitrés",
    "veinticuatro",
    "veinticinco",
    "veintiséis",
    "veintisiete",
    "veintiocho",
    "veintinueve",
]
_TENS_ES = ["treinta", "cuarenta", "cincuenta", "sesenta", "setenta", "ochenta", "noventa"]
_HUNDREDS_ES = [
    "cien",
    "doscientos",
    "trescientos",
    "cuatrocientos",
    "quinientos",
    "seiscientos",
    "setecientos",
    "ochocientos",
    "novecientos",
]
_UNITS_DE = [
    "null",
    "ein",
    "zwei",
    "drei",
    "vier",
    "fünf",
    "sechs",
    "sieben",
    "acht",
    "neun",
    "zehn",
    "elf",
    "zwölf",
    "dreizehn",
    "vierzehn",
    "fünfzehn",
    "sechzehn",
    "siebzehn",
    "achtzehn",
    "neunzehn",
]
_TENS_DE = ["zwanzig", "dreißig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig", "neunzig"]


def _german() -> dict[str, int]:
    words = dict(zip(_UNITS_DE, range(20), strict=True)) | {"zwo": 2, "dreissig": 30}
    words |= {ten: 20 + 10 * place for place, ten in enumerate(_TENS_DE)}
    words |= {
        f"{unit}und{ten}": 20 + 10 * place + value for place, ten in enumerate(_TENS_DE) for unit, value in words.items() if 0 < value < 10
    }
    return words


_SMALL = {
    "en": dict(zip(_UNITS_EN, range(20), strict=True)) | {ten: 20 + 10 * place for place, ten in enumerate(_TENS_EN)} | {"dozen": 12},
    "de": {word: value for word, value in _german().items() if word != "ein"} | {"dutzend": 12},
    "es": dict(zip(_UNITS_ES, range(30), strict=True))
    | {ten: 30 + 10 * place for place, ten in enumerate(_TENS_ES)}
    | {word: 100 * (place + 1) for place, word in enumerate(_HUNDREDS_ES)}
    | {"ciento": 100, "docena": 12},
}  # fmt: skip
_SCALES = {
    "en": {"hundred": 100, "thousand": 10**3, "million": 10**6, "millions": 10**6, "billion": 10**9, "trillion": 10**12},
    "de": {"hundert": 100, "tausend": 10**3, "million": 10**6, "millionen": 10**6, "milliarde": 10**9, "milliarden": 10**9},
    "es": {"mil": 10**3, "millón": 10**6, "millones": 10**6},
}
_FRACTIONS = {
    "en": {"half": "1/2", "halves": "1/2", "quarter": "1/4", "quarters": "1/4", "third": "3.", "once": "1x", "twice": "2x", "thrice": "3x", "double": "2x", "triple": "3x"},
    "de": {"halb": "1/2", "halbe": "1/2", "halben": "1/2", "hälfte": "1/2", "viertel": "1/4", "drittel": "1/3", "einmal": "1x", "zweimal": "2x", "dreimal": "3x", "doppelt": "2x"},
    "es": {"medio": "1/2", "media": "1/2", "mitad": "1/2", "cuarto": "1/4", "doble": "2x", "triple": "3x"},
}  # fmt: skip
_ORDINALS = {
    "en": "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth",
    "de": "erste zweite dritte vierte fünfte sechste siebte achte neunte zehnte elfte zwölfte dreizehnte vierzehnte fünfzehnte sechzehnte siebzehnte achtzehnte neunzehnte zwanzigste",
    "es": "primero segundo tercero cuarto quinto sexto séptimo octavo noveno décimo",
}
_ORDINAL_VALUES = {language: {word: place + 1 for place, word in enumerate(words.split())} for language, words in _ORDINALS.items()}
_TENTHS_EN = {ten[:-1] + "ieth": 20 + 10 * place for place, ten in enumerate(_TENS_EN)}
_ROMAN = {
    "II": 2,
    "III": 3,
    "IV": 4,
    "VI": 6,
    "VII": 7,
    "VIII": 8,
    "IX": 9,
    "XI": 11,
    "XII": 12,
    "XIII": 13,
    "XIV": 14,
    "XV": 15,
    "XVI": 16,
    "XX": 20,
    "XXI": 21,
}
_HAN_DIGITS = {char: value for value, char in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_HAN_SCALES = {"十": 10, "百": 100, "千": 1000, "万": 10**4, "亿": 10**8}
HAN_NUMERAL = re.compile("[零一二三四五六七八九〇两十百千万亿]+")


def read_quantity(found: Sequence[Token], start: int, language: str | None) -> Quantity | None:
    """The number at a place, if there is one."""
    token = found[start]
    if token.kind == "number":
        return _read_digits(found, start, language)
    if token.kind != "word" or language not in _SMALL:
        return None
    if token.surface in _ROMAN and start and found[start - 1].surface[:1].isupper():
        return Quantity(_item(str(_ROMAN[token.surface]), token.surface), "", 1)
    ordinal = _ordinal(token.lower, language)
    if ordinal is not None:
        return Quantity(_item(f"{ordinal}.", token.surface), "", 1)
    if token.lower in _FRACTIONS[language]:
        return Quantity(_item(_FRACTIONS[language][token.lower], token.surface), "", 1)
    return _read_words(found, start, language)


def han_value(numeral: str) -> int:
    """The value of a Chinese numeral."""
    if not any(char in _HAN_SCALES for char in numeral):
        return int("".join(str(_HAN_DIGITS[char]) for char in numeral))
    total = section = digit = 0
    for char in numeral:
        if char in _HAN_DIGITS:
            digit = _HAN_DIGITS[char]
            continue
        scale = _HAN_SCALES[char]
        if scale < 10**4:
            section += (digit or 1) * scale
        elif scale == 10**4:
            total += (section + digit or 1) * scale
            section = 0
        else:
            total = (total + section + digit or 1) * scale
            section = 0
        digit = 0
    return total + section + digit


def number_item(value: int | str, surface: str) -> Item:
    """An item for a value."""
    return _item(str(value), surface)


def _item(value: str, surface: str) -> Item:
    return Item("number", frozenset({value}), surface)


def _ordinal(word: str, language: str) -> int | None:
    values = _ORDINAL_VALUES[language]
    if word in values:
        return values[word]
    if language == "en":
        return _TENTHS_EN.get(word)
    if language == "de" and word[-1:] in "nrsm":
        return values.get(word[:-1])
    if language == "es":
        return values.get(word[:-1] + "o") or {"primer": 1, "tercer": 3}.get(word)
    return None


def _read_words(found: Sequence[Token], start: int, language: str) -> Quantity | None:
    small, scales = _SMALL[language], _SCALES[language]
    total = section = 0
    position, last = start, start
    while position < len(found) and found[position].kind == "word":
        word = found[position].lower
        if word in small:
            section += small[word]
        elif word in scales and (position > start or language != "en"):
            scale = scales[word]
            if scale == 100:
                section = (section or 1) * 100
            else:
                total, section = total + (section or 1) * scale, 0
        elif (
            language == "en"
            and word in _ORDINAL_VALUES["en"]
            and position > start
            and _ORDINAL_VALUES["en"][word] < 10
            and section % 10 == 0
        ):
            # twenty-first
            return Quantity(_item(f"{total + section + _ORDINAL_VALUES['en'][word]}.", found[start].surface), "", position + 1 - start)
        elif not (
            word in ("and", "y")
            and position > start
            and position + 1 < len(found)
            and found[position + 1].lower in small
            and section >= 30 * (word == "y")
            and _goes_on(found[position - 1].lower, language)
        ):
            break
        else:
            position += 1
            continue
        position += 1
        last = position
    if last == start:
        compound = _german_compound(found[start].lower) if language == "de" else None
        return None if compound is None else Quantity(_item(str(compound), found[start].surface), "", 1)
    value = total + section
    if language in ("en", "es") and last - start == 1 and value == 1:
        return None
    return Quantity(_item(str(value), found[start].surface), "", last - start)


def _goes_on(word: str, language: str) -> bool:
    """Whether a numeral may go on with "and" after a word: "two hundred and five", "treinta y uno", but not "two and three"."""
    return word in _SCALES[language] or (language == "es" and word in _TENS_ES)


def _german_compound(word: str) -> int | None:
    small = _SMALL["de"] | {"ein": 1}
    total = 0
    for scale_word, scale in (("tausend", 1000), ("hundert", 100)):
        if scale_word not in word:
            continue
        before, _, word = word.partition(scale_word)
        multiple = _german_compound(before) if "hundert" in before else small.get(before) if before else 1
        if multiple is None:
            return None
        total += multiple * scale
    if not total:
        return None
    if not word:
        return total
    rest = small.get(word.removeprefix("und"))
    return None if rest is None else total + rest


def _read_digits(found: Sequence[Token], start: int, language: str | None) -> Quantity:
    token = found[start]
    match = _GLUED.fullmatch(token.lower)
    if match is None:
        return Quantity(_item(token.lower, token.surface), "", 1)
    digits, unit = _plain(match["digits"], language), match["unit"] or ""
    following = found[start + 1].lower if start + 1 < len(found) and found[start + 1].kind == "word" else ""
    if unit in ("am", "pm") or (not unit and following in ("am", "pm")):
        return Quantity(_item(_time(digits, unit or following), token.surface), "", 1 if unit else 2)
    if unit in _ORDINAL_ENDINGS:
        return Quantity(_item(f"{digits}.", token.surface), "", 1)
    if unit in _MULTIPLIERS and (unit == "k" or match["sign"]) and digits.isdigit():
        return Quantity(_item(str(int(digits) * 10 ** _MULTIPLIERS[unit]), token.surface), _SIGNS.get(match["sign"] or "", ""), 1)
    if unit and unit not in _UNITS and unit not in _SIGNS:
        return Quantity(_item(token.lower, token.surface), "", 1)
    scale = _SCALES.get(language or "", {}).get(following, 0)
    if not unit and scale > 100 and re.fullmatch(r"\d+(\.\d+)?", digits):
        value = f"{float(digits) * scale:.0f}"
        return Quantity(_item(value, token.surface), _SIGNS.get(match["sign"] or "", ""), 2)
    sign = match["sign"] or unit
    return Quantity(_item(digits, token.surface), _SIGNS.get(sign, sign), 1)


def _plain(digits: str, language: str | None) -> str:
    """Without the marks that group thousands, with a point before decimals. 3.10 stays apart from 3.1: it may be a version."""
    group, decimal = (".", ",") if language in ("de", "es") else (",", ".")
    if re.fullmatch(rf"-?\d{{1,3}}(?:{re.escape(group)}\d{{3}})+(?:{re.escape(decimal)}\d+)?", digits):
        digits = digits.replace(group, "")
    return digits.replace(",", ".") if decimal == "," and digits.count(",") == 1 else digits


def _time(digits: str, half: str) -> str:
    hour, _, minute = digits.partition(":")
    if not hour.isdigit() or not (minute or "00").isdigit():
        return digits + half
    return f"{int(hour) % 12 + 12 * (half == 'pm')}:{minute or '00'}"
