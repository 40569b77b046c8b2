"""What becomes of a config.json's fields is told, and what the model takes of memory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from compute_svc.models.folder_audit import audit_checkpoint
from compute_svc.models.registry import read_config
from compute_svc.models.weights import CheckpointError
from tests.fakes.checkpoints import edit_config, save_checkpoint
from triserve.rpc.folder_audit import FolderAudit


def fact(found: FolderAudit, what: str) -> tuple[str, str]:
    (one,) = [fact for fact in found.facts if fact.what == what]
    return one.value, one.source


def test_fields_are_used_or_without_effect_and_unknown_ones_are_pointed_out(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "llama")
    edit_config(
        tmp_path, final_logit_softcapping=30.0, rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "mystery": 1}
    )
    found = audit_checkpoint(tmp_path)
    used, unused = found.used["config.json"], found.without_effect["config.json"]
    assert {"vocab_size", "rms_norm_eps", "rope_parameters.factor"} <= set(used)
    assert {"final_logit_softcapping", "rope_parameters.mystery", "initializer_range"} <= set(unused)
    assert not {*used} & {*unused}
    assert [problem.split()[1] for problem in found.problems] == ["rope_parameters.mystery", "final_logit_softcapping"]


def test_limits_and_sizes_name_their_source(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "llama")
    assert fact(audit_checkpoint(tmp_path), "context limit") == ("512 tokens", "config.json: max_position_embeddings")
    edit_config(tmp_path, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0})
    found = audit_checkpoint(tmp_path)
    assert fact(found, "context limit")[0] == "2048 tokens" and "rope_parameters.factor" in fact(found, "context limit")[1]
    assert fact(found, "positions")[0] == "base 10000, linear scaling by 4"


def test_memory_is_counted_from_the_headers(tmp_path: Path) -> None:
    model = save_checkpoint(tmp_path, "llama", tie_word_embeddings=True)
    found = audit_checkpoint(tmp_path)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    assert fact(found, "weights stored")[0] == f"{numbers:,} numbers in F32"
    assert fact(found, "weights in memory")[0].startswith(f"{4 * (numbers + 97 * 48):,} bytes in float32")
    assert fact(found, "KV of a token")[0] == (
        "384 bytes in float32, 192 bytes in bfloat16, 120 bytes in int8-g8, 120 bytes in int8-g32, 120 bytes in int8-g64, 120 bytes in fp8-g64"
    )


def test_a_kv_format_that_the_folder_asks_for_is_read_and_one_nobody_has_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "llama")
    assert read_config(tmp_path).kv_format is None
    edit_config(tmp_path, triserve_kv_format="int8-g64")
    assert read_config(tmp_path).kv_format == "int8-g64"
    assert "triserve_kv_format" in audit_checkpoint(tmp_path).used["config.json"]
    for wrong, shown in (("int4", "'int4'"), (["int8-g8"], "['int8-g8']"), (8, "8")):
        edit_config(tmp_path, triserve_kv_format=wrong)
        with pytest.raises(CheckpointError, match=re.escape(f"triserve_kv_format is {shown}; supported: float32, bfloat16, int8-g8")):
            audit_checkpoint(tmp_path)
