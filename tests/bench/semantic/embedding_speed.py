"""What a question's vector costs: MiniLM on one thread, alone and beside a process that computes as an engine on SmolLM2 does.

Texts of 9, 62 and 256 tokens, each new, tokenizing included, straight from the embedder and through the queue that the gateway asks. Beside them
the same source rounded by onnxruntime's own quantize_dynamic, on which nothing here depends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import QuantType, quantize_dynamic

from gateway.cli.cache_embedder import INSTALL, NAME, find_source
from prompt_cache.embedding.batching import EmbeddingQueue
from prompt_cache.embedding.bert_graph import float_graph
from prompt_cache.embedding.bert_source import read_source, read_weights
from prompt_cache.embedding.build import build_embedder
from prompt_cache.embedding.folder import read_folder
from prompt_cache.embedding.onnx_embedder import OnnxEmbedder, SentenceTokenizer, open_session, run_session

LENGTHS_TOKENS = (9, 62, 256)
RESULTS = Path(__file__).parents[1] / "results" / "embedding_speed.json"
_WORDS = (
    "river",
    "bridge",
    "ticket",
    "window",
    "paper",
    "garden",
    "market",
    "doctor",
    "summer",
    "winter",
    "music",
    "letter",
    "engine",
    "planet",
)
_ENDS = 2
_Input = TypeVar("_Input")


def texts(num_tokens: int, count: int) -> list[str]:
    """Different texts of so many tokens: common words, one token each."""
    random = np.random.default_rng(num_tokens)
    return [" ".join(random.choice(_WORDS, num_tokens - _ENDS)) for _ in range(count)]


def milliseconds(times: Sequence[float]) -> dict[str, float]:
    """Median and 99th percentile of seconds."""
    return {"p50_ms": round(1e3 * statistics.median(times), 3), "p99_ms": round(1e3 * float(np.quantile(times, 0.99)), 3)}


def timed(work: Callable[[_Input], object], inputs: Sequence[_Input]) -> dict[str, float]:
    """Of each input by itself; a tenth goes before, untimed."""
    for item in inputs[: len(inputs) // 10]:
        work(item)
    times = []
    for item in inputs:
        start = time.perf_counter()
        work(item)
        times.append(time.perf_counter() - start)
    return milliseconds(times)


async def through_the_queue(folder: Path, inputs: Sequence[str]) -> dict[str, float]:
    """As the gateway asks: from an event loop, by a thread."""
    queue = EmbeddingQueue(OnnxEmbedder.open(folder), max_cached=0)
    times = []
    for text in inputs:
        start = time.perf_counter()
        await queue.embed([text])
        times.append(time.perf_counter() - start)
    await queue.close()
    return milliseconds(times)


def quantized_by_onnxruntime(source_folder: Path) -> onnxruntime.InferenceSession:
    """The float graph after quantize_dynamic, as its documentation has it."""
    source = read_source(source_folder)
    graph = float_graph(read_weights(source), source.shape, source.pooling, window_tokens=source.window_tokens)
    nodes = [node for node in graph.graph.node if node.op_type != "ReduceMax"]
    del graph.graph.node[:], graph.graph.output[1:]
    graph.graph.node.extend(nodes)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        onnx.save(graph, folder / "float.onnx")
        quantize_dynamic(folder / "float.onnx", folder / "int8.onnx", per_channel=True, weight_type=QuantType.QInt8)
        return open_session((folder / "int8.onnx").read_bytes(), folder, threads=1)


def measure(folder: Path, rival: onnxruntime.InferenceSession, count: int) -> dict[str, Any]:
    """All lengths, each its own, the queue's and the rival's."""
    embedder, read = OnnxEmbedder.open(folder), read_folder(folder)
    tokenizer = SentenceTokenizer(read.tokenizer, folder, window_tokens=read.card.window_tokens)
    found: dict[str, Any] = {}
    for length in LENGTHS_TOKENS:
        inputs = texts(length, count)
        token_ids = [tokenizer.token_ids(text) or [] for text in inputs]
        assert {len(ids) for ids in token_ids} == {length}, "each word is one token"
        found[f"{length}_tokens"] = {
            "embedder": timed(lambda text: embedder.embed_now([text]), inputs),
            "through_the_queue": asyncio.run(through_the_queue(folder, inputs)),
            "quantize_dynamic_without_tokenizing": timed(lambda ids: run_session(rival, ids), token_ids),
        }
    return found


def _multiply(started: Event, stop: Event, threads: int) -> None:
    import torch  # noqa: PLC0415 - in this process alone

    torch.set_num_threads(threads)
    # A decode step of a model of SmolLM2's width: a few rows times matrices that no cache holds.
    x, layers = torch.randn(4, 576), [(torch.randn(576, 1536), torch.randn(1536, 576)) for _ in range(30)]
    with torch.inference_mode():
        while not stop.is_set():
            for widen, narrow in layers:
                torch.relu(x @ widen) @ narrow
            started.set()


@contextmanager
def engine_at_work(threads: int) -> Iterator[None]:
    """Another process computes as an engine's decode steps do, on so many threads, without a pause."""
    context = get_context("spawn")
    started, stop = context.Event(), context.Event()
    process = context.Process(target=_multiply, args=(started, stop, threads))
    process.start()
    try:
        if not started.wait(timeout=60):
            raise TimeoutError("the engine at work has not begun")
        yield
    finally:
        stop.set()
        process.join()


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="texts of each length (default: %(default)s)")
    parser.add_argument("--engine-threads", type=int, default=os.cpu_count() or 1, help="of the work beside it (default: all cores)")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    source = find_source()
    if source is None:
        raise SystemExit(f"{NAME} is not installed: {INSTALL}")
    with tempfile.TemporaryDirectory() as name:
        start = time.perf_counter()
        card = build_embedder(source, Path(name) / NAME, name=NAME)
        build_s = time.perf_counter() - start
        start = time.perf_counter()
        OnnxEmbedder.open(Path(name) / NAME)
        open_s = time.perf_counter() - start
        rival = quantized_by_onnxruntime(source)
        load_before = os.getloadavg()
        alone = measure(Path(name) / NAME, rival, arguments.count)
        with engine_at_work(arguments.engine_threads):
            beside = measure(Path(name) / NAME, rival, arguments.count)
    results = {
        "embedder": card.id,
        "onnxruntime": onnxruntime.__version__,
        "cores": os.cpu_count(),
        "load_average_before": load_before,
        "threads": 1,
        "texts_of_each_length": arguments.count,
        "build_s": round(build_s, 2),
        "open_s": round(open_s, 3),
        "cosine_to_float32_at_least": card.cosine_to_float32,
        "alone": alone,
        f"beside_an_engine_of_{arguments.engine_threads}_threads": beside,
    }
    text = json.dumps(results, indent=1)
    print(text)
    arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
