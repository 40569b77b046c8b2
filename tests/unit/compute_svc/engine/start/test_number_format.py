"""What a model is computed in follows from what is stored and what the device can do; what does not fit in memory is refused before it is read."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from compute_svc.engine.start import loading
from compute_svc.engine.start.number_format import NumberFormat, choose_format, memory_of, require_room
from compute_svc.models.weights import CheckpointError, TensorInfo
from compute_svc.settings import Settings
from tests.fakes.checkpoints import save_checkpoint

FLOAT32 = NumberFormat("float32", "")


@pytest.mark.parametrize(
    ("wanted", "stored", "fast", "name", "words"),
    [
        ("auto", {"BF16": 100, "F32": 3}, True, "bfloat16", "as the weights are stored"),
        ("auto", {"BF16": 100, "F32": 3}, False, "float32", "widened from bfloat16: this cpu has no instructions"),
        ("auto", {"F32": 100}, True, "float32", "as the weights are stored"),
        ("auto", {"F16": 100}, True, "float32", "which holds every F16 number"),
        ("auto", {}, True, "float32", "as the weights are stored"),
        ("float32", {"BF16": 100}, True, "float32", "as COMPUTE_DTYPE says"),
        ("bfloat16", {"F32": 100}, True, "bfloat16", "as COMPUTE_DTYPE says"),
        ("bfloat16", {"BF16": 100}, False, "bfloat16", "has no instructions for it and is slow"),
    ],
)
def test_the_format_is_the_narrowest_that_is_stored_and_fast(
    wanted: str, stored: dict[str, int], fast: bool, name: str, words: str
) -> None:
    format_ = choose_format(wanted, stored, device="cpu", multiplies_bfloat16=fast)  # type: ignore[arg-type]
    assert format_.name == name and words in format_.reason


@pytest.mark.parametrize(("fast", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_bfloat16_weights_are_widened_on_a_cpu_without_the_instructions(
    fast: bool, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = save_checkpoint(tmp_path, "llama").bfloat16()
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setattr(loading, "multiplies_bfloat16", lambda: fast)

    with caplog.at_level(logging.INFO):
        engine = loading.load_engine(Settings(model=tmp_path, kv_cache_bytes=1 << 20, threads=1))

    num_bytes = sum(parameter.numel() for parameter in model.parameters()) * (2 if fast else 4)
    assert engine.dtype == expected
    assert f"computes in {expected}" in caplog.text and f"weights of {num_bytes // 1_000_000} MB" in caplog.text


def test_what_does_not_fit_in_memory_is_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match="the weights take 4000 bytes in float32, this process may have 3999"):
        require_room(4000, FLOAT32, 10, 3999)
    with pytest.raises(ValueError, match="COMPUTE_KV_CACHE_BYTES is 5000, the limit is the memory this process may have, 4000"):
        require_room(4000, FLOAT32, 5000, 4000)
    assert "will be killed" in (require_room(4000, FLOAT32, 100, 4000) or "")
    assert require_room(4000, FLOAT32, 100, 4100) is None
    assert require_room(4000, FLOAT32, 100, None) is None


def test_codes_take_their_own_bytes_where_they_are_kept() -> None:
    tensors = {
        "norm": TensorInfo((10,), "BF16"),
        "integers": TensorInfo((10, 10), "INT4", 60, "integers"),
        "made for int8": TensorInfo((10, 10), "INT8", 110, "integers by int8"),
        "numbers": TensorInfo((10, 10), "NF4", 70, "numbers"),
    }
    assert memory_of(tensors, torch.float32, ["integers", "integers by int8"]) == 40 + 60 + 110 + 400
    assert memory_of(tensors, torch.float32, ["integers by int8"]) == 40 + 400 + 110 + 400
    assert memory_of(tensors, torch.bfloat16, []) == 20 + 3 * 200


@pytest.mark.parametrize("kv_cache_bytes", [1 << 46, 1 << 70])
def test_more_kv_than_memory_is_refused_by_the_variable(kv_cache_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, "llama")
    (tmp_path / "tokenizer.json").write_text("{}")
    settings = Settings(model=tmp_path, kv_cache_bytes=kv_cache_bytes, threads=1)

    with pytest.raises(ValueError, match=f"COMPUTE_KV_CACHE_BYTES is {kv_cache_bytes}, the limit is the memory"):
        loading.load_engine(settings)
    # Where the machine does not say what it has, the allocation itself fails.
    monkeypatch.setattr(loading, "usable_memory_bytes", lambda: None)
    with pytest.raises(ValueError, match=f"COMPUTE_KV_CACHE_BYTES is {kv_cache_bytes}, more than there is"):
        loading.load_engine(settings)


def test_kv_lives_in_memory_that_huge_pages_serve(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "llama")
    (tmp_path / "tokenizer.json").write_text("{}")
    engine = loading.load_engine(Settings(model=tmp_path, kv_cache_bytes=1 << 26, threads=1))
    address = engine._kv.kv(0).data.data_ptr()
    flags = _mapping_flags(address)
    assert "mw" in flags and "sh" not in flags
    assert "hg" in flags or not Path("/sys/kernel/mm/transparent_hugepage").exists()


def _mapping_flags(address: int) -> set[str]:
    flags: set[str] = set()
    is_ours = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first and not first.endswith(":"):
            start, end = (int(part, 16) for part in first.split("-"))
            is_ours = start <= address < end
        elif is_ours and first == "VmFlags:":
            flags |= set(rest)
    return flags


def test_a_format_knows_its_dtype() -> None:
    assert (FLOAT32.dtype, NumberFormat("bfloat16", "").dtype) == (torch.float32, torch.bfloat16)
