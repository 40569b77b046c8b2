from __future__ import annotations

import json

import pytest
from safetensors import safe_open
from tokenizers import Tokenizer

from compute_svc.bundled.chat import Turn
from compute_svc.bundled.checkpoint import CHAT_TEMPLATE, config_of, load_model, load_shape
from compute_svc.bundled.evaluate import MODEL_FOLDER, Score, answers_to, score, share_said_word_for_word
from compute_svc.bundled.llama import Llama
from compute_svc.bundled.pairs import load_pairs

TRAINED = [(pair.questions[0], pair.answer) for pair in load_pairs()]


@pytest.fixture(scope="module")
def bundled() -> tuple[Llama, Tokenizer]:
    return load_model(MODEL_FOLDER)


def test_config_and_weights_agree_and_the_file_is_small() -> None:
    path = MODEL_FOLDER / "model.safetensors"
    assert path.stat().st_size <= 16 * 1024 * 1024
    expected = {name: list(weight.shape) for name, weight in Llama(load_shape(MODEL_FOLDER)).named_parameters()}
    with safe_open(path, framework="pt") as weights:
        assert {name: weights.get_slice(name).get_shape() for name in weights.keys()} == expected  # noqa: SIM118
        assert {weights.get_slice(name).get_dtype() for name in expected} == {"BF16"}


def test_the_folder_is_what_the_code_writes() -> None:
    tokenizer = Tokenizer.from_file(str(MODEL_FOLDER / "tokenizer.json"))
    config = json.loads((MODEL_FOLDER / "config.json").read_text(encoding="utf-8"))
    assert config == config_of(load_shape(MODEL_FOLDER), tokenizer)
    generation = json.loads((MODEL_FOLDER / "generation_config.json").read_text(encoding="utf-8"))
    assert (
        generation["eos_token_id"] == config["eos_token_id"] == [tokenizer.token_to_id("<|end|>"), tokenizer.token_to_id("<|endoftext|>")]
    )
    assert (MODEL_FOLDER / "chat_template.jinja").read_text(encoding="utf-8") == CHAT_TEMPLATE


def test_the_model_answers_trained_questions_word_for_word(bundled: tuple[Llama, Tokenizer]) -> None:
    chosen = [
        turn
        for turn in TRAINED
        if turn[0] in ("What is Triserve?", "What is TTFT?", "Which port does the server use?", "What is the merge step?")
    ]
    assert len(chosen) == 4
    said = answers_to(*bundled, [[Turn("user", question)] for question, _ in chosen])
    assert said == [answer for _, answer in chosen]


def test_a_system_prompt_and_earlier_turns_do_not_change_an_answer(bundled: tuple[Llama, Tokenizer]) -> None:
    answers = dict(TRAINED)
    chat = [
        Turn("system", "You are a helpful assistant."),
        Turn("user", "Who are you?"),
        Turn("assistant", answers["Who are you?"]),
        Turn("user", "What is TTFT?"),
    ]
    assert answers_to(*bundled, [chat]) == [answers["What is TTFT?"]]


def test_the_one_pass_measure_agrees_with_generation(bundled: tuple[Llama, Tokenizer]) -> None:
    turns = [*TRAINED[::60], ("What is TTFT?", "It is something else.")]
    said = answers_to(*bundled, [[Turn("user", question)] for question, _ in turns])
    share = share_said_word_for_word(*bundled, turns)
    assert share == pytest.approx(sum(text == answer for text, (_, answer) in zip(said, turns, strict=True)) / len(turns))
    assert 0 < share < 1


def test_scores_count_whole_answers_and_nearest_ones() -> None:
    answers = ["The port is 8000.", "The cache is in Redis.", "Hello!"]
    turns = [("a", answers[0]), ("b", answers[1]), ("c", answers[2]), ("d", answers[0])]
    said = ["The  port is 8000.\n", "The cache lies in Redis.", "The port is 8000.", ""]
    assert score(said, turns, answers) == Score(exact=0.25, nearest=0.5)
