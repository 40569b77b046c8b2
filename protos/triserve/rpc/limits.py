"""The ranges of the contract's parameters, as `common.proto` words them: written once, checked at every hop."""

from __future__ import annotations

from typing import NamedTuple

from triserve.rpc.errors import InvalidRequest

_MAX_SHOWN_CHARS = 24

# Most entries and characters a stage accepts; a gateway may allow less.
MAX_LOGIT_BIAS = 1024
MAX_TOP_LOGPROBS = 20
MAX_PROMPT_LOGPROBS = 20
MAX_LOGPROB_TOKEN_IDS = 128
# Of known tokens that are told of one by one, in one message: log-probabilities of a prompt, or hidden states.
MAX_TOLD_TOKENS = 128
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_CHARS = 256
MAX_LISTED_TOKEN_IDS = 1 << 14
MAX_BAD_WORDS = 1024
MAX_BAD_WORD_TOKENS = 64
# Of the strings that clients give in place of ids: a bad word comes to two sequences.
MAX_BAD_WORD_STRINGS = MAX_BAD_WORDS // 2
MAX_BAD_WORD_CHARS = 256
MAX_DRY_BREAKERS = 16
MAX_DRY_BREAKER_CHARS = 40
MAX_GRAMMAR_BYTES = 256 * 1024
MAX_MARKERS = 16
MAX_MARKER_CHARS = 64
MAX_SPOKEN_TOKENS = 32
MAX_SPOKEN_TOKEN_CHARS = 64
MAX_TOOLS = 128
# Of one turn.
MAX_TOOL_CALLS = 128
MAX_TOOL_NAME_CHARS = 128
MAX_TOOL_CALL_ID_CHARS = 256
# Of the JSON of a tool's parameters and of a call's arguments.
MAX_TOOL_JSON_DEPTH = 64
# Of the end of a prompt that a tokenizer tells.
MAX_PROMPT_END_CHARS = 64


class Range(NamedTuple):
    """What a number may be.

    Args:
        low: lowest value, or the bound it must be above.
        high: highest value.
        excludes_low: whether the value must be above `low`.
    """

    low: float
    high: float
    excludes_low: bool = False

    def __str__(self) -> str:
        return f"{'(' if self.excludes_low else '['}{self.low:g}, {self.high:g}]"

    def check(self, field: str, value: float) -> None:
        """Refuses a value outside; NaN is in no range.

        Raises:
            InvalidRequest: naming the field, the value and the range.
        """
        if not self.low <= value <= self.high or (self.excludes_low and value == self.low):
            raise InvalidRequest(f"{field} is {shown(value)}, the range is {self}", field=field)


TEMPERATURE = Range(0, 100)
TOP_P = Range(0, 1, excludes_low=True)
MIN_P = Range(0, 1)
REPETITION_PENALTY = Range(0, 10, excludes_low=True)
PRESENCE_PENALTY = Range(-10, 10)
FREQUENCY_PENALTY = Range(-10, 10)
TYPICAL_P = Range(0, 1, excludes_low=True)
TOP_N_SIGMA = Range(0, 100, excludes_low=True)
XTC_PROBABILITY = Range(0, 1)
XTC_THRESHOLD = Range(0, 1, excludes_low=True)
DRY_MULTIPLIER = Range(0, 100)
DRY_BASE = Range(1, 10)
DRY_ALLOWED_LENGTH = Range(1, 64)
LOGIT_BIAS = Range(-100, 100)
PRIORITY = Range(-10, 10)


def shown(value: float) -> str:
    """A number as an error shows it: a client may have sent thousands of digits."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}..."
