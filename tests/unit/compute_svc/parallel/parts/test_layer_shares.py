"""Every layer is one stage's, and a stage reads nothing of the others'."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from compute_svc.models.registry import load_model, read_config
from compute_svc.models.weights import SINGLE_FILE, CheckpointError, open_checkpoint
from compute_svc.parallel.parts.layer_shares import layers_of, require_stages, stage_config, tensors_of
from tests.fakes.checkpoints import EXAMPLES, save_checkpoint
from tests.fakes.thread_stages import ThreadStages


@given(num_layers=st.integers(1, 200), count=st.integers(1, 64))
def test_each_layer_is_of_one_stage_and_the_first_has_no_more_than_others(num_layers: int, count: int) -> None:
    count = min(count, num_layers)
    shares = [layers_of(stage, count, num_layers) for stage in range(count)]
    assert [index for layers in shares for index in layers] == list(range(num_layers))
    sizes = [len(layers) for layers in shares]
    assert sizes[0] == min(sizes) >= 1 and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("family", "variant"), [("gpt2", "tied"), ("deepseek_v3", "query-latent-yarn"), ("opt", "norms-behind-narrow")])
def test_every_tensor_is_read_by_one_stage(family: str, variant: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, family, **EXAMPLES[family].variants[variant])
    config, names, *_ = read_config(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        tensors = checkpoint.tensors
    names = names.fitting(tensors)
    shares = [layers_of(stage, 2, config.num_layers) for stage in range(2)]
    read = [tensors_of(layers, tensors, names, config.num_layers) for layers in shares]
    assert sorted(name for share in read for name in share) == sorted(tensors)
    assert f"{names.embedding}.weight" in read[0]
    kinds = [stage_config(config, layers).kind_of_layer for layers in shares]
    assert sum(kinds, ()) == config.kind_of_layer


def test_a_stage_looks_at_nothing_of_the_others(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "llama")
    tensors = load_file(tmp_path / SINGLE_FILE)
    for name, tensor in tensors.items():
        if not name.startswith(("model.layers.1.", "model.layers.2.")):
            tensor.fill_(torch.nan)
    save_file(tensors, tmp_path / SINGLE_FILE, metadata={"format": "pt"})
    (_, first), (_, second) = ThreadStages(2).ranks
    cpu = torch.device("cpu")
    model = load_model(tmp_path, dtype=torch.float32, device=cpu, stages=second)
    assert len(model.layers) == 2 and model.embedding is None and model.head is None
    with pytest.raises(CheckpointError, match="holds numbers that are not finite"):
        load_model(tmp_path, dtype=torch.float32, device=cpu, stages=first)


def test_more_stages_than_layers_are_refused_by_name(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "llama")
    config = read_config(tmp_path).config
    require_stages(config, 3)
    with pytest.raises(ValueError, match="COMPUTE_PIPELINE_PARALLEL is 4, the limit is the number of layers of LlamaForCausalLM, 3"):
        require_stages(config, 4)
