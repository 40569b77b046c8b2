"""What all doors share that have a model answer, and chat and completions besides: from a body to a response."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

from aiohttp import web

from gateway.context import CLIENT_LABEL, GATEWAY, GRANT, REQUEST_ID, SPAN, Gateway
from gateway.flow.call import AnswerReading, Call, Prompt, Wishes
from gateway.flow.search.kinds import Search
from gateway.http.answering import AnswerRenderer, OpenAiRenderer, respond_stream, respond_whole
from gateway.http.cache_control import cache_policy
from gateway.http.openai.answer import Look, WholeChoice
from gateway.http.openai.chat_body import ChatBody
from gateway.http.openai.completion_body import CompletionBody
from gateway.http.openai.generating import CacheField
from gateway.http.openai.values import Body
from gateway.http.sse import ChatEvents, CompletionEvents
from triserve.rpc.errors import InvalidRequest

B = TypeVar("B", ChatBody, CompletionBody)
AnyBody = TypeVar("AnyBody", bound=Body)


class ChoiceBody(Protocol):
    """Makes the body of one choice."""

    def __call__(self, index: int, choice: WholeChoice, *, look: Look) -> dict[str, Any]:
        """The body."""


class Style(NamedTuple):
    """In what chat and completions differ."""

    route: str
    id_prefix: str
    # OpenAI's "object" of a whole answer.
    kind: str
    choice: ChoiceBody
    events: type[ChatEvents] | type[CompletionEvents]
    prompt_field: str
    # Tokens to generate when the client does not say; None = as many as fit.
    default_max_tokens: int | None


class Door(NamedTuple):
    """What a call says of the door it came through."""

    route: str
    id_prefix: str
    prompt_field: str
    # Tokens to generate when the client does not say; None = as many as fit.
    default_max_tokens: int | None = None


class Asking(Protocol):
    """What every body says that has a model answer."""

    @property
    def model(self) -> str:
        """Its name; empty = the one that is served."""

    @property
    def n(self) -> int | None:
        """Answers to each prompt; None = 1."""

    @property
    def search(self) -> Search | None:
        """See `Call`.

        Raises:
            InvalidRequest: fields contradict each other.
        """

    @property
    def is_rewritten(self) -> bool:
        """See `Call.system2_attention`."""

    @property
    def template_must_read(self) -> tuple[str, ...]:
        """See `Call`."""

    @property
    def reading(self) -> AnswerReading | None:
        """See `Call`."""

    @property
    def truncate_prompt_tokens(self) -> int | None:
        """See `Call`."""

    @property
    def priority(self) -> int | None:
        """See `Call`; None = 0."""

    @property
    def cache(self) -> CacheField | None:
        """What is wanted of the prompt cache."""

    @property
    def stream(self) -> bool | None:
        """Whether deltas are wanted as they come."""

    @property
    def user(self) -> str | None:
        """The client's name for its user."""

    def wishes(self) -> Wishes:
        """Sampling and stopping fields."""


async def respond(request: web.Request, style: Style, kind: type[B], prompts: Any) -> web.StreamResponse:
    """Answers a chat or a completion.

    Args:
        request: of the client.
        style: chat or completion.
        kind: type of the body.
        prompts: gives the prompts of a body.

    Raises:
        ServiceError: it is refused or fails before anything was sent.
    """

    def plan(body: B) -> Plan:
        if body.stream_options is not None and not body.stream:
            raise InvalidRequest("stream_options is set, stream must be true with it", field="stream_options")
        call = call_of(request, style, body, prompts(body))
        return Plan(call, _renderer(style, body, call, request.app[GATEWAY]))

    return await answer(request, kind, plan)


class Plan(NamedTuple):
    """What is asked, and how the answer is to look."""

    call: Call
    renderer: AnswerRenderer


async def answer(request: web.Request, kind: type[AnyBody], plan: Callable[[AnyBody], Plan]) -> web.StreamResponse:
    """Answers a request, whatever the door: the one way from a body to a response.

    Args:
        request: of the client.
        kind: type of the body.
        plan: says of a body what is asked; raises InvalidRequest where it contradicts itself.

    Raises:
        ServiceError: it is refused or fails before anything was sent.
    """
    gateway = request.app[GATEWAY]
    tenant = request[GRANT].tenant
    gateway.admission.require_open()
    # A place is taken when the body is there: a slow one keeps nobody out.
    async with gateway.bodies.read(request, kind, tenant=tenant) as body:
        call, renderer = plan(body)
        with gateway.admission.enter(tenant) as ticket:
            if not call.stream:
                return await respond_whole(gateway.pipeline, call, ticket, renderer)
            return await respond_stream(request, gateway.pipeline, call, ticket, renderer, stall_timeout_s=gateway.limits.stall_timeout_s)


def call_of(request: web.Request, door: Door | Style, body: Asking, prompts: tuple[Prompt, ...]) -> Call:
    """What a body asks.

    Raises:
        InvalidRequest: fields contradict each other.
    """
    grant = request[GRANT]
    return Call(
        request_id=door.id_prefix + request[REQUEST_ID],
        tenant=grant.tenant,
        route=door.route,
        model=body.model,
        prompts=prompts,
        prompt_field=door.prompt_field,
        n=1 if body.n is None else body.n,
        search=body.search,
        system2_attention=body.is_rewritten,
        template_must_read=body.template_must_read,
        wishes=body.wishes(),
        reading=body.reading,
        default_max_tokens=door.default_max_tokens,
        truncate_prompt_tokens=body.truncate_prompt_tokens,
        priority=body.priority or 0,
        lowest_priority=grant.lowest_priority,
        cache=cache_policy(request.headers.get("Cache-Control", ""), body.cache),
        sees_similarity=grant.sees_similarity,
        stream=bool(body.stream),
        label=_label(request[CLIENT_LABEL], body.user),
        span=request.get(SPAN),
    )


def _renderer(style: Style, body: ChatBody | CompletionBody, call: Call, gateway: Gateway) -> OpenAiRenderer:
    options = body.stream_options
    with_timeline = bool(body.return_timeline)
    look = _look(body, call)
    created = int(time.time())
    include_usage = bool(options and options.include_usage)
    return OpenAiRenderer(
        kind=style.kind,
        model=gateway.names.name,
        choice=partial(style.choice, look=look),
        events=lambda system_fingerprint: style.events(
            request_id=call.request_id,
            created=created,
            model=gateway.names.name,
            system_fingerprint=system_fingerprint,
            include_usage=include_usage,
            continuous_usage=include_usage and bool(options and options.continuous_usage_stats),
            look=look,
            timeline=with_timeline,
        ),
        timeline=with_timeline,
        prompt_of_all=isinstance(body, ChatBody),
        prompt_token_ids=look.token_ids,
        prompt_logprobs=look.prompt_logprobs,
    )


def _look(body: ChatBody | CompletionBody, call: Call) -> Look:
    return Look(
        logprobs=call.wishes.top_logprobs is not None,
        token_ids=bool(body.return_token_ids),
        names_ids=bool(body.return_tokens_as_token_ids),
        prompt_logprobs=body.prompt_logprobs,
        echo=body.echoed if isinstance(body, CompletionBody) and body.echo else None,
        echo_top=call.wishes.top_logprobs,
        n=call.n,
    )


def _label(client_id: str, user: str | None) -> str:
    return (f" [{client_id}]" if client_id else "") + (f" user {user!r}" if user else "")
