"""What config.json says of quantised weights, as transformers and vLLM read it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from compute_svc.quantise.scheme import Scheme, WeightForm
from compute_svc.quantise.stored_forms import is_packed

KV_FIELD = "triserve_kv_format"
"""A field of config.json: what keys and values are to be kept as; compressed-tensors' kv_cache_scheme knows no groups."""

_FLOAT_BITS = {"fp8": 8}
_INT_BITS = {"int8": 8, "int4": 4}


def quantization_config(scheme: Scheme, forms: Mapping[str, WeightForm], inputs: Mapping[str, int], left: Sequence[str]) -> dict[str, Any]:
    """The section `quantization_config`.

    Args:
        scheme: Of the model.
        forms: Of each quantised module, by name.
        inputs: Its inputs.
        left: Modules with a matrix that stays as it is.
    """
    if scheme.weights == "nf4":
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": scheme.nested,
            "bnb_4bit_compute_dtype": "float32",
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": list(left) or None,
        }
    different = list(dict.fromkeys(_kind(forms[name], inputs[name]) for name in forms))
    groups = {}
    for number, (form, per_row) in enumerate(different):
        members = [name for name in forms if _kind(forms[name], inputs[name]) == (form, per_row)]
        groups[f"group_{number}"] = {
            "targets": ["Linear"] if len(different) == 1 else _patterns(members),
            "weights": _weights(form, per_row=per_row),
            "input_activations": _activations(form),
            "output_activations": None,
            "format": _format(form),
        }
    formats = {group["format"] for group in groups.values()}
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "config_groups": groups,
        "ignore": list(left),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _kind(form: WeightForm, num_inputs: int) -> tuple[WeightForm, bool]:
    """What modules of one group have in common: the form, and whether each output has one scale."""
    per_row = form.group >= num_inputs
    return (form._replace(group=0) if per_row else form), per_row


def _format(form: WeightForm) -> str:
    if is_packed(form):
        return "pack-quantized"
    return "float-quantized" if form.code == "fp8" else "int-quantized"


def _weights(form: WeightForm, *, per_row: bool) -> dict[str, Any]:
    is_float = form.code in _FLOAT_BITS
    return {
        "num_bits": (_FLOAT_BITS if is_float else _INT_BITS)[form.code],
        "type": "float" if is_float else "int",
        "strategy": "channel" if per_row else "group",
        "group_size": None if per_row else form.group,
        "symmetric": True,
        "dynamic": False,
        "actorder": None,
    }


def _activations(form: WeightForm) -> dict[str, Any] | None:
    if form.activations == "float":
        return None
    return {
        "num_bits": 8,
        "type": "float" if form.activations == "fp8" else "int",
        "strategy": "token",
        "group_size": None,
        "symmetric": True,
        "dynamic": True,
    }


def _patterns(names: Sequence[str]) -> list[str]:
    """Patterns that names match, one for all that differ in numbers alone."""
    forms = dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in names)
    return ["re:^" + re.escape(form).replace(r"\*", r"\d+") + "$" for form in forms]
