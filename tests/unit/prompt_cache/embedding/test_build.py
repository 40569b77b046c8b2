"""A folder is built whole from a source that is right, or not at all and for a reason that is told."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import save_file

from prompt_cache.embedding.build import MIN_COSINE, build_embedder
from prompt_cache.embedding.embedder import EmbedderRefused
from prompt_cache.embedding.folder import CARD_FILE, MODEL_FILE, TOKENIZER_FILE
from prompt_cache.embedding.onnx_embedder import OnnxEmbedder
from prompt_cache.embedding.probes import MANY_LANGUAGES, UNRELATED
from tests.fakes.sentence_models import CONFIG, VOCABULARY, WINDOW_TOKENS, random_weights, tokenizer_definition, write_sentence_model

WEIGHTS = "model.safetensors"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_sentence_model(tmp_path / "source")


def refused(source: Path, message: str) -> None:
    """Building fails with this message and leaves nothing behind."""
    output = source.parent / "built"
    with pytest.raises(EmbedderRefused, match=message):
        build_embedder(source, output / "embedder", name="small")
    assert list(output.iterdir()) == []


def edit(path: Path, **changes: Any) -> None:
    """Sets fields of a JSON object; a field set to `...` is removed."""
    fields = {**json.loads(path.read_bytes()), **changes}
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not ...}))


def test_the_embedder_gives_nearly_what_transformers_gives(source: Path, tmp_path: Path) -> None:
    card = build_embedder(source, tmp_path / "embedder", name="small")
    embedder = OnnxEmbedder.open(tmp_path / "embedder")
    model = transformers.BertModel.from_pretrained(source).eval()
    for text in ("how are you?", "a", "the train leaves at 8, they say."):
        ids = [VOCABULARY["[CLS]"]]
        for word in text.replace("?", " ?").replace(",", " ,").replace(".", " .").split():
            ids += [VOCABULARY[word[0]], *(VOCABULARY[f"##{letter}"] for letter in word[1:])]
        with torch.no_grad():
            mean = model(input_ids=torch.tensor([[*ids, VOCABULARY["[SEP]"]]])).last_hidden_state[0].mean(0)
        (vector,) = embedder.embed_now([text])
        assert vector is not None
        assert float(vector @ (mean / mean.norm()).numpy()) > MIN_COSINE
    assert MIN_COSINE <= card.cosine_to_float32 < 1


def test_the_card_says_what_was_built_of_what(source: Path, tmp_path: Path) -> None:
    card = build_embedder(source, tmp_path / "new" / "embedder", name="small")
    folder = tmp_path / "new" / "embedder"
    assert {path.name for path in folder.iterdir()} == {MODEL_FILE, TOKENIZER_FILE, CARD_FILE}
    assert [path.name for path in folder.parent.iterdir()] == ["embedder"]
    assert card.source_sha256 == hashlib.sha256((source / WEIGHTS).read_bytes()).hexdigest()
    assert (card.source_name, card.dimensions, card.window_tokens, card.number_format) == ("small", 16, WINDOW_TOKENS, "int8")
    assert [answer.text for answer in card.known_answers] == list(UNRELATED)
    assert OnnxEmbedder.open(folder).id == card.id


def test_the_same_source_gives_the_same_id_and_another_another(source: Path, tmp_path: Path) -> None:
    weights = random_weights()
    weights["embeddings.word_embeddings.weight"] *= np.float32(1.1)
    other = write_sentence_model(tmp_path / "other", weights)
    ids = [build_embedder(path, tmp_path / f"{index}", name="small").id for index, path in enumerate((source, source, other))]
    assert ids[0] == ids[1] != ids[2]


def test_progress_is_told_step_by_step(source: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    build_embedder(source, tmp_path / "embedder", name="small", progress=lambda done, steps, what: told.append((done, steps)))
    assert told == [(step, 5) for step in range(6)]


def test_a_folder_that_exists_is_left_alone(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "embedder"
    folder.mkdir()
    with pytest.raises(EmbedderRefused, match="exists already"):
        build_embedder(source, folder, name="small")
    assert list(folder.iterdir()) == []


def test_a_name_that_is_none_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(EmbedderRefused, match="is no name of an embedder"):
        build_embedder(source, tmp_path / "embedder", name="../up")


def test_a_model_that_tells_nothing_apart_is_refused(tmp_path: Path) -> None:
    weights = random_weights()
    for name in ("word", "position"):
        weights[f"embeddings.{name}_embeddings.weight"][:] = weights[f"embeddings.{name}_embeddings.weight"][0]
    refused(write_sentence_model(tmp_path / "source", weights), r"/source: .* does not tell texts apart")


def test_a_model_that_int8_is_too_coarse_for_is_refused(tmp_path: Path) -> None:
    weights = random_weights()
    for name, tensor in weights.items():
        if "LayerNorm" in name:
            # What has no effect, because its input is 0, still makes the steps of the scale as large as all other weights.
            tensor[0] = 0
        elif name.endswith((".query.weight", ".key.weight", ".value.weight", "intermediate.dense.weight")):
            tensor[:, 0] = 1000
    refused(
        write_sentence_model(tmp_path / "source", weights),
        rf"8-bit vectors have a cosine of -?0\.\d+ to float32, the least is {MIN_COSINE}",
    )


def test_a_pickle_alone_is_refused_for_what_it_is(source: Path) -> None:
    (source / WEIGHTS).rename(source / "pytorch_model.bin")
    refused(source, r"pytorch_model\.bin alone, a pickle, which can run code: only model\.safetensors is read")


@pytest.mark.parametrize("file", [WEIGHTS, "config.json", "modules.json", "tokenizer.json", "1_Pooling/config.json"])
def test_a_file_that_is_missing_is_named(source: Path, file: str) -> None:
    (source / file).unlink()
    refused(source, f"{file} cannot be read")


@pytest.mark.parametrize(
    ("file", "field", "value", "message"),
    [
        ("config.json", "model_type", "xlm-roberta", "model_type is 'xlm-roberta'; only bert is converted"),
        ("config.json", "model_type", ..., "model_type is None"),
        ("config.json", "position_embedding_type", "relative_key", "position_embedding_type is 'relative_key'"),
        ("config.json", "is_decoder", True, "is_decoder is True"),
        ("config.json", "hidden_act", "silu", "hidden_act is 'silu'"),
        ("config.json", "layer_norm_eps", 1, "layer_norm_eps is 1"),
        ("config.json", "layer_norm_eps", float("nan"), "layer_norm_eps is nan"),
        ("config.json", "num_hidden_layers", 0, "num_hidden_layers is 0"),
        ("config.json", "num_hidden_layers", 10**12, "num_hidden_layers is 1000000000000"),
        ("config.json", "hidden_size", "16", "hidden_size is 16, it must be an integer"),
        ("config.json", "vocab_size", 2_000_000_000, "vocab_size is 2000000000"),
        ("config.json", "intermediate_size", True, "intermediate_size is True"),
        ("config.json", "num_attention_heads", 3, "hidden_size is 16, no multiple of num_attention_heads, 3"),
        ("config.json", "intermediate_size", 41, r"intermediate\.dense\.weight has the shape \[40, 16\], config\.json says \[41, 16\]"),
        ("config.json", "num_hidden_layers", 3, r"lacks the tensor encoder\.layer\.2"),
        ("config.json", "num_hidden_layers", 1, r"has the tensor encoder\.layer\.1"),
        ("1_Pooling/config.json", "pooling_mode_cls_token", True, "pools by pooling_mode_cls_token, pooling_mode_mean_tokens"),
        ("1_Pooling/config.json", "pooling_mode_mean_tokens", False, "pools by nothing"),
        ("1_Pooling/config.json", "word_embedding_dimension", 17, "word_embedding_dimension is 17"),
        ("sentence_bert_config.json", "do_lower_case", True, "do_lower_case is set"),
        ("sentence_bert_config.json", "max_seq_length", -1, "max_seq_length is -1"),
    ],
)
def test_a_model_of_another_kind_is_refused_by_the_name_of_the_field(
    source: Path, file: str, field: str, value: object, message: str
) -> None:
    edit(source / file, **{field: value})
    refused(source, message)


def test_a_pooling_that_is_not_supported_is_named(tmp_path: Path) -> None:
    refused(write_sentence_model(tmp_path / "source", pooling="mean_sqrt_len_tokens"), "pools by pooling_mode_mean_sqrt_len_tokens")


def test_a_config_that_describes_more_than_memory_holds_is_refused_before_any_is_taken(source: Path) -> None:
    edit(source / "config.json", vocab_size=2_000_000, hidden_size=4096)
    refused(source, r"describes a model of \d+ bytes in float32, the most is")


def _dense(modules: list[dict[str, Any]]) -> None:
    modules.insert(2, {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"})


def _outside(modules: list[dict[str, Any]]) -> None:
    modules[1]["path"] = "../elsewhere"


def _absolute(modules: list[dict[str, Any]]) -> None:
    modules[1]["path"] = "/etc"


def _transformer_elsewhere(modules: list[dict[str, Any]]) -> None:
    modules[0]["path"] = "0_Transformer"


def _no_pooling(modules: list[dict[str, Any]]) -> None:
    del modules[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_dense, "has the modules Transformer, Pooling, Dense, Normalize"),
        (_no_pooling, "has the modules Transformer, Normalize"),
        (_outside, "the path of the Pooling"),
        (_absolute, "the path of the Pooling"),
        (_transformer_elsewhere, "the path of the Transformer"),
    ],
)
def test_modules_that_are_not_converted_are_named(source: Path, change: Callable[[Any], None], message: str) -> None:
    modules = json.loads((source / "modules.json").read_bytes())
    change(modules)
    (source / "modules.json").write_text(json.dumps(modules))
    refused(source, message)


def test_a_window_longer_than_the_positions_ends_with_them(source: Path, tmp_path: Path) -> None:
    edit(source / "sentence_bert_config.json", max_seq_length=512)
    assert build_embedder(source, tmp_path / "one", name="small").window_tokens == CONFIG["max_position_embeddings"]
    (source / "sentence_bert_config.json").unlink()
    assert build_embedder(source, tmp_path / "two", name="small").window_tokens == CONFIG["max_position_embeddings"]


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(source: Path) -> None:
    definition = tokenizer_definition()
    definition["model"]["vocab"] = {**VOCABULARY, "@": len(VOCABULARY)}
    (source / TOKENIZER_FILE).write_text(json.dumps(definition))
    refused(source, f"gives ids up to {len(VOCABULARY)}, config.json says vocab_size {len(VOCABULARY)}")


def test_names_may_begin_with_bert_and_the_heads_of_training_are_left_out(source: Path, tmp_path: Path) -> None:
    weights = {f"bert.{name}": tensor for name, tensor in random_weights().items()}
    further = {"bert.pooler.dense.weight": np.ones((16, 16), np.float32), "cls.predictions.bias": np.ones(3, np.float32)}
    other = write_sentence_model(tmp_path / "other", {**weights, **further})
    with_prefix = build_embedder(other, tmp_path / "one", name="small")
    assert with_prefix.model_sha256 == build_embedder(source, tmp_path / "two", name="small").model_sha256


def test_half_precision_is_read(tmp_path: Path) -> None:
    halves = {name: tensor.astype(np.float16) for name, tensor in random_weights().items()}
    source = write_sentence_model(tmp_path / "source", halves)  # type: ignore[arg-type]
    assert build_embedder(source, tmp_path / "embedder", name="small").cosine_to_float32 > MIN_COSINE


def _tensor_of(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        weights: dict[str, Any] = random_weights()
        weights["embeddings.LayerNorm.bias"] = change(weights["embeddings.LayerNorm.bias"])
        save_file(weights, path)

    return write


def _bfloat16(path: Path) -> None:
    weights = {name: torch.from_numpy(tensor) for name, tensor in random_weights().items()}
    weights["embeddings.LayerNorm.bias"] = weights["embeddings.LayerNorm.bias"].bfloat16()
    # Of torch: numpy has no such type.
    from safetensors.torch import save_file as save_torch_file  # noqa: PLC0415

    save_torch_file(weights, path)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _lying_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 2**62) + path.read_bytes()[8:])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_tensor_of(lambda tensor: tensor[:-1].copy()), r"LayerNorm\.bias has the shape \[15\], config\.json says \[16\]"),
        (_tensor_of(lambda tensor: tensor * np.float32(np.nan)), "has elements that are not finite"),
        (_tensor_of(lambda tensor: tensor.astype(np.int32)), "is I32, only F32 and F16 are read"),
        (_bfloat16, "is BF16, only F32 and F16 are read"),
        (_cut, "cannot be read as safetensors"),
        (_lying_header, "cannot be read as safetensors"),
        (lambda path: path.write_bytes(b"PK\x03\x04"), "cannot be read as safetensors"),
    ],
    ids=["shape", "nan", "integers", "bfloat16", "cut", "header", "zip"],
)
def test_weights_that_are_wrong_are_named(source: Path, write: Callable[[Path], object], message: str) -> None:
    write(source / WEIGHTS)
    refused(source, message)


def test_the_sentences_are_of_four_languages_and_three_lengths() -> None:
    assert len(MANY_LANGUAGES) == len(set(MANY_LANGUAGES)) == 12
