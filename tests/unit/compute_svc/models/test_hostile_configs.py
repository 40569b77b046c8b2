"""Whatever stands in a config.json: it is refused as a CheckpointError, or the model loads and computes finite logits, in bounded memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from compute_svc.engine.start.first_pass import require_finite_logits
from compute_svc.models.registry import load_model, read_model_config
from compute_svc.models.weights import CheckpointError
from tests.examples import examples
from tests.fakes.checkpoints import EXAMPLES, edit_config, save_checkpoint

CPU = torch.device("cpu")
_MOST_BYTES = 64 << 20
# Read where they are there, and not written by transformers.
_OTHER_FIELDS = (
    *(
        "rope_scaling",
        "rope_theta",
        "partial_rotary_factor",
        "head_dim",
        "quantization_config",
        "sliding_window",
        "layer_types",
        "max_window_layers",
    ),
    *(
        "mlp_only_layers",
        "use_sliding_window",
        "sliding_window_pattern",
        "original_max_position_embeddings",
        "n_inner",
        "ffn_hidden_size",
        "kv_channels",
    ),
)


def _nested(levels: int, *, in_lists: bool) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value] if in_lists else {"a": value}
    return value


_ROPES = (
    {
        "rope_type": "yarn",
        "factor": 4,
        "rope_theta": 1.0000001,
        "beta_fast": 1e-19,
        "beta_slow": 1e19,
        "original_max_position_embeddings": 1,
    },
    {"rope_type": "yarn", "factor": 4, "rope_theta": 1},
    {"rope_type": "linear", "factor": 1e300},
    {"rope_type": "llama3", "factor": 1e19, "low_freq_factor": 1e-19, "high_freq_factor": 1e19, "original_max_position_embeddings": 1},
    {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [0.0] * 4, "original_max_position_embeddings": 1},
    {"type": ["yarn"]},
)
VALUES: tuple[Any, ...] = (
    *(..., None, True, False, -1, 0, 1, 2, 3, 7, 512, 16384, 2_000_000, 10**30, 10**400),
    *(0.5, 1.5, -1.5, 1e-300, 1e-19, 1e19, 1e300, float("inf"), float("-inf"), float("nan")),
    *("", "x", "y" * 100_000, [], {}, ["x"], [1, -1], [None], [1] * 4),
    *(_nested(200, in_lists=True), _nested(200, in_lists=False), *_ROPES),
)


def _places(fields: dict[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in fields.items():
        yield (*before, name)
        if isinstance(value, dict):
            yield from _places(value, (*before, name))


def _with(fields: dict[str, Any], place: tuple[str, ...], value: Any) -> dict[str, Any]:
    name, *rest = place
    if rest and isinstance(fields.get(name), dict):
        return {**fields, name: _with(fields[name], tuple(rest), value)}
    changed = {**fields, name: value}
    return {key: content for key, content in changed.items() if content is not ...}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small checkpoint of every family."""
    folders = {family: tmp_path_factory.mktemp(family) for family in EXAMPLES}
    for family, folder in folders.items():
        save_checkpoint(folder, family)
        (folder / "own.json").write_text((folder / "config.json").read_text())
    return folders


@examples(300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_values_in_any_fields_are_refused_or_load(checkpoints: dict[str, Path], data: st.DataObject) -> None:
    folder = checkpoints[data.draw(st.sampled_from(sorted(EXAMPLES)))]
    fields = json.loads((folder / "own.json").read_text())
    places = [*_places(fields), *((name,) for name in _OTHER_FIELDS if name not in fields)]
    for place in data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=3, unique=True)):
        fields = _with(fields, place, data.draw(st.sampled_from(VALUES)))
    (folder / "config.json").write_text(json.dumps(fields))
    tracemalloc.start()
    try:
        require_finite_logits(load_model(folder, dtype=torch.float32, device=CPU))
    except CheckpointError as error:
        assert str(folder) in str(error) or "config.json" in str(error) or "tensor" in str(error)
        assert len(str(error)) < 4000
    finally:
        most_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert most_bytes < _MOST_BYTES


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"partial_rotary_factor": float("inf")}, "partial_rotary_factor is inf, it must be above 0 and at most 1"),
        ({"rope_theta": float("inf")}, r"rope_theta is inf, it must be above 1 and at most 1e\+20"),
        ({"rms_norm_eps": 1e300}, r"rms_norm_eps is 1e\+300, it must be above 0 and at most 1"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan, it must be a number above 0"),
        ({"rope_theta": 1, "rope_scaling": {"rope_type": "yarn", "factor": 4}}, "rope_theta is 1, it must be above 1"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 10**400}}, r"factor is 1000.*\.\.\..*000, it must be above 0 and at most 1e\+20"),
        ({"num_hidden_layers": 2_000_000}, "num_hidden_layers is 2000000, it must be an integer of at most 16384"),
        ({"hidden_size": 1 << 41}, "hidden_size is 2199023255552, it must be an integer of at most 1099511627776"),
        ({"hidden_act": ["silu"]}, r"hidden_act is \['silu'\], it must be a string"),
    ],
)
def test_a_value_that_cannot_be_computed_with_is_refused_by_field(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "llama")
    edit_config(tmp_path, rope_parameters=..., **changes)

    with pytest.raises(CheckpointError, match=message):
        read_model_config(tmp_path)


def test_a_config_nested_too_deeply_is_refused_by_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")

    with pytest.raises(CheckpointError, match=r"config\.json cannot be read: it is nested too deeply"):
        read_model_config(tmp_path)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"num_hidden_layers": 16384}),
        ("mixtral", {"num_local_experts": 16384}),
        ("qwen3_moe", {"num_hidden_layers": 16384, "num_experts": 16384}),
    ],
)
def test_more_layers_or_experts_than_the_files_hold_are_refused_without_listing_them_all(
    family: str, changes: dict[str, int], tmp_path: Path
) -> None:
    save_checkpoint(tmp_path, family)
    edit_config(tmp_path, layer_types=..., **changes)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=r"the files hold \d+ tensors, .* has far more; missing: "):
            load_model(tmp_path, dtype=torch.float32, device=CPU)
        assert tracemalloc.get_traced_memory()[1] < _MOST_BYTES
    finally:
        tracemalloc.stop()
