"""Puts the semantic cache together from the settings. Imported only where there is one: its packages are an extra."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from gateway.settings import Settings
from prompt_cache import PromptCache
from prompt_cache.embedding.batching import EmbeddingQueue
from prompt_cache.embedding.embedder import EmbedderRefused
from prompt_cache.embedding.endpoint_embedder import EndpointConfig, EndpointEmbedder
from prompt_cache.embedding.ngram_embedder import NgramEmbedder
from prompt_cache.embedding.onnx_embedder import OnnxEmbedder
from prompt_cache.semantic.endpoint_judge import EndpointJudge
from prompt_cache.semantic.lookup import OpenedStore
from prompt_cache.semantic.semantic_cache import SemanticCache
from prompt_cache.vectors.local import LocalStore
from prompt_cache.vectors.probe import choose

__all__ = ["EmbedderRefused", "make_semantic_cache"]

NGRAMS = "ngrams"
_SCHEMES = ("http://", "https://")


def make_semantic_cache(settings: Settings, cache: PromptCache) -> SemanticCache:
    """The semantic cache that the settings ask for; the caller starts and closes it.

    Raises:
        EmbedderRefused: the embedder cannot be had.
        ValueError: a setting does not fit the others.
    """
    embedder = _queued(settings)
    config = settings.semantic_config()

    async def open_store() -> OpenedStore:
        if cache.guarded is None or settings.semantic_store == "local":
            return OpenedStore(LocalStore(dimensions=embedder.dimensions, limits=config.limits), "this process", ())
        choice = await choose(
            cache.guarded.redis, settings.semantic_store, embedder_id=embedder.id, dimensions=embedder.dimensions, limits=config.limits
        )
        return OpenedStore(choice.store, choice.server, (*choice.passed_over, *choice.advice))

    guarded = None if settings.semantic_store == "local" else cache.guarded
    return SemanticCache(
        config,
        embedder=embedder,
        keys=cache.keys,
        all_secrets=cache.secrets,
        open_store=open_store,
        guarded=guarded,
        embedding_counts=lambda: asdict(embedder.stats),
        judge=_judge(settings),
    )


def _judge(settings: Settings) -> EndpointJudge | None:
    if settings.semantic_judge is None:
        return None
    key = settings.semantic_judge_key.get_secret_value() if settings.semantic_judge_key else None
    try:
        return EndpointJudge(settings.semantic_judge, model=settings.semantic_judge_model, key=key)
    except ValueError as error:
        raise ValueError(f"GATEWAY_SEMANTIC_JUDGE: {error}") from None


def _queued(settings: Settings) -> EmbeddingQueue:
    where = settings.embedder
    assert where is not None, "the settings have been checked"
    if where == NGRAMS:
        return EmbeddingQueue(NgramEmbedder())
    if where.startswith(_SCHEMES):
        key = settings.embedder_key.get_secret_value() if settings.embedder_key else None
        config = EndpointConfig(url=where, model=settings.embedder_model, key=key, window_chars=settings.embedder_window_chars)
        return EmbeddingQueue(EndpointEmbedder(config))
    # It computes each text alone: what waits for a batch waits for nothing.
    return EmbeddingQueue(OnnxEmbedder.open(Path(where)), max_batch=1)
