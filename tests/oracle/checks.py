"""What must be the same. Each check returns what it measured, or fails with what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from compute_svc.models.causal_lm import CausalLM
from compute_svc.models.registry import load_model
from compute_svc.wire.request import Request
from tests.fakes.engine_reader import request_of
from tests.fakes.forward_driver import ForwardDriver
from tests.oracle.cases import Case
from tests.oracle.serving import PAGE_SIZE_TOKENS, Served, Serving, small_engine

CPU = torch.device("cpu")

# All but the factor are in terms of the spread of the oracle's logits, their standard deviation over the vocabulary and all tokens: a model
# that divides its logits by 8 is checked as strictly as one that does not.
# The largest error of a logit in float32.
TOLERANCE = 5e-5
# On another device than the oracle's sums have another order in every product, and the largest of some millions of errors is larger.
DEVICE_TOLERANCE = 1e-4
# Two logits that the oracle itself has this close to each other are equal: which of them is larger is rounding.
TIE = 1e-5
# The error in bfloat16 may be so many times what the oracle's own is, and this more.
BFLOAT16_FACTOR = 1.2
BFLOAT16_SLACK = 1e-3

_PROMPT_LENGTHS = (1, 17, 40, 190)
_NUM_TOKENS = 16
_AMPLE_PAGES = 96
# Larger logits are computed again where they are needed again.
_MAX_REMEMBERED_LOGITS = 1 << 20


class Outcome(NamedTuple):
    """What a check that did not fail has found.

    Attributes:
        cell: For the table.
        figures: What was measured.
    """

    cell: str
    figures: dict[str, float]


class Trial:
    """A case at work: the oracle and this engine's model, of one checkpoint.

    Args:
        case: What to write.
        folder: Where to; exists and is empty.
        device: Where this engine computes; the oracle stays on the CPU.

    Attributes:
        model: In float32.
        prompts: Random ones, from one token to many pages.
        tolerance: The largest error of a logit in float32, in terms of the spread.
    """

    def __init__(self, case: Case, folder: Path, device: torch.device = CPU) -> None:
        self.device = device
        self.tolerance = TOLERANCE if device.type == "cpu" else DEVICE_TOLERANCE
        self.oracle = case.write(folder)
        self._folder = folder
        self._streaming = case.streaming
        self.model = self.load(torch.float32)
        self._expected: dict[tuple[int, ...], torch.Tensor] = {}
        self._generator = torch.Generator().manual_seed(7)
        self.prompts = [self.random_tokens(length) for length in _PROMPT_LENGTHS]
        self._behind_prompts = self._generator.get_state()

    def restart(self) -> None:
        """Random tokens are again those of a new trial: a check finds the same alone and behind others."""
        self._generator.set_state(self._behind_prompts)

    def load(self, dtype: torch.dtype) -> CausalLM:
        """This engine's model in some dtype."""
        return load_model(self._folder, dtype=dtype, device=self.device, streaming=self._streaming)

    def random_tokens(self, length: int) -> list[int]:
        """Ids of the vocabulary."""
        return torch.randint(0, self.model.config.vocab_size, (length,), generator=self._generator).tolist()

    def expected(self, token_ids: Sequence[int]) -> torch.Tensor:
        """[tokens, vocab]: the oracle's logits in float32, remembered."""
        key = tuple(token_ids)
        if key in self._expected:
            return self._expected[key]
        logits = self.oracle.logits(token_ids, torch.float32)
        if logits.numel() <= _MAX_REMEMBERED_LOGITS:
            self._expected[key] = logits
        return logits

    def requests(self, prompts: Sequence[Sequence[int]], *, first_number: int = 0) -> list[Request]:
        """Greedy requests."""
        return [request_of(first_number + index, prompt, _NUM_TOKENS) for index, prompt in enumerate(prompts)]

    def compare(self, requests: Sequence[Request], served: Served) -> dict[str, float]:
        """Holds the tokens and logits of requests against the oracle.

        Returns:
            How many tokens, how many of them are ties, and the largest error of a logit, of the logits' spread.

        Raises:
            AssertionError: A token is not the oracle's, or a logit is off by more than the tolerance.
        """
        errors: list[float] = []
        num_ties = 0
        for request in requests:
            prompt, answer = request.prompt.tolist(), served.tokens[request.number]
            assert len(answer) == _NUM_TOKENS, f"an answer to {len(prompt)} tokens has {len(answer)} tokens, not {_NUM_TOKENS}"
            rows = self.expected(prompt + answer)[len(prompt) - 1 : -1]
            behind = (rows.amax(dim=1) - rows.gather(1, torch.tensor(answer)[:, None])[:, 0]) / rows.std()
            wrong = int((behind > TIE).sum())
            assert not wrong, (
                f"{wrong} of {len(answer)} tokens behind {len(prompt)} differ, the first at {int((behind > TIE).int().argmax())}"
            )
            num_ties += int((behind > 0).sum())
            errors.append(_error(served.logits[request.number], rows))
        assert max(errors) <= self.tolerance, f"logits in merge steps are off by {max(errors):.1e} of their spread"
        return {"tokens": len(requests) * _NUM_TOKENS, "ties": num_ties, "max_error": max(errors)}


