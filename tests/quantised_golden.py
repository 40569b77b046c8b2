"""Small weights as the libraries that publish checkpoints store them, and what they make of them: `python -m tests.quantised_golden [NAME ...]`.

It needs the libraries, which nothing else here does: `pip install compressed-tensors bitsandbytes optimum-quanto gptqmodel autoawq`. Names given,
only those are made again, as 2:4 and groups by activation must be by compressed-tensors 0.9.4, the last that writes both.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

FOLDER = Path(__file__).parent / "data" / "quantised"
TENSORS, SECTIONS = FOLDER / "golden.safetensors", FOLDER / "golden.json"

_OUTPUTS, _INPUTS, _GROUP = 32, 32, 16
WIDTH = 256
"""Of the hidden states that weights take whose tensors do not say it."""


class Golden(NamedTuple):
    """One weight.

    Attributes:
        library: Which made it.
        section: Of config.json.
        parts: Its tensors, without the projection's name.
        expected: What the library makes of them.
    """

    library: str
    section: dict[str, Any]
    parts: dict[str, torch.Tensor]
    expected: torch.Tensor


def _weight() -> torch.Tensor:
    weight = torch.randn(_OUTPUTS, _INPUTS, generator=torch.Generator().manual_seed(7))
    weight[:, 5] *= 6
    return weight


def _grouped(bits: int, *, symmetric: bool, groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zeros [N, G] of each group of columns."""
    weight, top = _weight(), (1 << bits) - 1
    split = [weight[:, groups == group] for group in range(int(groups.max()) + 1)]
    if symmetric:
        scales = torch.stack([part.abs().amax(1) for part in split], 1) / (top // 2)
        return scales.half().float(), torch.full_like(scales, (top + 1) // 2)
    low = torch.stack([part.amin(1).clamp(max=0) for part in split], 1)
    scales = ((torch.stack([part.amax(1) for part in split], 1) - low) / top).half().float()
    return scales, (-low / scales).round()


def _gptq(bits: int, layout: str, *, by_activation: bool = False, symmetric: bool = False) -> Golden:
    linear_class = importlib.import_module("gptqmodel.nn_modules.qlinear.torch").TorchLinear
    model = importlib.import_module("gptqmodel.utils.model")
    groups = torch.arange(_INPUTS) // _GROUP
    if by_activation:
        groups = groups[torch.randperm(_INPUTS, generator=torch.Generator().manual_seed(8))]
    scales, zeros = _grouped(bits, symmetric=symmetric, groups=groups)
    plain = torch.nn.Linear(_INPUTS, _OUTPUTS, bias=False)
    plain.weight.data = _weight()
    sizes = {"in_features": _INPUTS, "out_features": _OUTPUTS}
    linear = linear_class(bits=bits, group_size=_GROUP, sym=symmetric, desc_act=by_activation, register_buffers=True, **sizes)
    linear.pack(plain, scales, zeros, groups.int())
    linear.post_init()
    linear.qzero_format(format=2)
    expected = linear.dequantize_weight().T.contiguous()
    if layout == "gptq":
        model.convert_gptq_v2_to_v1_format_module(linear, types.SimpleNamespace(bits=bits, pack_dtype=torch.int32))
    parts = {name: getattr(linear, name) for name in ("qweight", "qzeros", "scales", "g_idx")}
    section = {"quant_method": "gptq", "bits": bits, "group_size": _GROUP, "desc_act": by_activation, "sym": symmetric}
    return Golden("gptqmodel", {**section, "checkpoint_format": layout}, parts, expected)


def _awq() -> Golden:
    # Its own first import takes in everything that quantising needs.
    package = types.ModuleType("awq")
    package.__path__ = [str(importlib.metadata.distribution("autoawq").locate_file("awq"))]
    sys.modules["awq"] = package
    packing = importlib.import_module("awq.utils.packing_utils")
    scales, zeros = _grouped(4, symmetric=False, groups=torch.arange(_INPUTS) // _GROUP)
    each, offsets = (numbers.repeat_interleave(_GROUP, 1) for numbers in (scales, zeros))
    codes = (_weight() / each + offsets).round().clamp(0, 15).int()
    qweight, qzeros = (_awq_words(numbers, packing.AWQ_ORDER) for numbers in (codes.T, zeros.T.int()))
    expected = packing.dequantize_gemm(qweight, qzeros, scales.T.half(), 4, _GROUP).T.contiguous()
    section = {"quant_method": "awq", "bits": 4, "group_size": _GROUP, "zero_point": True, "version": "gemm"}
    return Golden("autoawq", section, {"qweight": qweight, "qzeros": qzeros, "scales": scales.T.half()}, expected)


def _awq_words(codes: torch.Tensor, order: list[int]) -> torch.Tensor:
    """As its linear layer packs them where there is a GPU."""
    lanes = codes.reshape(len(codes), -1, 8)[..., order].long()
    return (lanes << torch.arange(0, 32, 4)).sum(-1).to(torch.int32)


def _compressed(layout: str, weights: dict[str, Any], inputs: dict[str, Any] | None = None) -> Golden:
    quantization = importlib.import_module("compressed_tensors.quantization")
    compressors = importlib.import_module("compressed_tensors.compressors")
    helpers = importlib.import_module("compressed_tensors.quantization.utils")
    args = quantization.QuantizationArgs(**weights)
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=args)
    weight = _weight()
    columns = weights.get("group_size") or _INPUTS
    blocks = weight.view(_OUTPUTS, -1, columns)
    if args.strategy == "block":
        rows, columns = weights["block_structure"]
        blocks = weight.reshape(_OUTPUTS // rows, rows, -1, columns).transpose(1, 2).flatten(2)
    scales, zeros = helpers.calculate_qparams(blocks.amin(-1), blocks.amax(-1), args)
    state = {"weight": weight, "weight_scale": scales, "weight_zero_point": zeros}
    compressor = compressors.BaseCompressor.get_value_from_registry(layout)
    parts = compressor.compress(state, scheme)
    expected = compressor.decompress(parts, scheme)["weight"]
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None}
    section = {"quant_method": "compressed-tensors", "format": layout, "config_groups": {"group_0": group}, "ignore": ["lm_head"]}
    return Golden("compressed-tensors", section, parts, expected)


def _by_activation() -> Golden:
    quantization = importlib.import_module("compressed_tensors.quantization")
    compressors = importlib.import_module("compressed_tensors.compressors")
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": _GROUP, "symmetric": True, "actorder": "group"}
    args = quantization.QuantizationArgs(**weights)
    groups = (torch.arange(_INPUTS) // _GROUP)[torch.randperm(_INPUTS, generator=torch.Generator().manual_seed(9))].int()
    scales, _ = _grouped(4, symmetric=True, groups=groups)
    compressor = compressors.PackedQuantizationCompressor()
    parts = compressor.compress_weight(_weight(), scales, args, torch.zeros_like(scales).to(torch.int8), groups)
    parts |= {"weight_scale": scales, "weight_g_idx": groups}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    section = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": group}}
    return Golden("compressed-tensors", section, parts, compressor.decompress_weight(parts, args))


def _two_of_four() -> Golden:
    module = importlib.import_module("compressed_tensors.compressors.sparse_compressors.sparse_24_bitmask")
    sparse = module.Sparse24BitMaskTensor.from_dense(_weight().bfloat16())
    parts = {name.removeprefix("p."): tensor for name, tensor in sparse.dict("p.weight").items()}
    section = {"quant_method": "compressed-tensors", "format": "dense", "sparsity_config": {"format": "sparse-24-bitmask"}}
    return Golden("compressed-tensors", section, parts, sparse.decompress())


def _four_bits(kind: str, *, nested: bool) -> Golden:
    functional = importlib.import_module("bitsandbytes.functional")
    # Its kernel for CPUs is wrong (0.50.2) where a block is longer than a row.
    packed, state = functional.quantize_4bit(_weight().view(-1, 64), blocksize=64, compress_statistics=nested, quant_type=kind)
    parts = {"weight": packed} | {f"weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
    return Golden("bitsandbytes", {"quant_method": "bitsandbytes", "load_in_4bit": True}, parts, functional.dequantize_4bit(packed, state))


def _int8() -> Golden:
    functional = importlib.import_module("bitsandbytes.functional")
    codes, scales, _ = functional.int8_vectorwise_quant(_weight().half())
    parts = {"weight": codes, "SCB": scales, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    section = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    return Golden("bitsandbytes", section, parts, functional.int8_vectorwise_dequant(codes, scales))


def _quanto(kind: str) -> Golden:
    quanto = importlib.import_module("optimum.quanto")
    # Of int4 and int2 it rounds what it multiplies before it subtracts, if in a narrow dtype.
    weight = _weight().view(-1, WIDTH) if kind in ("qint4", "qint2") else _weight().bfloat16()
    outputs, inputs = weight.shape
    linear = torch.nn.Linear(inputs, outputs, bias=False)
    linear.weight.data = weight
    linear = quanto.QLinear.from_module(linear, weights=getattr(quanto, kind))
    linear.freeze()
    return Golden("optimum-quanto", {"quant_method": "quanto"}, dict(linear.state_dict()), linear.weight.dequantize())


def _fp8() -> Golden:
    module = importlib.import_module("transformers.integrations.finegrained_fp8")
    block = [4, 24]
    scales = torch.rand(_OUTPUTS // 4, 2, generator=torch.Generator().manual_seed(10)) / 448
    each = scales.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[:, :_INPUTS]
    codes = (_weight() / each).clamp(-448, 448).to(torch.float8_e4m3fn)
    section = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": block}
    expected = module._dequantize_fp8_weight(codes, scales, block, torch.float32)
    return Golden("transformers", section, {"weight": codes, "weight_scale_inv": scales}, expected)


def _bitnet() -> Golden:
    module = importlib.import_module("transformers.integrations.bitnet")
    torch.compiler.set_stance("force_eager")
    packed = module.pack_weights(_weight().sign() * (_weight().abs() > 0.6))
    scale = torch.tensor([0.75], dtype=torch.bfloat16)
    expected = module.unpack_weights(packed, torch.float32) * scale.float()
    section = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}
    return Golden("transformers", section, {"weight": packed, "weight_scale": scale}, expected)


_INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": _GROUP, "symmetric": True}
_FLOAT = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
_TOKENS = {"num_bits": 8, "type": "int", "strategy": "token", "symmetric": True, "dynamic": True}
CASES: dict[str, Callable[[], Golden]] = {
    "gptq-4": lambda: _gptq(4, "gptq"),
    "gptq-4-v2": lambda: _gptq(4, "gptq_v2"),
    "gptq-4-symmetric": lambda: _gptq(4, "gptq", symmetric=True),
    "gptq-4-by-activation": lambda: _gptq(4, "gptq_v2", by_activation=True),
    "gptq-2": lambda: _gptq(2, "gptq_v2"),
    "gptq-8": lambda: _gptq(8, "gptq"),
    "awq": _awq,
    "compressed-w4a16": lambda: _compressed("pack-quantized", _INT4),
    "compressed-w4a16-zeros": lambda: _compressed("pack-quantized", _INT4 | {"symmetric": False}),
    "compressed-w8a16-zeros": lambda: _compressed(
        "pack-quantized", {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": False}
    ),
    "compressed-w8a8": lambda: _compressed(
        "int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}, _TOKENS
    ),
    "compressed-fp8": lambda: _compressed("float-quantized", _FLOAT, _TOKENS | {"type": "float"}),
    "compressed-fp8-blocks": lambda: _compressed("float-quantized", _FLOAT | {"strategy": "block", "block_structure": [4, 16]}),
    "compressed-w4a16-by-activation": _by_activation,
    "compressed-two-of-four": _two_of_four,
    "bitsandbytes-nf4": lambda: _four_bits("nf4", nested=False),
    "bitsandbytes-nf4-nested": lambda: _four_bits("nf4", nested=True),
    "bitsandbytes-fp4": lambda: _four_bits("fp4", nested=False),
    "bitsandbytes-int8": _int8,
    "quanto-int8": lambda: _quanto("qint8"),
    "quanto-float8": lambda: _quanto("qfloat8"),
    "quanto-int4": lambda: _quanto("qint4"),
    "quanto-int2": lambda: _quanto("qint2"),
    "fp8-blocks": _fp8,
    "bitnet": _bitnet,
}
"""How to make each."""


def main(names: list[str]) -> None:
    """Writes the weights of these names, or of all, beside those that are there."""
    tensors = load_file(TENSORS) if TENSORS.exists() else {}
    sections = json.loads(SECTIONS.read_text()) if SECTIONS.exists() else {}
    for name in names or CASES:
        made = CASES[name]()
        tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(f"{name}/")}
        tensors |= {f"{name}/{part}": tensor.detach().contiguous() for part, tensor in made.parts.items()}
        tensors[f"{name}/expected"] = made.expected.detach().contiguous()
        sections[name] = {"made by": f"{made.library} {importlib.metadata.version(made.library)}", "section": made.section}
    FOLDER.mkdir(parents=True, exist_ok=True)
    save_file(tensors, TENSORS)
    SECTIONS.write_text(json.dumps(sections, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
