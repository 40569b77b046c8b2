"""The gRPC door: the contract's chat in, deltas out, through the same pipeline as HTTP."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeAlias

import grpc

from gateway.auth import Grant
from gateway.context import Gateway
from gateway.flow.call import MAX_SALT_CHARS, AnswerReading, CachePolicy, Call, Wishes
from gateway.flow.generations.answer import FinishReason
from gateway.flow.generations.generation import CacheReport, Piece
from gateway.flow.generations.system2_attention import rewritten_turn
from gateway.flow.limits import Limits
from gateway.flow.resolve import check_messages
from gateway.tools.answer_parser import AnswerParser
from gateway.tools.argument_grammars import OfferedTool
from gateway.tools.findings import Said
from triserve.rpc import limits as contract
from triserve.rpc.errors import Cancelled, InvalidRequest, ServiceError
from triserve.rpc.traces.spans import OpenSpan
from triserve.v1 import chat_pb2, chat_pb2_grpc, common_pb2, sampler_pb2, tokenizer_pb2

SERVICE_NAME = chat_pb2.DESCRIPTOR.services_by_name["ChatService"].full_name

_MAX_SHOWN_CHARS = 128

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

_FINISH_REASONS: dict[FinishReason | None, common_pb2.FinishReason.ValueType] = {
    None: common_pb2.FINISH_REASON_UNSPECIFIED,
    "stop": common_pb2.FINISH_REASON_STOP,
    "length": common_pb2.FINISH_REASON_LENGTH,
}


class ChatServicer(chat_pb2_grpc.ChatServiceServicer):
    """Answers chats.

    Args:
        gateway: does the work.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def Chat(self, request: chat_pb2.ChatRequest, context: Context) -> AsyncIterator[chat_pb2.ChatResponse]:
        """Streams one answer.

        Raises:
            ServiceError: it is refused or fails.
        """
        request_id = "chat-" + secrets.token_hex(16)
        span = self._span(request_id, context)
        # Written to the context and not yielded: only so can a deadline or a client that does not read interrupt a write.
        try:
            await self._answer(request, context, request_id, span)
        except ServiceError as error:
            self._gateway.metrics.refused.labels(error.reason.lower()).inc()
            raise
        finally:
            if span is not None:
                span.end()
        nothing: tuple[chat_pb2.ChatResponse, ...] = ()
        for response in nothing:
            yield response

    def _span(self, request_id: str, context: Context) -> OpenSpan | None:
        """None if the request is not traced."""
        traces = self._gateway.traces
        if traces is None:
            return None
        said = [value for key, value in context.invocation_metadata() or () if key == "traceparent" and isinstance(value, str)]
        span = traces.begin(f"{SERVICE_NAME}/Chat", request_id=request_id, traceparents=said)
        if span is not None:
            span.attributes |= {"rpc.system": "grpc", "rpc.service": SERVICE_NAME, "rpc.method": "Chat"}
        return span

    async def _answer(self, request: chat_pb2.ChatRequest, context: Context, request_id: str, span: OpenSpan | None) -> None:
        num_bytes, limit = request.ByteSize(), self._gateway.limits.max_body_bytes
        if num_bytes > limit:
            raise InvalidRequest(f"the request has {num_bytes} bytes, the limit is {limit}")
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        grant = self._gateway.keys.grant_of(metadata.get("authorization"))
        bodies, admission = self._gateway.bodies, self._gateway.admission
        with bodies.budget.hold(grant.tenant) as held, admission.enter(grant.tenant) as ticket:
            held.add(num_bytes)
            _check_counts(request, self._gateway.limits)
            call = _call(request, grant, request_id, context.time_remaining(), span)
            async with self._gateway.pipeline.open(call, ticket) as generation:
                parser: AnswerParser | None = None
                while not generation.finished:
                    for piece in await generation.next():
                        # How a rewritten turn is answered is known with the first piece.
                        if parser is None and generation.form is not None:
                            parser = generation.form.parser(0)
                        last = piece.delta.finish_reason is not None
                        response = _response(call.request_id, piece, parser)
                        if last:
                            response.usage.CopyFrom(chat_pb2.Usage(**generation.usage()._asdict()))
                            response.cache.CopyFrom(_cache_report(generation.cache, call))
                            if (turn := rewritten_turn(generation)) is not None:
                                response.system2_prompt = turn
                        await self._write(context, response)

    async def _write(self, context: Context, response: chat_pb2.ChatResponse) -> None:
        timeout_s = self._gateway.limits.stall_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                await context.write(response)
        except TimeoutError:
            raise Cancelled(f"the client read nothing for {timeout_s:g} s") from None


