"""Measures how often a model folder answers right: `python -m compute_svc.bundled.evaluate [--model FOLDER]`."""

from __future__ import annotations

import argparse
import difflib
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer

from compute_svc.bundled.chat import ChatEncoder, Turn
from compute_svc.bundled.checkpoint import load_model
from compute_svc.bundled.llama import Llama
from compute_svc.bundled.pairs import load_pairs

MODEL_FOLDER = Path(__file__).parent / "model"
_MOST_ANSWER_TOKENS = 200
_LEAST_LIKENESS = 0.5


class Score(NamedTuple):
    """Shares of questions, 0 to 1."""

    # The whole answer, word for word.
    exact: float
    # The trained answer most like what was said, and at least half like it, is the right one.
    nearest: float


def answers_to(model: Llama, tokenizer: Tokenizer, chats: list[list[Turn]], batch_size: int = 64) -> list[str]:
    """What the model says to each chat, greedily. Prompts of one length run together, so nothing is padded."""
    encoder = ChatEncoder(tokenizer)
    prompts = [encoder.prompt(chat) for chat in chats]
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, ids in enumerate(prompts):
        by_length[len(ids)].append(index)
    answers = [""] * len(chats)
    for _, indices in sorted(by_length.items()):
        for start in range(0, len(indices), batch_size):
            chunk = indices[start : start + batch_size]
            rows = model.generate(torch.tensor([prompts[index] for index in chunk]), _MOST_ANSWER_TOKENS, encoder.stop_ids)
            for index, row in zip(chunk, rows, strict=True):
                answers[index] = encoder.text(row)
    return answers


@torch.inference_mode()
def share_said_word_for_word(model: Llama, tokenizer: Tokenizer, turns: list[tuple[str, str]], batch_size: int = 64) -> float:
    """The share of (question, answer) whose answer greedy generation would give, found in one pass.

    Generation gives an answer if and only if each of its tokens has the largest logit after the ones before it.
    """
    model.eval()
    encoder = ChatEncoder(tokenizer)
    prompts = [encoder.prompt([Turn("user", question)]) for question, _ in turns]
    answers = [encoder.answer(answer) for _, answer in turns]
    order = sorted(range(len(turns)), key=lambda index: len(prompts[index]) + len(answers[index]))
    right = 0
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        width = max(len(prompts[index]) + len(answers[index]) for index in chunk)
        token_ids = torch.zeros(len(chunk), width, dtype=torch.long)
        said = torch.zeros(len(chunk), width, dtype=torch.bool)
        for row, index in enumerate(chunk):
            ids = prompts[index] + answers[index]
            token_ids[row, : len(ids)] = torch.tensor(ids)
            said[row, len(prompts[index]) - 1 : len(ids) - 1] = True
        hidden, _ = model.hidden(token_ids, torch.arange(width).expand(len(chunk), width))
        agreed = model.logits(hidden).argmax(-1)[:, :-1] == token_ids[:, 1:]
        right += int((agreed | ~said[:, :-1]).all(-1).sum())
    return right / len(turns)


def _nearest(text: str, answers: list[str]) -> str:
    """The answer most like a text; an empty one if none is even half like it."""
    if text in answers:
        return text
    likeness, nearest = max((difflib.SequenceMatcher(None, text, answer, autojunk=False).ratio(), answer) for answer in answers)
    return nearest if likeness >= _LEAST_LIKENESS else ""


def score(said: list[str], turns: list[tuple[str, str]], answers: list[str]) -> Score:
    """Compares what was said with the right answers, white space apart."""
    normal = [" ".join(text.split()) for text in said]
    exact = sum(text == answer for text, (_, answer) in zip(normal, turns, strict=True))
    nearest = sum(_nearest(text, answers) == answer for text, (_, answer) in zip(normal, turns, strict=True))
    return Score(exact / len(turns), nearest / len(turns))


def _report(title: str, said: list[str], turns: list[tuple[str, str]], answers: list[str]) -> None:
    result = score(said, turns, answers)
    print(f"{title}: {len(turns)} questions, {result.exact:.1%} exact, {result.nearest:.1%} nearest to the right answer", flush=True)


def _print_wrong(said: list[str], turns: list[tuple[str, str]]) -> None:
    for text, (question, answer) in zip(said, turns, strict=True):
        if " ".join(text.split()) != answer:
            print(f"  asked: {question}\n  right: {answer}\n  said:  {text}\n")


def main() -> None:
    """Prints the figures of the model card."""
    parser = argparse.ArgumentParser(prog="python -m compute_svc.bundled.evaluate", description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL_FOLDER, help="model folder (default: the bundled one)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default %(default)s)")
    parser.add_argument("--show-wrong", action="store_true", help="print every wrong answer to a held-out question")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model, tokenizer = load_model(arguments.model)
    pairs = load_pairs()
    answers = [pair.answer for pair in pairs]
    trained = [(question, pair.answer) for pair in pairs for question in pair.questions]
    held_out = [(question, pair.answer) for pair in pairs for question in pair.held_out]
    said = answers_to(model, tokenizer, [[Turn("user", question)] for question, _ in held_out])
    _report("held-out paraphrases", said, held_out, answers)
    if arguments.show_wrong:
        _print_wrong(said, held_out)
    system = Turn("system", "You are a helpful assistant.")
    said = answers_to(model, tokenizer, [[system, Turn("user", question)] for question, _ in held_out])
    _report("held-out paraphrases after a system prompt", said, held_out, answers)
    earlier = [Turn("user", trained[0][0]), Turn("assistant", trained[0][1])]
    said = answers_to(model, tokenizer, [[*earlier, Turn("user", question)] for question, _ in held_out])
    _report("held-out paraphrases as a second turn", said, held_out, answers)
    said = answers_to(model, tokenizer, [[Turn("user", question)] for question, _ in trained])
    _report("trained questions", said, trained, answers)


if __name__ == "__main__":
    main()
