"""The tokens of a GGUF file: their strings, scores and kinds, and which of them are special."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from triserve.model_files.gguf_file import GgufFile
from triserve.model_files.gguf_header import GgufError

# Kinds of tokens, as sentencepiece numbers them.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

_SPECIAL_IDS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",
    "pad_token": "padding_token_id",
    "cls_token": "cls_token_id",
    "mask_token": "mask_token_id",
}
_OTHER_ENDS = ("eot_token_id", "eom_token_id")
# Control tokens of these names end an answer though the metadata do not say so: files name one end, chat models have two or three.
_NAMES_OF_ENDS = frozenset(
    (
        "<|eot_id|>",
        "<|eom_id|>",
        "<|im_end|>",
        "<|end|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<EOT>",
        "<|user|>",
        "<|observation|>",
    )
)


@dataclass(frozen=True)
class Vocabulary:
    """What was read.

    Attributes:
        place: The file, for messages.
        tokens: By id.
        scores: Of each; zeros if the file has none.
        kinds: Of each.
        ids: Of each token.
        special: The tokens that stand for begin-of-text and so on, by the names tokenizer_config.json has for them.
        ends: Ids that end an answer, the main one first.
        add_bos: Whether begin-of-text comes first; None = the file does not say.
        add_eos: Whether the end is put behind, likewise.
    """

    place: str
    tokens: Sequence[str]
    scores: Sequence[float]
    kinds: Sequence[int]
    ids: Mapping[str, int]
    special: Mapping[str, str]
    ends: tuple[int, ...]
    add_bos: bool | None
    add_eos: bool | None

    def adds_bos(self, default: bool) -> bool:
        """Whether begin-of-text comes first."""
        return default and "bos_token" in self.special if self.add_bos is None else self.add_bos

    def adds_eos(self, default: bool) -> bool:
        """Whether the end comes last."""
        return default if self.add_eos is None else self.add_eos

    def required(self, name: str) -> str:
        """A special token. Raises GgufError if there is none of that name."""
        if name not in self.special:
            raise GgufError(f"{self.place} asks for {name} around texts and does not say which it is")
        return self.special[name]


def read_vocabulary(file: GgufFile) -> Vocabulary:
    """Reads the tokens.

    Raises:
        GgufError: They are missing, two are the same, or arrays about them are of other lengths.
    """
    tokens = file.texts("tokenizer.ggml.tokens")
    scores = file.numbers("tokenizer.ggml.scores", [0.0] * len(tokens))
    kinds = file.counts("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    for name, values in (("scores", scores), ("token_type", kinds)):
        if len(values) != len(tokens):
            raise GgufError(f"{file.place}: tokenizer.ggml.{name} has {len(values)} items, there are {len(tokens)} tokens")
    if any(score != score for score in scores):
        raise GgufError(f"{file.place}: tokenizer.ggml.scores has a score that is no number")
    ids: dict[str, int] = {}
    for index, token in enumerate(tokens):
        if ids.setdefault(token, index) != index:
            raise GgufError(f"{file.place}: tokens {ids[token]} and {index} are both {token[:80]!r}")
    special = {name: tokens[token_id] for name, key in _SPECIAL_IDS.items() if (token_id := _token_id(file, key, len(tokens))) is not None}
    named = [_token_id(file, key, len(tokens)) for key in ("eos_token_id", *_OTHER_ENDS)]
    found = [ids[name] for name in sorted(_NAMES_OF_ENDS) if name in ids and kinds[ids[name]] in (CONTROL, USER_DEFINED)]
    ends = tuple(dict.fromkeys(token_id for token_id in (*named, *found) if token_id is not None))
    return Vocabulary(
        place=file.place,
        tokens=tokens,
        scores=scores,
        kinds=kinds,
        ids=ids,
        special=special,
        ends=ends,
        add_bos=file.flag("tokenizer.ggml.add_bos_token") if "tokenizer.ggml.add_bos_token" in file else None,
        add_eos=file.flag("tokenizer.ggml.add_eos_token") if "tokenizer.ggml.add_eos_token" in file else None,
    )


def _token_id(file: GgufFile, key: str, num_tokens: int) -> int | None:
    name = f"tokenizer.ggml.{key}"
    if name not in file:
        return None
    token_id = file.count(name, at_least=0)
    if token_id >= num_tokens:
        raise GgufError(f"{file.place}: {name} is {token_id}, there are {num_tokens} tokens")
    return token_id
