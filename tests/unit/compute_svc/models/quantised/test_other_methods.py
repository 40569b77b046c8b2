"""FP8, quanto, BitNet and SqueezeLLM checkpoints mean what their layouts say, bit for bit; methods that are not read are named."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from compute_svc.models.weights import CheckpointError
from compute_svc.stored_weights.coded_weight import CodedWeight
from tests.fakes import stored_formats
from tests.fakes.raw_checkpoint import assert_is, read_coded, read_one

Parts = dict[str, torch.Tensor]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fp8(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator(3)).mul(100).clamp(-448, 448).to(torch.float8_e4m3fn)


def scales(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(shape, generator=generator(1)).mul(0.1).add(0.001).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e8m0fnu])
@pytest.mark.parametrize(
    ("shape", "block"), [((256, 384), (128, 128)), ((200, 130), (128, 128)), ((24, 40), (16, 8)), ((24, 40), (64, 64))]
)
def test_fp8_in_blocks_is_read_exactly(shape: tuple[int, int], block: tuple[int, int], dtype: torch.dtype) -> None:
    parts = {"weight": fp8(*shape), "weight_scale_inv": scales(-(-shape[0] // block[0]), -(-shape[1] // block[1])).to(dtype)}
    section = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": list(block)}
    weight = read_one(section, parts)
    assert isinstance(weight, CodedWeight) and weight.activations == "fp8"
    assert_is(weight, stored_formats.by_block(parts["weight"], parts["weight_scale_inv"], *block))


@pytest.mark.parametrize(
    ("name", "shape", "rows"),
    [("weight_scale", (), 24), ("weight_scale_inv", (1,), 24), ("weight_scale", (24, 1), 1), ("weight_scale", (24,), 1)],
)
def test_fp8_with_a_scale_for_everything_or_for_each_output_is_read_exactly(name: str, shape: tuple[int, ...], rows: int) -> None:
    parts = {"weight": fp8(24, 40), name: scales(*shape), "input_scale": torch.tensor(0.5)}
    expected = stored_formats.by_block(parts["weight"], parts[name].reshape(-1, 1), rows, 40)
    for scheme, static in (("dynamic", None), ("static", 0.5)):
        weight = read_one({"quant_method": "fp8", "activation_scheme": scheme}, parts)
        assert isinstance(weight, CodedWeight) and weight.activations == "fp8"
        assert (None if weight.static_scale is None else float(weight.static_scale)) == static
        assert_is(weight, expected)


@pytest.mark.parametrize(
    ("section", "parts", "message"),
    [
        ({"fmt": "e5m2"}, {}, "fmt 'e5m2' is not supported"),
        ({"expert_dtype": "fp4"}, {}, "expert_dtype 'fp4' is not supported"),
        ({"activation_scheme": "static"}, {}, "input_scale is missing"),
        ({"weight_block_size": [128, 0]}, {}, "weight_block_size is .* must list two sizes"),
        ({"weight_block_size": [8, 8]}, {}, r"weight_scale_inv has the shape \[1\], it must be \[3, 5\]"),
        ({}, {"weight_scale_inv": torch.tensor([torch.nan])}, "weight_scale_inv holds numbers that are not finite"),
        ({}, {"weight_scale_inv": torch.tensor([3], dtype=torch.int32)}, "weight_scale_inv is stored as I32"),
        (
            {},
            {"weight": torch.full((24, 40), 0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn)},
            "weight holds codes that are not numbers",
        ),
    ],
)
def test_fp8_that_does_not_fit_is_named(section: dict[str, Any], parts: Parts, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_one({"quant_method": "fp8"} | section, {"weight": fp8(24, 40), "weight_scale_inv": scales(1)} | parts)


@pytest.mark.parametrize("is_float", [False, True])
def test_quanto_is_read_exactly(is_float: bool) -> None:
    codes = fp8(24, 40) if is_float else torch.randint(-128, 128, (24, 40), dtype=torch.int8, generator=generator(2))
    parts = {
        "weight._data": codes,
        "weight._scale": scales(24, 1, dtype=torch.bfloat16),
        "input_scale": torch.ones(()),
        "output_scale": torch.ones(()),
    }
    assert_is(read_one({"quant_method": "quanto"}, parts), stored_formats.by_block(codes, parts["weight._scale"], 1, 40))


def flat_parts(bits: int, outputs: int, inputs: int, group: int) -> Parts:
    rows = outputs * inputs // group
    return {
        "weight._data._data": torch.randint(0, 256, (-(-rows * bits // 8), group), dtype=torch.uint8, generator=generator(5)),
        "weight._scale": scales(rows, 1),
        "weight._shift": scales(rows, 1),
    }


@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("is_float", [True, False])
@pytest.mark.parametrize(
    ("name", "outputs", "inputs", "group"),
    [("q_proj", 24, 64, 32), ("down_proj", 64, 96, 32), ("q_proj", 7, 64, 64), ("o_proj", 64, 64, 64)],
)
def test_quanto_in_groups_has_the_shape_that_fits_the_models_width(
    name: str, outputs: int, inputs: int, group: int, is_float: bool, bits: int
) -> None:
    parts = flat_parts(bits, outputs, inputs, group)
    if not is_float:
        parts["weight._shift"] = torch.randint(0, 1 << bits, parts["weight._shift"].shape, dtype=torch.int8, generator=generator(6))
    tensors = {f"mlp.{name}.{part}": tensor for part, tensor in parts.items()} | {"embed.weight": torch.zeros(200, 64)}
    (weight,) = read_coded({"quant_method": "quanto"}, tensors).values()
    assert_is(weight, stored_formats.quanto_groups(parts, bits, (outputs, inputs)))


@pytest.mark.parametrize(
    ("parts", "width", "message"),
    [
        (flat_parts(4, 24, 64, 32), 0, "there is no embedding whose width would"),
        (flat_parts(4, 24, 64, 32), 80, r"_data\._data of the shape .* does not fit 48 scales and hidden states of 80"),
        (flat_parts(4, 24, 64, 32) | {"weight._scale": scales(60, 1)}, 64, "_shift has the shape"),
        (flat_parts(4, 24, 64, 32) | {"weight._scale": scales(60, 1), "weight._shift": scales(60, 1)}, 64, "does not fit 60 scales"),
        (flat_parts(4, 24, 64, 32) | {"weight._shift": torch.full((48, 1), torch.nan)}, 64, "_shift holds numbers that are not finite"),
    ],
)
def test_quanto_in_groups_that_does_not_fit_is_named(parts: Parts, width: int, message: str) -> None:
    tensors = {f"mlp.q_proj.{part}": tensor for part, tensor in parts.items()}
    if width:
        tensors["embed.weight"] = torch.zeros(200, width)
    with pytest.raises(CheckpointError, match=message):
        read_coded({"quant_method": "quanto"}, tensors)


def bitnet_parts() -> Parts:
    ternary = torch.randint(0, 3, (4, 6, 21), dtype=torch.uint8, generator=generator(2))
    weight = ternary[0] | ternary[1] << 2 | ternary[2] << 4 | ternary[3] << 6
    return {"weight": weight, "weight_scale": torch.tensor([1.375], dtype=torch.bfloat16)}


@pytest.mark.parametrize(("linear", "divides"), [(None, True), ("bitlinear", True), ("autobitlinear", False)])
def test_bitnet_is_read_exactly(linear: str | None, divides: bool) -> None:
    parts = bitnet_parts()
    weight = read_one({"quant_method": "bitnet"} | ({"linear_class": linear} if linear else {}), parts)
    assert isinstance(weight, CodedWeight)
    assert (weight.code, weight.activations) == ("int2", "int8")
    assert_is(weight, stored_formats.bitnet(parts, divides=divides))


@pytest.mark.parametrize(
    ("section", "parts", "message"),
    [
        ({"linear_class": "other"}, {}, "linear_class 'other' is not supported; supported: bitlinear, autobitlinear"),
        ({"quantization_mode": "online"}, {}, "quantization_mode 'online' .* is not supported"),
        ({"use_rms_norm": True}, {}, "use_rms_norm .* is not supported"),
        ({}, {"weight": torch.full((6, 21), 3, dtype=torch.uint8)}, "weight holds codes that are none of -1, 0, 1"),
        ({}, {"weight_scale": torch.tensor([0.0])}, "weight_scale is 0.0, it must be above 0"),
        ({}, {"weight_scale": torch.tensor([1e-38])}, "weight_scale is .* from 2.-100 to 2.100"),
        ({}, {"weight_scale": torch.ones(2)}, r"weight_scale has the shape \[2\], it must be one number"),
    ],
)
def test_bitnet_that_is_not_known_is_named(section: dict[str, Any], parts: Parts, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_one({"quant_method": "bitnet"} | section, bitnet_parts() | parts)


def squeezed_parts() -> Parts:
    return {
        "qweight": torch.randint(-(1 << 31), 1 << 31, (8, 6), dtype=torch.int32, generator=generator(0)),
        "lookup_table": torch.randn(6, 16, generator=generator(1)).half(),
    }


def with_sparse(parts: Parts) -> Parts:
    return parts | {
        "rows": torch.tensor([0, 2, 2, 5, 5, 5, 6], dtype=torch.int32),
        "cols": torch.tensor([0, 63, 7, 8, 9, 33], dtype=torch.int32),
        "vals": torch.randn(6, generator=generator(2)),
    }


@pytest.mark.parametrize("is_sparse", [False, True])
def test_squeezellm_is_read_exactly(is_sparse: bool) -> None:
    parts = with_sparse(squeezed_parts()) if is_sparse else squeezed_parts()
    assert_is(read_one({"quant_method": "squeezellm", "wbits": 4}, parts), stored_formats.squeezellm(parts))


@pytest.mark.parametrize(
    ("section", "parts", "message"),
    [
        ({"wbits": 3}, {}, "wbits is 3; SqueezeLLM of 4 bits is read"),
        ({}, {"full_rows": torch.zeros(64, 10)}, "full_rows .* is not supported"),
        ({}, {"cols": torch.tensor([0, 64, 7, 8, 9, 33], dtype=torch.int32)}, "cols must be from 0 to 63"),
        ({}, {"cols": torch.tensor([0, -1, 7, 8, 9, 33], dtype=torch.int32)}, "cols must be from 0 to 63"),
        ({}, {"rows": torch.tensor([0, 2, 2, 5, 5, 5, 7], dtype=torch.int32)}, "rows must rise from 0 to the 6 numbers of cols"),
        ({}, {"rows": torch.tensor([0, 2, 2, 5, 4, 5, 6], dtype=torch.int32)}, "rows must rise"),
        ({}, {"vals": torch.full((6,), torch.inf)}, "vals holds numbers that are not finite"),
        ({}, {"vals": torch.zeros(5)}, r"vals has the shape \[5\], it must be \[6\]"),
    ],
)
def test_squeezellm_that_does_not_fit_is_named(section: dict[str, Any], parts: Parts, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_one({"quant_method": "squeezellm", "wbits": 4} | section, with_sparse(squeezed_parts()) | parts)


@pytest.mark.parametrize("method", ["hqq", "aqlm", "torchao", "mxfp4", None, "x" * 10_000])
def test_methods_that_are_not_read_are_named_with_those_that_are(method: str | None) -> None:
    with pytest.raises(
        CheckpointError, match=r"config\.json: quantization_config: quant_method .* is not supported; supported: awq, bitnet"
    ) as caught:
        read_coded({"quant_method": method}, {})
    assert len(str(caught.value)) < 500


def test_a_weight_that_is_stored_twice_is_refused() -> None:
    tensors = {f"layer.proj.{part}": tensor for part, tensor in squeezed_parts().items()} | {"layer.proj.weight": torch.zeros(6, 64)}
    with pytest.raises(CheckpointError, match=r"stored both as codes and as numbers: layer\.proj\.weight"):
        read_coded({"quant_method": "squeezellm"}, tensors)
