"""How a request is drawn from and when it ends, read from the contract and held against its limits: what compute and samplers agree on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from triserve.rpc import limits
from triserve.rpc.errors import InvalidRequest
from triserve.v1 import common_pb2

_MASK_64 = (1 << 64) - 1
# The increment and multipliers of SplitMix64, whose output function spreads consecutive inputs over all 64 bits.
_SPLITMIX_STEP = 0x9E3779B97F4A7C15
_SPLITMIX_1 = 0xBF58476D1CE4E5B9
_SPLITMIX_2 = 0x94D049BB133111EB
_RANGES = {
    "temperature": limits.TEMPERATURE,
    "top_p": limits.TOP_P,
    "min_p": limits.MIN_P,
    "typical_p": limits.TYPICAL_P,
    "xtc_probability": limits.XTC_PROBABILITY,
    "xtc_threshold": limits.XTC_THRESHOLD,
    "repetition_penalty": limits.REPETITION_PENALTY,
    "presence_penalty": limits.PRESENCE_PENALTY,
    "frequency_penalty": limits.FREQUENCY_PENALTY,
    "dry_multiplier": limits.DRY_MULTIPLIER,
    "dry_base": limits.DRY_BASE,
    "dry_allowed_length": limits.DRY_ALLOWED_LENGTH,
}


@dataclass(frozen=True, slots=True)
class Grammar:
    """What the text of an answer must be.

    Attributes:
        kind: "json_schema", "regex" or "lark".
        text: in the language of its kind.
        frame: a Lark grammar of all that is written, with the text as `@text`; empty = there is only the text.
        markers: texts to which a Lark grammar refers by their indices.
        frame_markers: likewise, of the frame.
        lenient: whether what cannot be held may be left out of JSON schemas within Lark grammars that say so.
    """

    kind: str
    text: str
    frame: str = ""
    markers: tuple[str, ...] = ()
    frame_markers: tuple[str, ...] = ()
    lenient: bool = False

    @classmethod
    def read(cls, message: common_pb2.Grammar) -> Grammar:
        """What a message of the contract says. Whether it is one is found out when it is compiled.

        Raises:
            InvalidRequest: it is of no kind, or too long.
        """
        kind = message.WhichOneof("kind")
        if kind is None:
            raise InvalidRequest("grammar is of no kind: one of json_schema, regex and lark must be set", field="grammar")
        text: str = getattr(message, kind)
        if (num_bytes := len(text.encode()) + len(message.frame.encode())) > limits.MAX_GRAMMAR_BYTES:
            raise InvalidRequest(f"grammar has {num_bytes} bytes, the limit is {limits.MAX_GRAMMAR_BYTES}", field="grammar")
        for markers in (message.markers, message.frame_markers):
            _check_strings("grammar", markers, limits.MAX_MARKERS, limits.MAX_MARKER_CHARS)
            if len(set(markers)) < len(markers):
                raise InvalidRequest("grammar has a marker twice", field="grammar")
        return cls(kind, text, message.frame, tuple(message.markers), tuple(message.frame_markers), message.lenient)

    def write(self) -> common_pb2.Grammar:
        """The message that `read` reads."""
        fields: dict[str, Any] = {self.kind: self.text}
        return common_pb2.Grammar(**fields, frame=self.frame, markers=self.markers, frame_markers=self.frame_markers, lenient=self.lenient)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw, as `SamplingParams` in common.proto says; the defaults are what an unset field means.

    Attributes:
        temperature: 0 = greedy.
        top_k: None = all.
        top_n_sigma: None = all.
        logit_bias_ids: token ids that have a bias.
        logit_bias_values: what is added to the logit of the id at the same index.
        seed: key of the random stream; may be None only where nothing is random.
        top_logprobs: likeliest tokens to report with each token; None = no log-probabilities.
        prompt_logprobs: likeliest tokens to report with each token of the prompt from the second on; None = nothing of the prompt.
        logprob_token_ids: ids whose log-probability is reported with each token of the answer, besides the likeliest.
        dry_breaker_ids: no repetition reaches over one of these.
        allowed_token_ids: nothing else can be drawn; empty = everything can.
        banned_token_ids: cannot be drawn.
        bad_words: sequences of ids that cannot be drawn to their end.
        grammar: what the text must be; None = anything.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    top_n_sigma: float | None = None
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_breaker_ids: tuple[int, ...] = ()
    logit_bias_ids: tuple[int, ...] = ()
    logit_bias_values: tuple[float, ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    banned_token_ids: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    seed: int | None = None
    top_logprobs: int | None = None
    prompt_logprobs: int | None = None
    logprob_token_ids: tuple[int, ...] = ()
    grammar: Grammar | None = None

    @classmethod
    def read(cls, message: common_pb2.SamplingParams, logits_width: int) -> Sampling:
        """What a message of the contract says, held against every limit. Counts are checked before the work that grows with them.

        Raises:
            InvalidRequest: naming the first field that is wrong.
        """
        for field, most in _MOST_ENTRIES.items():
            if (got := len(getattr(message, field))) > most:
                raise InvalidRequest(f"{field} has {got} entries, the limit is {most}", field=field)
        for word in message.bad_words:
            if not 1 <= len(word.token_ids) <= limits.MAX_BAD_WORD_TOKENS:
                raise InvalidRequest(
                    f"bad_words has a sequence of {len(word.token_ids)} ids, the limits are 1 and {limits.MAX_BAD_WORD_TOKENS}",
                    field="bad_words",
                )
        # The names are the contract's, and a field that is not set has its default.
        fields: dict[str, Any] = {descriptor.name: value for descriptor, value in message.ListFields()}
        for field in _MOST_ENTRIES:
            if field in fields:
                fields[field] = tuple(fields[field])
        fields["bad_words"] = tuple(tuple(word.token_ids) for word in message.bad_words)
        if message.HasField("grammar"):
            fields["grammar"] = Grammar.read(message.grammar)
        sampling = cls(**fields)
        sampling.check(logits_width)
        return sampling

    def write(self) -> common_pb2.SamplingParams:
        """The message that `read` reads: fields with their default are not set."""
        fields: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                fields[field.name] = value
        if self.bad_words:
            fields["bad_words"] = [common_pb2.TokenSequence(token_ids=word) for word in self.bad_words]
        if self.grammar is not None:
            fields["grammar"] = self.grammar.write()
        return common_pb2.SamplingParams(**fields)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is the only one that can be drawn."""
        return self.temperature == 0 or self.top_k == 1

    @property
    def changes_logits(self) -> bool:
        """Whether logits are changed, or ids banned, before anything is drawn."""
        return bool(
            self.repetition_penalty != 1
            or self.presence_penalty
            or self.frequency_penalty
            or self.dry_multiplier
            or self.logit_bias_ids
            or self.allowed_token_ids
            or self.banned_token_ids
            or self.bad_words
        )

    def check(self, logits_width: int) -> None:
        """Holds every field against its limit.

        Raises:
            InvalidRequest: naming the first field that is wrong.
        """
        for field, allowed in _RANGES.items():
            allowed.check(field, getattr(self, field))
        if self.top_k is not None and self.top_k < 1:
            raise InvalidRequest(f"top_k is {self.top_k}, the least is 1", field="top_k")
        if self.top_n_sigma is not None:
            limits.TOP_N_SIGMA.check("top_n_sigma", self.top_n_sigma)
        self._check_bias(logits_width)
        for field in ("dry_breaker_ids", "allowed_token_ids", "banned_token_ids"):
            check_ids(field, getattr(self, field), logits_width)
        for word in self.bad_words:
            check_ids("bad_words", word, logits_width)
        if self.seed is None and not self.greedy:
            raise InvalidRequest("seed is not set, and the request is not greedy", field="seed")
        self._check_logprobs(logits_width)

    def _check_logprobs(self, logits_width: int) -> None:
        for field, most in (("top_logprobs", limits.MAX_TOP_LOGPROBS), ("prompt_logprobs", limits.MAX_PROMPT_LOGPROBS)):
            value = getattr(self, field)
            if value is not None and value > most:
                raise InvalidRequest(f"{field} is {value}, the limit is {most}", field=field)
        if self.logprob_token_ids and self.top_logprobs is None:
            raise InvalidRequest("logprob_token_ids is set without top_logprobs", field="logprob_token_ids")
        check_ids("logprob_token_ids", self.logprob_token_ids, logits_width)
        if len(set(self.logprob_token_ids)) < len(self.logprob_token_ids):
            raise InvalidRequest("logprob_token_ids has an id twice", field="logprob_token_ids")

    def _check_bias(self, logits_width: int) -> None:
        ids, values = self.logit_bias_ids, self.logit_bias_values
        if len(values) != len(ids):
            raise InvalidRequest(f"logit_bias_values has {len(values)} entries, logit_bias_ids has {len(ids)}", field="logit_bias_values")
        check_ids("logit_bias_ids", ids, logits_width)
        if len(set(ids)) < len(ids):
            raise InvalidRequest("logit_bias_ids has an id twice", field="logit_bias_ids")
        for value in values:
            limits.LOGIT_BIAS.check("logit_bias_values", value)


