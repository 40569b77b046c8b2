"""JSON Schemas of what is answered. They say what clients may rely on; objects may have more."""

from __future__ import annotations

from typing import Any, TypeAlias

Schema: TypeAlias = dict[str, Any]

STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
BOOLEAN: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}
NULL: Schema = {"type": "null"}


def or_null(schema: Schema) -> Schema:
    """The schema, or null."""
    return {"anyOf": [schema, NULL]}


def one_of(*values: str) -> Schema:
    """One of some strings."""
    return {"enum": list(values)}


def array(items: Schema) -> Schema:
    """A list."""
    return {"type": "array", "items": items}


def record(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    """An object with these fields, and others."""
    return {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}


def ref(name: str) -> Schema:
    """A component."""
    return {"$ref": f"#/components/schemas/{name}"}


_IDS = array(COUNT)
_TOKEN = {"token": STRING, "logprob": NUMBER, "bytes": array(COUNT)}
_FINISH = one_of("stop", "length")
_USAGE = record(
    {
        "prompt_tokens": COUNT,
        "completion_tokens": COUNT,
        "total_tokens": COUNT,
        "prompt_tokens_details": record({"cached_tokens": COUNT}),
    }
)
_CALL = record({"id": STRING, "type": one_of("function"), "function": record({"name": STRING, "arguments": STRING})})
_TIMELINE = record(dict.fromkeys(("tokenize_ms", "queue_ms", "prefill_ms", "decode_ms"), NUMBER))
_RANKED = record({"logprob": NUMBER, "rank": COUNT, "decoded_token": STRING})
_PROMPT_LOGPROBS = array(or_null({"type": "object", "additionalProperties": _RANKED}))
_CHAT_CHOICE = record(
    {
        "index": COUNT,
        "message": record(
            {"role": one_of("assistant"), "content": or_null(STRING), "refusal": NULL},
            {"reasoning_content": STRING, "tool_calls": array(_CALL)},
        ),
        "logprobs": or_null(record({"content": array(record({**_TOKEN, "top_logprobs": array(record(_TOKEN))}))})),
        "finish_reason": one_of("stop", "length", "tool_calls"),
    },
    {"token_ids": _IDS},
)
_COMPLETION_CHOICE = record(
    {
        "index": COUNT,
        "text": STRING,
        "logprobs": or_null(
            record(
                {
                    "tokens": array(STRING),
                    "token_logprobs": array(or_null(NUMBER)),
                    "top_logprobs": array(or_null({"type": "object", "additionalProperties": NUMBER})),
                    "text_offset": array(COUNT),
                }
            )
        ),
        "finish_reason": _FINISH,
    },
    {"token_ids": or_null(_IDS), "prompt_token_ids": or_null(_IDS), "prompt_logprobs": or_null(_PROMPT_LOGPROBS)},
)


def _whole(kind: str, choice: Schema) -> Schema:
    required = {"id": STRING, "object": one_of(kind), "created": COUNT, "model": STRING, "system_fingerprint": STRING}
    more = {"prompt_token_ids": or_null(_IDS), "prompt_logprobs": or_null(_PROMPT_LOGPROBS), "triserve": _TIMELINE}
    return record({**required, "choices": array(choice), "usage": ref("Usage")}, more)


_OUTPUT_TEXT = record({"type": one_of("output_text"), "text": STRING, "annotations": array(OBJECT), "logprobs": array(OBJECT)})
_ITEM = {"id": STRING, "status": one_of("completed", "incomplete")}
_OUTPUT_MESSAGE = record({**_ITEM, "type": one_of("message"), "role": one_of("assistant"), "content": array(_OUTPUT_TEXT)})
_OUTPUT_CALL = record({**_ITEM, "type": one_of("function_call"), "call_id": STRING, "name": STRING, "arguments": STRING})
_OUTPUT_REASONING = record(
    {**_ITEM, "type": one_of("reasoning"), "summary": array(OBJECT), "content": array(record({"type": STRING, "text": STRING}))}
)
_RESPONSE = record(
    {
        "id": STRING,
        "object": one_of("response"),
        "created_at": COUNT,
        "status": one_of("completed", "incomplete"),
        "error": NULL,
        "incomplete_details": or_null(record({"reason": one_of("max_output_tokens")})),
        "metadata": {"type": "object", "additionalProperties": STRING},
        "model": STRING,
        "output": array({"anyOf": [_OUTPUT_MESSAGE, _OUTPUT_CALL, _OUTPUT_REASONING]}),
        "usage": record({"input_tokens": COUNT, "output_tokens": COUNT, "total_tokens": COUNT}),
    }
)
_MESSAGE = record(
    {
        "id": STRING,
        "type": one_of("message"),
        "role": one_of("assistant"),
        "model": STRING,
        "content": array(
            {
                "anyOf": [
                    record({"type": one_of("text"), "text": STRING}),
                    record({"type": one_of("tool_use"), "id": STRING, "name": STRING, "input": OBJECT}),
                ]
            }
        ),
        "stop_reason": one_of("end_turn", "tool_use", "max_tokens", "stop_sequence", "model_context_window_exceeded"),
        "stop_sequence": or_null(STRING),
        "usage": record(dict.fromkeys(("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens"), COUNT)),
    }
)
_MODEL = record(
    {"id": STRING, "object": one_of("model"), "created": COUNT, "owned_by": STRING, "max_model_len": COUNT, "vocab_size": COUNT}
)
_STAGES = record({"ready": COUNT, "known": COUNT})

ANSWERS: dict[str, Schema] = {
    "Usage": _USAGE,
    "ChatCompletion": _whole("chat.completion", _CHAT_CHOICE),
    "Completion": _whole("text_completion", _COMPLETION_CHOICE),
    "Response": _RESPONSE,
    "MessageAnswer": _MESSAGE,
    "TokenCount": record({"input_tokens": COUNT}),
    "MessageError": record(
        {"type": one_of("error"), "error": record({"type": STRING, "message": STRING}), "request_id": STRING},
    ),
    "Model": _MODEL,
    "ModelList": record({"object": one_of("list"), "data": array(ref("Model"))}),
    "Tokens": record(
        {"tokens": _IDS, "token_strs": or_null(array(STRING)), "count": COUNT, "max_model_len": COUNT, "system_tokens": COUNT}
    ),
    "Detokenized": record({"prompt": STRING}),
    "TokenizerInfo": record(
        {
            "tokenizer_class": or_null(STRING),
            "additional_special_tokens": array(STRING),
            "chat_template": or_null(STRING),
            "model_max_length": COUNT,
            "vocab_size": COUNT,
            "eos_token_ids": _IDS,
            "template_arguments": array(STRING),
            "tokenizer_sha256": STRING,
        }
    ),
    "Version": record({"version": STRING}),
    "Capabilities": record({"object": one_of("capabilities"), "model": STRING, **dict.fromkeys(("features", "limits", "ranges"), OBJECT)}),
    "Health": record(
        {
            "status": one_of("ready", "not ready", "draining"),
            "missing": array(STRING),
            "tokenizers": _STAGES,
            "computes": _STAGES,
            "groups": array(record({"name": STRING, "complete": BOOLEAN, "tokenizers": COUNT, "computes": COUNT})),
        }
    ),
    "Embeddings": record(
        {
            "object": one_of("list"),
            "data": array(
                record({"object": one_of("embedding"), "index": COUNT, "embedding": {"anyOf": [array(NUMBER), STRING]}}),
            ),
            "model": STRING,
            "usage": record({"prompt_tokens": COUNT, "total_tokens": COUNT}),
        }
    ),
    "CacheStats": record({"object": one_of("cache"), "exact": OBJECT, "semantic": or_null(OBJECT)}),
    "CachePurged": record({"object": one_of("cache.purged"), "tenant": STRING, "generation": INTEGER}),
    "CacheExplained": record({"object": one_of("cache.explanation"), "id": STRING, "entries": array(OBJECT)}),
    "Error": record({"error": record({"message": STRING, "type": STRING, "param": or_null(STRING), "code": STRING})}),
}
