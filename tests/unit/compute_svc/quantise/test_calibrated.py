from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from compute_svc.models.loading import ModelBuilder
from compute_svc.models.registry import load_model, read_config
from compute_svc.models.weights import CheckpointError, open_checkpoint
from compute_svc.quantise.folder import round_to_nearest, source_of
from compute_svc.quantise.gptq import gptq
from compute_svc.quantise.layer_inputs import CalibrationPass, InputMoments
from compute_svc.quantise.layerwise import Calibrated
from compute_svc.quantise.overlay import OverlaidCheckpoint
from compute_svc.quantise.rounding import round_weight
from compute_svc.quantise.scaled_layer import ScaledLayer
from compute_svc.quantise.scaling import awq_scales, smooth_scales
from compute_svc.quantise.scheme import Scheme, WeightForm
from compute_svc.stored_weights.coded_weight import CodedWeight
from tests.fakes.checkpoints import save_checkpoint

_CPU = torch.device("cpu")
_INT4 = Scheme(weights="int4", group=32, activations="float")
_SIZES: dict[str, Any] = {"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 2, "max_position_embeddings": 512}


def _moments(inputs: torch.Tensor) -> InputMoments:
    moments = InputMoments.of(inputs.shape[1])
    moments.add(inputs)
    return moments


def _inputs(count: int, columns: int) -> torch.Tensor:
    """Rows whose columns depend on each other."""
    generator = torch.Generator().manual_seed(1)
    few = torch.randn((count, columns // 5), generator=generator)
    return few @ torch.randn((columns // 5, columns), generator=generator) + 0.3 * torch.randn((count, columns), generator=generator)


@pytest.mark.parametrize("form", [WeightForm("int4", 32, "float"), WeightForm("int4", 160, "float"), WeightForm("int8", 160, "int8")])
def test_gptq_comes_nearer_to_the_products_than_rounding_does(form: WeightForm) -> None:
    weight, inputs = torch.randn((48, 160), generator=torch.Generator().manual_seed(2)), _inputs(400, 160)
    rounded = round_weight(weight, form, torch.float32).dense(torch.float32)
    made_up = gptq(weight.clone(), form, _moments(inputs), torch.float32)
    errors = [float((inputs @ (one - weight).t()).norm()) for one in (made_up.dense(torch.float32), rounded)]
    assert errors[0] < 0.6 * errors[1]
    assert made_up.group == min(form.group, 160)


def test_gptq_survives_inputs_that_are_always_zero_or_always_the_same() -> None:
    inputs = torch.zeros((8, 64))
    inputs[:, 3] = 1.0
    coded = gptq(torch.randn((5, 64)), WeightForm("int4", 32, "float"), _moments(inputs), torch.float32)
    dense = coded.dense(torch.float32)
    assert bool(dense.isfinite().all())
    assert not bool(dense[:, :3].any())


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi", "gemma2", "olmo2", "mixtral", "qwen2_moe", "opt"])
def test_calibration_goes_through_the_layers_as_the_engine_does(family: str, tmp_path: Path) -> None:
    """What the last layer makes of the windows is what the model's own layers make of them, and each matrix' moments are of its own inputs."""
    save_checkpoint(tmp_path, family, num_hidden_layers=2)
    model = load_model(tmp_path, dtype=torch.float32, device=_CPU)
    names = read_config(tmp_path).names
    with open_checkpoint(tmp_path) as checkpoint:
        names = names.fitting(checkpoint.tensors)
    windows = torch.randint(1, 97, (2, 32), generator=torch.Generator().manual_seed(0))
    seen: dict[int, torch.Tensor] = {}
    reads = CalibrationPass(model, windows, names)
    for index, layer in enumerate(model.layers):
        moments = reads.inputs(layer, f"{index}.")
        expected = [hidden.clone() for hidden in reads.hidden]
        reads.advance(layer)
        for before, after, step in zip(expected, reads.hidden, reads.steps, strict=True):
            x = before if getattr(layer, "attention_norm", None) is None else layer.attention_norm.forward(before)  # type: ignore[union-attr]
            seen[index] = seen.get(index, 0) + x.t().double() @ x.double()
            assert after.shape == before.shape
            assert step.num_tokens == 32
        assert torch.allclose(moments[f"{index}.{names.qkv[0]}"].gram, seen[index], rtol=1e-4, atol=1e-3)
        assert moments[f"{index}.{names.output}"].count == 64


@pytest.mark.parametrize(
    ("family", "changes"), [("llama", {}), ("gemma2", {}), ("phi", {}), ("llama", {"attention_bias": True, "mlp_bias": True})]
)
@pytest.mark.parametrize("choose", [awq_scales, smooth_scales])
def test_moved_scales_change_nothing_but_where_numbers_are(choose: Any, family: str, changes: dict[str, bool], tmp_path: Path) -> None:
    save_checkpoint(tmp_path, family, **{**_SIZES, **changes})
    model = load_model(tmp_path, dtype=torch.float32, device=_CPU)
    windows = torch.randint(1, 97, (1, 32), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), open_checkpoint(tmp_path) as checkpoint:
        source, reading = source_of(checkpoint, read_config(tmp_path), _INT4)
        prefix = reading.names.layer.format(0)
        before, after = (CalibrationPass(model, windows, reading.names) for _ in range(2))
        moments = before.inputs(model.layers[0], prefix)
        tensors = {name: checkpoint.read(name, torch.float32, _CPU) for name in source.names_of(prefix)}
        scaled = ScaledLayer(reading.config, reading.names, prefix, {name: tensor.clone() for name, tensor in tensors.items()})
        forms = source.selection.forms
        scaled.scale(lambda readers, weights: choose(weights, [forms[module] for module in readers], moments[readers[0]]))
        moved = {name: tensor for name, tensor in scaled.tensors.items() if not torch.equal(tensor, tensors[name])}
        assert any("norm" in name for name in moved)

        overlay = OverlaidCheckpoint(checkpoint, {}, scaled.tensors)
        builder = ModelBuilder(
            reading.config, reading.names, overlay, dtype=torch.float32, device=_CPU, activations="float", on_progress=None
        )
        before.advance(model.layers[0])
        after.advance(builder.layer(0))
        assert torch.allclose(before.hidden[0], after.hidden[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["gptq", "awq", "smoothquant"])
def test_a_calibrated_model_has_every_tensor_and_is_the_same_every_time(method: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "llama", **_SIZES)
    ids = torch.randint(1, 97, (1024,), generator=torch.Generator().manual_seed(0))
    both = []
    with torch.inference_mode(), open_checkpoint(tmp_path) as checkpoint:
        source, reading = source_of(checkpoint, read_config(tmp_path), _INT4)
        for _ in range(2):
            coded: dict[str, CodedWeight] = {}
            names = set()
            for part in Calibrated(method, ids)(source, reading):  # type: ignore[arg-type]
                coded |= part.coded
                names |= {*part.plain, *(f"{module}.weight" for module in part.coded)}
            both.append(coded)
            assert names == set(source.names)
        assert all(torch.equal(both[0][name].data, both[1][name].data) for name in both[0])
        assert all(torch.equal(both[0][name].scales, both[1][name].scales) for name in both[0])
        rounded = {name: weight for part in round_to_nearest(source, reading) for name, weight in part.coded.items()}
        assert any(not torch.equal(rounded[name].data, both[0][name].data) for name in rounded)


@pytest.mark.parametrize(
    ("family", "method", "message"),
    [
        ("olmo2", "awq", "--method awq is not there for Olmo2ForCausalLM: its layers have no norm before attention and MLP"),
        ("mixtral", "awq", "--method awq is not there for MixtralForCausalLM: it has experts"),
        ("deepseek_v2", "gptq", "--method gptq is not there for DeepseekV2ForCausalLM: its attention is over a latent"),
    ],
)
def test_a_method_that_is_not_there_for_a_family_says_so(family: str, method: str, message: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, family)
    with open_checkpoint(tmp_path) as checkpoint:
        source, reading = source_of(checkpoint, read_config(tmp_path), _INT4)
        with pytest.raises(CheckpointError, match=message):
            next(Calibrated(method, torch.ones(512, dtype=torch.int64))(source, reading))  # type: ignore[arg-type]


def test_calibration_texts_that_are_too_short_or_of_another_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 511 tokens, it must have at least 512"):
        Calibrated("gptq", torch.ones(511, dtype=torch.int64))
    save_checkpoint(tmp_path, "llama", **_SIZES)
    with open_checkpoint(tmp_path) as checkpoint:
        source, reading = source_of(checkpoint, read_config(tmp_path), _INT4)
        with pytest.raises(ValueError, match="has token 97, the model has 97"):
            next(Calibrated("gptq", torch.full((512,), 97))(source, reading))


def test_smoothing_makes_rounded_products_of_outliers_better() -> None:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn((200, 64), generator=generator)
    inputs[:, 5] *= 300.0
    weight, form = torch.randn((32, 64), generator=generator), WeightForm("int8", 64, "int8")
    moments = _moments(inputs)
    scales = smooth_scales([weight], [form], moments)
    assert scales is not None
    errors = []
    for one in (torch.ones(64), scales):
        rows = inputs / one
        step = rows.abs().amax(dim=1, keepdim=True) / 127
        rounded = (rows / step).round() * step
        errors.append(
            float((rounded @ round_weight(weight * one, form, torch.float32).dense(torch.float32).t() - inputs @ weight.t()).norm())
        )
    assert errors[1] < 0.2 * errors[0]