_MOST_ENTRIES = {
    "logit_bias_ids": limits.MAX_LOGIT_BIAS,
    "logit_bias_values": limits.MAX_LOGIT_BIAS,
    "dry_breaker_ids": limits.MAX_LISTED_TOKEN_IDS,
    "allowed_token_ids": limits.MAX_LISTED_TOKEN_IDS,
    "banned_token_ids": limits.MAX_LISTED_TOKEN_IDS,
    "bad_words": limits.MAX_BAD_WORDS,
    "logprob_token_ids": limits.MAX_LOGPROB_TOKEN_IDS,
}


@dataclass(frozen=True, slots=True)
class Stopping:
    """When to stop, and what is text.

    Attributes:
        max_tokens: most tokens to generate, 0 = nothing is drawn; None is an error that `check` names.
        min_tokens: stop ids cannot be drawn and stop strings do not count before this many.
        stop_token_ids: a drawn id of these ends the answer.
        stop_strings: the answer ends before the first of these in its text.
        spoken_tokens: special tokens whose names are text.
        include_stop_string: whether the text has the one that ends it.
        skip_special_tokens: whether special tokens are no text; if not, their names are.
        spaces_between_special_tokens: whether a space stands between such names, where the tokenizer puts one there.
    """

    max_tokens: int | None
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()
    spoken_tokens: tuple[str, ...] = ()
    include_stop_string: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True

    @classmethod
    def read(cls, message: common_pb2.StoppingParams, logits_width: int) -> Stopping:
        """What a message of the contract says, held against every limit.

        Raises:
            InvalidRequest: naming the first field that is wrong.
        """
        if (got := len(message.stop_token_ids)) > limits.MAX_LISTED_TOKEN_IDS:
            raise InvalidRequest(f"stop_token_ids has {got} entries, the limit is {limits.MAX_LISTED_TOKEN_IDS}", field="stop_token_ids")
        stopping = cls(
            max_tokens=message.max_tokens if message.HasField("max_tokens") else None,
            min_tokens=message.min_tokens,
            stop_token_ids=frozenset(message.stop_token_ids),
            stop_strings=tuple(message.stop_strings),
            spoken_tokens=tuple(message.spoken_tokens),
            include_stop_string=message.include_stop_string,
            skip_special_tokens=message.skip_special_tokens if message.HasField("skip_special_tokens") else True,
            spaces_between_special_tokens=(
                message.spaces_between_special_tokens if message.HasField("spaces_between_special_tokens") else True
            ),
        )
        stopping.check(logits_width)
        return stopping

    def check(self, logits_width: int) -> None:
        """Holds every field against its limit.

        Raises:
            InvalidRequest: naming the first field that is wrong.
        """
        if self.max_tokens is None or self.max_tokens < 0:
            raise InvalidRequest("max_tokens is not set or below 0", field="max_tokens")
        check_ids("stop_token_ids", tuple(self.stop_token_ids), logits_width)
        _check_strings("stop_strings", self.stop_strings, limits.MAX_STOP_STRINGS, limits.MAX_STOP_STRING_CHARS)
        _check_strings("spoken_tokens", self.spoken_tokens, limits.MAX_SPOKEN_TOKENS, limits.MAX_SPOKEN_TOKEN_CHARS)


