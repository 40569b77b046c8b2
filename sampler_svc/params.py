"""How a request is drawn from and when it ends, checked against the limits of the contract."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from triserve.rpc import limits
from triserve.rpc.errors import InvalidRequest


class Finish(Enum):
    """Why an answer ended."""

    STOP = auto()
    LENGTH = auto()


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw; the defaults are what the contract says an unset field means.

    Args:
        temperature: 0 = greedy.
        top_k: None = all.
        logit_bias_ids: token ids that have a bias.
        logit_bias_values: what is added to the logit of the id at the same index.
        seed: key of the random stream; may be None only where nothing is random.
        top_logprobs: likeliest tokens to report with each token; None = no log-probabilities.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias_ids: tuple[int, ...] = ()
    logit_bias_values: tuple[float, ...] = ()
    seed: int | None = None
    top_logprobs: int | None = None

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is the only one that can be drawn."""
        return self.temperature == 0 or self.top_k == 1

    def check(self, logits_width: int) -> None:
        """Holds every field against its limit.

        Raises:
            InvalidRequest: naming the first field that is wrong.
        """
        limits.TEMPERATURE.check("temperature", self.temperature)
        if self.top_k is not None and self.top_k < 1:
            raise InvalidRequest(f"top_k is {self.top_k}, the least is 1", field="top_k")
        limits.TOP_P.check("top_p", self.top_p)
        limits.MIN_P.check("min_p", self.min_p)
        limits.REPETITION_PENALTY.check("repetition_penalty", self.repetition_penalty)
        limits.PRESENCE_PENALTY.check("presence_penalty", self.presence_penalty)
        limits.FREQUENCY_PENALTY.check("frequency_penalty", self.frequency_penalty)
        self._check_bias(logits_width)
        if self.seed is None and not self.greedy:
            raise InvalidRequest("seed is not set, and the request is not greedy", field="seed")
        if self.top_logprobs is not None and self.top_logprobs > limits.MAX_TOP_LOGPROBS:
            raise InvalidRequest(f"top_logprobs is {self.top_logprobs}, the limit is {limits.MAX_TOP_LOGPROBS}", field="top_logprobs")

    def _check_bias(self, logits_width: int) -> None:
        ids, values = self.logit_bias_ids, self.logit_bias_values
        if len(ids) > limits.MAX_LOGIT_BIAS:
            raise InvalidRequest(f"logit_bias_ids has {len(ids)} entries, the limit is {limits.MAX_LOGIT_BIAS}", field="logit_bias_ids")
        if len(values) != len(ids):
            raise InvalidRequest(f"logit_bias_values has {len(values)} entries, logit_bias_ids has {len(ids)}", field="logit_bias_values")
        check_ids("logit_bias_ids", ids, logits_width)
        if len(set(ids)) < len(ids):
            raise InvalidRequest("logit_bias_ids has an id twice", field="logit_bias_ids")
        for value in values:
            limits.LOGIT_BIAS.check("logit_bias_values", value)


@dataclass(frozen=True, slots=True)
class Stopping:
    """When to stop.

    Args:
        max_tokens: most tokens to generate; None is an error that `check` names.
        min_tokens: stop ids cannot be drawn and stop strings do not count before this many.
    """

    max_tokens: int | None
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()

    def check(self, logits_width: int) -> None:
        """Holds every field against its limit.

        Raises:
            InvalidRequest: naming the first field that is wrong.
        """
        if self.max_tokens is None or self.max_tokens < 1:
            raise InvalidRequest("max_tokens is not set or 0, the least is 1", field="max_tokens")
        check_ids("stop_token_ids", tuple(self.stop_token_ids), logits_width)
        if len(self.stop_strings) > limits.MAX_STOP_STRINGS:
            raise InvalidRequest(
                f"stop_strings has {len(self.stop_strings)} entries, the limit is {limits.MAX_STOP_STRINGS}", field="stop_strings"
            )
        for stop in self.stop_strings:
            if not 1 <= len(stop) <= limits.MAX_STOP_STRING_CHARS:
                raise InvalidRequest(
                    f"stop_strings has a string of {len(stop)} characters, the limits are 1 and {limits.MAX_STOP_STRING_CHARS}",
                    field="stop_strings",
                )


def check_ids(field: str, ids: Sequence[int], logits_width: int) -> None:
    """Holds token ids against the number of logits.

    Raises:
        InvalidRequest: an id has no logit.
    """
    if ids and max(ids) >= logits_width:
        raise InvalidRequest(f"{field} has id {max(ids)}, the limit is {logits_width - 1}", field=field)
