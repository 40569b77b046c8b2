"""How the answers to a call are taken apart, and what they are held to: by what the operator says, or else by what the tokenizer says of the model's
chat template."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.flow.call import AnswerReading, Call
from gateway.flow.served_model import ServedModel
from gateway.tools.answer_parser import AnswerForm, ReasoningFormat
from gateway.tools.argument_grammars import CannotHold
from gateway.tools.call_formats import FORMATS, CallFormat
from gateway.tools.call_grammars import Demand, Rules, answer_rule, start_rule
from gateway.tools.registry import FORMAT_NAMES, ReasoningParserName, ToolParserName, call_format, reasoning_format, whole_format
from triserve.rpc.errors import InvalidRequest
from triserve.v1 import common_pb2, tokenizer_pb2

_TEXT = Rules("", "")


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
        if self._calls_of(call.reading, model) is None:
            raise InvalidRequest(
                "tools is not supported: the model's chat template writes tool calls in a form that is not known here; GATEWAY_TOOL_PARSER may be"
                f" set to one of {FORMAT_NAMES}",
                field="tools",
            )

    def spoken_tokens(self, call: Call, model: ServedModel) -> tuple[str, ...]:
        """Special tokens that must be text for the answers to be taken apart."""
        form = self.of(call, model, prompt_end="")
        told = () if call.wishes.grammar is None else tuple(call.wishes.grammar.markers)
        # None twice: a client's tags may be those of the model's own calls.
        return tuple(dict.fromkeys((*(() if form is None else form.markers), *told)))

    def of(self, call: Call, model: ServedModel, *, prompt_end: str) -> AnswerForm | None:
        """How the answers to a call are written; None = their text is left as it is.

        Args:
            call: what is asked.
            model: that answers.
            prompt_end: the last characters of the prompt, which the template wrote.
        """
        if call.reading is None:
            return None
        calls = self._calls_of(call.reading, model) if call.reading.tools else None
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
            must_call=call.reading.must_call,
            is_named=call.reading.is_named,
        )

    def grammar(self, call: Call, model: ServedModel, *, prompt_end: str) -> common_pb2.Grammar | None:
        """What the answers to a call must be, in the form in which the model writes them; None = anything. For arguments see `of`.

        Raises:
            InvalidRequest: no grammar can hold them to what is asked of tools.
        """
        text, reading = call.wishes.grammar, call.reading
        form = self.of(call, model, prompt_end=prompt_end)
        if reading is None or form is None or (text is None and not reading.is_held):
            return text
        if text is not None and text.markers:
            return self._behind_reasoning(call, text, form, prompt_end)
        demand = Demand(reading.offered, reading.must_call, reading.parallel, has_text=text is not None)
        try:
            rules = answer_rule(_TEXT if form.calls is None else form.calls.rules(demand), demand)
        except CannotHold as error:
            raise InvalidRequest(f"tools cannot be held: {error}", field="tools") from None
        frame, is_lenient = f"{_start(form, prompt_end)}\n{rules}", not all(tool.is_strict for tool in reading.offered)
        if text is None or reading.must_call:
            return common_pb2.Grammar(lark=frame, markers=form.markers, lenient=is_lenient)
        framed = common_pb2.Grammar(frame=frame, frame_markers=form.markers, lenient=is_lenient)
        framed.MergeFrom(text)
        return framed

    def _behind_reasoning(self, call: Call, tagged: common_pb2.Grammar, form: AnswerForm, prompt_end: str) -> common_pb2.Grammar:
        """A text whose tags, those around calls too, are of the client's own form."""
        if call.reading is not None and call.reading.must_call:
            field = call.wishes.spelled("grammar")
            raise InvalidRequest(f"{field} is not supported where tool_choice asks for a call", field=field)
        if form.reasoning is None:
            return tagged
        framed = common_pb2.Grammar(frame=f"{_start(form, prompt_end)}\nanswer: @text", frame_markers=form.markers)
        framed.MergeFrom(tagged)
        return framed

    def _calls_of(self, reading: AnswerReading, model: ServedModel) -> CallFormat | None:
        """As `calls`; a model that must call does so in JSON where its own form is not known."""
        return self.calls(model) or (FORMATS["json"] if reading.must_call and model.takes_tools else None)


def _start(form: AnswerForm, prompt_end: str) -> str:
    """The rule of all of an answer."""
    reasoning = form.reasoning
    if reasoning is None or prompt_end.rstrip().endswith(reasoning.end):
        return start_rule()
    begin, end = (form.markers.index(marker) for marker in reasoning.markers)
    return start_rule(begin=None if form.begins_in_reasoning else begin, end=end)


def _goes_on_with(call: Call, reasoning: ReasoningFormat) -> bool:
    """Whether the answer goes on with a turn that has begun to reason, in the client's own words."""
    prompt = call.prompts[0]
    if not isinstance(prompt, tokenizer_pb2.EncodeRequest) or not prompt.chat.continue_final_message:
        return False
    said = prompt.chat.messages[-1].content
    return said.rfind(reasoning.begin) > said.rfind(reasoning.end)
