"""How the answers to a call are taken apart: by what the operator says, or else by what the tokenizer says of the model's chat template."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.flow.call import Call
from gateway.flow.served_model import ServedModel
from gateway.tools.answer_parser import AnswerForm, ReasoningFormat
from gateway.tools.call_formats import CallFormat
from gateway.tools.registry import FORMAT_NAMES, ReasoningParserName, ToolParserName, call_format, reasoning_format, whole_format
from triserve.rpc.errors import InvalidRequest
from triserve.v1 import tokenizer_pb2


@dataclass(frozen=True, kw_only=True)
class AnswerForms:
    """The operator's choice of parsers.

    Attributes:
        tool_parser: of tool calls; "auto" = by the template.
        reasoning_parser: likewise, of reasoning; "none" = it stays content.
    """

    tool_parser: ToolParserName = "auto"
    reasoning_parser: ReasoningParserName = "auto"

    def calls(self, model: ServedModel) -> CallFormat | None:
        """How a model writes tool calls; None = it is given no tools, or writes them in a form that is not known."""
        return call_format(self.tool_parser, model.tool_call_format) if model.takes_tools else None

    def reasoning(self, model: ServedModel) -> ReasoningFormat | None:
        """How a model writes reasoning; None = it is not set apart."""
        return reasoning_format(self.reasoning_parser, model.reasoning_format)

    def check(self, call: Call, model: ServedModel) -> None:
        """Refuses tools that the model cannot be given, or whose calls nobody would find.

        Raises:
            InvalidRequest: naming the field.
        """
        if call.reading is None or not call.reading.tools or not model.has_chat_template:
            return
        if not model.takes_tools:
            raise InvalidRequest("tools is not supported: the model's chat template takes no tools", field="tools")
        if self.calls(model) is None:
            raise InvalidRequest(
                "tools is not supported: the model's chat template writes tool calls in a form that is not known here; GATEWAY_TOOL_PARSER may be"
                f" set to one of {FORMAT_NAMES}",
                field="tools",
            )

    def spoken_tokens(self, call: Call, model: ServedModel) -> tuple[str, ...]:
        """Special tokens that must be text for the answers to be taken apart."""
        form = self.of(call, model, prompt_end="")
        if form is None:
            return ()
        return (*(form.calls.markers if form.calls is not None else ()), *(form.reasoning.markers if form.reasoning is not None else ()))

    def of(self, call: Call, model: ServedModel, *, prompt_end: str) -> AnswerForm | None:
        """How the answers to a call are written; None = their text is left as it is.

        Args:
            call: what is asked.
            model: that answers.
            prompt_end: the last characters of the prompt, which the template wrote.
        """
        # A text that must be of a form is of that form from its first character: nothing could end reasoning that a prompt has begun.
        if call.reading is None or call.wishes.grammar is not None:
            return None
        calls = self.calls(model) if call.reading.tools else None
        reasoning = self.reasoning(model)
        # Reasoning that is one of the parts of an answer is read with all of it, unless the operator says how calls are written.
        if calls is None or self.tool_parser == "auto":
            calls = whole_format(self.reasoning_parser, model.reasoning_format) or calls
        if calls is None and reasoning is None:
            return None
        return AnswerForm(
            request_id=call.request_id,
            calls=calls,
            tools=call.reading.tools,
            parallel=call.reading.parallel,
            reasoning=reasoning,
            begins_in_reasoning=reasoning is not None and (prompt_end.rstrip().endswith(reasoning.begin) or _goes_on_with(call, reasoning)),
        )


def _goes_on_with(call: Call, reasoning: ReasoningFormat) -> bool:
    """Whether the answer goes on with a turn that has begun to reason, in the client's own words."""
    prompt = call.prompts[0]
    if not isinstance(prompt, tokenizer_pb2.EncodeRequest) or not prompt.chat.continue_final_message:
        return False
    said = prompt.chat.messages[-1].content
    return said.rfind(reasoning.begin) > said.rfind(reasoning.end)
