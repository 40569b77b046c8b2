"""Tells whether a question is in a language the tables cover."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from prompt_cache.semantic.parsing.tables.lexicons import LEXICONS

# Words that are frequent in a language and rare in the others. Those of uncovered languages are here so that these are recognised.
_FREQUENT = {
    "en": "the what how is are do does did can could should would i my you your of to and for which who when where why with from that this an it be was were have has not"
    " will there at on or by if please give me tell show explain write about between into than more most make use does in list name describe compare recommend a all any some many much only no as been being did had they their",
    "de": "der die das und ist nicht ein eine einen einem einer wie wer wo wann warum weshalb wieso welche welcher welches welchen kann ich mein meine meinen meinem meiner mir mich du"
    " sie es wir für mit von zu zum zur auf aus bei im am den dem des was sind wird werden kannst bitte man gibt nach oder auch habe hat haben soll sollte muss über viel viele"
    " erkläre wozu woher wohin darf in",
    "es": "el los las una qué cómo cuál cuáles quién quiénes cuándo dónde cuánto cuánta cuántos cuántas por para con es está están son mi mis tu del al y puedo puede debo"
    " hay se lo la de en un que como no si más sin sobre entre me explica dime escribe tengo necesito hacer desde hasta su sus o",
    "fr": "le les des est une quel quelle quels quelles comment pour avec où et je mon ma mes dans du au aux sur qui pourquoi quand combien puis faire sont ce cette pas ne la de un en"
    " que vous peut",
    "pt": "o os as um uma não como é qual quais em do da dos das e para com por que quem onde quando quanto posso meu minha são está na no de se fazer eu você",
    "it": "il lo gli che è come di per una un la le sono con non quale quali chi dove quando perché quanto posso mio mia del della dei nel si fare in cosa",
    "nl": "het een de hoe wat is van en ik mijn niet voor met op waar wanneer waarom welke kan zijn wie er je naar te om dit moet heeft maak in",
    "sv": "och är en ett hur vad jag min mitt inte för med på av till kan var när varför vilken som det den de gör i",
    "da": "og er en et hvordan hvad jeg min mit ikke for med på af til kan hvor hvornår hvorfor hvilken som det den de gør hva hvorfor hva jeg i",
    "pl": "jak co jest w na z do nie się czy gdzie kiedy dlaczego mój moje który jakie to i o po dla ile",
    "tr": "nasıl ne bir ve için nedir mi mı bu ile kim nerede neden benim kaç hangi var",
    "id": "bagaimana apa yang dan di cara saya untuk dengan siapa mengapa kapan mana berapa adalah dari ke ini itu",
    "ro": "cum ce este și în la de un o cu pentru care unde când cine pot mea meu nu sunt din se",
    "fi": "miten mikä on ja ei kuka missä milloin miksi minun kuinka mitä voin ovat se",
    "cs": "jak co je v na a se kde kdy proč můj která který jaký kolik kdo mohu s pro není",
    "hu": "hogyan mi a az és hol mikor miért hogy egy van nem ki melyik mennyi az én",
    "ca": "el la els les com què quin quina on quan per amb és una un i de del al puc meu meva no més són",
}  # fmt: skip
_LANGUAGES_OF = {
    word: tuple(language for language, words in _FREQUENT.items() if word in words.split())
    for word in {word for words in _FREQUENT.values() for word in words.split()}
}
_LETTERS = {
    "en": frozenset("abcdefghijklmnopqrstuvwxyzéèêëïöüçñáíóúâôîàæœäå"),
    "de": frozenset("abcdefghijklmnopqrstuvwxyzäöüßéèàê"),
    "es": frozenset("abcdefghijklmnopqrstuvwxyzáéíóúüñª"),
}
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\u3007]")
COVERED = ("en", "de", "es", "zh")


def language_of(text: str, words: Sequence[str]) -> str | None:
    """The language of a question.

    Args:
        text: Normalised.
        words: Its words, folded, without code, names of files and numbers.

    Returns:
        One of `COVERED`; None where it is another one, is mixed, or cannot be told.
    """
    letters = [char for char in text if char.isalpha()]
    if not letters:
        return None
    num_han = len(_HAN.findall(text))
    if num_han:
        return "zh" if _is_chinese(letters, num_han, words) else None
    if any(not unicodedata.name(char, "").startswith("LATIN") for char in letters if not char.isascii() and char not in "µΩªº"):
        return None
    votes: dict[str, float] = {}
    for word in words:
        for language, vote in _votes(word):
            votes[language] = votes.get(language, 0.0) + vote
    if not votes:
        return None
    ranked = sorted(votes.items(), key=lambda vote: -vote[1])
    best, count = ranked[0]
    if best not in _LETTERS or count < 0.45 or (len(ranked) > 1 and ranked[1][1] >= count):
        return None
    foreign = [word for word in words if not _LETTERS[best].issuperset(word.replace("'", "").replace("+", "").replace("#", ""))]
    return None if foreign else best


@lru_cache(maxsize=4096)
def _votes(word: str) -> tuple[tuple[str, float], ...]:
    """How much a word speaks for which languages."""
    # Single letters are names of things as often as words.
    languages = _LANGUAGES_OF.get(word, ()) if len(word) > 1 else ()
    # Words of content tell a little: many are those of several languages.
    known = [(language, 0.25) for language in _LETTERS if LEXICONS[language].is_known(word)]
    return (*((language, 1 / len(languages)) for language in languages), *known)


def _is_chinese(letters: Sequence[str], num_han: int, words: Sequence[str]) -> bool:
    # Kana and Hangul say that the Han characters are another language's; a sentence of Latin words around one name is not Chinese.
    only_latin_else = all(char.isascii() or _HAN.match(char) for char in letters)
    return only_latin_else and num_han >= 2 and num_han * 2 >= len(words) and not any(_LANGUAGES_OF.get(word) == ("en",) for word in words)
