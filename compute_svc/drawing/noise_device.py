"""The noise of the draw in torch, without a wait: see noise.py, which says what it is, and noise_cpu.py, which makes the same."""

from __future__ import annotations

import torch

from compute_svc.drawing.blocks import LANES

_LOW = 0xFFFFFFFF
# As numbers with a sign: what is added to the halves of the key, in the upper halves of 64 bits.
_WEYL = ((0x9E3779B9 << 32) - (1 << 64), (0xBB67AE85 << 32) - (1 << 64))


def smallest(keys: torch.Tensor, positions: torch.Tensor, num_blocks: int) -> torch.Tensor:
    """[rows, blocks]: the smallest exponential of each block."""
    firsts = torch.arange(num_blocks // 4, device=positions.device)[None]
    return _exponentials(words(keys, positions, firsts, torch.zeros_like(firsts))).mul_(1 / LANES).flatten(1)


def of_blocks(keys: torch.Tensor, positions: torch.Tensor, blocks: torch.Tensor, least: torch.Tensor) -> torch.Tensor:
    """[rows, n, 16]: the exponentials of all ids of some blocks.

    Args:
        blocks: [rows, n].
        least: [rows, n], their smallest.
    """
    rows, num = blocks.shape
    firsts = torch.cat((blocks >> 2, blocks, blocks, blocks, blocks), dim=1)
    thirds = torch.arange(1, 6, device=blocks.device).repeat_interleave(num, output_size=5 * num)[None]
    drawn = words(keys, positions, firsts, thirds)
    places = drawn[:, :num].gather(2, (blocks & 3)[:, :, None])
    lanes = torch.arange(LANES, device=blocks.device)
    beyond = _exponentials(drawn[:, num:].reshape(rows, 4, num, 4).transpose(1, 2).reshape(rows, num, LANES))
    return beyond.masked_fill_(lanes == (places >> 28), 0.0).add_(least[:, :, None])


def words(keys: torch.Tensor, positions: torch.Tensor, firsts: torch.Tensor, thirds: torch.Tensor) -> torch.Tensor:
    """The words of Philox4x32-10 for the counters (first, position, third, 0), as noise_cpu.py makes them.

    Args:
        keys: [2, rows, 1] int64, the halves of the seeds, each in the upper half.
        positions: [rows, 1] int64.
        firsts: [rows or 1, n] int64.
        thirds: [1, n] int64.

    Returns:
        [rows, n, 4] int64.
    """
    first, second = (firsts << 32) | positions, (thirds << 32).expand(positions.shape[0], -1)
    key_first, key_second = keys.unbind(0)
    # Lists of Python's would be copied from memory that is not pinned, so scalars it is.
    for _ in range(10):
        from_first = ((first >> 32) & _LOW) * 0xD2511F53
        from_second = ((second >> 32) & _LOW) * 0xCD9E8D57
        first, second = (first << 32) ^ from_second ^ key_first, (second << 32) ^ from_first ^ key_second
        key_first, key_second = key_first + _WEYL[0], key_second + _WEYL[1]
    return torch.stack(((first >> 32) & _LOW, first & _LOW, (second >> 32) & _LOW, second & _LOW), dim=2)


def _exponentials(words: torch.Tensor) -> torch.Tensor:
    """-log((x + 0.5) / 2^32) in float64."""
    return words.to(torch.float64).add_(0.5).mul_(1 / 2.0**32).log_().neg_()
