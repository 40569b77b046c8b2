"""Bounds on one request; every one is checked before anything of its size is made."""

from __future__ import annotations

from dataclasses import dataclass

from triserve.rpc import limits as contract


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may ask for. The settings fill it in; `gateway.settings` says what each field means."""

    max_body_bytes: int = 4 * 1024 * 1024
    max_json_depth: int = 32
    max_n: int = 16
    max_prompts: int = 64
    max_choices: int = 128
    max_messages: int = 1024
    max_stop_strings: int = contract.MAX_STOP_STRINGS
    max_stop_string_chars: int = contract.MAX_STOP_STRING_CHARS
    max_stop_token_ids: int = 64
    max_logit_bias: int = contract.MAX_LOGIT_BIAS
    max_top_logprobs: int = contract.MAX_TOP_LOGPROBS
    max_template_arguments: int = 16
    body_timeout_s: float = 30.0
    request_timeout_s: float = 600.0
    stall_timeout_s: float = 30.0
    keep_alive_s: float = 15.0
