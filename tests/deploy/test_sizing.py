"""The sizing script: what it reads from the benches' files, and what it makes of a load."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]


def _script() -> ModuleType:
    path = ROOT / "deploy" / "k8s" / "sizing.py"
    spec = importlib.util.spec_from_file_location("sizing", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sizing = _script()
COSTS = sizing.Costs(gateway_request=600.0, gateway_token=25.0, tokenizer_request=400.0, tokenizer_token=1.5, sampler_row=6.0)


def test_a_load_is_divided_by_hand() -> None:
    # 40 requests a second of 1,000 and 250 tokens.
    found = sizing.needs(sizing.Load(40.0, 1000.0, 250.0), COSTS, utilisation=0.6)
    assert found["gateway"].cores == pytest.approx(40 * (600 + 249 * 25) / 1e6)
    assert found["tokenizer"].cores == pytest.approx(40 * (400 + 1500) / 1e6)
    assert found["sampler"].cores == pytest.approx(40 * 250 * 6 / 1e6)
    assert [found[stage].pods for stage in ("gateway", "tokenizer", "sampler")] == [2, 2, 2]


def test_pods_are_as_many_as_keep_each_below_the_target() -> None:
    found = sizing.needs(sizing.Load(400.0, 1000.0, 250.0), COSTS, utilisation=0.5)
    assert found["gateway"].pods == 6
    assert found["gateway"].cores / found["gateway"].pods <= 0.5 < found["gateway"].cores / (found["gateway"].pods - 1)


@given(st.floats(0.0, 5000.0), st.floats(0.0, 20.0))
def test_a_line_is_found_again(height: float, slope: float) -> None:
    points = [(x, height + slope * x) for x in (100.0, 900.0, 6000.0)]
    found = sizing.line_through(points)
    assert found == pytest.approx((height, slope), rel=1e-6, abs=1e-6)


def test_it_reads_what_the_benches_have_written(capsys: pytest.CaptureFixture[str]) -> None:
    sizing.main(["--tokens-per-s", "2500", "--replicas", "4"])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "10,000 answer tokens a second: 40.0 requests a second of 1000 and 250 tokens"
    assert [line.split()[0] for line in said[2:5]] == ["gateway", "tokenizer", "sampler"]
    gateway = json.loads((ROOT / "tests/bench/results/gateway_capacity.json").read_text())
    assert gateway["hardware"]["processor"] in said[-1]


def test_the_page_for_operators_shows_what_the_script_says(capsys: pytest.CaptureFixture[str]) -> None:
    sizing.main(["--tokens-per-s", "2500", "--replicas", "8"])
    page = (ROOT / "deploy/k8s/README.md").read_text()
    assert capsys.readouterr().out.strip() in page, "run it again where the benches' results have changed"


@pytest.mark.parametrize("wrong", ["0", "-1", "nan", "inf", "many"])
def test_a_number_that_is_none_is_refused(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        sizing.main(["--tokens-per-s", wrong])
    assert "--tokens-per-s" in capsys.readouterr().err
