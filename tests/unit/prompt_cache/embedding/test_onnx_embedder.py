"""A text has its vector, alone or beside others, or none; a model that does not give what it must is refused."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from prompt_cache.embedding.build import build_embedder
from prompt_cache.embedding.embedder import EmbedderRefused, EmbeddingFailed
from prompt_cache.embedding.onnx_embedder import OUTPUT, OnnxEmbedder, SentenceTokenizer, open_session
from prompt_cache.embedding.worker_thread import WorkerThread
from tests.fakes.sentence_models import (
    VOCABULARY,
    WINDOW_TOKENS,
    known_of,
    table_model,
    tokenizer_definition,
    unit_table,
    write_embedder,
    write_sentence_model,
)

TEXTS = ("how old is it", "a", "what, then?", "it is 12 years old", "b c d e f g h i j k l m n o p")


TOKENIZER = SentenceTokenizer(json.dumps(tokenizer_definition()).encode(), Path("tokenizer.json"), window_tokens=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    build_embedder(write_sentence_model(path / "source"), path / "embedder", name="small")
    return path / "embedder"


@pytest.fixture
async def embedder(folder: Path) -> AsyncIterator[OnnxEmbedder]:
    opened = OnnxEmbedder.open(folder)
    yield opened
    await opened.close()


def tokenizer(window_tokens: int = 16, **changes: object) -> SentenceTokenizer:
    return SentenceTokenizer(json.dumps(tokenizer_definition(**changes)).encode(), Path("tokenizer.json"), window_tokens=window_tokens)


async def test_vectors_are_float32_of_unit_length_and_read_only(embedder: OnnxEmbedder) -> None:
    for vector in await embedder.embed(TEXTS):
        assert vector is not None
        assert vector.shape == (embedder.dimensions,)
        assert vector.dtype == np.dtype(np.float32)
        assert abs(float(np.linalg.norm(vector)) - 1) < 1e-5
        with pytest.raises(ValueError, match="read-only"):
            vector[0] = 0


async def test_a_text_has_the_same_bits_alone_and_beside_others(embedder: OnnxEmbedder) -> None:
    together = await embedder.embed(TEXTS)
    backwards = await embedder.embed(TEXTS[::-1])
    for index, text in enumerate(TEXTS):
        (alone,) = await embedder.embed([text])
        np.testing.assert_array_equal(together[index], alone)
        np.testing.assert_array_equal(backwards[-1 - index], alone)


async def test_texts_that_the_model_would_not_see_whole_have_no_vector(embedder: OnnxEmbedder) -> None:
    fits = "a" * (WINDOW_TOKENS - 2)
    texts = ["", "  \n", fits, fits + "a", "a " * WINDOW_TOKENS, "a" * 100_000, "a 🙂", "\ud800", "\x00\u200b", "ok"]
    assert [vector is not None for vector in await embedder.embed(texts)] == [False, False, True, *[False] * 6, True]


async def test_no_texts_have_no_vectors(embedder: OnnxEmbedder) -> None:
    assert await embedder.embed([]) == []


async def test_it_computes_in_a_thread_of_its_own() -> None:
    worker = WorkerThread("worker")
    first, second = await worker.run(threading.get_ident), await worker.run(threading.get_ident)
    assert first == second != threading.get_ident()
    await worker.close()
    assert first not in {thread.ident for thread in threading.enumerate()}
    with pytest.raises(EmbeddingFailed, match="closed"):
        await worker.run(threading.get_ident)


async def test_what_is_no_exception_in_the_thread_is_a_failure_outside() -> None:
    class Panic(BaseException):
        pass

    def panic() -> None:
        raise Panic

    worker = WorkerThread("worker")
    with pytest.raises(EmbeddingFailed, match=r"^the embedder failed: Panic$"):
        await worker.run(panic)
    assert await worker.run(lambda: 1) == 1
    await worker.close()


async def test_a_closed_embedder_says_so(folder: Path) -> None:
    embedder = OnnxEmbedder.open(folder)
    await embedder.close()
    with pytest.raises(EmbeddingFailed, match="closed"):
        await embedder.embed(["a"])


def test_threads_sleep_while_they_wait(folder: Path) -> None:
    options = open_session((folder / "model.onnx").read_bytes(), folder, threads=2).get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


@pytest.mark.parametrize("threads", [0, 65])
def test_a_number_of_threads_out_of_range_is_refused(folder: Path, threads: int) -> None:
    with pytest.raises(ValueError, match=f"threads is {threads}"):
        OnnxEmbedder.open(folder, threads=threads)


def test_what_tokenizer_json_says_of_cutting_and_padding_is_not_done() -> None:
    # Both to 8.
    assert tokenizer().token_ids("abc") == [VOCABULARY[token] for token in ("[CLS]", "a", "##b", "##c", "[SEP]")]
    assert len(tokenizer().token_ids("abcdefghijkl") or []) == 14


def test_special_tokens_in_a_text_are_text() -> None:
    definition = tokenizer_definition()
    definition["model"]["vocab"] = {**VOCABULARY, "[": len(VOCABULARY), "]": len(VOCABULARY) + 1}
    ids = tokenizer(**definition).token_ids("[SEP]")
    assert ids == [VOCABULARY["[CLS]"], len(VOCABULARY), *(VOCABULARY[token] for token in ("s", "##e", "##p")), len(VOCABULARY) + 1, 3]


@given(st.text(max_size=40) | st.text(alphabet=st.characters(), max_size=40) | st.text(alphabet="ab [SEP]#", max_size=40))
def test_any_text_has_ids_of_words_that_are_known_within_the_window_or_none(text: str) -> None:
    ids = TOKENIZER.token_ids(text)
    if ids is not None:
        assert 2 < len(ids) <= 16
        assert (ids[0], ids[-1]) == (VOCABULARY["[CLS]"], VOCABULARY["[SEP]"])
        assert set(ids[1:-1]).isdisjoint(range(5))


@pytest.mark.parametrize("data", [b"\xff", b"{}", b"null"])
def test_a_file_that_is_no_tokenizer_is_named(data: bytes) -> None:
    with pytest.raises(EmbedderRefused, match=r"tokenizer\.json is no tokenizer"):
        SentenceTokenizer(data, Path("tokenizer.json"), window_tokens=8)


def test_a_model_that_gives_every_text_the_same_vector_is_refused(tmp_path: Path) -> None:
    table = np.repeat(unit_table()[:1], len(VOCABULARY), axis=0)
    folder = write_embedder(tmp_path / "embedder", table_model(table), known_of(table))
    with pytest.raises(EmbedderRefused, match=r"model\.onnx: .* the model does not tell texts apart"):
        OnnxEmbedder.open(folder)


def test_a_model_that_gives_every_text_almost_the_same_vector_is_refused(tmp_path: Path) -> None:
    table = unit_table()[:1] + 0.02 * unit_table(seed=1)
    table = (table / np.linalg.norm(table, axis=1, keepdims=True)).astype(np.float32)
    folder = write_embedder(tmp_path / "embedder", table_model(table), known_of(table))
    with pytest.raises(EmbedderRefused, match="does not tell texts apart"):
        OnnxEmbedder.open(folder)


async def test_two_texts_with_the_same_vector_fail_while_it_runs(tmp_path: Path) -> None:
    table = unit_table()
    embedder = OnnxEmbedder.open(write_embedder(tmp_path / "embedder", table_model(table), known_of(table)))
    # It looks at the first letter alone.
    assert len(await embedder.embed(["dog", "egg", "dog", "DOG"])) == 4
    for texts in (["dog", "door"], ["apricot"], ["boat", "bread"]):
        with pytest.raises(EmbeddingFailed, match="two different texts have the same vector"):
            await embedder.embed(texts)
    await embedder.embed(["fog"])
    with pytest.raises(EmbeddingFailed, match="two different texts have the same vector"):
        await embedder.embed(["fire"])
    await embedder.close()


def test_a_model_that_does_not_give_its_known_answers_is_refused(tmp_path: Path) -> None:
    folder = write_embedder(tmp_path / "embedder", table_model(unit_table(seed=1)), known_of(unit_table(seed=2)))
    with pytest.raises(EmbedderRefused, match=r"model\.onnx: the vector of 'apple' has the cosine"):
        OnnxEmbedder.open(folder)


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.01, np.nan, np.inf])
def test_vectors_that_are_not_of_unit_length_are_refused(tmp_path: Path, factor: float) -> None:
    table = unit_table()
    with np.errstate(invalid="ignore"):
        model = table_model((table * np.float32(factor)).astype(np.float32))
    with pytest.raises(EmbedderRefused, match="a vector has the length"):
        OnnxEmbedder.open(write_embedder(tmp_path / "embedder", model, known_of(table)))


async def test_a_vector_that_goes_wrong_while_it_runs_fails(tmp_path: Path) -> None:
    table = unit_table()
    table[VOCABULARY["z"]] = np.nan
    embedder = OnnxEmbedder.open(write_embedder(tmp_path / "embedder", table_model(table), known_of(table)))
    with pytest.raises(EmbeddingFailed, match="length nan"):
        await embedder.embed(["zoo"])
    await embedder.close()


async def test_an_id_without_a_row_fails_without_the_text(tmp_path: Path) -> None:
    table = unit_table()[:-1]
    definition = tokenizer_definition()
    definition["model"]["vocab"] = {**VOCABULARY, "@": len(VOCABULARY)}
    embedder = OnnxEmbedder.open(write_embedder(tmp_path / "embedder", table_model(table), known_of(table), definition=definition))
    with pytest.raises(EmbeddingFailed, match=r"^onnxruntime failed: \w+$"):
        await embedder.embed(["@"])
    await embedder.close()


def test_a_known_text_longer_than_the_window_is_refused(tmp_path: Path) -> None:
    table = unit_table()
    folder = write_embedder(tmp_path / "embedder", table_model(table), known_of(table), window_tokens=4)
    with pytest.raises(EmbedderRefused, match="longer than the window"):
        OnnxEmbedder.open(folder)


def _rename_output(model: onnx.ModelProto) -> None:
    model.graph.node[-1].output[0] = model.graph.output[0].name = "vector"


def _rename_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = model.graph.node[0].input[0] = "ids"


def _further_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("token_type_ids", onnx.TensorProto.INT64, ["batch", "tokens"]))


def _further_output(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("first", onnx.TensorProto.INT64, ["batch"]))


def _other_dimensions(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 9


def _other_type(model: onnx.ModelProto) -> None:
    model.graph.node[-1].output[0] = "vector"
    model.graph.node.append(helper.make_node("Cast", ["vector"], [OUTPUT], to=onnx.TensorProto.DOUBLE))
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE


def _unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[-1].op_type = "RunThis"


@pytest.mark.parametrize(
    "change",
    [_rename_output, _rename_input, _further_input, _further_output, _other_dimensions, _other_type, _unknown_operator],
    ids=lambda change: change.__name__,
)
def test_a_graph_of_another_form_is_named(tmp_path: Path, change: object) -> None:
    table = unit_table()
    model = table_model(table)
    assert callable(change)
    change(model)
    with pytest.raises(EmbedderRefused, match=r"model\.onnx"):
        OnnxEmbedder.open(write_embedder(tmp_path / "embedder", model, known_of(table)))


def test_a_file_that_is_no_graph_is_named(tmp_path: Path) -> None:
    table = unit_table()
    model = table_model(table)
    del model.graph.node[:]
    with pytest.raises(EmbedderRefused, match=r"model\.onnx"):
        OnnxEmbedder.open(write_embedder(tmp_path / "embedder", model, known_of(table)))
