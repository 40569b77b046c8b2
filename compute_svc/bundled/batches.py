"""Batches to train on, each a pure function of the seed and the number of its step."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from compute_svc.bundled.chat import ChatEncoder, Turn
from compute_svc.bundled.pairs import Pair, plain
from compute_svc.bundled.train_tokenizer import END_OF_TEXT, special_id
from compute_svc.bundled.wording import reword

_SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are Triserve's assistant.",
    "You are a helpful, respectful and honest assistant. Answer in whole sentences.",
    "Answer briefly.",
    "You are an AI assistant that answers questions about the Triserve project.",
    "Be concise and polite.",
)


class Text(NamedTuple):
    """Token ids of one document, and for each id how much the model is to learn to say it; 0 = not at all."""

    token_ids: list[int]
    weights: list[float]


class Rows(NamedTuple):
    """Packed documents; every tensor but `weights` and `mask` is int64 [B, T]."""

    token_ids: Tensor
    positions: Tensor
    targets: Tensor
    weights: Tensor  # [B, T] float32, 0 = no target
    mask: Tensor  # [B, 1, T, T] bool, true = may attend


@dataclass(frozen=True)
class Diet:
    """What a step is made of."""

    turns: int = 128
    # Share of the single questions of which only the beginning of the answer is learnt: that is where it is decided
    # which answer it is, and the rest is known by heart after a few rounds.
    opening_share: float = 0.75
    opening_tokens: int = 8
    # The first tokens of an answer count more, for the same reason.
    deciding_tokens: int = 3
    deciding_weight: float = 3.0
    # Share of the turns whose question is about something the answers do not cover.
    foreign_share: float = 0.05
    prose_tokens: int = 256
    # The first steps read more, to learn what words go together.
    early_steps: int = 100
    early_prose_tokens: int = 2048
    prose_weight: float = 0.3
    system_share: float = 0.2
    # Texts go into rows of the first width that holds them, or of a multiple of the last: attention costs the square.
    row_widths: tuple[int, ...] = (128, 256)
    longest_text_tokens: int = 2048


def _num_turns(rng: random.Random) -> int:
    """How many turns a conversation has; most have one, a few are long."""
    chance = rng.random()
    if chance < 0.75:
        return 1
    if chance < 0.985:
        return rng.randint(2, 4)
    return rng.randint(5, 24)


def pack(texts: list[Text], row_tokens: int) -> Rows:
    """Packs texts into rows, longest first, each into the first row that has room; a text sees only itself.

    Args:
        row_tokens: width of a row; a multiple of it if a text is longer.
    """
    ordered = sorted(texts, key=lambda text: -len(text.token_ids))
    width = -(-len(ordered[0].token_ids) // row_tokens) * row_tokens
    rows: list[list[Text]] = []
    room: list[int] = []
    for text in ordered:
        size = len(text.token_ids)
        row = next((index for index, free in enumerate(room) if free >= size), None)
        if row is None:
            rows.append([])
            room.append(width)
            row = len(rows) - 1
        rows[row].append(text)
        room[row] -= size
    token_ids, positions, targets = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(3))
    weights = torch.zeros(len(rows), width)
    owner = torch.full((len(rows), width), -1)
    for row, texts_in_row in enumerate(rows):
        start = 0
        for number, text in enumerate(texts_in_row):
            end = start + len(text.token_ids)
            ids = torch.tensor(text.token_ids)
            token_ids[row, start:end] = ids
            positions[row, start:end] = torch.arange(end - start)
            owner[row, start:end] = number
            targets[row, start : end - 1] = ids[1:]
            weights[row, start : end - 1] = torch.tensor(text.weights[1:])
            start = end
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    mask = (owner[:, :, None] == owner[:, None, :]) & causal
    return Rows(token_ids, positions, targets, weights, mask[:, None])


def pack_by_width(texts: list[Text], widths: tuple[int, ...]) -> list[Rows]:
    """Packs short texts into narrow rows and long ones into wide rows."""
    by_width: dict[int, list[Text]] = {}
    for text in texts:
        width = next((width for width in widths if width >= len(text.token_ids)), widths[-1])
        by_width.setdefault(width, []).append(text)
    return [pack(group, width) for width, group in sorted(by_width.items())]


class BatchMaker:
    """Makes the batch of any step.

    Args:
        foreign_answer: what to say to a question about something else.
        prose: passages of general text.
    """

    def __init__(self, *, tokenizer: Tokenizer, pairs: list[Pair], foreign_answer: str, prose: list[str], seed: int, diet: Diet) -> None:
        self._encoder = ChatEncoder(tokenizer)
        self._turns = [(question, pair.answer) for pair in pairs for question in pair.questions]
        self._held_out = {plain(question) for pair in pairs for question in pair.held_out}
        self._foreign_answer = foreign_answer
        known = {word for question, answer in self._turns for word in re.findall(r"[a-z]+", f"{question} {answer}".lower())}
        self._foreign_words = sorted({word for passage in prose for word in re.findall(r"\b[a-z]{4,12}\b", passage)} - known)
        self._sentences = [passage.split("\n")[0] for passage in prose]
        end_of_text = special_id(tokenizer, END_OF_TEXT)
        self._prose_ids = [token for encoding in tokenizer.encode_batch(prose) for token in (*encoding.ids, end_of_text)]
        self._seed = seed
        self._diet = diet

    @property
    def num_turns(self) -> int:
        """Questions to train on."""
        return len(self._turns)

    def _drawn_turns(self, step: int) -> list[tuple[str, str]]:
        """The step's share of an endless sequence in which every question comes once per round."""
        drawn: list[tuple[str, str]] = []
        for index in range(step * self._diet.turns, (step + 1) * self._diet.turns):
            lap, place = divmod(index, len(self._turns))
            if not drawn or place == 0:
                order = list(range(len(self._turns)))
                random.Random(f"{self._seed} lap {lap}").shuffle(order)
            drawn.append(self._turns[order[place]])
        return drawn

    def reworded(self, question: str, rng: random.Random) -> str:
        """The question in another wording, but never in one that is held out."""
        other = reword(question, rng)
        return question if plain(other) in self._held_out else other

    def _foreign_question(self, rng: random.Random) -> str:
        if rng.random() < 0.4:
            return rng.choice(self._sentences)[:120]
        words = " ".join(rng.choices(self._foreign_words, k=rng.randint(1, 3)))
        return rng.choice(
            ("what is {}?", "{}", "how do i {}?", "who is {}?", "tell me about {}", "why is {}?", "write {}", "where is the {}?")
        ).format(words)

    def conversation(self, turns: list[tuple[str, str]], rng: random.Random) -> Text:
        """A chat in the template's form, of which the answers are learnt."""
        token_ids: list[int] = []
        weights: list[float] = []
        diet = self._diet
        if rng.random() < diet.system_share:
            system = rng.choice(self._sentences) if rng.random() < 0.2 else rng.choice(_SYSTEM_PROMPTS)
            token_ids += self._encoder.turn(Turn("system", system))
        for question, answer in turns:
            token_ids += self._encoder.prompt([Turn("user", question)])
            weights += [0.0] * (len(token_ids) - len(weights))
            said = self._encoder.answer(answer)
            if len(turns) == 1 and rng.random() < diet.opening_share:
                said = said[: diet.opening_tokens]
            token_ids += said
            weights += [diet.deciding_weight if index < diet.deciding_tokens else 1.0 for index in range(len(said))]
        return Text(token_ids[: diet.longest_text_tokens], weights[: diet.longest_text_tokens])

    def _prose(self, num_tokens: int, rng: random.Random) -> list[Text]:
        size = min(self._diet.row_widths[0], len(self._prose_ids))
        starts = [rng.randrange(len(self._prose_ids) - size + 1) for _ in range(num_tokens // size)]
        return [Text(self._prose_ids[start : start + size], [self._diet.prose_weight] * size) for start in starts]

    def batch(self, step: int) -> list[Rows]:
        """The batch of a step, the same one whenever it is asked for."""
        rng = random.Random(f"{self._seed} step {step}")
        turns = [
            (self._foreign_question(rng), self._foreign_answer)
            if rng.random() < self._diet.foreign_share
            else (self.reworded(question, rng), answer)
            for question, answer in self._drawn_turns(step)
        ]
        texts: list[Text] = []
        while turns:
            count = _num_turns(rng)
            texts.append(self.conversation(turns[:count], rng))
            turns = turns[count:]
        prose_tokens = self._diet.early_prose_tokens if step < self._diet.early_steps else self._diet.prose_tokens
        texts.extend(self._prose(prose_tokens, rng))
        return pack_by_width(texts, self._diet.row_widths)
