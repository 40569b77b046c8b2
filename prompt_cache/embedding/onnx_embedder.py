"""A sentence model as an ONNX graph, computed by onnxruntime on the CPU in a thread of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from prompt_cache.embedding.embedder import EmbedderRefused, EmbeddingFailed, Vector
from prompt_cache.embedding.folder import MODEL_FILE, TOKENIZER_FILE, EmbedderFolder, read_folder
from prompt_cache.embedding.vector_checks import SameVectorWatch, check_unit_vector, check_unrelated, digest_of
from prompt_cache.embedding.worker_thread import WorkerThread

INPUT_IDS = "input_ids"
ATTENTION_MASK = "attention_mask"
OUTPUT = "embedding"
# The least cosine between a known answer and what the model gives here. Processors round differently; some int8 kernels even saturate.
MIN_KNOWN_COSINE = 0.98
MAX_THREADS = 64
# A text with more characters than this per token of the window is not tokenized at all: that would take time, and it would not fit.
_MAX_CHARS_PER_TOKEN = 32
_ERRORS_ALONE = 3


class OnnxEmbedder:
    """Embeds with the model of a folder that `build` makes.

    Each text is computed alone. An int8 graph scales an activation by the largest value in the tensor, so that in a batch a text's vector would
    depend on the texts beside it; and on one thread a batch gains little.

    Args:
        folder: Of the model, read and checked.
        threads: That compute one text.

    Raises:
        EmbedderRefused: the model or the tokenizer cannot be used here, or does not give what it must; names the file.
        ValueError: threads is out of its range.

    Effects: takes the time to load the model and to compute its known answers, 0.1 s or more: not on an event loop.
    """

    def __init__(self, folder: EmbedderFolder, *, threads: int = 1) -> None:
        if not 1 <= threads <= MAX_THREADS:
            raise ValueError(f"threads is {threads}, it must be from 1 to {MAX_THREADS}")
        self._card = folder.card
        self._tokenizer = SentenceTokenizer(folder.tokenizer, folder.path / TOKENIZER_FILE, window_tokens=folder.card.window_tokens)
        model_path = folder.path / MODEL_FILE
        self._session = open_session(folder.model, model_path, threads=threads)
        _check_interface(self._session, model_path, folder.card.dimensions)
        self._watch = SameVectorWatch()
        try:
            self._check_known_answers()
        except EmbeddingFailed as error:
            raise EmbedderRefused(f"{model_path}: {error}") from error
        self._thread = WorkerThread("embedder")

    @classmethod
    def open(cls, path: Path, *, threads: int = 1) -> OnnxEmbedder:
        """The embedder of a folder; raises and takes time as the constructor and `read_folder` do."""
        return cls(read_folder(path), threads=threads)

    @property
    def id(self) -> str:
        """Names model, revision and number format."""
        return self._card.id

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return self._card.dimensions

    @property
    def is_weak(self) -> bool:
        """False: it compares meaning."""
        return False

    async def embed(self, texts: Sequence[str]) -> list[Vector | None]:
        """As the protocol says; computes in the embedder's thread, one text after the other."""
        return await self._thread.run(lambda: self.embed_now(texts))

    def embed_now(self, texts: Sequence[str]) -> list[Vector | None]:
        """As `embed`, in the caller's thread. Not safe for several threads at once."""
        token_ids = [self._tokenizer.token_ids(text) for text in texts]
        vectors = [None if ids is None else self._vector(ids) for ids in token_ids]
        whole = [(ids, vector) for ids, vector in zip(token_ids, vectors, strict=True) if ids is not None and vector is not None]
        self._watch.check([_digest(ids) for ids, _ in whole], [vector for _, vector in whole])
        return vectors

    async def close(self) -> None:
        """Ends the thread, after the text it is computing."""
        await self._thread.close()

    def _vector(self, ids: Sequence[int]) -> Vector:
        vector = run_session(self._session, ids)
        check_unit_vector(vector, self.dimensions)
        # Callers share it.
        vector.setflags(write=False)
        return vector

    def _check_known_answers(self) -> None:
        vectors = []
        for answer in self._card.known_answers:
            ids = self._tokenizer.token_ids(answer.text, must_know_words=False)
            if ids is None:
                raise EmbeddingFailed(f"the known text {answer.text!r} is longer than the window")
            vector = self._vector(ids)
            vectors.append(vector)
            self._watch.keep(_digest(ids), vector)
        check_unrelated([answer.text for answer in self._card.known_answers], vectors)
        for answer, vector in zip(self._card.known_answers, vectors, strict=True):
            cosine = float(vector @ answer.vector)
            if not cosine >= MIN_KNOWN_COSINE:
                raise EmbeddingFailed(
                    f"the vector of {answer.text!r} has the cosine {cosine:.4f} to the one it must have, the least is {MIN_KNOWN_COSINE}: "
                    "build the folder on this machine"
                )