def check_logits(trial: Trial) -> Outcome:
    """Whole sequences, side by side in one forward pass: every logit of every token."""
    driver = ForwardDriver(trial.model)
    lengths = [len(prompt) for prompt in trial.prompts]
    # No sequence is shorter than those of the other checks: transformers takes other frequencies for short ones where LongRoPE has two sets.
    sequences = [trial.random_tokens(max(length, _NUM_TOKENS)) for length in lengths]
    requests = [driver.request(tokens, len(tokens)) for tokens in sequences]
    driver.step([], [(request, len(request.tokens)) for request in requests], all_logits=True)
    error = max(_error(request.logits[0], trial.expected(request.tokens)) for request in requests)
    assert error <= trial.tolerance, f"logits are off by {error:.1e} of their spread"
    return Outcome(f"{error:.1e}", {"max_error": error})


def check_invariance(trial: Trial) -> Outcome:
    """One sequence whole and alone, and again in pieces beside others, decoded among others, and decoded alone: the same logits, bit for bit.

    Elsewhere than on a CPU that is not promised; there it is counted how many of the ways keep all bits.
    """
    tokens = trial.random_tokens(_PROMPT_LENGTHS[-1])
    whole = _computed(trial, tokens, [(len(tokens), 0)], num_decodes=0)
    ways = {
        "in pieces beside others": _computed(trial, tokens, [(3, 1), (64, 2), (len(tokens) - 67, 2)], num_decodes=0),
        "decoded among others": _computed(trial, tokens, [(len(tokens) - 5, 8)], num_decodes=5),
        "decoded alone": _computed(trial, tokens, [(1, 0)], num_decodes=20),
    }
    kept = [name for name, logits in ways.items() if torch.equal(logits, whole[: len(logits)])]
    lost = {name: f"{_error(logits, whole[: len(logits)]):.1e}" for name, logits in ways.items() if name not in kept}
    assert not lost or trial.device != CPU, f"logits differ from those of the whole sequence alone, by so much of their spread: {lost}"
    return Outcome(f"{len(kept)} of {len(ways)}", {"ways": len(ways), "equal": len(kept)})