def _check_counts(request: chat_pb2.ChatRequest, limits: Limits) -> None:
    """Refuses lists with too many items before any of them is looked at."""
    check_messages(request, "messages", limits)
    for field, items, limit in (
        ("tools", request.tools, contract.MAX_TOOLS),
        ("strict_tools", request.strict_tools, contract.MAX_TOOLS),
        ("logit_bias_ids", request.sampling.logit_bias_ids, limits.max_logit_bias),
        ("logit_bias_values", request.sampling.logit_bias_values, limits.max_logit_bias),
        ("stop_token_ids", request.stopping.stop_token_ids, limits.max_stop_token_ids),
        ("stop_strings", request.stopping.stop_strings, limits.max_stop_strings),
        ("dry_breaker_ids", request.sampling.dry_breaker_ids, contract.MAX_LISTED_TOKEN_IDS),
        ("allowed_token_ids", request.sampling.allowed_token_ids, contract.MAX_LISTED_TOKEN_IDS),
        ("banned_token_ids", request.sampling.banned_token_ids, contract.MAX_LISTED_TOKEN_IDS),
        ("logprob_token_ids", request.sampling.logprob_token_ids, contract.MAX_LOGPROB_TOKEN_IDS),
        ("bad_words", request.sampling.bad_words, contract.MAX_BAD_WORDS),
        ("bad_words", request.bad_words, contract.MAX_BAD_WORD_STRINGS),
        ("dry_sequence_breakers", request.dry_sequence_breakers.strings, contract.MAX_DRY_BREAKERS),
    ):
        if len(items) > limit:
            raise InvalidRequest(f"{field} has {len(items)} entries, the limit is {limit}", field=field)


def _call(request: chat_pb2.ChatRequest, grant: Grant, request_id: str, timeout_s: float | None, span: OpenSpan | None) -> Call:
    if not request.messages:
        raise InvalidRequest("messages is empty, at least one is needed", field="messages")
    tools = request.tools if request.tool_choice.mode != chat_pb2.TOOL_MODE_NONE else ()
    chat = tokenizer_pb2.ChatInput(messages=request.messages, template_arguments=request.template_arguments, tools=tools)
    return Call(
        request_id=request_id,
        tenant=grant.tenant,
        route="grpc",
        model=request.model,
        prompts=(tokenizer_pb2.EncodeRequest(chat=chat),),
        prompt_field="messages",
        system2_attention=request.system2_attention,
        wishes=_wishes(request),
        reading=_reading(request, tools),
        priority=request.priority,
        lowest_priority=grant.lowest_priority,
        cache=_cache_policy(request),
        sees_similarity=grant.sees_similarity,
        stream=True,
        timeout_s=timeout_s,
        span=span,
    )


def _reading(request: chat_pb2.ChatRequest, tools: Sequence[tokenizer_pb2.FunctionTool]) -> AnswerReading:
    """How the answer is read, and which calls it is held to."""
    choice, modes = request.tool_choice, chat_pb2.ToolMode
    if choice.mode not in modes.values():
        raise InvalidRequest(f"tool_choice.mode is {choice.mode}, which is none of {', '.join(modes.keys())}", field="tool_choice.mode")
    if choice.name and choice.mode == chat_pb2.TOOL_MODE_NONE:
        raise InvalidRequest("tool_choice.name is set, and mode is TOOL_MODE_NONE", field="tool_choice.name")
    names = {tool.name for tool in request.tools}
    if unknown := next((name for name in request.strict_tools if name not in names), None):
        raise InvalidRequest(f"strict_tools has {unknown[:_MAX_SHOWN_CHARS]!r}, which is not in tools", field="strict_tools")
    offered = [
        OfferedTool(tool.name, tool.parameters_json if tool.HasField("parameters_json") else None, tool.name in request.strict_tools)
        for tool in tools
    ]
    return AnswerReading.of_tools(
        offered,
        must_call=bool(choice.name) or choice.mode == chat_pb2.TOOL_MODE_REQUIRED,
        name=choice.name or None,
        parallel=not request.HasField("parallel_tool_calls") or request.parallel_tool_calls,
    )


