"""Arithmetic that numpy does several times faster than torch on a CPU, over memory that both see; elsewhere torch does it."""

from __future__ import annotations

import numpy as np
import torch

_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xCD9E8D57, 0xD2511F53)
# Added to the key's words each round; the words are the upper halves of 64 bits, where sums wrap by themselves.
_WEYL = (0x9E3779B9 << 32, 0xBB67AE85 << 32)
_ROUNDS = 10


def philox_rounds(state: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Ten rounds of Philox4x32.

    A state is two 64-bit integers, (c0 << 32 | c1) and (c2 << 32 | c3): a round multiplies the upper half of each, and the product is the
    new state of the other, but for what the lower half and the key add to its upper half.

    Args:
        state: [2, rows, counters] int64.
        key: [2, rows, 1] int64, the words of each row's key in the upper halves.

    Returns:
        [2, rows, counters] int64, the words that come out, as they went in. May be the memory of `state`.
    """
    if state.device.type == "cpu":
        return _philox_rounds_on_cpu(state, key)
    # Lists of Python's would be copied from memory that is not pinned, so scalars it is.
    first, second = state.unbind(0)
    key_first, key_second = key.unbind(0)
    for _ in range(_ROUNDS):
        from_first = (first >> 32).bitwise_and_(_LOW).mul_(_MULTIPLIERS[1])
        from_second = (second >> 32).bitwise_and_(_LOW).mul_(_MULTIPLIERS[0])
        first = (first << 32).bitwise_xor_(from_second).bitwise_xor_(key_first)
        second = (second << 32).bitwise_xor_(from_first).bitwise_xor_(key_second)
        key_first, key_second = key_first + (_WEYL[0] - (1 << 64)), key_second + (_WEYL[1] - (1 << 64))
    return torch.stack((first, second))


def _philox_rounds_on_cpu(state: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    words, keys = state.numpy().view(np.uint64), key.numpy().view(np.uint64)
    multipliers = np.array(_MULTIPLIERS, np.uint64).reshape(2, 1, 1)
    weyl = np.array(_WEYL, np.uint64).reshape(2, 1, 1)
    half = np.uint64(32)
    products = np.empty_like(words)
    for _ in range(_ROUNDS):
        np.right_shift(words[::-1], half, out=products)
        products *= multipliers
        words <<= half
        words ^= products
        words ^= keys
        keys = keys + weyl
    return state


def log_(values: torch.Tensor) -> torch.Tensor:
    """The natural logarithm, in place."""
    if values.device.type != "cpu":
        return values.log_()
    array = values.numpy()
    np.log(array, out=array)
    return values


def exp_(values: torch.Tensor) -> torch.Tensor:
    """The exponential, in place."""
    if values.device.type != "cpu":
        return values.exp_()
    array = values.numpy()
    np.exp(array, out=array)
    return values


def sort_rows(values: torch.Tensor) -> torch.Tensor:
    """[rows, n], each row rising."""
    if values.device.type != "cpu":
        return values.sort(dim=1).values
    return torch.from_numpy(np.sort(values.numpy(), axis=1))
