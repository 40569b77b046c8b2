from __future__ import annotations

import json

import pytest
import torch

from compute_svc.quantise.expected_quality import PERPLEXITY_CHANGE
from tests.bench.number_formats.quality import FORMATS, REFERENCE, RESULTS
from tests.quality.windows import PREDICTED, WINDOW_TOKENS, closeness

# Which lines of the results file inspection tells of: one text with activations as the format says, rounded to nearest.
MEASURED_AS = {
    "int8, activations in int8": "int8 W8A8",
    "int8": "int8 weights",
    "int4 in groups of 128": "int4 g128 rtn",
    "int4 in groups of 64": "int4 g64 rtn",
    "int4 in groups of 32": "int4 g32 rtn",
    "fp8, activations in fp8": "fp8 weights",
    "tables of 16 in groups of 64": "nf4",
}


def _answers() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    windows = torch.randint(0, 7, (2, WINDOW_TOKENS), generator=generator)
    return windows, torch.log_softmax(torch.randn((2, PREDICTED, 7), generator=generator), dim=-1)


def test_a_model_is_as_near_as_can_be_to_itself_and_its_perplexity_is_of_the_second_halves() -> None:
    windows, answers = _answers()
    same = closeness(answers, windows, answers)
    losses = [-answers[w, i, windows[w, WINDOW_TOKENS // 2 + 1 + i]] for w in range(2) for i in range(PREDICTED)]
    assert same.perplexity == pytest.approx(float(torch.stack(losses).mean().exp()), rel=1e-5)
    assert (same.kl, same.top_1, same.predictions) == (0.0, 1.0, 2 * PREDICTED)


def test_another_model_is_further_away() -> None:
    windows, answers = _answers()
    other = torch.log_softmax(answers.flip(-1), dim=-1)
    found = closeness(other, windows, answers)
    expected = float((answers.exp() * (answers - other)).sum(dim=-1).mean())
    assert found.kl == pytest.approx(expected, rel=1e-4)
    assert 0 < found.top_1 < 0.5


def test_inspection_tells_what_the_results_file_says() -> None:
    formats = json.loads(RESULTS.read_text())["formats"]
    assert formats[REFERENCE]["kl_nats"] == 0
    told = {name: round(formats[MEASURED_AS[name]]["perplexity_change_percent"], 1) for name in PERPLEXITY_CHANGE}
    assert told == PERPLEXITY_CHANGE
    assert set(formats) <= set(FORMATS)