def _check_strings(field: str, strings: Sequence[str], most: int, most_chars: int) -> None:
    if len(strings) > most:
        raise InvalidRequest(f"{field} has {len(strings)} entries, the limit is {most}", field=field)
    for one in strings:
        if not 1 <= len(one) <= most_chars:
            raise InvalidRequest(f"{field} has a string of {len(one)} characters, the limits are 1 and {most_chars}", field=field)


def check_ids(field: str, ids: Sequence[int], logits_width: int) -> None:
    """Holds token ids against the number of logits.

    Raises:
        InvalidRequest: an id has no logit.
    """
    if ids and max(ids) >= logits_width:
        raise InvalidRequest(f"{field} has id {max(ids)}, the limit is {logits_width - 1}", field=field)


def choice_seed(seed: int, choice: int) -> int:
    """The seed of the choice-th answer to a prompt.

    Choice 0 has the request's own seed, so that it is the answer a request with n = 1 gets. Choice i has the i-th output of a
    SplitMix64 generator that starts at the seed: far apart for neighbouring seeds and neighbouring choices.

    Args:
        seed: of the request, any int; only its low 64 bits count.
        choice: 0 <= choice < n.

    Returns:
        A seed in [0, 2**64).
    """
    if not choice:
        return seed & _MASK_64
    mixed = (seed + choice * _SPLITMIX_STEP) & _MASK_64
    mixed = ((mixed ^ (mixed >> 30)) * _SPLITMIX_1) & _MASK_64
    mixed = ((mixed ^ (mixed >> 27)) * _SPLITMIX_2) & _MASK_64
    return mixed ^ (mixed >> 31)
