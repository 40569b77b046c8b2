from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from compute_svc.convert import convert_gguf
from compute_svc.inspect import audit_folder
from compute_svc.models.config import UnsupportedModel
from compute_svc.models.registry import load_model, read_config
from compute_svc.models.weights import open_checkpoint
from compute_svc.quantise.config_section import KV_FIELD
from compute_svc.quantise.folder import Written, quantise_folder, round_to_nearest, source_of
from compute_svc.quantise.scheme import Scheme
from compute_svc.quantise.shards import ShardWriter
from compute_svc.quantise.stored_forms import as_stored
from compute_svc.stored_weights.coded_weight import CodedWeight
from tests.fakes.checkpoints import edit_config, save_checkpoint
from tests.fakes.gguf_files import write_gguf
from tests.fakes.gguf_packing import packing

SCHEMES = {
    "int8": Scheme(weights="int8", activations="int8"),
    "int8-float": Scheme(weights="int8", activations="float", head=True),
    "int8-groups": Scheme(weights="int8", group=64, activations="int8", head=True),
    "int4": Scheme(weights="int4", group=128, activations="float"),
    "int4-head": Scheme(weights="int4", group=64, activations="int8", head=True),
    "fp8": Scheme(weights="fp8", activations="fp8"),
    "nf4": Scheme(weights="nf4", activations="float"),
    "nf4-nested": Scheme(weights="nf4", activations="float", nested=True),
}
# Widths that groups of 128, 64 and 16 divide.
_SIZES: dict[str, Any] = {"hidden_size": 192, "intermediate_size": 256, "num_hidden_layers": 2, "tie_word_embeddings": True}
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Folders:
    """A float checkpoint and where a quantised one goes."""

    source: Path
    out: Path

    def quantise(self, scheme: Scheme) -> Written:
        """Rounds to nearest."""
        return quantise_folder(self.source, self.out, scheme, round_to_nearest, lambda done, total: None)

    def config(self) -> dict[str, Any]:
        """Of the quantised one."""
        content: dict[str, Any] = json.loads((self.out / "config.json").read_text())
        return content


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    both = Folders(tmp_path / "source", tmp_path / "out")
    for folder in (both.source, both.out):
        folder.mkdir()
    return both


def _coded(folder: Path, scheme: Scheme) -> dict[str, CodedWeight]:
    with torch.inference_mode(), open_checkpoint(folder) as checkpoint:
        source, reading = source_of(checkpoint, read_config(folder), scheme)
        parts = [part.coded for part in round_to_nearest(source, reading)]
    return {name: as_stored(weight, nested=scheme.nested) for part in parts for name, weight in part.items()}


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_what_is_written_is_read_as_the_same_numbers_and_the_rest_as_it_was(scheme: Scheme, folders: Folders) -> None:
    save_checkpoint(folders.source, "llama", **_SIZES)
    written = folders.quantise(scheme)
    coded = _coded(folders.source, scheme)
    with open_checkpoint(folders.source) as before, open_checkpoint(folders.out) as after:
        assert set(after.tensors) == {*before.tensors, *(("lm_head.weight",) if scheme.head else ())}
        for name in after.tensors:
            read = after.read(name, torch.float32, _CPU)
            module = name.removesuffix(".weight")
            expected = coded[module].dense(torch.float32) if module in coded else before.read(name, torch.float32, _CPU)
            assert torch.equal(read, expected), name
        assert set(coded) == {name.removesuffix(".weight") for name, info in after.tensors.items() if info.coded_bytes}
    assert written.num_bytes < written.source_bytes
    load_model(folders.out, dtype=torch.float32, device=_CPU)


def test_a_tied_head_gets_a_matrix_of_its_own_and_the_config_says_so(folders: Folders) -> None:
    save_checkpoint(folders.source, "llama", **_SIZES)
    folders.quantise(SCHEMES["int4-head"])
    config = folders.config()
    assert config["tie_word_embeddings"] is False
    section = config["quantization_config"]
    assert section["format"] == "mixed-precision"
    assert section["ignore"] == []
    head = next(group for group in section["config_groups"].values() if group["targets"] == ["re:^lm_head$"])
    assert head["format"] == "int-quantized"
    assert head["weights"]["num_bits"] == 8


def test_widths_that_a_group_does_not_divide_get_the_largest_that_does_and_are_told(folders: Folders) -> None:
    save_checkpoint(folders.source, "llama", **_SIZES)
    written = folders.quantise(SCHEMES["int4"])
    groups = folders.config()["quantization_config"]["config_groups"].values()
    assert {group["weights"]["group_size"]: group["targets"] for group in groups}[128] == [r"re:^model\.layers\.\d+\.mlp\.down_proj$"]
    assert sorted(group["weights"]["group_size"] for group in groups) == [16, 64, 128]
    assert written.notes == (
        "matrices of 48 inputs have groups of 16: 128 does not divide that",
        "matrices of 192 inputs have groups of 64: 128 does not divide that",
    )


