"""Checkpoints in compressed-tensors mean what their layouts say, bit for bit; what is not read is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from compute_svc.models.quantised import coded_tensors, schemes
from compute_svc.models.weights import CheckpointError
from compute_svc.stored_weights.coded_weight import CodedWeight
from tests.fakes import stored_formats
from tests.fakes.raw_checkpoint import assert_is, infos_of, read_coded, read_one

Parts = dict[str, torch.Tensor]
INT4_GROUPS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
INT8_CHANNEL = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
FP8_TENSOR = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True}
DYNAMIC = {"num_bits": 8, "type": "int", "strategy": "token", "symmetric": True, "dynamic": True}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def words(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(-(1 << 31), 1 << 31, shape, dtype=torch.int32, generator=generator(seed))


def scales(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.rand(shape, generator=generator(1)).mul(0.1).add(0.001).to(dtype)


def int8(*shape: int, low: int = -128, high: int = 128) -> torch.Tensor:
    return torch.randint(low, high, shape, dtype=torch.int8, generator=generator(2))


def fp8(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator(3)).mul(100).clamp(-448, 448).to(torch.float8_e4m3fn)


def section(weights: dict[str, Any], inputs: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}, "ignore": ["lm_head"], **more}


def packed_parts(bits: int, outputs: int, inputs: int, group: int) -> Parts:
    parts = {
        "weight_packed": words(outputs, -(-inputs * bits // 32)),
        "weight_shape": torch.tensor([outputs, inputs]),
        "weight_scale": scales(outputs, -(-inputs // group)),
    }
    return parts


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("has_zeros", [False, True])
@pytest.mark.parametrize(("outputs", "inputs", "group"), [(24, 64, 32), (7, 96, 16), (8, 45, None), (9, 13, None)])
def test_packed_integers_are_read_exactly(outputs: int, inputs: int, group: int | None, bits: int, has_zeros: bool) -> None:
    width = group or inputs
    parts = packed_parts(bits, outputs, inputs, width)
    if has_zeros:
        parts["weight_zero_point"] = words(-(-outputs * bits // 32), -(-inputs // width), seed=4)
    weights = {"num_bits": bits, "type": "int", "strategy": "group" if group else "channel", "group_size": group}
    weight = read_one(section(weights | {"symmetric": not has_zeros}, format="pack-quantized"), parts)
    assert isinstance(weight, CodedWeight)
    assert weight.num_bytes < parts["weight_packed"].nbytes + 6 * parts["weight_scale"].nbytes
    assert_is(weight, stored_formats.pack_quantized(parts, bits, width))


def test_packed_integers_grouped_by_activation_are_read_exactly() -> None:
    parts = packed_parts(4, 24, 64, 32)
    parts["weight_g_idx"] = (torch.randperm(64, generator=generator(5)) // 32).int()
    assert_is(read_one(section(INT4_GROUPS | {"actorder": "group"}), parts), stored_formats.pack_quantized(parts, 4, 32))


def test_groups_that_were_never_set_are_in_order() -> None:
    parts = packed_parts(4, 24, 64, 32)
    weight = read_one(section(INT4_GROUPS), {**parts, "weight_g_idx": torch.full((64,), -1, dtype=torch.int32)})
    assert_is(weight, stored_formats.pack_quantized(parts, 4, 32))


@pytest.mark.parametrize(
    ("weights", "rows", "columns"),
    [
        (INT8_CHANNEL, 1, 40),
        ({"num_bits": 8, "type": "int", "strategy": "tensor"}, 24, 40),
        ({"num_bits": 8, "type": "int", "strategy": "group", "group_size": 16}, 1, 16),
        (FP8_TENSOR, 24, 40),
        (FP8_TENSOR | {"strategy": "channel"}, 1, 40),
        (FP8_TENSOR | {"strategy": "block", "block_structure": [16, 32]}, 16, 32),
        (FP8_TENSOR | {"strategy": "block", "block_structure": "16x32"}, 16, 32),
    ],
)
def test_codes_one_by_one_are_read_exactly(weights: dict[str, Any], rows: int, columns: int) -> None:
    codes = fp8(24, 40) if weights["type"] == "float" else int8(24, 40)
    parts = {"weight": codes, "weight_scale": scales(-(-24 // rows), -(-40 // columns), dtype=torch.float32)}
    if weights.get("strategy") == "tensor":
        parts["weight_scale"] = parts["weight_scale"].reshape(1)
    expected = stored_formats.by_block(codes, parts["weight_scale"].reshape(-(-24 // rows), -1), rows, columns)
    assert_is(read_one(section(weights), parts), expected)


def test_zeros_of_single_codes_are_subtracted() -> None:
    parts = {"weight": int8(24, 40), "weight_scale": scales(24, 1), "weight_zero_point": int8(24, 1)}
    expected = stored_formats.by_block(parts["weight"], parts["weight_scale"], 1, 40, parts["weight_zero_point"])
    assert_is(read_one(section(INT8_CHANNEL | {"symmetric": False}), parts), expected)


def test_four_bits_stored_one_by_one_are_packed() -> None:
    parts = {"weight": int8(24, 64, low=-8, high=8), "weight_scale": scales(24, 2)}
    weight = read_one(section(INT4_GROUPS), parts)
    assert isinstance(weight, CodedWeight) and weight.code == "int4"
    assert_is(weight, stored_formats.by_block(parts["weight"], parts["weight_scale"], 1, 32))


@pytest.mark.parametrize(
    ("inputs", "activations", "has_scale"),
    [
        (None, "float", False),
        (DYNAMIC, "int8", False),
        ({"num_bits": 8, "type": "int", "strategy": "tensor", "dynamic": False}, "int8", True),
        ({"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}, "fp8", False),
        ({"num_bits": 8, "type": "float", "dynamic": False}, "fp8", True),
        # In forms that are not computed they are left as they are.
        (DYNAMIC | {"symmetric": False}, "float", False),
        (DYNAMIC | {"num_bits": 4}, "float", False),
        (DYNAMIC | {"strategy": "group", "group_size": 128}, "float", False),
    ],
)
def test_activations_are_what_the_scheme_says(inputs: dict[str, Any] | None, activations: str, has_scale: bool) -> None:
    parts = {"weight": int8(24, 40), "weight_scale": scales(24, 1), "input_scale": torch.tensor([0.02])}
    weight = read_one(section(INT8_CHANNEL, inputs), parts)
    assert isinstance(weight, CodedWeight)
    assert weight.activations == activations
    assert (None if weight.static_scale is None else float(weight.static_scale)) == (pytest.approx(0.02) if has_scale else None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_two_of_four_numbers_are_put_where_they_were(dtype: torch.dtype) -> None:
    parts = sparse_parts(torch.randn(12, 10, generator=generator(6)).to(dtype))
    assert_is(read_one(section(INT8_CHANNEL, sparsity_config={"format": "sparse-24-bitmask"}), parts), stored_formats.two_of_four(parts))


@pytest.mark.parametrize("weights", [INT8_CHANNEL, FP8_TENSOR | {"strategy": "channel"}])
def test_two_of_four_codes_are_put_where_they_were(weights: dict[str, Any]) -> None:
    parts = sparse_parts(fp8(12, 10) if weights["type"] == "float" else int8(12, 10)) | {"weight_scale": scales(12, 1)}
    expected = stored_formats.two_of_four(parts) * parts["weight_scale"].float().numpy()
    weight = read_one(section(weights), parts)
    assert isinstance(weight, CodedWeight)
    assert_is(weight, expected)


def sparse_parts(values: torch.Tensor) -> Parts:
    rows, half = values.shape
    mask = torch.zeros(rows, half // 2 * 4, dtype=torch.uint8)
    chosen = torch.rand(rows, half // 2, 4, generator=generator(7)).argsort(-1)[..., :2]
    mask.view(rows, -1, 4).scatter_(2, chosen, 1)
    padded = torch.nn.functional.pad(mask, (0, -mask.shape[1] % 8)).view(rows, -1, 8)
    bitmask = (padded << torch.arange(8, dtype=torch.uint8)).sum(-1).to(torch.uint8)
    return {"compressed": values, "bitmask": bitmask, "shape": torch.tensor([[rows], [2 * half]])}


def test_each_projection_has_the_scheme_that_names_it_before_the_one_for_all() -> None:
    groups = {
        "group_0": {"targets": ["Linear"], "weights": INT8_CHANNEL, "input_activations": None},
        "group_1": {"targets": [r"re:.*\.down_proj$"], "weights": INT4_GROUPS, "input_activations": None},
    }
    config = {"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": groups, "ignore": ["lm_head"]}
    down = packed_parts(4, 24, 64, 32)
    up = {"weight": int8(24, 40), "weight_scale": scales(24, 1)}
    tensors = {f"mlp.down_proj.{part}": tensor for part, tensor in down.items()} | {
        f"mlp.up_proj.{part}": tensor for part, tensor in up.items()
    }
    weights = read_coded(config, tensors)
    assert_is(weights["mlp.down_proj.weight"], stored_formats.pack_quantized(down, 4, 32))
    assert_is(weights["mlp.up_proj.weight"], stored_formats.by_block(up["weight"], up["weight_scale"], 1, 40))


def fits() -> Parts:
    return {"weight": int8(24, 40), "weight_scale": scales(24, 1)}


@pytest.mark.parametrize(
    ("config", "parts", "message"),
    [
        (section(INT8_CHANNEL, format="marlin-24"), fits(), "format 'marlin-24' is not supported"),
        (section(INT8_CHANNEL, format="nvfp4-pack-quantized"), fits(), "format 'nvfp4-pack-quantized' is not supported"),
        (section(INT8_CHANNEL, sparsity_config={"format": "sparse-bitmask"}), fits(), "sparsity_config 'sparse-bitmask' is not supported"),
        (section(INT8_CHANNEL, transform_config={"config_groups": {"u": {}}}), fits(), "transform_config .* is not supported"),
        (section(INT8_CHANNEL | {"num_bits": 6}), fits(), "'int' of 6 bits is not supported"),
        (section(INT8_CHANNEL | {"strategy": "tensor_group"}), fits(), "strategy 'tensor_group' is not supported"),
        (section(FP8_TENSOR | {"strategy": "block", "block_structure": [128]}), fits(), "block_structure is .* must list two sizes"),
        (section(FP8_TENSOR), fits(), "weight is stored as I8; supported: F8_E4M3"),
        (section(INT8_CHANNEL, ignore=["layer.proj"]), fits(), "layer.proj is stored as codes, but .* ignore names it"),
        (section(INT8_CHANNEL, ignore="layer"), fits(), "ignore must list at most 10000 names"),
        (section(INT8_CHANNEL, ignore=["re:(a+)+$"]), fits(), r"pattern '\(a\+\)\+\$' is not supported"),
        (section(INT8_CHANNEL, ignore=["re:" + "(" * 400]), fits(), "pattern .* is not supported"),
        (section(INT8_CHANNEL, config_groups={}), fits(), "config_groups have no scheme for it"),
        (section(INT8_CHANNEL, config_groups={"g": {"targets": ["Conv1D"], "weights": INT8_CHANNEL}}), fits(), "have no scheme for it"),
        (section(INT4_GROUPS), {"weight": int8(24, 64), "weight_scale": scales(24, 2)}, "weight holds codes of more than 4 bits"),
        (section(INT8_CHANNEL, DYNAMIC | {"dynamic": False, "strategy": "tensor"}), fits(), "input_scale is missing"),
        (
            section(INT8_CHANNEL, DYNAMIC | {"dynamic": False, "strategy": "tensor"}),
            fits() | {"input_scale": torch.tensor([-1.0])},
            "input_scale is -1.0, it must be above 0",
        ),
        (
            section(FP8_TENSOR),
            {"weight": torch.full((4, 4), 0xFF, dtype=torch.uint8).view(torch.float8_e4m3fn), "weight_scale": scales(1)},
            "weight holds codes that are not numbers",
        ),
        (
            section(INT4_GROUPS),
            packed_parts(4, 24, 64, 32) | {"weight_shape": torch.tensor([24, 1 << 40])},
            "weight_shape is .* does not fit",
        ),
        (section(INT4_GROUPS), packed_parts(4, 24, 64, 32) | {"weight_shape": torch.tensor([24, -64])}, "weight_shape is .* does not fit"),
        (section(INT4_GROUPS), packed_parts(4, 24, 64, 16), r"weight_scale has the shape \[24, 4\], it must be \[24, 2\]"),
        (section(INT8_CHANNEL), sparse_parts(int8(4, 8)) | {"bitmask": torch.zeros(4, 2, dtype=torch.uint8)}, "compressed is stored as I8"),
        (
            section(INT8_CHANNEL),
            sparse_parts(int8(4, 8)) | {"weight_scale": scales(4, 1), "bitmask": torch.full((4, 2), 255, dtype=torch.uint8)},
            "bitmask does not say two of each four",
        ),
        (
            section(INT8_CHANNEL),
            sparse_parts(int8(4, 8)) | {"weight_scale": scales(4, 1), "shape": torch.tensor([4, 1 << 50])},
            "shape is .* does not fit",
        ),
    ],
)
def test_what_is_not_read_or_does_not_fit_is_named(config: dict[str, Any], parts: Parts, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_one(config, parts)


def test_scales_of_caches_are_hidden_once() -> None:
    tensors = {f"self_attn.{name}.{part}": tensor for name in ("k_proj", "v_proj") for part, tensor in fits().items()}
    tensors |= {"self_attn.k_scale": torch.ones(1), "self_attn.v_scale": torch.ones(1)}
    coded = coded_tensors(section(INT8_CHANNEL), infos_of(tensors), "config.json", tensors.__getitem__)
    hidden = [part for weight in coded.values() for part in weight.parts]
    assert sorted(hidden) == sorted(tensors)


def test_patterns_may_not_cost_more_than_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemes, "_MOST_WORK", 1000)
    tensors = {f"model.layers.{index}.proj.{part}": tensor for index in range(10) for part, tensor in fits().items()}
    config = section(INT8_CHANNEL, ignore=["re:" + ".*b" * 5])
    with pytest.raises(CheckpointError, match="patterns of 11 steps are too many for the names that there are"):
        read_coded(config, tensors)
    assert len(read_coded(config, dict(list(tensors.items())[:8]))) == 4
