"""Parsers by name: which one an operator, or else the model's chat template, chooses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from gateway.tools.answer_parser import ReasoningFormat
from gateway.tools.call_formats import FORMATS, CallFormat

ToolParserName: TypeAlias = Literal["auto", "hermes", "llama3", "pythonic", "mistral", "deepseek", "json", "harmony"]
ReasoningParserName: TypeAlias = Literal["auto", "none", "think", "brackets", "thinking", "reasoning", "seed", "harmony"]

FORMAT_NAMES = ", ".join(FORMATS)
REASONING: Mapping[str, ReasoningFormat] = {
    "think": ReasoningFormat("<think>", "</think>"),
    "brackets": ReasoningFormat("[THINK]", "[/THINK]"),
    "thinking": ReasoningFormat("<thinking>", "</thinking>"),
    "reasoning": ReasoningFormat("<reasoning>", "</reasoning>"),
    "seed": ReasoningFormat("<seed:think>", "</seed:think>"),
}


def call_format(wanted: str, of_template: str) -> CallFormat | None:
    """How calls are written; None = in a form that is not known.

    Args:
        wanted: by the operator; "auto" = as the template does.
        of_template: what the tokenizer says of the model's template; empty = nothing that it knows.
    """
    return FORMATS.get(of_template if wanted == "auto" else wanted)


def reasoning_format(wanted: str, of_template: str) -> ReasoningFormat | None:
    """How reasoning is written; None = it is not set apart. Arguments as of `call_format`; "none" leaves reasoning in the content."""
    return REASONING.get(of_template if wanted == "auto" else wanted)


def whole_format(wanted: str, of_template: str) -> CallFormat | None:
    """A form in which reasoning is one of the parts of an answer, as calls are; None = reasoning just stands before all else. Arguments as of
    `call_format`."""
    name = of_template if wanted == "auto" else wanted
    return FORMATS[name] if name == "harmony" else None
