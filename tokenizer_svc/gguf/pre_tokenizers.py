"""How text is cut before byte-level BPE merges, for each kind that GGUF metadata name.

Each kind is a list of patterns: the first cuts the text at its matches, the next cuts the pieces, and so on. They were read from the
tokenizers that models were published with and compared with the behaviour llama.cpp documents for the same name.
"""

from __future__ import annotations

from typing import NamedTuple


class BpeKind(NamedTuple):
    """One kind of byte-level BPE.

    Attributes:
        patterns: What cuts the text, one after another.
        whole_words: A piece that stands in the vocabulary is one token, whatever the merges say.
        add_bos: Whether begin-of-text comes first if the metadata do not say.
        normalizer: Unicode form of the text; None = as it is.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    add_bos: bool = False
    normalizer: str | None = None


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_REST_WITH_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_PUNCTUATION = r"[\p{P}\$\+<=>\^~\|`]+"
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"


def _words(numbers: str) -> str:
    return "|".join((_ENDING, _WORD, numbers, _REST))


def _cased_words(numbers: str, *, ending: str = "") -> str:
    """Words end where small letters are followed by capitals."""
    start = r"[^\r\n\p{L}\p{N}]?"
    return "|".join((f"{start}{_UPPER}*{_LOWER}+{ending}", f"{start}{_UPPER}+{_LOWER}*{ending}", numbers, _REST_WITH_SLASH))


_DIGIT_BY_DIGIT = BpeKind((r"\p{N}", _GPT2))
_PLAIN = BpeKind((_GPT2,))
_LLAMA3 = BpeKind((_words(r"\p{N}{1,3}"),), whole_words=True, add_bos=True)
_QWEN2 = BpeKind((_words(r"\p{N}"),), normalizer="NFC")
# Those of Latin, Greek, Cyrillic and a few more, the mathematical alphabets apart.
_CASED_LETTERS = "\\s?(?:(?![\U0001d400-\U0001d7ff])[\\p{Lu}\\p{Ll}\\p{Lt}])+"

BPE_KINDS: dict[str, BpeKind] = {
    "default": BpeKind((_PUNCTUATION.replace("`", ""), _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"), _LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe"), BpeKind((_words(r"\p{N}{1,3}"),))),
    **dict.fromkeys(("chatglm-bpe", "glm4"), BpeKind((_words(r"\p{N}{1,3}"),))),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), _QWEN2),
    "stablelm2": _QWEN2._replace(normalizer=None),
    **dict.fromkeys(("gpt-2", "phi-2", "jina-es", "jina-de", "gigachat", "roberta-bpe", "mpt", "jais", "trillion"), _PLAIN),
    **dict.fromkeys(("olmo", "gpt-neox"), _PLAIN._replace(normalizer="NFC")),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGIT_BY_DIGIT),
    "falcon": BpeKind((_PUNCTUATION, _GPT2, "[0-9][0-9][0-9]")),
    "deepseek-llm": BpeKind(
        (r"[\r\n]", _CASED_LETTERS, "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+", r"\s+$", _CJK, r"\p{N}+")
    ),
    "deepseek-coder": BpeKind((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")),
    "deepseek-v3": BpeKind(
        (
            r"\p{N}{1,3}",
            "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        )
    ),
    "tekken": BpeKind((_cased_words(r"\p{N}"),), whole_words=True, add_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4"), BpeKind((_cased_words(r"\p{N}{1,3}", ending=f"{_ENDING}?"),))),
    **dict.fromkeys(("bloom", "poro-chat", "gpt3-finnish"), BpeKind((_BLOOM,))),
    "viking": BpeKind((_BLOOM, r"\p{N}")),
}
"""By the value of tokenizer.ggml.pre."""
