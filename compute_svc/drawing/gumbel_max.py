"""The draw itself: the largest sum of score and noise, found by bounds of blocks without computing the noise of every id."""

from __future__ import annotations

from typing import NamedTuple

import torch

from compute_svc.drawing import asking_cpu, blocks, gumbel_max_cpu, noise
from compute_svc.drawing.arithmetic import exp_, log_
from compute_svc.drawing.gumbel_max_cpu import LARGEST, NEAR, NO_ID, SLACK, LargestSums
from compute_svc.drawing.ranking import filter_ranked, head, is_typical, scores, sigma_floor
from compute_svc.drawing.rows import Needs, RowNumbers, Survivors
from compute_svc.kernels.draw import DrawNumbers, draw_into, has_kernel

# torch finds one more of 3,072 several times faster than two more.
FIRST_BLOCKS = 47
FIRST_HEAD_BLOCKS = 256
# Instead of the head's: rank nothing.
UNRANKED = 0


class Choice(NamedTuple):
    """What some rows draw.

    Attributes:
        tokens: [rows, 1] int64.
        best: [rows, 1] float32, the largest logit.
        is_drawn: [rows, 1] bool, whether more blocks would not change the token.
        is_ranked: [rows, 1] bool, whether a longer head would not.
    """

    tokens: torch.Tensor
    best: torch.Tensor
    is_drawn: torch.Tensor
    is_ranked: torch.Tensor


def choose(logits: torch.Tensor, numbers: RowNumbers, num_blocks: int, head_blocks: int) -> Choice:
    """Draws a token of each row.

    Args:
        logits: [rows, width] float32, as changed.
        numbers: Of the rows.
        num_blocks: Of how many blocks to compute the noise of every id; all of them decide every row.
        head_blocks: How many blocks the head of the ranking is taken from; all of them decide every row. Or `UNRANKED`, where that can be:
            see `can_ask`.
    """
    if not (numbers.needs.rank or numbers.needs.sigma) and has_kernel(logits.device.type):
        return choose_in_kernel(logits, numbers)
    maxima = blocks.maxima(logits)
    best = maxima.amax(dim=1, keepdim=True)
    best_score = scores(best, numbers.temperature)
    if logits.device.type == "cpu" and not numbers.needs.sigma and (head_blocks == UNRANKED or not numbers.needs.rank):
        floors = asking_cpu.floors(maxima, numbers) if numbers.needs.rank else None
        sums = gumbel_max_cpu.best_sums(logits, maxima, best_score, numbers, num_blocks, floors)
        if numbers.needs.rank:
            tokens, is_drawn, is_ranked = asking_cpu.largest_kept(logits, maxima, best_score, sums, numbers)
            return Choice(tokens, best, is_drawn, is_ranked)
        tokens, is_drawn = gumbel_max_cpu.largest(sums)
        return Choice(tokens, best, is_drawn, torch.ones_like(is_drawn))
    min_logit = sigma_floor(logits, best, numbers) if numbers.needs.sigma else None
    if numbers.needs.rank:
        ranked = head(logits, maxima, head_blocks)
        survivors = filter_ranked(logits, ranked, best_score, min_logit, numbers)
    else:
        survivors = Survivors(best_score, best_score, min_logit)
    tokens, is_drawn = largest_sums(logits, maxima, survivors, numbers, num_blocks)
    return Choice(tokens, best, is_drawn, torch.ones_like(is_drawn) if survivors.decided is None else survivors.decided)


def choose_in_kernel(logits: torch.Tensor, numbers: RowNumbers) -> Choice:
    """As `choose`, of rows without filters but min_p; decides all of them."""
    low, high = numbers.streams.keys.unbind(0)
    seeds = (low >> 32).bitwise_and_(0xFFFFFFFF).bitwise_or_(high)
    of_rows = DrawNumbers(seeds, numbers.streams.positions, numbers.temperature, numbers.min_p)
    tokens, best = torch.empty_like(seeds), torch.empty_like(seeds, dtype=torch.float32)
    draw_into(logits, of_rows, tokens, None, best)
    decided = torch.ones_like(tokens, dtype=torch.bool)
    return Choice(tokens, best, decided, decided)


