"""GPTQ and AWQ checkpoints mean what their layouts say, bit for bit; what does not fit is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from compute_svc.models.weights import CheckpointError
from compute_svc.stored_weights.coded_weight import CodedWeight
from tests.fakes import stored_formats
from tests.fakes.raw_checkpoint import assert_is, read_one

Parts = dict[str, torch.Tensor]


def words(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(-(1 << 31), 1 << 31, shape, dtype=torch.int32, generator=torch.Generator().manual_seed(seed))


def scales(*shape: int, dtype: torch.dtype = torch.float16, seed: int = 1) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).mul(0.1).sub(0.03).to(dtype)


def gptq_parts(bits: int, inputs: int, outputs: int, group: int) -> Parts:
    groups = -(-inputs // group)
    return {
        "qweight": words(inputs * bits // 32, outputs),
        "qzeros": words(groups, -(-outputs * bits // 32), seed=2),
        "scales": scales(groups, outputs),
    }


def gptq_section(bits: int, group: int, **more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": False, "sym": True, **more}


@pytest.mark.parametrize("layout", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("inputs", "outputs", "group"), [(64, 24, 16), (96, 7, 32), (80, 16, 48), (64, 8, -1), (64, 8, 1000)])
def test_gptq_is_read_exactly(bits: int, inputs: int, outputs: int, group: int, layout: str) -> None:
    width = inputs if group == -1 else min(group, inputs)
    inputs = -(-inputs * bits // 32) * 32 // bits
    parts = gptq_parts(bits, inputs, outputs, width)
    weight = read_one(gptq_section(bits, group, checkpoint_format=layout), parts)
    assert_is(weight, stored_formats.gptq(parts, bits, width, less_one=layout == "gptq"))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gptq_whose_inputs_are_grouped_by_activation_is_read_exactly(bits: int) -> None:
    parts = gptq_parts(bits, 64, 24, 16)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(3))
    parts["g_idx"] = (torch.arange(64) // 16)[order].int()
    assert_is(read_one(gptq_section(bits, 16, desc_act=True), parts), stored_formats.gptq(parts, bits, 16, less_one=True))


def test_inputs_in_order_or_groups_left_zero_need_no_permutation() -> None:
    parts = gptq_parts(4, 64, 24, 16)
    plain = read_one(gptq_section(4, 16), parts)
    for groups in (torch.arange(64) // 16, torch.zeros(64)):
        weight = read_one(gptq_section(4, 16), {**parts, "g_idx": groups.int()})
        assert isinstance(weight, CodedWeight) and weight.inputs is None
        assert torch.equal(weight.dense(torch.float32), plain.dense(torch.float32))


def test_symmetric_codes_become_signed_ones_without_zeros() -> None:
    parts = gptq_parts(4, 64, 24, 16) | {"qzeros": torch.full((4, 3), 0x77777777, dtype=torch.int32)}
    weight = read_one(gptq_section(4, 16), parts)
    assert isinstance(weight, CodedWeight)
    assert (weight.code, weight.zeros, weight.scales.dtype) == ("int4", None, torch.float16)
    assert_is(weight, stored_formats.gptq(parts, 4, 16, less_one=True))


@pytest.mark.parametrize(
    ("section", "changed", "message"),
    [
        ({"bits": 3}, {}, "bits is 3; GPTQ of 2, 4, 8 bits is read"),
        ({"bits": True}, {}, "bits is True, it must be an integer"),
        ({"group_size": 0}, {}, "group_size is 0, it must be an integer of at least 1"),
        ({"checkpoint_format": "marlin"}, {}, "checkpoint_format 'marlin' is not supported; supported: gptq, gptq_v2"),
        ({"is_marlin_format": True}, {}, "is_marlin_format is not supported"),
        ({"dynamic": {"+:.*down.*": {"bits": 8}}}, {}, "dynamic gives some projections another form"),
        ({}, {"scales": scales(5, 24)}, r"tensor layer.proj.scales has the shape \[5, 24\], it must be \[4, 24\]"),
        ({}, {"qzeros": words(4, 2)}, r"tensor layer.proj.qzeros has the shape \[4, 2\], it must be \[4, 3\]"),
        ({}, {"qzeros": None}, "tensor layer.proj.qzeros is missing"),
        ({}, {"qweight": words(8, 24).long()}, "qweight is stored as I64; supported: I32"),
        ({}, {"qweight": words(8, 0)}, r"qweight has the shape \[8, 0\], it must have 2 dimensions, none empty"),
        ({}, {"scales": scales(4, 24).index_fill(0, torch.tensor(2), torch.inf)}, "scales holds numbers that are not finite or above"),
        ({}, {"scales": scales(4, 24).index_fill(0, torch.tensor(2), torch.nan)}, "scales holds numbers that are not finite or above"),
        ({}, {"g_idx": torch.arange(64).int() % 5}, "g_idx does not give 16 columns to each group from 0 to 3"),
        ({}, {"g_idx": -torch.arange(64).int()}, "g_idx does not give 16 columns"),
        ({}, {"g_idx": torch.arange(64).int() << 25}, "g_idx does not give 16 columns"),
        ({}, {"g_idx": torch.arange(63).int()}, r"g_idx has the shape \[63\], it must be \[64\]"),
    ],
)
def test_gptq_that_does_not_fit_is_named(section: dict[str, Any], changed: dict[str, torch.Tensor | None], message: str) -> None:
    parts = gptq_parts(4, 64, 24, 16) | changed
    with pytest.raises(CheckpointError, match=f"config.json.*{message}"):
        read_one(gptq_section(4, 16) | section, {name: tensor for name, tensor in parts.items() if tensor is not None})


def awq_parts(inputs: int, outputs: int, group: int) -> Parts:
    groups = -(-inputs // group)
    return {"qweight": words(inputs, outputs // 8), "qzeros": words(groups, outputs // 8, seed=2), "scales": scales(groups, outputs)}


@pytest.mark.parametrize(("inputs", "outputs", "group"), [(64, 24, 16), (33, 8, 32), (48, 16, -1)])
def test_awq_is_read_exactly(inputs: int, outputs: int, group: int) -> None:
    width = inputs if group == -1 else group
    parts = awq_parts(inputs, outputs, width)
    section = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}
    assert_is(read_one(section, parts), stored_formats.awq(parts, width))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"version": "gemv"}, "version 'gemv' is not supported; supported: gemm"),
        ({"bits": 8}, "bits is 8; AWQ of 4 bits is read"),
        ({"group_size": 32}, r"scales has the shape \[4, 24\], it must be \[2, 24\]"),
    ],
)
def test_awq_that_is_not_read_is_named(section: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_one({"quant_method": "awq", "bits": 4, "group_size": 16, "version": "GEMM"} | section, awq_parts(64, 24, 16))
