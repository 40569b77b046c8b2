"""What every HTTP request goes through: ids, errors in OpenAI's form, the key."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from gateway.context import CLIENT_LABEL, GATEWAY, GRANT, REQUEST_ID, SPAN
from gateway.errors import BodyTooLarge, CrossSiteRequest, MethodNotAllowed, RouteNotFound, UnknownHost
from gateway.http.answering import json_response
from gateway.http.error_map import as_service_error, error_body, error_headers
from triserve.rpc.errors import InvalidRequest, ServiceError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# A client's own id for a request is shown in answers and logs and never looked anything up by.
_SAFE_LABEL = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# Server: no version of anything, which would tell what to try.
SECURITY_HEADERS = {"Server": "triserve", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


def public(handler: Handler) -> Handler:
    """Marks a handler that needs no key; all others, and paths that are none, do."""
    handler.__dict__["is_public"] = True
    return handler


def traced(handler: Handler) -> Handler:
    """Marks a handler whose requests may be traced: those that have a model answer."""
    handler.__dict__["is_traced"] = True
    return handler


# Status and body for an error and the id of its request.
ErrorForm = Callable[[ServiceError, str], tuple[int, dict[str, Any]]]


def with_errors(form: ErrorForm) -> Callable[[Handler], Handler]:
    """Marks a handler whose clients know errors in another form than OpenAI's."""

    def mark(handler: Handler) -> Handler:
        handler.__dict__["error_form"] = form
        return handler

    return mark


@web.middleware
async def identify(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Gives the request its id."""
    request[REQUEST_ID] = secrets.token_hex(16)
    label = request.headers.get("X-Request-Id", "")
    request[CLIENT_LABEL] = label if _SAFE_LABEL.fullmatch(label) else ""
    return await handler(request)


@web.middleware
async def trace(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Puts all that is done for a request, until the last byte of its answer is written, under one span, if it is one to be traced."""
    traces, route = request.app[GATEWAY].traces, request.match_info.route.resource
    if traces is None or route is None or not getattr(request.match_info.handler, "is_traced", False):
        return await handler(request)
    # Several such headers are several callers, of whom none is meant.
    name, said = f"{request.method} {route.canonical}", request.headers.getall("traceparent", ())
    span = traces.begin(name, request_id=request[REQUEST_ID], traceparents=said)
    if span is None:
        return await handler(request)
    request[SPAN] = span
    span.attributes |= {"http.request.method": request.method, "http.route": route.canonical}
    try:
        response = await handler(request)
        span.attributes["http.response.status_code"] = response.status
        if span.error is None and response.status >= 500:
            span.error = str(response.status)
        return response
    finally:
        span.end()


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Puts the ids on every response, streams too."""
    if REQUEST_ID in request:
        response.headers.setdefault("X-Request-Id", request[REQUEST_ID])
        if request[CLIENT_LABEL]:
            response.headers["X-Client-Request-Id"] = request[CLIENT_LABEL]
    # Set and not only set by default: aiohttp has put a Server of its own there.
    response.headers.update(SECURITY_HEADERS)
    if GATEWAY in request.app:
        request.app[GATEWAY].cors.add_headers(request.headers, response)


@web.middleware
async def deliver(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Sends a whole response here, where a client that does not read it can be cut; aiohttp itself would wait for ever."""
    response = await handler(request)
    transport = request.transport
    if isinstance(response, web.Response) and not response.prepared and transport is not None:
        try:
            async with asyncio.timeout(request.app[GATEWAY].limits.stall_timeout_s):
                await response.prepare(request)
                await response.write_eof()
        except TimeoutError:
            transport.abort()
    return response


@web.middleware
async def translate_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns what a handler raises into a body of OpenAI's form, or of the handler's own."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        return _error_response(request, _from_http(error, request), {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {})
    except Exception as error:  # noqa: BLE001 - the one place where every failure becomes a body
        return _error_response(request, as_service_error(error, request_id=request[REQUEST_ID]), {})


def _error_response(request: web.Request, failure: ServiceError, headers: dict[str, str]) -> web.Response:
    # Not in the frame that the failure went through: the two would hold each other.
    gateway = request.app.get(GATEWAY)
    if gateway is not None:
        gateway.metrics.refused.labels(failure.reason.lower()).inc()
    form: ErrorForm | None = getattr(request.match_info.handler, "error_form", None)
    status, body = (failure.http_status, error_body(failure)) if form is None else form(failure, request[REQUEST_ID])
    return json_response(body, status=status, headers={**headers, **error_headers(failure)})


def _from_http(error: web.HTTPException, request: web.Request) -> ServiceError:
    route = f"{request.method} {request.path[:200]}"
    if isinstance(error, web.HTTPNotFound):
        return RouteNotFound(f"{route} is no route of this server")
    if isinstance(error, web.HTTPMethodNotAllowed):
        return MethodNotAllowed(f"{route} is not allowed, {', '.join(sorted(error.allowed_methods))} is")
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return BodyTooLarge("the body is too large")
    return InvalidRequest(error.reason)


@web.middleware
async def check_host(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answers only for names of this server, where no key tells who asks.

    A page of another web site can have its own name resolve to this machine; its visitors' browsers then take what is served here for
    that site's own and let the page read it. They name the site in the Host header.
    """
    host = request.headers.get("Host", "")
    if not request.app[GATEWAY].hosts.allows(host):
        raise UnknownHost(f"this server is not {host[:128]!r}: the names it answers to beside its own are set in GATEWAY_ALLOWED_HOSTS")
    return await handler(request)


@web.middleware
async def answer_options(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answers OPTIONS on every path of ours, without a key: browsers ask so before they let another site's page call."""
    error = request.match_info.http_exception
    if request.method != "OPTIONS" or not isinstance(error, web.HTTPMethodNotAllowed):
        return await handler(request)
    methods = {*error.allowed_methods, "OPTIONS"}
    headers = request.app[GATEWAY].cors.preflight_headers(request.headers, methods)
    return web.Response(status=204, headers={"Allow": ", ".join(sorted(methods)), **headers})


@web.middleware
async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Lets in who has a key. What needs none is marked on its handler: neither path nor Host header decides.

    A page of another web site can make a visitor's browser post here, where it reaches a server on the visitor's own machine; browsers
    say so in a header that pages cannot set. The operator may name sites whose pages are let in.
    """
    gateway = request.app[GATEWAY]
    cross_site = request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin")
    if request.method == "POST" and cross_site and not gateway.cors.allows(request.headers.get("Origin")):
        raise CrossSiteRequest("requests of other web sites' pages are not answered, unless GATEWAY_CORS_ORIGINS names the site")
    if not getattr(request.match_info.handler, "is_public", False):
        request[GRANT] = gateway.keys.grant_of(_authorization(request))
    return await handler(request)


def _authorization(request: web.Request) -> str | None:
    """The key as `Authorization` has it; some clients can only send a header that holds nothing else."""
    key = request.headers.get("X-Api-Key")
    return request.headers.get("Authorization", None if key is None else f"Bearer {key}")
