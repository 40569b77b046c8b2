"""What compute sends of a row gives the token, and the log-probabilities, that the whole row would give."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from compute_svc.engine.candidates import select_candidates
from compute_svc.engine.draw_rule import CandidateLimits, DrawRule
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from compute_svc.wire.request import Request, SamplingOptions
from sampler_svc.candidate_rows import CandidateRows
from sampler_svc.drawing import CandidateRow, Drawing
from sampler_svc.logprobs import TokenLogprob, token_logprob
from sampler_svc.penalties import Penalties
from triserve.rpc.sampling import Sampling, Stopping

WIDTH = 400
LIMITS = CandidateLimits(first_guess=8, most=64, share=4)


class Row(NamedTuple):
    """One row on both sides."""

    sampling: Sampling
    stopping: Stopping
    prompt: list[int]
    answer: list[int]

    def rule(self) -> DrawRule:
        """Compute's side."""
        shared = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "top_logprobs")
        options = SamplingOptions(bias_ids=self.sampling.logit_bias_ids, **{name: getattr(self.sampling, name) for name in shared})
        request = Request(
            number=1,
            tenant="",
            prompt=np.array(self.prompt, np.int64),
            generated=np.zeros(0, np.int64),
            max_tokens=99,
            submitted_at=0.0,
            min_tokens=self.stopping.min_tokens,
            stop_token_ids=self.stopping.stop_token_ids,
            sampling=options,
        )
        rule = DrawRule(request, WIDTH, LIMITS)
        rule.see(np.array(self.prompt + self.answer, np.int64), len(self.prompt) + len(self.answer))
        return rule

    def wanted(self, row: int) -> CandidateRow:
        """The sampler's side."""
        penalties = Penalties(self.sampling, self.stopping, self.prompt)
        for token in self.answer:
            penalties.count(token)
        return CandidateRow(row, len(self.answer), self.sampling, penalties)


@st.composite
def rows(draw: st.DrawFn) -> Row:
    tokens = st.integers(0, WIDTH - 1)
    bias = draw(st.dictionaries(tokens, st.sampled_from([-100.0, 0.5, 8.0]), max_size=2))
    sampling = Sampling(
        temperature=draw(st.sampled_from([0.0, 0.25, 1.0, 1.0, 1.7])),
        top_k=draw(st.sampled_from([None, None, 1, 3, 40, 399, 500])),
        top_p=draw(st.sampled_from([1.0, 1.0, 0.1, 0.9, 0.99])),
        min_p=draw(st.sampled_from([0.0, 0.0, 0.05, 0.5, 1.0])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.0, 0.5, 1.3])),
        presence_penalty=draw(st.sampled_from([0.0, 0.0, 1.5, -2.0])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.0, 0.5, -0.5])),
        logit_bias_ids=tuple(bias),
        logit_bias_values=tuple(bias.values()),
        seed=draw(st.integers(0, 2**64 - 1)),
        top_logprobs=draw(st.sampled_from([None, 0, 5, 20])),
    )
    stopping = Stopping(99, draw(st.sampled_from([0, 0, 20])), frozenset(draw(st.lists(tokens, max_size=3))))
    answer = draw(st.lists(tokens, max_size=6))
    return Row(sampling, stopping, draw(st.lists(tokens, min_size=1, max_size=4)), answer)


def reported(candidates: CandidateRows, log_sum_exp: NDArray[np.float64], row: int, token: int, num_top: int) -> TokenLogprob:
    ids, logits = candidates.row(row)
    return token_logprob(ids, logits, float(log_sum_exp[row]), token, num_top, WIDTH)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.lists(rows(), min_size=1, max_size=4),
    scale=st.sampled_from([0.3, 2.0, 6.0]),
    grid=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_draw_from_the_candidates_is_the_draw_from_the_row(batch: list[Row], scale: float, grid: bool, seed: int) -> None:
    values = np.random.default_rng(seed).normal(0.0, scale, (len(batch), WIDTH)).astype(np.float32)
    if grid:  # equals, as in models whose logits have few bits
        values = np.round(values)
    chosen = select_candidates(torch.from_numpy(values), [row.rule() for row in batch], [len(row.answer) for row in batch], LIMITS)
    log_sum_exp = chosen.log_sum_exp.astype(np.float64)
    some = CandidateRows.parse(chosen.ids.astype("<u4").tobytes(), chosen.logits.astype("<f4").tobytes(), chosen.counts.tolist(), WIDTH)
    every_id = np.tile(np.arange(WIDTH, dtype="<u4"), len(batch)).tobytes()
    whole = CandidateRows.parse(every_id, values.astype("<f4").tobytes(), [WIDTH] * len(batch), WIDTH)
    # Rows that compute draws itself come without candidates, or with those of their log-probabilities alone.
    undrawn = [row.wanted(index) for index, row in enumerate(batch) if len(row.answer) < row.rule().drawn_from]
    drawn = Drawing(WIDTH).draw(some, log_sum_exp, undrawn)
    assert drawn == Drawing(WIDTH).draw(whole, log_sum_exp, undrawn)
    for row, token in zip(undrawn, drawn, strict=True):
        assert isinstance(token, int)
        if row.sampling.top_logprobs is not None:
            entries = [reported(candidates, log_sum_exp, row.row, token, row.sampling.top_logprobs) for candidates in (some, whole)]
            assert entries[0] == entries[1]
