"""What a client asks, whichever door it came through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from gateway.flow.search.kinds import BestOf, Search
from gateway.tools.argument_grammars import OfferedTool
from triserve.rpc.errors import InvalidRequest, ServiceError
from triserve.rpc.traces.spans import OpenSpan
from triserve.v1 import common_pb2, compute_pb2, tokenizer_pb2

MAX_SALT_CHARS = 256
_MAX_SHOWN_CHARS = 128

# Text or chat to be encoded, or token ids as they are.
Prompt: TypeAlias = tokenizer_pb2.EncodeRequest | tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """Sampling and stopping fields as the client gave them; None = unset. Nothing is checked yet."""

    temperature: float | None = None
    # 0 or -1 = all tokens, whatever the model's author prefers.
    top_k: int | None = None
    # 0 = greedy.
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    # 0 or -1 = all tokens.
    top_n_sigma: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    # None = the usual ones, if there are no ids of breakers.
    dry_sequence_breakers: tuple[str, ...] | None = None
    dry_breaker_ids: tuple[int, ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    banned_token_ids: tuple[int, ...] = ()
    # As strings, and as sequences of ids.
    bad_words: tuple[str, ...] = ()
    bad_word_ids: tuple[tuple[int, ...], ...] = ()
    # Token ids and what is added to their logits.
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    # How many of the likeliest tokens to report; None = no log-probabilities at all.
    top_logprobs: int | None = None
    # Ids to report with each token besides those.
    logprob_token_ids: tuple[int, ...] = ()
    # The same of each token of the prompt; None = nothing is reported of it.
    prompt_logprobs: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    # Whether an answer of no tokens may be asked for. One may where there is something to report of the prompt.
    may_be_empty: bool = False
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    # What the text must be; None = anything.
    grammar: common_pb2.Grammar | None = None
    # Whether the text has the stop string that ends it.
    include_stop_string: bool = False
    # Whether special tokens are no text; and where they are, whether a space may stand between two of them.
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    # What the client calls fields of which it has another name, for errors.
    spelling: Mapping[str, str] = field(default_factory=dict)

    def spelled(self, name: str) -> str:
        """What the client calls the field."""
        return self.spelling.get(name, name)

    @property
    def least_tokens(self) -> int:
        """The least that max_tokens may be."""
        return 0 if self.may_be_empty or self.prompt_logprobs is not None else 1

    def reworded(self, error: ServiceError) -> ServiceError:
        """A stage's error, which names a field of the contract, as the client knows it."""
        name = self.spelled(error.field)
        if not isinstance(error, InvalidRequest) or name == error.field:
            return error
        return InvalidRequest(error.message.replace(error.field, name, 1), field=name)


@dataclass(frozen=True, kw_only=True)
class CachePolicy:
    """What the client wants of the prompt cache."""

    # Whether it may answer, and whether it may keep the answer.
    read: bool = True
    write: bool = True
    # Whether nothing else may answer.
    only: bool = False
    # Oldest answer that is wanted, in seconds; None = any.
    max_age_s: float | None = None
    # Least cosine between the question and one that was asked before; None = the gateway's.
    threshold: float | None = None
    # Answers are found under the salt they were kept with; empty = none.
    salt: str = ""


@dataclass(frozen=True, kw_only=True)
class AnswerReading:
    """How a client wants answers to be taken apart into reasoning, content and tool calls."""

    # Names of the tools that may be called; none = calls are not looked for.
    tools: frozenset[str] = frozenset()
    # Whether there may be more than one call in an answer.
    parallel: bool = True
    # Those of the tools to which an answer may be held.
    offered: tuple[OfferedTool, ...] = ()
    # Whether an answer must call one of them, and whether its client has chosen which: that it calls is no news then.
    must_call: bool = False
    is_named: bool = False

    @classmethod
    def of_tools(cls, offered: Sequence[OfferedTool], *, must_call: bool, name: str | None, parallel: bool) -> AnswerReading:
        """How an answer is read that may call these tools.

        Args:
            offered: no two of a name.
            must_call: whether it must call one of them.
            name: of the one that it must call; None = any.
            parallel: whether there may be more than one call; of one that is chosen there is one.

        Raises:
            InvalidRequest: there is nothing to be called.
        """
        names = frozenset(tool.name for tool in offered)
        if must_call and not offered:
            raise InvalidRequest("tool_choice asks for a call, and tools is empty", field="tool_choice")
        if name is not None and name not in names:
            raise InvalidRequest(f"tool_choice is {name[:_MAX_SHOWN_CHARS]!r}, which is not in tools", field="tool_choice")
        called = tuple(tool for tool in offered if name in (None, tool.name))
        # Who names a function asks for a call of it, one.
        return cls(tools=names, parallel=parallel and name is None, offered=called, must_call=must_call, is_named=name is not None)

    @property
    def is_held(self) -> bool:
        """Whether anything is asked of calls that the model could fail to do."""
        return self.must_call or any(tool.is_strict for tool in self.offered)


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request of one client: some prompts, n answers to each."""

    # Server-made; the client's own id is only a label in the log.
    request_id: str
    tenant: str
    # For metrics: "chat", "completions", "embeddings", "responses", "messages" or "grpc".
    route: str
    # Empty = the one that is served.
    model: str
    prompts: tuple[Prompt, ...]
    # The field of the request that holds the prompts, for errors.
    prompt_field: str
    n: int = 1
    # How they are looked for; None = they are drawn.
    search: Search | None = None
    # Whether the last turn is rewritten by the model before it is answered.
    system2_attention: bool = False
    # Arguments of the chat template that it must read.
    template_must_read: tuple[str, ...] = ()
    wishes: Wishes = field(default_factory=Wishes)
    # Of the prompt, beside its answer.
    hidden_states: compute_pb2.HiddenStates.ValueType = compute_pb2.HIDDEN_STATES_UNSPECIFIED
    # None = the text is wanted as the model wrote it.
    reading: AnswerReading | None = None
    # Tokens to generate when the client does not say; None = as many as fit.
    default_max_tokens: int | None = None
    # Of a longer prompt so many of the last ids are answered; -1 = as many as leave room for the answer, None = all.
    truncate_prompt_tokens: int | None = None
    # Lower is sooner, 0 = normal; and the lowest its client may ask for.
    priority: int = 0
    lowest_priority: int = 0
    cache: CachePolicy = field(default_factory=CachePolicy)
    # Whether its client may see how near a question was whose answer it gets.
    sees_similarity: bool = False
    # Whether the client reads deltas as they come.
    stream: bool = False
    # Seconds the client gives it; None = as long as the gateway does.
    timeout_s: float | None = None
    # The client's name for its user and its id for the request, for the log.
    label: str = ""
    # Under which what is done for it is recorded; None = it is not traced.
    span: OpenSpan | None = field(default=None, compare=False)

    @property
    def num_made(self) -> int:
        """Answers to each prompt that are made at once, returned or not."""
        return self.n if self.search is None else self.search.width

    @property
    def num_drawn(self) -> int:
        """Those of them that are drawn from beginning to end, or 1 where a search goes token by token."""
        return self.num_made if self.search is None or isinstance(self.search, BestOf) else 1
