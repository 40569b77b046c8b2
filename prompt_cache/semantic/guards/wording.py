"""Questions about words themselves: there a synonym, an inflection or an article is what is asked about."""

from __future__ import annotations

import re
from collections import Counter

from prompt_cache.semantic.guards.entities import quotations
from prompt_cache.semantic.parsing.items import Question

_ABOUT_WORDS = {
    "en": r"\b(?:spell(?:s|ed|t|ing)?|pronounc\w+|pronunciation|synonyms?|antonyms?|opposites?|rhymes?|etymology|plural|singular|conjugat\w+|translat\w+|syllables?|prefix|suffix"
    r"|means?|meant|meaning|defin\w+|(?:the|this|a|which|what) words?|how many letters|adjectives?|nouns?|verbs?|adverbs?|pronouns?|prepositions?|tenses?|grammar|grammatical\w*|proofread|paraphrase|rewrite"
    r"|rephrase|say .{1,60} in [A-Za-z]+|correct:)",
    "de": r"\b(?:buchstabier\w+|aussprache|aus?gesprochen|aussprechen|sprich\w*|synonyme?|gegenteil|reimt?|plural|singular|mehrzahl|einzahl|konjugier\w+|übersetz\w+|silben?|bedeute[nt]"
    r"|bedeutung|definier\w+|definition|wort|wörter|buchstaben?|artikel|zeitform|grammatik|heißt .{1,60} auf)",
    "es": r"\b(?:deletre\w+|pronunci\w+|sinónimos?|antónimos?|contrario|rima\w*|plural|singular|conjug\w+|traduc\w+|traduzc\w+|sílabas?|significa\w*|defin\w+|palabras?|letras?|adjetivos?|verbos?"
    r"|gramática|dice .{1,60} en)",
    "zh": r"翻译|(?<!不好)意思|含义|同义词|反义词|近义词|拼音|读音|怎么读|怎么念|怎么写|怎么说|成语|词语|单词|语法|造句|定义",
}  # fmt: skip
_PATTERNS = {language: re.compile(pattern, re.IGNORECASE) for language, pattern in _ABOUT_WORDS.items()}
_WORD = re.compile(r"[^\W\d_\u3400-\u9fff]+|[\u3400-\u9fff]")
# May stand in one of two questions about a word.
_SHELL_WORDS = """
please what whats s is the how you tell me explain could would kindly thanks hello hi do does can should i bitte mir por favor
"""
_SHELL = frozenset(_SHELL_WORDS.split()) | frozenset("请问您好谢的了吗呢是什啥")
_FRAME_WORDS = {
    "en": "",
    "de": "wie ist sind man ich kann kannst können könnten könntest du sie mir sagen meine mein meinen",
    "es": "cómo cuál qué es son puedo puede se puedes podrías decirme me mi",
    "zh": "怎 么 样 如 何 请 告 诉 我 能 不 可 以 想 知 道 好 意 思",
}
# Words of questions that hold one word of content: they tell nothing apart, all others do. Articles are not among them.
_FRAME = (_SHELL | {"one", "we", "to", "are", "describe", "way", "best", "good", "my", "your"}) - {"the"}
_FRAME_OF = {language: _FRAME | frozenset(words.split()) for language, words in _FRAME_WORDS.items()}


def check(asked: Question, kept: Question) -> str | None:
    """Refuses unless questions about words, and those of a single word, are made of the same words."""
    language = asked.language
    if language not in _PATTERNS or language != kept.language:
        return None
    different = _different_words(asked, kept)
    quoted = quotations(asked.text)
    if not quoted and (_PATTERNS[language].search(asked.text) or _PATTERNS[language].search(kept.text)):
        odd = different - _SHELL
        return f"about words, and {min(odd)!r} is in one alone" if odd else None
    if any("difference" in item.forms for question in (asked, kept) for item in question.of("content")):
        return _differing_without_synonyms(asked, kept)
    if min(_num_contents(asked), _num_contents(kept)) <= 1:
        named = {
            word
            for question in (asked, kept)
            for item in (*question.of("content"), *question.of("wh")[:1])
            for word in _WORD.findall(item.surface.casefold())
        }
        odd = different - _FRAME_OF[asked.language or ""] - named
        return f"short, and {min(odd)!r} is in one alone" if odd else None
    return None


def _different_words(asked: Question, kept: Question) -> set[str]:
    mine, theirs = (
        Counter(_WORD.findall(question.text.casefold().replace("-", ""))) - Counter(question.courtesy) for question in (asked, kept)
    )
    return set(mine - theirs) | set(theirs - mine)


def _num_contents(question: Question) -> int:
    return len(question.of("content", "number", "verbatim"))


def _differing_without_synonyms(asked: Question, kept: Question) -> str | None:
    """The difference between two words for one thing is not that between one of them and a third."""
    if min(_num_contents(asked), _num_contents(kept)) <= 2 and _different_words(asked, kept) & _COMPARED:
        return "function words are compared"
    for one, other in ((asked, kept), (kept, asked)):
        bases = {form for item in other.of("content", "verbatim") for form in item.forms if form[0] != "="}
        for item in one.of("content"):
            if bases.isdisjoint(item.forms):
                return f"a difference, and {item.surface!r} is in one alone"
    return None


# Words without content that are compared as words.
_COMPARED_WORDS = """
a an this that these those it its they them their there can could may might shall should will would must was were did have has had who whom which in on at to for with by
"""
_COMPARED = frozenset(_COMPARED_WORDS.split())
