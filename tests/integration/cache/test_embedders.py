"""The real sentence model gives what transformers gives; an endpoint is used as far as it can be trusted."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from aiohttp import web

from prompt_cache.embedding.batching import EmbeddingQueue
from prompt_cache.embedding.embedder import EmbeddingFailed, TextRefused, Vector
from prompt_cache.embedding.endpoint_embedder import EndpointConfig, EndpointEmbedder
from prompt_cache.embedding.ngram_embedder import NgramEmbedder
from prompt_cache.embedding.onnx_embedder import OnnxEmbedder
from prompt_cache.embedding.probes import UNRELATED
from tests.fakes.minilm import minilm_folder, minilm_source
from tests.fakes.openai_endpoint import Answer, Endpoint, endpoint, honest, listing, numbers_of

SENTENCES = (
    "What is the capital of France?",
    "Is it safe to take ibuprofen with alcohol?",
    "Convert 5 miles to kilometres, please.",
    "How do I install PostgreSQL 15 on Ubuntu 22.04 without sudo?",
    "¿Cómo puedo cambiar mi contraseña si ya no tengo el teléfono?",
    "Wie lange ist die Fahrkarte nach dem Kauf gültig, und kann ich sie zurückgeben?",
    "def f(x): return x ** 2  # why is this slow for large x?",
    "Please compare the two proposals by cost, by risk and by the time they take, and say which one you would choose. " * 8,
)
SECRET = "sk-a-secret-key"


@pytest.fixture
async def minilm(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[OnnxEmbedder]:
    embedder = OnnxEmbedder.open(minilm_folder(tmp_path_factory))
    yield embedder
    await embedder.close()


async def test_minilm_gives_nearly_what_transformers_gives(minilm: OnnxEmbedder) -> None:
    source = minilm_source()
    tokenizer, model = transformers.AutoTokenizer.from_pretrained(source), transformers.AutoModel.from_pretrained(source).eval()
    for text, vector in zip(SENTENCES, await minilm.embed(SENTENCES), strict=True):
        with torch.no_grad():
            mean = model(**tokenizer(text, return_tensors="pt", truncation=False)).last_hidden_state[0].mean(0)
        assert vector is not None
        assert float(vector @ (mean / mean.norm()).numpy()) >= 0.99


async def test_minilm_has_the_window_of_its_authors(minilm: OnnxEmbedder) -> None:
    fits, too_long = await minilm.embed(["word " * 254, "word " * 255])
    assert fits is not None
    assert too_long is None


async def test_minilm_gives_no_vector_for_words_it_does_not_know(minilm: OnnxEmbedder) -> None:
    assert await minilm.embed(["hi 🙂", "a" * 101]) == [None, None]
    # To turn Bluetooth on, and off: all that differs is unknown to it, and the cosine would be 1.
    assert await minilm.embed(["怎么打开蓝牙?", "怎么关闭蓝牙?"]) == [None, None]


async def test_meaning_is_nearer_than_spelling(minilm: OnnxEmbedder) -> None:
    asked, same, other = await minilm.embed(
        ["How do I reset my password?", "I forgot my login secret, what now?", "How do I reset my router?"]
    )
    assert asked is not None
    assert same is not None
    assert other is not None
    assert float(asked @ same) > 0.5


async def test_embedders_that_differ_have_ids_that_differ(minilm: OnnxEmbedder) -> None:
    configs = [EndpointConfig(url="http://h/v1/embeddings", model=model, revision=revision, dimensions=8) for model, revision in
               (("a", ""), ("b", ""), ("a", "2"))]  # fmt: skip
    ids = [minilm.id, NgramEmbedder().id, *(EndpointEmbedder(config).id for config in configs)]
    assert len(set(ids)) == len(ids)


async def test_minilm_embeds_many_callers_at_once_as_it_does_one(minilm: OnnxEmbedder) -> None:
    alone = await minilm.embed(SENTENCES[:4])
    queue = EmbeddingQueue(minilm, max_batch=3)
    together = await asyncio.gather(*(queue.embed([text]) for text in SENTENCES[:4]))
    for one, (other,) in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


@asynccontextmanager
async def embedding(answer: Answer = honest, **config: Any) -> AsyncIterator[tuple[EndpointEmbedder, Endpoint]]:
    """An embedder and the endpoint it asks."""
    async with endpoint(answer) as asked:
        embedder = EndpointEmbedder(EndpointConfig(**{"url": asked.url, "model": "m", "timeout_s": 10.0, **config}))
        try:
            yield embedder, asked
        finally:
            await embedder.close()


def unit(text: str) -> Vector:
    numbers = np.array(numbers_of(text))
    vector: Vector = (numbers / np.linalg.norm(numbers)).astype(np.float32)
    return vector


async def test_an_endpoint_is_asked_as_openai_says() -> None:
    async with embedding(key=SECRET) as (embedder, asked):
        vectors = await embedder.embed(["one", "two"])
        for vector, text in zip(vectors, ("one", "two"), strict=True):
            assert vector is not None
            np.testing.assert_allclose(vector, unit(text), rtol=1e-6)
        assert asked.asked == [
            {"model": "m", "input": list(UNRELATED), "encoding_format": "float"},
            {"model": "m", "input": ["one", "two"], "encoding_format": "float"},
        ]
        assert {headers["Authorization"] for headers in asked.headers} == {f"Bearer {SECRET}"}
        assert embedder.dimensions == 16


async def test_vectors_go_to_their_texts_whatever_the_order_of_the_answer() -> None:
    async def backwards(request: web.Request, question: dict[str, Any]) -> web.StreamResponse:
        answer = listing([numbers_of(text) for text in question["input"]])
        return web.json_response({**answer, "data": answer["data"][::-1]})

    async with embedding(backwards) as (embedder, _):
        one, two = await embedder.embed(["one", "two"])
        assert one is not None
        assert two is not None
        np.testing.assert_allclose([one, two], [unit("one"), unit("two")], rtol=1e-6)


async def test_texts_beyond_the_window_are_not_sent() -> None:
    async with embedding(window_chars=5) as (embedder, asked):
        vectors = await embedder.embed(["short", "longer", "", " ", "\ud800", "short"])
        assert [vector is not None for vector in vectors] == [True, False, False, False, False, True]
        assert asked.asked[-1]["input"] == ["short", "short"]
        assert await embedder.embed(["longer"]) == [None]
        assert len(asked.asked) == 2


async def test_nothing_is_known_of_an_endpoint_before_its_first_answer() -> None:
    async with embedding() as (embedder, _):
        for name in ("dimensions", "id"):
            with pytest.raises(EmbeddingFailed, match="has not answered yet"):
                getattr(embedder, name)
        await embedder.start()
        assert embedder.dimensions == 16
        assert embedder.id.endswith("/16")


async def test_an_endpoint_that_is_slow_fails_in_time() -> None:
    never = asyncio.Event()

    async def slow(request: web.Request, question: dict[str, Any]) -> web.StreamResponse:
        await never.wait()
        return await honest(request, question)

    async with embedding(slow, timeout_s=0.05) as (embedder, _):
        with pytest.raises(EmbeddingFailed, match=r"took longer than 0\.05 s"):
            await embedder.embed(["one"])
        never.set()


async def test_an_endpoint_that_is_gone_fails() -> None:
    async with endpoint() as asked:
        url = asked.url
    embedder = EndpointEmbedder(EndpointConfig(url=url, model="m"))
    with pytest.raises(EmbeddingFailed, match="cannot be asked: ClientConnectorError"):
        await embedder.embed(["one"])
    await embedder.close()
    with pytest.raises(EmbeddingFailed, match="closed"):
        await embedder.embed(["one"])


async def test_an_endpoint_that_comes_back_is_used_again() -> None:
    async with embedding() as (embedder, asked):
        asked.answer = _status(503)
        with pytest.raises(EmbeddingFailed, match="status 503"):
            await embedder.embed(["one"])
        asked.answer = honest
        assert (await embedder.embed(["one"]))[0] is not None


def _status(status: int) -> Answer:
    async def answer(request: web.Request, question: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": {"message": "not these: " + " ".join(question["input"])}}, status=status)

    return answer


def _body(content: Any) -> Answer:
    async def answer(request: web.Request, question: dict[str, Any]) -> web.StreamResponse:
        made = content(question["input"]) if callable(content) else content
        return web.Response(body=made if isinstance(made, bytes) else json.dumps(made).encode(), content_type="application/json")

    return answer


def _rows(make: Any) -> Answer:
    return _body(lambda texts: listing([make(text) for text in texts]))


async def _redirect(request: web.Request, question: dict[str, Any]) -> web.StreamResponse:
    raise web.HTTPTemporaryRedirect("http://127.0.0.1:9/elsewhere")


async def _zipped(request: web.Request, question: dict[str, Any]) -> web.StreamResponse:
    body = gzip.compress(json.dumps(listing([numbers_of(text) for text in question["input"]])).encode())
    return web.Response(body=body, headers={"Content-Encoding": "gzip", "Content-Type": "application/json"})


async def _endless(request: web.Request, question: dict[str, Any]) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" " * 65536)


async def _cut_off(request: web.Request, question: dict[str, Any]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b"{")
    assert request.transport is not None
    request.transport.abort()
    return response


LIES: dict[str, tuple[Answer, str]] = {
    "refusal": (_status(401), "status 401"),
    "redirect": (_redirect, "status 307"),
    "no json": (_body(b"<html>"), "malformed"),
    "deep json": (_body(b"[" * 100_000), "malformed"),
    "a list": (_body([]), "malformed"),
    "null": (_body(None), "malformed"),
    "no data": (_body({"data": []}), "malformed"),
    "one too few": (_body(lambda texts: listing([numbers_of(text) for text in texts[1:]])), "malformed"),
    "one too many": (_body(lambda texts: listing([numbers_of(text) for text in (*texts, "x")])), "malformed"),
    "one twice": (_body(lambda texts: {"data": [{"index": 0, "embedding": numbers_of(text)} for text in texts]}), "malformed"),
    "index true": (_body(lambda texts: {"data": [{"index": index == 1, "embedding": [1.0]} for index in range(2)]}), "malformed"),
    "index list": (_body(lambda texts: {"data": [{"index": [], "embedding": [1.0]} for _ in texts]}), "malformed"),
    "text": (_rows(lambda text: "AAAA"), "malformed"),
    "texts": (_rows(lambda text: ["1"] * 16), "malformed"),
    "nested": (_rows(lambda text: [[1.0]]), "malformed"),
    "no numbers": (_rows(lambda text: []), "malformed"),
    "booleans": (_rows(lambda text: [True] * 16), "malformed"),
    "huge numbers": (_rows(lambda text: [10**400] * 16), "a number that is none"),
    "nan": (_rows(lambda text: [float("nan")] * 16), "a vector of the length nan"),
    "infinity": (_rows(lambda text: [float("inf")] * 16), "a vector of the length inf"),
    "zeros": (_rows(lambda text: [0.0] * 16), "a vector of the length 0"),
    "too many dimensions": (_rows(lambda text: [1.0] * 8193), "malformed"),
    "dimensions that differ": (_rows(lambda text: numbers_of(text, 8 + len(text))), "dimensions, expected"),
    "one vector for all": (_rows(lambda text: [1.0] * 16), "does not tell texts apart"),
    "almost one vector for all": (_rows(lambda text: [100.0 + value for value in numbers_of(text)]), "does not tell texts apart"),
    "compressed": (_zipped, "malformed"),
    "endless": (_endless, "longer than 200000 bytes"),
    "cut off": (_cut_off, "cannot be asked"),
}


@pytest.mark.parametrize("lie", LIES)
async def test_an_endpoint_that_lies_from_the_start_fails(lie: str, caplog: pytest.LogCaptureFixture) -> None:
    answer, message = LIES[lie]
    caplog.set_level(logging.DEBUG)
    async with embedding(answer, key=SECRET, max_response_bytes=200_000) as (embedder, _):
        with pytest.raises(EmbeddingFailed, match=message) as raised:
            await embedder.embed(["a question"])
    assert SECRET not in str(raised.value) + caplog.text
    assert "a question" not in str(raised.value) + caplog.text
    assert "not these" not in str(raised.value)


async def test_an_endpoint_with_other_dimensions_than_configured_fails() -> None:
    async with embedding(dimensions=8) as (embedder, _):
        assert embedder.dimensions == 8
        with pytest.raises(EmbeddingFailed, match="a vector of 16 dimensions, expected 8"):
            await embedder.embed(["one"])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (_rows(lambda text: numbers_of(text, 8)), "a vector of 8 dimensions, expected 16"),
        (_rows(lambda text: [1.0] * 16), "two different texts have the same vector"),
        (_rows(lambda text: numbers_of(UNRELATED[0])), "two different texts have the same vector"),
        (_status(429), "status 429"),
    ],
    ids=["dimensions", "constant", "a probe's vector", "too many requests"],
)
async def test_an_endpoint_that_lies_later_fails(answer: Answer, message: str) -> None:
    async with embedding() as (embedder, asked):
        await embedder.embed(["one"])
        asked.answer = answer
        with pytest.raises(EmbeddingFailed, match=message):
            await embedder.embed(["two", "three"])
        asked.answer = honest
        assert (await embedder.embed(["two"]))[0] is not None


async def test_an_endpoint_that_becomes_constant_is_noticed_text_by_text() -> None:
    async with embedding() as (embedder, asked):
        await embedder.start()
        asked.answer = _rows(lambda text: [1.0] * 16)
        await embedder.embed(["one"])
        with pytest.raises(EmbeddingFailed, match="two different texts have the same vector"):
            await embedder.embed(["two"])


async def test_spellings_that_a_model_may_not_tell_apart_may_have_one_vector() -> None:
    async with embedding(_rows(lambda text: numbers_of(text.casefold().strip(" ?")))) as (embedder, _):
        one, two = await embedder.embed(["What is it?", " what is it"])
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_text_that_the_endpoint_refuses_spoils_no_other(status: int) -> None:
    async def picky(request: web.Request, question: dict[str, Any]) -> web.StreamResponse:
        return await (_status(status) if "bad" in question["input"] else honest)(request, question)

    async with embedding(picky) as (embedder, _):
        queue = EmbeddingQueue(embedder)
        found = await asyncio.gather(*(queue.embed([text]) for text in ("one", "bad", "two")), return_exceptions=True)
        assert [type(item) for item in found] == [list, TextRefused, list]


async def test_an_endpoint_that_refuses_every_request_is_no_texts_fault() -> None:
    async with embedding(_status(400)) as (embedder, _):
        with pytest.raises(EmbeddingFailed, match="status 400") as raised:
            await embedder.embed(["one"])
        assert not isinstance(raised.value, TextRefused)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("url", "ftp://h/v1"),
        ("url", "http:///v1"),
        ("url", "/etc/passwd"),
        ("url", "http://user:word@h/v1"),
        ("model", ""),
        ("model", "m" * 201),
        ("key", ""),
        ("key", "a\r\nX-Other: 1"),
        ("key", "schlüssel"),
        ("dimensions", 0),
        ("dimensions", 8193),
        ("window_chars", 0),
        ("timeout_s", 0.0),
        ("timeout_s", float("nan")),
        ("max_response_bytes", 1),
    ],
)
def test_a_setting_out_of_range_is_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{field} ") as raised:
        EndpointConfig(**{"url": "http://h/v1/embeddings", "model": "m", field: value})  # type: ignore[arg-type]
    assert field not in ("key", "url") or not value or str(value) not in str(raised.value)


def test_a_key_is_not_shown() -> None:
    assert SECRET not in repr(EndpointConfig(url="http://h/v1/embeddings", model="m", key=SECRET))


def test_the_folder_of_minilm_is_a_quarter_of_its_source(tmp_path_factory: pytest.TempPathFactory) -> None:
    def size(folder: Path) -> int:
        return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())

    assert size(minilm_folder(tmp_path_factory)) < 0.27 * size(minilm_source())
