"""Makes an embedder's folder of a sentence-transformers folder, and measures that it gives what its source gives."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from prompt_cache.embedding.bert_graph import float_graph, int8_graph, peaks_name
from prompt_cache.embedding.bert_source import Array, BertShape, read_source, read_weights
from prompt_cache.embedding.embedder import EmbedderRefused, EmbeddingFailed, Vector
from prompt_cache.embedding.files import read_file
from prompt_cache.embedding.folder import (
    CARD_FILE,
    MAX_DIMENSIONS,
    MAX_MODEL_BYTES,
    MAX_TOKENIZER_BYTES,
    MODEL_FILE,
    TOKENIZER_FILE,
    EmbedderCard,
    KnownAnswer,
    is_name,
)
from prompt_cache.embedding.onnx_embedder import ATTENTION_MASK, INPUT_IDS, OnnxEmbedder, SentenceTokenizer, open_session, run_session
from prompt_cache.embedding.probes import MANY_LANGUAGES, UNRELATED
from prompt_cache.embedding.vector_checks import check_unit_vector, check_unrelated

# The least cosine to the float32 vectors of the source at which a folder is written.
MIN_COSINE = 0.99

Progress = Callable[[int, int, str], None]
"""Called with steps done, steps in all, and what is done next."""


def build_embedder(source_folder: Path, folder: Path, *, name: str, progress: Progress | None = None) -> EmbedderCard:
    """Converts a model; the folder appears whole or not at all.

    Args:
        source_folder: Of sentence-transformers, with a BERT in it: config.json, model.safetensors, modules.json, tokenizer.json and the pooling's.
        folder: Where to; it must not exist.
        name: Of the model; becomes part of the embedder's id.
        progress: Told before each step, and at the end.

    Returns:
        What is known of the embedder.

    Raises:
        EmbedderRefused: the source is no such folder, the int8 model is too far from it, or the folder exists; the message says what is wrong.
        OSError: the folder cannot be written.
    """
    if not is_name(name):
        raise EmbedderRefused(f"{name!r} is no name of an embedder: letters, digits, '.', '-' and '_', 100 at most")
    if folder.exists():
        raise EmbedderRefused(f"{folder} exists already")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        card = _Build(source_folder, unfinished, name, progress or _tell_nobody).run()
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return card


class _Build:
    """One conversion, into an empty folder."""

    _STEPS = 5

    def __init__(self, source_folder: Path, folder: Path, name: str, progress: Progress) -> None:
        self._source_folder = source_folder
        self._folder = folder
        self._name = name
        self._progress = progress
        self._done = 0

    def run(self) -> EmbedderCard:
        self._step("reading the weights")
        source = read_source(self._source_folder)
        if source.shape.hidden > MAX_DIMENSIONS:
            raise EmbedderRefused(f"{self._source_folder}: vectors have {source.shape.hidden} elements, the most is {MAX_DIMENSIONS}")
        tokenizer_data = read_file(self._source_folder / TOKENIZER_FILE, MAX_TOKENIZER_BYTES)
        tokenizer = SentenceTokenizer(tokenizer_data, self._source_folder / TOKENIZER_FILE, window_tokens=source.window_tokens)
        if tokenizer.max_token_id >= source.shape.vocabulary:
            raise EmbedderRefused(
                f"{self._source_folder}: {TOKENIZER_FILE} gives ids up to {tokenizer.max_token_id}, "
                f"config.json says vocab_size {source.shape.vocabulary}"
            )
        weights = read_weights(source)
        window, dimensions = source.window_tokens, source.shape.hidden
        self._step("computing the float32 vectors")
        sentences = [tokenizer.cut_to_window(text) for text in (*UNRELATED, *MANY_LANGUAGES)]
        exact = self._session(float_graph(weights, source.shape, source.pooling, window_tokens=window))
        expected = self._vectors(exact, sentences, dimensions)
        peaks = _peaks(exact, sentences, source.shape)
        self._step("rounding the weights")
        # The second is for processors on which sums of the first saturate.
        for number_format in ("int8", "uint8"):
            graph = int8_graph(weights, source.shape, source.pooling, window_tokens=window, peaks=peaks, unsigned=number_format == "uint8")
            model = self._bytes(graph)
            found = self._vectors(open_session(model, self._source_folder, threads=1), sentences, dimensions)
            cosine = min(float(one @ other) for one, other in zip(expected, found, strict=True))
            if cosine >= MIN_COSINE:
                break
        else:
            raise EmbedderRefused(
                f"{self._source_folder}: 8-bit vectors have a cosine of {cosine:.4f} to float32, the least is {MIN_COSINE}"
            )
        self._step("writing the folder")
        card = EmbedderCard(
            source_name=self._name,
            source_sha256=source.sha256(),
            dimensions=dimensions,
            window_tokens=window,
            number_format=number_format,
            cosine_to_float32=round(cosine, 6),
            model_sha256=hashlib.sha256(model).hexdigest(),
            tokenizer_sha256=hashlib.sha256(tokenizer_data).hexdigest(),
            known_answers=tuple(KnownAnswer(text=text, vector=vector) for text, vector in zip(UNRELATED, expected, strict=False)),
        )
        for file, data in ((MODEL_FILE, model), (TOKENIZER_FILE, tokenizer_data), (CARD_FILE, card.to_json())):
            (self._folder / file).write_bytes(data)
        self._step("opening it")
        OnnxEmbedder.open(self._folder)
        self._step("done")
        return card

    def _step(self, what: str) -> None:
        self._progress(self._done, self._STEPS, what)
        self._done += 1

    def _session(self, graph: onnx.ModelProto) -> onnxruntime.InferenceSession:
        return open_session(self._bytes(graph), self._source_folder, threads=1)

    def _bytes(self, graph: onnx.ModelProto) -> bytes:
        data: bytes = graph.SerializeToString(deterministic=True)
        if len(data) > MAX_MODEL_BYTES:
            raise EmbedderRefused(f"{self._source_folder}: the graph has {len(data)} bytes, the most is {MAX_MODEL_BYTES}")
        return data

    def _vectors(self, session: onnxruntime.InferenceSession, sentences: list[list[int]], dimensions: int) -> list[Vector]:
        """One per sentence, of which the first are the unrelated ones."""
        try:
            vectors = [run_session(session, ids) for ids in sentences]
            for vector in vectors:
                check_unit_vector(vector, dimensions)
            check_unrelated(UNRELATED, vectors[: len(UNRELATED)])
        except EmbeddingFailed as error:
            raise EmbedderRefused(f"{self._source_folder}: {error}") from error
        return vectors


def _peaks(session: onnxruntime.InferenceSession, sentences: list[list[int]], shape: BertShape) -> list[Array]:
    """Largest value of each channel of each layer over the sentences."""
    names = [peaks_name(layer) for layer in range(shape.layers)]
    peaks = [np.zeros(shape.intermediate, np.float32) for _ in names]
    for ids in sentences:
        row = np.asarray([ids], dtype=np.int64)
        for layer, found in enumerate(session.run(names, {INPUT_IDS: row, ATTENTION_MASK: np.ones_like(row)})):
            peaks[layer] = np.maximum(peaks[layer], found)
    return peaks


def _tell_nobody(done: int, steps: int, what: str) -> None:
    """Where no progress is shown."""