def _computed(trial: Trial, tokens: Sequence[int], chunks: Sequence[tuple[int, int]], *, num_decodes: int) -> torch.Tensor:
    """[computed tokens, vocab]: logits of a sequence whose first tokens come in chunks, the next ones as decode rows.

    Args:
        trial: Whose model.
        tokens: Of the sequence.
        chunks: How long each is, and how many other requests are computed in the same step: before it and behind it, decode rows and prompts.
        num_decodes: Of the tokens behind the chunks, with as many others as the last chunk has.
    """
    driver = ForwardDriver(trial.model, num_pages=160)
    asked = driver.request(tokens, len(tokens))
    most = max(others for _, others in chunks)
    others = [driver.request(tokens[index : index + 30 + 9 * index], 30 + 9 * index) for index in range(most)]
    for length, beside in chunks:
        decoding = [other for other in others[:beside] if other.num_computed]
        beginning = [(other, 5 + index) for index, other in enumerate(others[:beside]) if not other.num_computed]
        driver.step(decoding, [*beginning[: len(beginning) // 2], (asked, length), *beginning[len(beginning) // 2 :]], all_logits=True)
    for _ in range(num_decodes):
        driver.step([*others[: most // 2], asked, *others[most // 2 :]], [], all_logits=True)
    return torch.cat(asked.logits).cpu()


def check_greedy(trial: Trial) -> Outcome:
    """Continuations of several prompts in merge steps: prompts in chunks, decode rows beside them."""
    requests = trial.requests(trial.prompts)
    served = Serving(small_engine(trial.model, _AMPLE_PAGES)).serve(requests[:2], requests[2:])
    figures = trial.compare(requests, served)
    assert served.num_merged and served.num_partial, "the check needs merged steps and prompts in chunks"
    assert not served.num_preemptions and not any(served.cached_tokens.values()), "the check needs requests that nothing helps or hinders"
    return Outcome("ok", figures)


def check_prefix(trial: Trial) -> Outcome:
    """A prompt again, one that leaves it on the way, and one that goes on behind its answer: KV of the first serves all of them."""
    serving = Serving(small_engine(trial.model, _AMPLE_PAGES))
    first = trial.requests(trial.prompts[-1:])
    cold = serving.serve(first)
    prompt, answer = trial.prompts[-1], cold.tokens[0]
    again = [prompt, prompt[: 3 * PAGE_SIZE_TOKENS + 5] + trial.random_tokens(30), prompt + answer + trial.random_tokens(9)]
    # An even number is drawn bare, an odd one gives its logits out: the repetition does what it did not do before.
    requests = trial.requests(again, first_number=1)
    hot = serving.serve(requests)
    figures = trial.compare([*first, *requests], hot)
    # Elsewhere the last bits may depend on how many rows a product has, and so may which of two equal logits is larger.
    assert trial.device != CPU or hot.tokens[1] == cold.tokens[0], "a prompt is answered otherwise from the cache"
    least = [(len(prompt) - 1) // PAGE_SIZE_TOKENS, 3, (len(prompt) + len(answer) - 1) // PAGE_SIZE_TOKENS]
    found = [hot.cached_tokens[request.number] for request in requests]
    missing = any(tokens < pages * PAGE_SIZE_TOKENS for tokens, pages in zip(found, least, strict=True))
    assert not missing, f"{found} tokens were cached, of {least} pages"
    return Outcome(f"ok {sum(found)}", {**figures, "cached_tokens": sum(found)})


def check_preemption(trial: Trial) -> Outcome:
    """Requests that outgrow the memory: some give up their pages and are computed again."""
    prompts = [trial.prompts[1], trial.prompts[2], trial.random_tokens(33)]
    # Pages for all prompts and one more for each, which is what lets all of them in; none of their answers fits into its one.
    num_pages = sum(-(-len(prompt) // PAGE_SIZE_TOKENS) + 1 for prompt in prompts)
    requests = trial.requests(prompts)
    served = Serving(small_engine(trial.model, num_pages)).serve(requests)
    figures = trial.compare(requests, served)
    assert served.num_preemptions, "the check needs a preempted request"
    return Outcome(f"ok {served.num_preemptions}", {**figures, "preemptions": served.num_preemptions})


def check_bfloat16(trial: Trial) -> Outcome:
    """The error that bfloat16 makes, beside the one it makes in the oracle, both against the oracle in float32 and of its logits' spread."""
    has_experts = trial.model.config.experts is not None
    # Rounding sends some tokens to other experts, which is no small error, and hits here those tokens and there others, and all that
    # see them. So with experts what counts is the error of the token in the middle, of many short sequences.
    lengths = [_NUM_TOKENS] * 8 if has_experts else [_PROMPT_LENGTHS[-1]] * 2
    sequences = [trial.random_tokens(length) for length in lengths]
    driver = ForwardDriver(trial.load(torch.bfloat16))
    requests = [driver.request(tokens, len(tokens)) for tokens in sequences]
    driver.step([], [(request, len(request.tokens)) for request in requests], all_logits=True)
    exact = torch.cat([trial.expected(tokens) for tokens in sequences])
    ours = torch.cat([request.logits[0] for request in requests]).cpu()
    rounded = torch.cat([trial.oracle.logits(tokens, torch.bfloat16) for tokens in sequences])
    squares = [(logits - exact).square().mean(dim=1) for logits in (ours, rounded)]
    error, usual = (float((square.median() if has_experts else square.mean()).sqrt() / exact.std()) for square in squares)
    assert error <= BFLOAT16_FACTOR * usual + BFLOAT16_SLACK, f"the error in bfloat16 is {error:.1e}, the oracle's own is {usual:.1e}"
    return Outcome(f"{error / usual:.2f}x", {"error": error, "oracle_error": usual})


CHECKS: dict[str, Callable[[Trial], Outcome]] = {
    "logits": check_logits,
    "invariance": check_invariance,
    "greedy": check_greedy,
    "prefix": check_prefix,
    "preemption": check_preemption,
    "bfloat16": check_bfloat16,
}
"""All of them; see each function's first line."""


def checks_of(case: Case) -> list[str]:
    """The checks a case's oracle can be asked for."""
    return [name for name in CHECKS if name != "bfloat16" or torch.bfloat16 in case.dtypes]


def _error(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest error, in terms of the spread of what is expected."""
    logits = logits.cpu()
    assert logits.shape == expected.shape, f"logits are {tuple(logits.shape)}, the oracle's {tuple(expected.shape)}"
    assert torch.isfinite(logits).all(), "logits are not finite"
    return float((logits - expected).abs().max() / expected.std())