def can_ask(needs: Needs, device: torch.device) -> bool:
    """Whether the filters can be asked about single ids, which ranks no row: on a CPU, top_k and top_p.

    Elsewhere a row costs as much as all rows, and there nearly always is one that has to be ranked.
    """
    return device.type == "cpu" and needs.rank and not (needs.typical or needs.sigma or needs.xtc)


def largest_sums(logits: torch.Tensor, maxima: torch.Tensor, survivors: Survivors, numbers: RowNumbers, num_blocks: int) -> LargestSums:
    """Finds the ids among those that the filters leave.

    Args:
        logits: [rows, width] float32.
        maxima: [rows, blocks] float32, of each block.
        survivors: What the filters leave.
        numbers: Of the rows.
        num_blocks: Of how many blocks to compute the noise of every id.
    """
    rows, num = maxima.shape
    least = noise.smallest(numbers.streams, num)
    bounds = scores(maxima, numbers.temperature)
    hopeless = _hopeless_blocks(maxima, bounds, survivors, numbers)
    bounds = bounds.sub_(log_(least.clone()))
    if hopeless is not None:
        bounds = bounds.masked_fill_(hopeless, -torch.inf)
    top = bounds.topk(min(num_blocks + 1, num), dim=1)
    chosen = top.indices[:, :num_blocks]
    ids, values = blocks.gather(logits, chosen)
    exponentials = noise.of_blocks(numbers.streams, chosen, least.gather(1, chosen)).view(rows, -1)
    ids, values = ids.view(rows, -1), values.view(rows, -1)
    values_score = scores(values, numbers.temperature)
    sums = values_score - log_(exponentials)
    gone = _gone(values, ids, values_score, survivors, numbers)
    if gone is not None:
        sums = sums.masked_fill_(gone, -torch.inf)
    largest = sums.amax(dim=1, keepdim=True)
    tokens = torch.where(sums == largest, ids, NO_ID).amin(dim=1, keepdim=True)
    if num <= num_blocks:
        return LargestSums(tokens, torch.ones_like(largest, dtype=torch.bool))
    rest = top.values[:, num_blocks:]
    # Where no other block has any chance, nothing times anything infinite is compared.
    is_above = largest > rest + rest.abs().add_(64.0).mul_(SLACK).clamp_(max=LARGEST)
    return LargestSums(tokens, is_above & (largest > -torch.inf))


def _hopeless_blocks(maxima: torch.Tensor, best: torch.Tensor, survivors: Survivors, numbers: RowNumbers) -> torch.Tensor | None:
    """[rows, blocks] bool: blocks of whose ids the filters leave none for certain; None if they may leave some of every block.

    Args:
        best: [rows, blocks] float64, the largest score of each block.
    """
    hopeless: torch.Tensor | None = None
    if survivors.last_key is not None:
        # Of the ids of equal logits, some may have been left.
        hopeless = maxima < blocks.ranked_logits(survivors.last_key)
    if survivors.min_logit is not None:
        below = maxima < survivors.min_logit
        hopeless = below if hopeless is None else hopeless.logical_or_(below)
    if numbers.needs.min_p:
        # A little below min_p: what is near is looked at id by id.
        below = exp_(best - survivors.best_score) < numbers.min_p * NEAR
        hopeless = below if hopeless is None else hopeless.logical_or_(below)
    return hopeless


def _gone(
    values: torch.Tensor, ids: torch.Tensor, values_score: torch.Tensor, survivors: Survivors, numbers: RowNumbers
) -> torch.Tensor | None:
    """[rows, n] bool: ids that the filters do not leave; None if they leave all."""
    gone: torch.Tensor | None = None
    if survivors.last_key is not None:
        keys = blocks.rank_keys(values, ids)
        gone = keys > survivors.last_key
        if survivors.first_key is not None:
            gone |= keys < survivors.first_key
        if survivors.mean is not None:
            gone |= ~is_typical(values_score - survivors.top_score, keys, survivors)
    if survivors.min_logit is not None:
        below = values < survivors.min_logit
        gone = below if gone is None else gone.logical_or_(below)
    if numbers.needs.min_p:
        below = exp_(values_score - survivors.best_score) < numbers.min_p
        gone = below if gone is None else gone.logical_or_(below)
    return gone