def test_the_config_keeps_everything_else_and_says_what_keys_and_values_are_kept_as(folders: Folders) -> None:
    save_checkpoint(folders.source, "llama", **_SIZES)
    folders.quantise(Scheme(weights="int8", activations="int8", kv_format="int8-g32"))
    before, after = json.loads((folders.source / "config.json").read_text()), folders.config()
    assert after.pop(KV_FIELD) == "int8-g32"
    section = after.pop("quantization_config")
    assert after == before
    assert section["config_groups"]["group_0"]["targets"] == ["Linear"]
    assert section["ignore"] == ["lm_head"]
    assert read_config(folders.out).kv_format == "int8-g32"


def test_routers_and_gates_of_experts_stay_as_they_are(folders: Folders) -> None:
    save_checkpoint(folders.source, "qwen2_moe", num_hidden_layers=2)
    folders.quantise(SCHEMES["int8"])
    with open_checkpoint(folders.out) as checkpoint:
        kinds = {name: bool(info.coded_bytes) for name, info in checkpoint.tensors.items() if name.startswith("model.layers.1.mlp.")}
    assert not kinds["model.layers.1.mlp.gate.weight"]
    assert not kinds["model.layers.1.mlp.shared_expert_gate.weight"]
    assert kinds["model.layers.1.mlp.experts.3.down_proj.weight"]
    assert {"model.layers.1.mlp.gate", "lm_head"} <= set(folders.config()["quantization_config"]["ignore"])


def test_nf4_leaves_matrices_whose_rows_its_blocks_do_not_fill_and_says_so(folders: Folders) -> None:
    save_checkpoint(folders.source, "llama", **{**_SIZES, "hidden_size": 96})
    written = folders.quantise(SCHEMES["nf4"])
    assert "matrices in layers stay as they are" in written.notes[0]
    skipped = folders.config()["quantization_config"]["llm_int8_skip_modules"]
    assert "model.layers.0.self_attn.q_proj" in skipped
    assert "model.layers.0.mlp.down_proj" not in skipped


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("gpt2", "GPT2LMHeadModel stores its matrices transposed, which compressed-tensors has no form for"),
        ("gpt_oss", "GptOssForCausalLM stores its experts in stacks, which compressed-tensors has no form for"),
    ],
)
def test_families_whose_matrices_have_no_form_in_the_layout_are_refused_by_name(family: str, message: str, folders: Folders) -> None:
    save_checkpoint(folders.source, family)
    with pytest.raises(UnsupportedModel, match=message):
        folders.quantise(SCHEMES["int8"])


def test_a_gguf_file_is_quantised_from_what_its_blocks_stand_for(tmp_path: Path, folders: Folders) -> None:
    published = tmp_path / "published"
    published.mkdir()
    save_checkpoint(published, "llama", hidden_size=256, intermediate_size=256, num_attention_heads=8, head_dim=32, num_hidden_layers=1)
    write_gguf(published, tmp_path / "model.gguf", pack=packing(["Q8_0"]))
    convert_gguf(tmp_path / "model.gguf", folders.source, safetensors=False)
    folders.quantise(SCHEMES["int8"])
    assert folders.config()["model_type"] == "llama"
    with open_checkpoint(folders.source) as before, open_checkpoint(folders.out) as after:
        assert before.tensors["model.embed_tokens.weight"].dtype == "Q8_0"
        for name in before.tensors:
            old, new = (checkpoint.read(name, torch.float32, _CPU) for checkpoint in (before, after))
            assert torch.equal(old, new) != bool(after.tensors[name].coded_bytes)
            assert torch.allclose(old, new, atol=0.02 * float(old.abs().max()))


def test_what_is_quantised_already_is_not_quantised_again(folders: Folders) -> None:
    save_checkpoint(folders.source, "llama", **_SIZES)
    edit_config(folders.source, quantization_config={"quant_method": "gptq"})
    with pytest.raises(UnsupportedModel, match="is quantised already"):
        folders.quantise(SCHEMES["int8"])


def test_inspecting_tells_bytes_by_format_and_that_quality_was_measured_elsewhere(folders: Folders) -> None:
    save_checkpoint(folders.source, "llama", **_SIZES)
    folders.quantise(SCHEMES["int8"])
    facts = {fact.what: fact for fact in audit_folder(folders.out).facts}
    assert facts["quantised weights"].value.endswith(" numbers in int8, activations in int8")
    assert facts["quality to expect"].value.startswith("int8, activations in int8: perplexity +")
    assert "SmolLM2-135M" in facts["quality to expect"].source
    assert "quantised weights" not in {fact.what for fact in audit_folder(folders.source).facts}


def test_tensors_are_written_into_files_of_bounded_size_as_they_come(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, max_file_bytes=1000)
    tensors = {f"t{index}": torch.full((50 + index,), float(index)) for index in range(9)}
    for name, tensor in tensors.items():
        writer.add({name: tensor})
    writer.add({"large": torch.zeros(600)})
    writer.close()
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({*index["weight_map"].values(), "model.safetensors.index.json"})
    assert index["metadata"]["total_size"] == writer.num_bytes
    for name, tensor in tensors.items():
        with safe_open(tmp_path / index["weight_map"][name], framework="pt") as file:
            assert torch.equal(file.get_tensor(name), tensor)
    with open_checkpoint(tmp_path) as checkpoint:
        assert set(checkpoint.tensors) == {*tensors, "large"}
