"""Builds the definition of a `tokenizers.Tokenizer`, the form of a tokenizer.json, from a GGUF file's metadata."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from tokenizer_svc.gguf.pre_tokenizers import BPE_KINDS
from tokenizer_svc.gguf.vocabulary import BYTE, CONTROL, UNKNOWN, USER_DEFINED, Vocabulary, read_vocabulary
from triserve.model_files.gguf_file import GgufFile
from triserve.model_files.gguf_header import GgufError

Definition = dict[str, Any]

# What sentencepiece writes for a space.
_SPACE = "\u2581"


def build_definition(file: GgufFile) -> Definition:
    """The definition of the model's tokenizer.

    Raises:
        GgufError: The metadata lack something, or name a tokenizer or a pre-tokenizer that is not known.
    """
    model = file.text("tokenizer.ggml.model")
    if model not in _MODELS:
        raise GgufError(f"{file.place}: tokenizer.ggml.model {model!r} is not supported; supported: {', '.join(sorted(_MODELS))}")
    vocabulary = read_vocabulary(file)
    definition: Definition = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(vocabulary),
        **_MODELS[model](file, vocabulary),
    }
    try:
        Tokenizer.from_str(json.dumps(definition))
    except Exception as error:  # the library raises nothing more precise
        raise GgufError(f"{file.place}: its tokenizer cannot be built: {error}") from error
    return definition


def _added_tokens(vocabulary: Vocabulary) -> list[Definition]:
    """Tokens that text is cut at before anything else."""
    return [
        {
            "id": token_id,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind != USER_DEFINED,
        }
        for token_id, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
        if token and kind in (CONTROL, USER_DEFINED, UNKNOWN)
    ]


def _byte_level_bpe(file: GgufFile, vocabulary: Vocabulary) -> Definition:
    name = file.text("tokenizer.ggml.pre", "default")
    if name not in BPE_KINDS:
        raise GgufError(f"{file.place}: tokenizer.ggml.pre {name!r} is not supported; supported: {', '.join(sorted(BPE_KINDS))}")
    kind = BPE_KINDS[name]
    merges = [merge.split(" ") for merge in file.texts("tokenizer.ggml.merges")]
    known = vocabulary.ids
    for parts in merges:
        if len(parts) != 2 or parts[0] not in known or parts[1] not in known or "".join(parts) not in known:
            raise GgufError(f"{file.place}: tokenizer.ggml.merges has {' '.join(parts)[:80]!r}, which is no merge of tokens")
    splits: list[Definition] = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False} for pattern in kind.patterns
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    prefix = file.flag("tokenizer.ggml.add_space_prefix", False)
    return {
        "normalizer": _sequence([{"type": "Prepend", "prepend": " "}] * prefix + [{"type": kind.normalizer}] * bool(kind.normalizer)),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]},
        "post_processor": _post_processor(vocabulary, bos=vocabulary.adds_bos(kind.add_bos), eos=vocabulary.adds_eos(False)),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _bpe(known, merges, ignore_merges=kind.whole_words),
    }


def _sentencepiece_bpe(file: GgufFile, vocabulary: Vocabulary) -> Definition:
    """Llama's: pairs merge in order of the merged token's score; characters that no token has become their bytes' tokens."""
    prefix = file.flag("tokenizer.ggml.add_space_prefix", True)
    space = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    back = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    has_bytes = BYTE in vocabulary.kinds
    return {
        "normalizer": _sequence([{"type": "Prepend", "prepend": _SPACE}] * prefix + [space]),
        "pre_tokenizer": None,
        "post_processor": _post_processor(vocabulary, bos=vocabulary.adds_bos(True), eos=vocabulary.adds_eos(False)),
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *(strip * prefix)]},
        "model": {
            **_bpe(vocabulary.ids, _merges_by_score(vocabulary), ignore_merges=False),
            "byte_fallback": has_bytes,
            "fuse_unk": True,
            "unk_token": vocabulary.special.get("unk_token"),
        },
    }


def _merges_by_score(vocabulary: Vocabulary) -> list[list[str]]:
    """Every pair of tokens that makes up a token, the best first; pairs that make up the same one in order of their ids."""
    ids = vocabulary.ids
    pairs = []
    for token, token_id in ids.items():
        if vocabulary.kinds[token_id] in (CONTROL, USER_DEFINED, UNKNOWN, BYTE):
            continue
        score = -vocabulary.scores[token_id]
        for cut in range(1, len(token)):
            left, right = ids.get(token[:cut]), ids.get(token[cut:])
            if left is not None and right is not None:
                pairs.append((score, left, right))
    pairs.sort()
    return [[vocabulary.tokens[left], vocabulary.tokens[right]] for _, left, right in pairs]


