"""What the fleet serves now, put together from what tokenizers and compute replicas say of themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.errors import ModelNotFound
from triserve.v1 import compute_pb2, tokenizer_pb2


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """All that is needed to turn a client's wishes into parameters."""

    tokenizer_sha256: str
    # Empty where no stage knows it.
    weights_revision: str
    # How the replicas compute, in words; all in the same way.
    computation: str
    # Ids that end an answer.
    eos_token_ids: tuple[int, ...]
    # The model author's defaults; None = none published.
    default_temperature: float | None
    default_top_k: int | None
    default_top_p: float | None
    default_min_p: float | None = None
    default_typical_p: float | None = None
    default_repetition_penalty: float | None = None
    has_chat_template: bool
    # Arguments that callers may give the chat template and that it reads.
    template_arguments: tuple[str, ...]
    # Whether the chat template prints tools, and how it writes calls and reasoning; empty = in no way that the tokenizer knows.
    takes_tools: bool = False
    tool_call_format: str = ""
    reasoning_format: str = ""
    # Number of token ids of the tokenizer.
    vocab_size: int
    # Most tokens of prompt and answer together.
    max_model_len_tokens: int
    # Every token id in a request is below it.
    logits_width: int
    # Whether a replica looks at priorities.
    serves_by_priority: bool
    # Numbers in a vector of hidden states; 0 = not all replicas give some.
    hidden_size: int = 0

    @property
    def system_fingerprint(self) -> str:
        """OpenAI's name for what decides an answer besides the request: the same where tokenizer, weights and computation are."""
        return name_of_model(self.tokenizer_sha256, self.weights_revision, self.computation)


def name_of_model(tokenizer_sha256: str, weights_revision: str, computation: str) -> str:
    """A short name for what decides an answer besides the request."""
    parts = "\n".join((tokenizer_sha256, weights_revision, computation))
    return f"fp_{hashlib.sha256(parts.encode()).hexdigest()[:16]}"


def is_by_priority(replica: compute_pb2.GetComputeInfoResponse) -> bool:
    """Whether the replica looks at the priorities of requests."""
    return replica.policy == "priority"


def served_model(tokenizer: tokenizer_pb2.GetTokenizerInfoResponse, replicas: Sequence[compute_pb2.GetComputeInfoResponse]) -> ServedModel:
    """The model that a tokenizer and at least one replica serve; of what replicas differ in, the least.

    Does not check that they agree: peers that do not are refused when they connect.
    """
    width = min(replica.logits_width for replica in replicas)
    revisions = [tokenizer.fingerprint.weights_revision, *(replica.fingerprint.weights_revision for replica in replicas)]
    return ServedModel(
        tokenizer_sha256=tokenizer.fingerprint.tokenizer_sha256,
        weights_revision=next((revision for revision in revisions if revision), ""),
        computation=replicas[0].fingerprint.computation,
        eos_token_ids=tuple(token for token in tokenizer.eos_token_ids if token < width),
        default_temperature=tokenizer.default_temperature if tokenizer.HasField("default_temperature") else None,
        default_top_k=tokenizer.default_top_k if tokenizer.HasField("default_top_k") else None,
        default_top_p=tokenizer.default_top_p if tokenizer.HasField("default_top_p") else None,
        default_min_p=tokenizer.default_min_p if tokenizer.HasField("default_min_p") else None,
        default_typical_p=tokenizer.default_typical_p if tokenizer.HasField("default_typical_p") else None,
        default_repetition_penalty=tokenizer.default_repetition_penalty if tokenizer.HasField("default_repetition_penalty") else None,
        has_chat_template=tokenizer.has_chat_template,
        template_arguments=tuple(tokenizer.template_arguments),
        takes_tools=tokenizer.takes_tools,
        tool_call_format=tokenizer.tool_call_format,
        reasoning_format=tokenizer.reasoning_format,
        vocab_size=tokenizer.vocab_size,
        max_model_len_tokens=min(replica.max_model_len_tokens for replica in replicas),
        logits_width=width,
        serves_by_priority=any(is_by_priority(replica) for replica in replicas),
        hidden_size=min(replica.hidden_size for replica in replicas),
    )


@dataclass(frozen=True, kw_only=True)
class ServedNames:
    """The names under which the model is served."""

    name: str
    # Other names clients may use for it.
    aliases: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        """Every name, the model's own first."""
        return (self.name, *self.aliases)

    def require(self, name: str) -> None:
        """Accepts a name of the model; empty is one.

        Raises:
            ModelNotFound: it is none.
        """
        if name and name not in self.all:
            raise ModelNotFound(name)
