"""GET and DELETE /v1/cache, POST /v1/cache/explain: what the prompt cache has done, forgetting it, and why it answers or does not."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from aiohttp import web

from gateway.context import GATEWAY, GRANT, REQUEST_ID, Gateway
from gateway.errors import Forbidden
from gateway.flow.answer_cache import AnswerCache
from gateway.http.answering import json_response
from gateway.http.openai.chat_body import ChatBody
from gateway.http.paths import add_route
from gateway.http.routes.chat import STYLE
from gateway.http.routes.generating import call_of
from prompt_cache.semantic.lookup import Explained
from triserve.rpc.errors import InvalidRequest, Unavailable

# Packages of an extra, which a gateway without a semantic cache does without.
if TYPE_CHECKING:
    from prompt_cache.semantic.semantic_cache import SemanticCache


def add_to(app: web.Application) -> None:
    """Adds the routes."""
    add_route(app, "GET", "/v1/cache", stats)
    add_route(app, "DELETE", "/v1/cache", purge)
    add_route(app, "POST", "/v1/cache/explain", explain)


async def stats(request: web.Request) -> web.Response:
    """Counters of this gateway, and what the semantic cache works with. Tells of all tenants together: for operators' keys alone.

    Raises:
        Forbidden: the key is not granted it.
        InvalidRequest: there is no prompt cache.
    """
    if not request[GRANT].reads_metrics:
        raise Forbidden("this key may not read /v1/cache: its line in the file of keys does not have `metrics`")
    cache = _cache(request.app[GATEWAY])
    return json_response(
        {"object": "cache", "exact": asdict(cache.cache.stats), "semantic": _semantic(cache.semantic) if cache.semantic else None}
    )


async def purge(request: web.Request) -> web.Response:
    """Forgets all answers of the key's tenant, in every gateway that shares the Redis; in another one it takes two seconds at most.

    Raises:
        Unavailable: Redis cannot be told.
    """
    tenant = request[GRANT].tenant
    generation = await _cache(request.app[GATEWAY]).cache.purge(tenant)
    if generation is None:
        raise Unavailable("Redis could not be told: nothing is forgotten, ask again")
    return json_response({"object": "cache.purged", "tenant": tenant, "generation": generation})


async def explain(request: web.Request) -> web.Response:
    """What every step says of every entry near a chat's last question, for the body of a chat. Of the key's own tenant, and to the keys that may
    see how near a question is.

    Raises:
        Forbidden: the key is not granted it.
        ServiceError: as a chat.
    """
    gateway, grant = request.app[GATEWAY], request[GRANT]
    if not grant.sees_similarity:
        raise Forbidden("this key may not see how near a question is: its line in the file of keys does not have `similarity`")
    async with gateway.bodies.read(request, ChatBody, tenant=grant.tenant) as body:
        call = call_of(request, STYLE, body, (body.prompt(),))
        with gateway.admission.enter(grant.tenant):
            found = await gateway.pipeline.explain(call)
    return json_response({"object": "cache.explanation", "id": request[REQUEST_ID], "entries": [_explained(one) for one in found]})


def _cache(gateway: Gateway) -> AnswerCache:
    if gateway.pipeline.cache is None:
        raise InvalidRequest("there is no prompt cache here", field="cache")
    return gateway.pipeline.cache


def _semantic(semantic: SemanticCache) -> dict[str, Any]:
    return {
        "mode": semantic.mode,
        "embedder": semantic.embedder.id if semantic.is_open else None,
        "is_weak": semantic.embedder.is_weak,
        "store": semantic.store.name if semantic.store is not None else None,
        "server": semantic.server,
        "advice": list(semantic.advice),
        "outcomes": semantic.outcomes,
        "refusals": semantic.refusals,
        "comparisons": semantic.comparer.comparisons,
        "judged": _judged(semantic),
        "corrupt": semantic.corrupt,
        "embedding": dict(semantic.embedding_counts()),
        "scopes": [report._asdict() for report in semantic.reports()],
    }


def _judged(semantic: SemanticCache) -> dict[str, dict[str, int]]:
    """Judgements by what was judged and by what was said."""
    judged: dict[str, dict[str, int]] = {}
    for (subject, judgement), number in semantic.comparer.judged.items():
        judged.setdefault(subject, {})[judgement] = number
    return judged


def _explained(one: Explained) -> dict[str, Any]:
    return {
        "question": one.near.record.question,
        "cosine": round(one.near.cosine, 6),
        "served": one.verdict.serve,
        "refused_by": one.verdict.refused_by,
        "steps": [step._asdict() for step in one.steps],
    }
