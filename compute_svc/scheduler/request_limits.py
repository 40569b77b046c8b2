"""What a request may ask for, whatever else is computed."""

from __future__ import annotations

from compute_svc.wire.request import Request
from triserve.rpc.errors import InvalidRequest, PromptTooLong


def require_possible(request: Request, limit: int) -> None:
    """Refuses a request that could never be computed, or that is complete.

    Args:
        request: As it was submitted.
        limit: Most tokens of prompt and answer together.

    Raises:
        InvalidRequest: Naming the field and the limit.
    """
    longest = limit if request.draws_nothing and not request.pins else limit - 1
    if request.prompt.size > longest:
        raise PromptTooLong.of(got=request.prompt.size, limit=longest, field="token_ids")
    if request.prompt.size + request.max_tokens > limit:
        raise PromptTooLong(
            f"max_tokens is {request.max_tokens}, the limit is {limit - request.prompt.size}: "
            f"prompt and answer share {limit} tokens and the prompt has {request.prompt.size}",
            field="max_tokens",
        )
    if request.generated.size >= max(1, request.max_tokens):
        raise InvalidRequest(
            f"generated_token_ids has {request.generated.size} tokens, it must have fewer than max_tokens, {request.max_tokens}",
            field="generated_token_ids",
        )
