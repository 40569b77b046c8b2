"""What a benchmark can ask of, and read from, any server of OpenAI's API: chats in words, and the tokens that `usage` tells, if it does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway.cli.event_stream import DONE
from gateway.cli.measuring.http_transcript import Response
from gateway.cli.measuring.measurement import Failed, Measured, Outcome, error_message, event_object
from gateway.cli.measuring.workload import PlannedRequest

PATH = "/v1/chat/completions"

# Common enough to be one token each, with the space before it, in most vocabularies; ids of a prompt choose among them.
WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "you",
    "that",
    "it",
    "he",
    "was",
    "for",
    "on",
    "are",
    "as",
    "with",
    "his",
    "they",
    "at",
    "be",
    "this",
    "have",
    "from",
    "or",
    "one",
    "had",
    "by",
    "word",
    "but",
    "not",
    "what",
    "all",
    "were",
    "we",
    "when",
    "your",
    "can",
    "said",
    "there",
    "use",
    "an",
    "each",
    "which",
    "she",
    "do",
    "how",
    "their",
    "if",
    "will",
    "up",
    "other",
    "about",
    "out",
    "many",
    "then",
    "them",
    "these",
    "so",
    "some",
    "her",
    "would",
    "make",
    "like",
    "him",
    "into",
    "time",
    "has",
    "look",
    "two",
    "more",
    "write",
    "go",
    "see",
    "number",
    "no",
    "way",
    "could",
    "people",
    "my",
    "than",
    "first",
    "water",
    "been",
    "call",
    "who",
    "oil",
    "its",
    "now",
    "find",
    "long",
    "down",
    "day",
    "did",
    "get",
    "come",
    "made",
    "may",
    "part",
]


def chat_body(model: str, request: PlannedRequest) -> dict[str, Any]:
    """The body of a /v1/chat/completions request, of fields alone that every such server knows."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": " ".join(WORDS[token % len(WORDS)] for token in request.prompt_token_ids)}],
        "max_tokens": request.output_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def read_times(request: PlannedRequest, sent_at_s: float, response: Response) -> Outcome:
    """The times of a stream's pieces of text, and its tokens as `usage` counts them, else as many as pieces.

    Raises:
        BadResponse: an event is no JSON object.
    """
    at_s: list[float] = []
    finish_reason, usage, done = None, None, False
    for event in response.events:
        if event.data == DONE:
            done = True
            continue
        chunk = event_object(event.data)
        if chunk.get("error"):
            return Failed(request, f"the stream ended in an error: {error_message(event.data)}")
        usage = chunk.get("usage") or usage
        for choice in _objects(chunk.get("choices")):
            finish_reason = choice.get("finish_reason") or finish_reason
            if _has_text(choice):
                at_s.append(event.at_s)
    if not response.events:
        return Failed(request, "the answer is no stream of events")
    if not done and finish_reason is None:
        return Failed(request, "the stream ended without a finish reason")
    if not at_s:
        return Failed(request, "the answer has no text")
    counted = _counts(usage)
    return Measured(
        request=request,
        sent_at_s=sent_at_s,
        delta_at_s=tuple(at_s),
        delta_tokens=_spread(len(at_s) if counted is None else counted[1], len(at_s)),
        prompt_tokens=None if counted is None else counted[0],
        is_counted=counted is not None,
    )


def _objects(value: object) -> Sequence[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _has_text(choice: dict[str, Any]) -> bool:
    """Whether a choice brings something to read, an answer or what a reasoning model thinks before it."""
    delta = choice.get("delta")
    return isinstance(delta, dict) and any(delta.get(name) for name in ("content", "reasoning_content", "reasoning"))


def _counts(usage: object) -> tuple[int, int] | None:
    """Tokens of prompt and answer; None = not told."""
    if not isinstance(usage, dict):
        return None
    prompt, answer = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return (prompt, answer) if isinstance(prompt, int) and isinstance(answer, int) and answer > 0 else None


def _spread(tokens: int, num_deltas: int) -> tuple[int, ...]:
    """Tokens of each delta where their sum alone is known: one each, from the first on, and what is left in the last."""
    counts = [1 if index < tokens else 0 for index in range(num_deltas)]
    counts[-1] += max(0, tokens - num_deltas)
    return tuple(counts)