class SentenceTokenizer:
    """Turns a text into all its token ids, or says that the model cannot see it whole.

    Args:
        data: What `tokenizer.json` holds.
        path: Where it was read, for errors.
        window_tokens: The longest text, the tokens at its ends included.

    Raises:
        EmbedderRefused: it is no tokenizer.
    """

    def __init__(self, data: bytes, path: Path, *, window_tokens: int) -> None:
        try:
            self._tokenizer = Tokenizer.from_str(data.decode())
        except Exception as error:
            raise EmbedderRefused(f"{path} is no tokenizer: {error}") from error
        # Files often say to cut and to pad every text to one length.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # What a user writes is text, "[SEP]" as well.
        self._tokenizer.encode_special_tokens = True
        self._unknown_id = _unknown_id(json.loads(data), self._tokenizer)
        self._window_tokens = window_tokens
        self._num_ends: int = self._tokenizer.num_special_tokens_to_add(False)

    @property
    def max_token_id(self) -> int:
        """The highest id it gives."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=0)

    def token_ids(self, text: str, *, must_know_words: bool = True) -> list[int] | None:
        """The text's token ids with those at its ends.

        Returns:
            None if the text is empty, longer than the window, no Unicode or, unless `must_know_words` is unset, has words without a token.
        """
        if len(text) > self._window_tokens * _MAX_CHARS_PER_TOKEN or not text.strip():
            return None
        try:
            text.encode()
        except UnicodeEncodeError:
            return None
        try:
            ids: list[int] = self._tokenizer.encode(text).ids
        except Exception as error:
            raise EmbeddingFailed(f"the tokenizer failed: {type(error).__name__}") from error
        # Some characters, such as those of control, are nothing to a tokenizer.
        if not self._num_ends < len(ids) <= self._window_tokens or (must_know_words and self._unknown_id in ids):
            return None
        return ids

    def cut_to_window(self, text: str) -> list[int]:
        """The token ids of the beginning of a text: to compare two forms of a model, never to find an answer."""
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids[: self._window_tokens]


def open_session(model: bytes, path: Path, *, threads: int) -> onnxruntime.InferenceSession:
    """A session on the CPU whose threads sleep while they wait.

    Args:
        model: The ONNX file.
        path: Where it was read, for errors.
        threads: That compute one run.

    Raises:
        EmbedderRefused: onnxruntime cannot run it; names it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _ERRORS_ALONE
    # The cores are those that the model computes on.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(model, sess_options=options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise EmbedderRefused(f"{path} cannot be run by onnxruntime {onnxruntime.__version__}: {error}") from error


def run_session(session: onnxruntime.InferenceSession, ids: Sequence[int]) -> Vector:
    """What the model gives for one text, [dimensions] if it keeps its word.

    Raises:
        EmbeddingFailed: the run failed.
    """
    row = np.asarray([ids], dtype=np.int64)  # [1, tokens]
    try:
        (found,) = session.run([OUTPUT], {INPUT_IDS: row, ATTENTION_MASK: np.ones_like(row)})
    except Exception as error:
        raise EmbeddingFailed(f"onnxruntime failed: {type(error).__name__}") from error
    if found.ndim != 2 or len(found) != 1 or found.dtype != np.float32:
        raise EmbeddingFailed(f"the model gave {found.dtype} of the shape {list(found.shape)}, expected float32 [1, dimensions]")
    vector: Vector = found[0]
    return vector


def _check_interface(session: onnxruntime.InferenceSession, path: Path, dimensions: int) -> None:
    inputs = {item.name: item.type for item in session.get_inputs()}
    outputs = {item.name: (item.type, item.shape) for item in session.get_outputs()}
    if inputs != {INPUT_IDS: "tensor(int64)", ATTENTION_MASK: "tensor(int64)"}:
        raise EmbedderRefused(f"{path} has the inputs {inputs}, expected int64 {INPUT_IDS} and {ATTENTION_MASK}")
    kind, shape = outputs.get(OUTPUT, ("", []))
    if set(outputs) != {OUTPUT} or kind != "tensor(float)" or len(shape) != 2 or shape[1] != dimensions:
        raise EmbedderRefused(f"{path} has the outputs {outputs}, expected float32 {OUTPUT} of the shape [batch, {dimensions}]")


def _unknown_id(definition: dict[str, Any], tokenizer: Tokenizer) -> int | None:
    """The id of words that the tokenizer has no token for; None if there are none such."""
    model = definition.get("model")
    if not isinstance(model, dict):
        return None
    if isinstance(model.get("unk_id"), int):
        return int(model["unk_id"])
    unknown = model.get("unk_token")
    return None if unknown is None else tokenizer.token_to_id(str(unknown))


def _digest(ids: Sequence[int]) -> bytes:
    return digest_of(np.asarray(ids, dtype="<i8").tobytes())
