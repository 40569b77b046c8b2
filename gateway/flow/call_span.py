"""What the span of a call says of it when it ends. Never sees a prompt."""

from __future__ import annotations

from gateway.flow.call import Call
from gateway.flow.generations.generation import Generation
from gateway.flow.generations.live_generation import LiveGeneration
from triserve.rpc.traces.spans import OpenSpan

# All others are chats, in whatever form.
_OPERATIONS = {"completions": "text_completion"}
_MAX_MODEL_CHARS = 256


def describe(span: OpenSpan, call: Call, generation: Generation | None, *, read_since: float, outcome: str, is_fault: bool) -> None:
    """Gives a call's span its attributes, under OpenTelemetry's names where it has some, and begins the span of what is left: the delivery.

    Args:
        span: of the call.
        call: what was asked.
        generation: what was read from; None = nothing.
        read_since: from when on, seconds on the clock of spans.
        outcome: how it ended.
        is_fault: whether that is a fault of ours.
    """
    span.attributes |= {
        "gen_ai.provider.name": "triserve",
        "gen_ai.operation.name": _OPERATIONS.get(call.route, "chat"),
        "gen_ai.request.choice.count": call.n,
        "gen_ai.request.stream": call.stream,
        "gen_ai.response.id": call.request_id,
        "triserve.tenant": call.tenant,
        "triserve.outcome": outcome,
    }
    if call.model:
        # As the client wrote it: it may be no model's.
        span.attributes["gen_ai.request.model"] = call.model[:_MAX_MODEL_CHARS]
    if is_fault:
        span.error = outcome
    if generation is None:
        return
    usage = generation.usage()
    span.attributes |= {
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
        "triserve.cache.status": generation.cache.status,
    }
    if isinstance(generation, LiveGeneration):
        finish_reasons = [answer.finish_reason for answer in generation.answers if answer.finish_reason is not None]
        span.attributes["gen_ai.response.finish_reasons"] = finish_reasons
        read_since = _first_news(generation, is_streamed=call.stream)
    if read_since:
        # It ends with the span, when the last byte is written.
        span.child("deliver", at=read_since)


def _first_news(generation: LiveGeneration, *, is_streamed: bool) -> float:
    """When there was something to deliver; 0 = never."""
    if is_streamed:
        return min((answer.first_at for answer in generation.answers if not answer.blank), default=0.0)
    return max(answer.last_at for answer in generation.answers) if generation.finished else 0.0
