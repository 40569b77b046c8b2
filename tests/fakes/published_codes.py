"""Models whose weights are stored as codes, in each way that publishers store them; the codes are random."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from compute_svc.stored_weights.codes import NF4
from tests.fakes.checkpoints import save_checkpoint

_GROUP = 32
Parts = dict[str, torch.Tensor]


def words(*shape: int) -> torch.Tensor:
    return torch.randint(-(1 << 31), 1 << 31, shape, dtype=torch.int32)


def small(*shape: int) -> torch.Tensor:
    return torch.rand(shape).mul(0.01).add(0.001)


def gptq(outputs: int, inputs: int) -> Parts:
    groups = (torch.arange(inputs) // _GROUP)[torch.randperm(inputs)].int()
    parts = {"qweight": words(inputs // 8, outputs), "qzeros": words(inputs // _GROUP, outputs // 8), "g_idx": groups}
    return parts | {"scales": small(inputs // _GROUP, outputs).half()}


def awq(outputs: int, inputs: int) -> Parts:
    parts = {"qweight": words(inputs, outputs // 8), "qzeros": words(inputs // _GROUP, outputs // 8)}
    return parts | {"scales": small(inputs // _GROUP, outputs).half()}


def packed(outputs: int, inputs: int) -> Parts:
    shape = torch.tensor([outputs, inputs])
    return {"weight_packed": words(outputs, inputs // 8), "weight_scale": small(outputs, inputs // _GROUP), "weight_shape": shape}


def int8(outputs: int, inputs: int) -> Parts:
    return {"weight": torch.randint(-128, 128, (outputs, inputs), dtype=torch.int8), "weight_scale": small(outputs, 1) / 16}


def nf4(outputs: int, inputs: int) -> Parts:
    state = json.dumps({"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [outputs, inputs]})
    return {
        "weight": torch.randint(0, 256, (outputs * inputs // 2, 1), dtype=torch.uint8),
        "weight.absmax": torch.rand(outputs * inputs // 64) / 8,
        "weight.quant_map": torch.tensor(NF4),
        "weight.quant_state.bitsandbytes__nf4": torch.tensor(list(state.encode()), dtype=torch.uint8),
    }


def fp8(outputs: int, inputs: int) -> Parts:
    return {
        "weight": torch.randn(outputs, inputs).to(torch.float8_e4m3fn),
        "weight_scale_inv": small(-(-outputs // 48), -(-inputs // 48)) * 10,
    }


def quanto(outputs: int, inputs: int) -> Parts:
    codes = torch.randint(-128, 128, (outputs, inputs), dtype=torch.int8)
    return {"weight._data": codes, "weight._scale": small(outputs, 1) / 16, "input_scale": torch.ones(()), "output_scale": torch.ones(())}


def quanto_groups(outputs: int, inputs: int) -> Parts:
    groups = outputs * inputs // _GROUP
    content = torch.randint(0, 256, (groups // 2, _GROUP), dtype=torch.uint8)
    return {"weight._data._data": content, "weight._scale": small(groups, 1), "weight._shift": small(groups, 1) * 8}


def ternary(outputs: int, inputs: int) -> Parts:
    codes = torch.randint(0, 3, (4, outputs // 4, inputs), dtype=torch.uint8)
    return {"weight": codes[0] | codes[1] << 2 | codes[2] << 4 | codes[3] << 6, "weight_scale": torch.tensor([12.0])}


def tables(outputs: int, inputs: int) -> Parts:
    return {"qweight": words(inputs // 8, outputs), "lookup_table": torch.randn(outputs, 16) / 10}


_GROUPS = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": _GROUP}}}
_CHANNELS = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "int", "strategy": "channel"}}}
WAYS: dict[str, tuple[Callable[[int, int], Parts], dict[str, Any] | None]] = {
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": _GROUP, "desc_act": True}),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": _GROUP}),
    "w4a16": (packed, {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": _GROUPS}),
    "w8a16": (int8, {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": _CHANNELS}),
    "nf4": (nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "fp8": (fp8, {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [48, 48]}),
    "quanto": (quanto, None),
    "quanto in groups": (quanto_groups, None),
    "bitnet": (ternary, {"quant_method": "bitnet"}),
    "squeezellm": (tables, {"quant_method": "squeezellm", "wbits": 4}),
}


def save_coded(folder: Path, way: str) -> Path:
    """Writes a Llama of one layer stored in one of `WAYS`, the same every time; returns its folder."""
    torch.manual_seed(0)
    make, section = WAYS[way]
    numbers, codes = folder / "numbers", folder / "codes"
    numbers.mkdir()
    codes.mkdir()
    sizes: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 96}
    save_checkpoint(numbers, "llama", **sizes, num_key_value_heads=2, head_dim=16)
    tensors = load_file(numbers / "model.safetensors")
    coded = {name: tensor for name, tensor in tensors.items() if "_proj." not in name}
    for module in [name.removesuffix(".weight") for name in tensors if "_proj." in name]:
        coded |= {f"{module}.{part}": tensor for part, tensor in make(*tensors[f"{module}.weight"].shape).items()}
    # As the first checkpoints in compressed-tensors call it.
    field = "compression_config" if way == "w8a16" else "quantization_config"
    config = json.loads((numbers / "config.json").read_text())
    (codes / "config.json").write_text(json.dumps(config | ({} if section is None else {field: section})))
    save_file(coded, codes / "model.safetensors")
    if section is None:
        (codes / "quanto_qmap.json").write_text("{}")
    return codes