def _cache_policy(request: chat_pb2.ChatRequest) -> CachePolicy:
    wanted, modes = request.cache, chat_pb2.CacheMode
    if wanted.mode not in modes.values():
        raise InvalidRequest(f"cache.mode is {wanted.mode}, which is none of {', '.join(modes.keys())}", field="cache.mode")
    threshold = wanted.threshold if wanted.HasField("threshold") else None
    max_age_s = wanted.max_age_s if wanted.HasField("max_age_s") else None
    if threshold is not None and not -1 <= threshold <= 1:
        raise InvalidRequest(f"cache.threshold is {threshold:g}, the range is [-1, 1]", field="cache.threshold")
    if max_age_s is not None and not max_age_s >= 0:
        raise InvalidRequest(f"cache.max_age_s is {max_age_s:g}, the least is 0", field="cache.max_age_s")
    if len(wanted.salt) > MAX_SALT_CHARS:
        raise InvalidRequest(f"cache.salt has {len(wanted.salt)} characters, the limit is {MAX_SALT_CHARS}", field="cache.salt")
    is_bypass = request.bypass_cache or wanted.mode == chat_pb2.CACHE_MODE_BYPASS
    return CachePolicy(
        read=not is_bypass and wanted.mode != chat_pb2.CACHE_MODE_REFRESH,
        write=not is_bypass,
        only=wanted.mode == chat_pb2.CACHE_MODE_ONLY,
        max_age_s=max_age_s,
        threshold=threshold,
        salt=wanted.salt,
    )


def _wishes(request: chat_pb2.ChatRequest) -> Wishes:
    sampling, stopping = request.sampling, request.stopping
    if len(sampling.logit_bias_ids) != len(sampling.logit_bias_values):
        raise InvalidRequest(
            f"logit_bias_values has {len(sampling.logit_bias_values)} entries, logit_bias_ids has {len(sampling.logit_bias_ids)}",
            field="logit_bias_values",
        )
    if sampling.grammar.frame or sampling.grammar.frame_markers:
        raise InvalidRequest("grammar.frame is the gateway's: it says what stands around the text", field="grammar.frame")
    # Wishes have the contract's names for everything that is optional there.
    given = {field.name: value for params in (sampling, stopping) for field, value in params.ListFields() if field.name in _OPTIONAL}
    return Wishes(
        **given,
        logit_bias=tuple(zip(sampling.logit_bias_ids, sampling.logit_bias_values, strict=True)),
        # A list of the contract cannot be set and empty: an empty one asks for nothing.
        allowed_token_ids=tuple(sampling.allowed_token_ids) or None,
        banned_token_ids=tuple(sampling.banned_token_ids),
        bad_words=tuple(request.bad_words),
        bad_word_ids=tuple(tuple(word.token_ids) for word in sampling.bad_words),
        dry_breaker_ids=tuple(sampling.dry_breaker_ids),
        dry_sequence_breakers=tuple(request.dry_sequence_breakers.strings) if request.HasField("dry_sequence_breakers") else None,
        ignore_eos=request.ignore_eos,
        stop_token_ids=tuple(stopping.stop_token_ids),
        logprob_token_ids=tuple(sampling.logprob_token_ids),
        stop_strings=tuple(stopping.stop_strings),
        spelling={"stop": "stop_strings"} if sampling.HasField("grammar") else {"stop": "stop_strings", "grammar": "tools"},
    )


_OPTIONAL = {
    field.name
    for message in (common_pb2.SamplingParams, common_pb2.StoppingParams)
    for field in message.DESCRIPTOR.fields
    if field.has_presence
}


def _cache_report(report: CacheReport, call: Call) -> chat_pb2.CacheReport:
    similarity = report.similarity if call.sees_similarity else None
    return chat_pb2.CacheReport(status=report.status, age_s=report.age_s, similarity=similarity)


def _response(request_id: str, piece: Piece, parser: AnswerParser | None) -> chat_pb2.ChatResponse:
    delta = piece.delta
    said = Said(delta.text) if parser is None else parser.feed(delta.text, is_last=delta.finish_reason is not None)
    return chat_pb2.ChatResponse(
        request_id=request_id,
        text=said.content,
        reasoning=said.reasoning,
        tool_calls=[
            chat_pb2.ToolCallDelta(index=call.number, id=call.id or "", name=call.name or "", arguments=call.arguments)
            for call in said.calls
        ],
        token_ids=delta.token_ids,
        finish_reason=_FINISH_REASONS[delta.finish_reason],
        logprobs=_logprobs(delta.logprobs),
        prompt_logprobs=[
            chat_pb2.ChatPromptLogprobs(
                token_id=one.token,
                logprob=one.logprob,
                rank=one.rank,
                top_token_ids=[top.token for top in one.top],
                top_logprobs=[top.logprob for top in one.top],
            )
            for one in delta.prompt_logprobs[1:]
        ],
    )


def _logprobs(logprobs: Sequence[sampler_pb2.TokenLogprobs]) -> list[chat_pb2.ChatTokenLogprobs]:
    return [
        chat_pb2.ChatTokenLogprobs(
            logprob=one.logprob,
            top_token_ids=[top.token for top in one.top],
            top_logprobs=[top.logprob for top in one.top],
            token_id=one.token,
            named_logprobs=[named.logprob for named in one.named],
        )
        for one in logprobs
    ]
