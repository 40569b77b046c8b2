from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from compute_svc.bundled.batches import BatchMaker, Diet, Rows, Text, pack, pack_by_width
from compute_svc.bundled.pairs import Pair, plain
from compute_svc.bundled.train_tokenizer import train_tokenizer

PAIRS = [
    Pair("It is a pipeline.", ("What is Triserve?", "define triserve"), ("what does triserve mean",)),
    Pair("Hello!", ("hi", "hey"), ("hello",)),
]
PROSE = ["The quick brown fox jumps over the lazy dog while reading documentation about containers.\nMore."] * 30


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(PROSE, [text for pair in PAIRS for text in (pair.answer, *pair.questions)])


def _maker(tokenizer: Tokenizer, seed: int = 1) -> BatchMaker:
    diet = Diet(turns=8, prose_tokens=256, early_steps=1, early_prose_tokens=512, row_widths=(64, 128), opening_tokens=2)
    return BatchMaker(tokenizer=tokenizer, pairs=PAIRS, foreign_answer="I do not know.", prose=PROSE, seed=seed, diet=diet)


def test_the_batch_of_a_step_is_the_same_whenever_it_is_asked_for(tokenizer: Tokenizer) -> None:
    maker, again = _maker(tokenizer), _maker(tokenizer)
    again.batch(0)
    for step in (5, 3):
        for one, other in zip(maker.batch(step), again.batch(step), strict=True):
            assert all(torch.equal(*columns) for columns in zip(one, other, strict=True))


def test_another_seed_gives_another_batch(tokenizer: Tokenizer) -> None:
    one, other = _maker(tokenizer).batch(0)[0], _maker(tokenizer, seed=2).batch(0)[0]
    assert one.token_ids.shape != other.token_ids.shape or not torch.equal(one.token_ids, other.token_ids)


def test_rewording_never_gives_a_held_out_question(tokenizer: Tokenizer) -> None:
    maker = _maker(tokenizer)
    given_forms = {plain(maker.reworded("What is Triserve?", random.Random(seed))) for seed in range(400)}
    assert len(given_forms) > 10
    assert "what does triserve mean" not in given_forms


def test_in_a_conversation_only_the_answers_are_learnt_and_their_first_tokens_most(tokenizer: Tokenizer) -> None:
    text = _maker(tokenizer).conversation([("hi", "Hello!"), ("define triserve", "It is a pipeline.")], random.Random(0))
    learnt = [token for token, weight in zip(text.token_ids, text.weights, strict=True) if weight]
    assert tokenizer.decode(learnt, skip_special_tokens=False) == "Hello!<|end|>It is a pipeline.<|end|>"
    pipeline = tokenizer.encode("It is a pipeline.<|end|>").ids
    assert text.weights[-len(pipeline) :] == [3.0] * 3 + [1.0] * (len(pipeline) - 3)


def test_some_single_questions_learn_only_the_opening_of_the_answer(tokenizer: Tokenizer) -> None:
    maker = _maker(tokenizer)
    whole = len(tokenizer.encode("It is a pipeline.<|end|>").ids)
    learnt = {
        sum(weight > 0 for weight in maker.conversation([("hi", "It is a pipeline.")], random.Random(seed)).weights) for seed in range(30)
    }
    assert learnt == {2, whole}


def test_short_texts_go_into_narrow_rows_and_long_ones_into_wide_rows() -> None:
    packed = pack_by_width([Text([1] * size, [1.0] * size) for size in (3, 8, 9, 16, 33)], (8, 16))
    assert [tuple(rows.token_ids.shape) for rows in packed] == [(2, 8), (2, 48)]


texts = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 10**6)), min_size=1, max_size=12)


@given(sizes=texts)
@settings(max_examples=40)
def test_packing_keeps_every_text_whole_and_apart(sizes: list[tuple[int, int]]) -> None:
    wanted = []
    for size, seed in sizes:
        rng = random.Random(seed)
        wanted.append(Text([rng.randint(1, 99) for _ in range(size)], [float(rng.randint(0, 2)) for _ in range(size)]))
    rows = pack(wanted, row_tokens=32)
    assert rows.token_ids.shape[1] % 32 == 0
    assert sorted(_texts_in(rows)) == sorted((text.token_ids, [0.0, *text.weights[1:]]) for text in wanted)


def _texts_in(rows: Rows) -> list[tuple[list[int], list[float]]]:
    """Reads the texts back from packed rows, each where the mask begins a triangle."""
    found = []
    num_rows, width = rows.token_ids.shape
    for row in range(num_rows):
        seen, column = rows.mask[row, 0], 0
        while column < width and rows.token_ids[row, column]:
            end = column + int(seen[:, column].sum())
            triangle = torch.zeros(end - column, width, dtype=torch.bool)
            triangle[:, column:end] = torch.ones(end - column, end - column, dtype=torch.bool).tril()
            assert torch.equal(seen[column:end], triangle)
            assert rows.positions[row, column:end].tolist() == list(range(end - column))
            ids = rows.token_ids[row, column:end].tolist()
            assert rows.targets[row, column : end - 1].tolist() == ids[1:] and rows.weights[row, end - 1] == 0
            found.append((ids, [0.0, *rows.weights[row, column : end - 1].tolist()]))
            column = end
    return found
