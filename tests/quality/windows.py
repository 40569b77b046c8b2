"""A model's answers over windows of a text: what perplexity, top-1 agreement and divergence are made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer

from compute_svc.kv.page_store import KvPageStore
from compute_svc.layers.forward_batch import ForwardBatch
from compute_svc.models.causal_lm import CausalLM

TEXT = Path(__file__).parent / "alice.txt"
CALIBRATION = Path(__file__).parent / "paradise_lost.txt"
WINDOW_TOKENS = 512
"""Windows do not overlap, and what is left behind the last one is not used. As llama.cpp's perplexity tool does it: in each, the second half is
predicted, all tokens but its first, with everything before it in the window as context."""
PREDICTED = WINDOW_TOKENS // 2 - 1
_PAGE_TOKENS = 16


class Closeness(NamedTuple):
    """How near one model comes to another.

    Attributes:
        perplexity: Of the text.
        kl: Mean of KL(reference || model) over predictions, in nats.
        top_1: Share of predictions whose most probable token is the reference's.
        predictions: How many there are.
    """

    perplexity: float
    kl: float
    top_1: float
    predictions: int


def read_windows(text: Path, tokenizer: Path, limit: int | None = None) -> torch.Tensor:
    """[windows, WINDOW_TOKENS] int64, the first ones of a text, without tokens that a tokenizer adds.

    Args:
        text: The file.
        tokenizer: A tokenizer.json.
        limit: At most so many; None = all.
    """
    ids = Tokenizer.from_file(str(tokenizer)).encode(text.read_text(encoding="utf-8"), add_special_tokens=False).ids
    whole = len(ids) // WINDOW_TOKENS * WINDOW_TOKENS
    return torch.tensor(ids[:whole]).view(-1, WINDOW_TOKENS)[:limit]


def log_probabilities(model: CausalLM, windows: torch.Tensor, kv: KvPageStore | None = None) -> Iterator[torch.Tensor]:
    """[PREDICTED, vocab_size] float32 for each window: of the tokens behind the first half and one.

    Args:
        model: The model.
        windows: See `read_windows`.
        kv: For keys and values, at least a window of them in pages of 16 tokens; None = a store in the model's dtype.
    """
    config = model.config
    if kv is None:
        sizes = (config.num_layers, WINDOW_TOKENS // _PAGE_TOKENS, _PAGE_TOKENS, config.num_kv_heads, config.kv_head_dim)
        kv = KvPageStore(*sizes, model.dtype, model.device)
    for window in windows:
        yield torch.log_softmax(model.forward(_batch(window), kv), dim=-1)


def _batch(window: torch.Tensor) -> ForwardBatch:
    """A window as one request in the first pages of a store."""
    places = torch.arange(WINDOW_TOKENS)
    return ForwardBatch(
        token_ids=window,
        positions=places,
        slots=places,
        num_decodes=0,
        query_starts=(0, WINDOW_TOKENS),
        kv_lengths=(WINDOW_TOKENS,),
        page_table=torch.arange(WINDOW_TOKENS // _PAGE_TOKENS)[None],
        logit_rows=places[WINDOW_TOKENS // 2 : -1],
        begun_pages=torch.empty(0, dtype=torch.int64),
        position_limit=WINDOW_TOKENS,
    )


def compare(model: CausalLM, windows: torch.Tensor, reference: torch.Tensor, kv: KvPageStore | None = None) -> Closeness:
    """How near a model comes to a reference; see `closeness` and `log_probabilities`."""
    return closeness(log_probabilities(model, windows, kv), windows, reference)


def closeness(answers: Iterable[torch.Tensor], windows: torch.Tensor, reference: torch.Tensor) -> Closeness:
    """How near a model comes to a reference.

    Args:
        answers: The model's `log_probabilities`.
        windows: What both read.
        reference: [windows, PREDICTED, vocab_size], the reference's.
    """
    loss = divergence = agreed = 0.0
    for window, own, right in zip(windows, answers, reference, strict=True):
        loss -= float(own.gather(1, window[WINDOW_TOKENS // 2 + 1 :, None]).double().sum())
        divergence += float((right.exp() * (right - own)).sum(dim=1, dtype=torch.float64).sum())
        agreed += float((own.argmax(dim=1) == right.argmax(dim=1)).sum())
    count = len(windows) * PREDICTED
    return Closeness(float(torch.tensor(loss / count, dtype=torch.float64).exp()), divergence / count, agreed / count, count)