def _unigram(file: GgufFile, vocabulary: Vocabulary) -> Definition:
    """T5's: the likeliest sequence of tokens."""
    unknown = vocabulary.ids.get(vocabulary.special.get("unk_token", ""))
    if unknown is None:
        raise GgufError(f"{file.place} lacks tokenizer.ggml.unknown_token_id, which a unigram vocabulary needs")
    prefix = file.flag("tokenizer.ggml.add_space_prefix", True)
    scheme = {"replacement": _SPACE, "prepend_scheme": "always" if prefix else "never", "split": True}
    normalizers: list[Definition] = []
    charsmap = file.counts("tokenizer.ggml.precompiled_charsmap", [])
    if charsmap:
        text = base64.b64encode(bytes(value & 0xFF for value in charsmap)).decode()
        normalizers.append({"type": "Precompiled", "precompiled_charsmap": text})
    if file.flag("tokenizer.ggml.remove_extra_whitespaces", True):
        normalizers += [
            {"type": "Strip", "strip_left": True, "strip_right": True},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
        ]
    return {
        "normalizer": _sequence(normalizers),
        "pre_tokenizer": {"type": "Metaspace", **scheme},
        "post_processor": _post_processor(vocabulary, bos=vocabulary.adds_bos(False), eos=vocabulary.adds_eos(True)),
        "decoder": {"type": "Metaspace", **scheme},
        "model": {
            "type": "Unigram",
            "unk_id": unknown,
            "vocab": [[token, float(score)] for token, score in zip(vocabulary.tokens, vocabulary.scores, strict=True)],
            "byte_fallback": BYTE in vocabulary.kinds,
        },
    }


def _word_piece(file: GgufFile, vocabulary: Vocabulary) -> Definition:
    """BERT's: words of the text are cut into the longest pieces. Metadata mark beginnings of words, tokenizer.json marks what goes on."""
    special = (CONTROL, USER_DEFINED, UNKNOWN)
    vocab = {}
    for token_id, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True)):
        begins = token.startswith(_SPACE)
        vocab[token if kind in special else token.removeprefix(_SPACE) if begins else f"##{token}"] = token_id
    unknown = vocabulary.special.get("unk_token", "[UNK]")
    if unknown not in vocab:
        raise GgufError(f"{file.place} lacks tokenizer.ggml.unknown_token_id, which a WordPiece vocabulary needs")
    return {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": _post_processor(vocabulary, bos=vocabulary.adds_bos(True), eos=vocabulary.adds_eos(True), end="sep_token"),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": unknown,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocab,
        },
    }


def _bpe(vocab: Mapping[str, int], merges: Sequence[Sequence[str]], *, ignore_merges: bool) -> Definition:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": ignore_merges,
        "vocab": dict(vocab),
        "merges": merges,
    }


def _sequence(normalizers: Sequence[Definition]) -> Definition | None:
    return {"type": "Sequence", "normalizers": list(normalizers)} if normalizers else None


def _post_processor(vocabulary: Vocabulary, *, bos: bool, eos: bool, end: str = "eos_token") -> Definition | None:
    """Puts begin-of-text before a text and an end behind it."""
    first = [vocabulary.required("bos_token")] if bos else []
    last = [vocabulary.required(end)] if eos else []
    if not first and not last:
        return None

    def pieces(names: list[str]) -> list[Definition]:
        return [{"SpecialToken": {"id": name, "type_id": 0}} for name in names]

    def text(letter: str) -> Definition:
        return {"Sequence": {"id": letter, "type_id": 0}}

    return {
        "type": "TemplateProcessing",
        "single": [*pieces(first), text("A"), *pieces(last)],
        "pair": [*pieces(first), text("A"), *pieces(last), *pieces(first), text("B"), *pieces(last)],
        "special_tokens": {name: {"id": name, "ids": [vocabulary.ids[name]], "tokens": [name]} for name in {*first, *last}},
    }


_MODELS: dict[str, Callable[[GgufFile, Vocabulary], Definition]] = {
    "gpt2": _byte_level_bpe,
    "llama": _sentencepiece_bpe,
    "t5": _unigram,
    "bert": _word_piece,
}
