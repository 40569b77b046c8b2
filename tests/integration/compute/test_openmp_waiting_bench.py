"""The bench of waiting OpenMP threads, from end to end on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

from tests.bench.engine.openmp_waiting import main, variants


def test_variants_take_turns_and_are_written_with_their_spread(tmp_path: Path) -> None:
    arguments = ["--shape", "tiny", "--rounds", "1", "--steps", "1", "--busy", "1", "--threads", "2", "--variants", "spin 1000", "1 thread"]
    found = json.loads(main([*arguments, "--output", str(tmp_path / "waiting.json")]).read_text())

    assert set(found["step_ms"]) == {"quiet", "busy"}
    for by_batch in found["step_ms"].values():
        assert set(by_batch) == {"batch 1", "batch 16"}
        for by_name in by_batch.values():
            assert set(by_name) == {"spin 1000", "1 thread"}
            assert all(0 < spread["min"] <= spread["median"] <= spread["max"] for spread in by_name.values())


def test_one_thread_waits_for_nobody_and_every_other_variant_has_its_own_variables() -> None:
    found = variants(4)
    assert [variant.threads for variant in found] == [4] * (len(found) - 1) + [1]
    environments = [tuple(variant.environment.items()) for variant in found[:-1]]
    assert len(set(environments)) == len(environments)
