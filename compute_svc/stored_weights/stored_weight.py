"""A matrix as it is stored: what may be done with it before a backend multiplies by it."""

from __future__ import annotations

import abc
from collections.abc import Sequence

import torch


class StoredWeight(abc.ABC):
    """The weight of a linear map from K inputs to N outputs.

    Outputs may be cut, put in another order and joined without a change of any number, in every format; inputs may be put in another order, and zeros
    between them, and cut where groups of them end. `dense` is what the numbers are: whatever computes with a weight computes with these, or says how it comes near them.
    """

    @property
    @abc.abstractmethod
    def out_features(self) -> int:
        """N."""

    @property
    @abc.abstractmethod
    def in_features(self) -> int:
        """K."""

    @property
    @abc.abstractmethod
    def format_name(self) -> str:
        """For logs, "bfloat16" or "int4 in groups of 128"."""

    @property
    @abc.abstractmethod
    def num_bytes(self) -> int:
        """Of all its tensors."""

    @property
    @abc.abstractmethod
    def device(self) -> torch.device:
        """Where its tensors are."""

    @abc.abstractmethod
    def is_finite(self) -> bool:
        """Whether all its numbers are finite, in float32."""

    @abc.abstractmethod
    def to(self, device: torch.device) -> StoredWeight:
        """The same on a device; no copy where it is there already."""

    @abc.abstractmethod
    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """[N, K], its numbers, computed in float32 and rounded once."""

    @abc.abstractmethod
    def rows(self, order: torch.Tensor) -> StoredWeight:
        """Some of its outputs.

        Args:
            order: [M] int64 on the CPU, which output comes where; -1 = zeros.
        """

    @abc.abstractmethod
    def columns(self, order: torch.Tensor) -> StoredWeight:
        """All of its inputs in another order.

        Args:
            order: [L] int64 on the CPU, which input comes where, each of them once; -1 = an input that counts for nothing.
        """

    @abc.abstractmethod
    def some_inputs(self, start: int, stop: int) -> StoredWeight:
        """The inputs from `start` to `stop` alone: the product with the others is somebody else's.

        Raises:
            ValueError: They cannot be cut there without a change of numbers; says why.
        """

    @abc.abstractmethod
    def joined(self, others: Sequence[StoredWeight]) -> StoredWeight:
        """Its outputs and behind them those of others with as many inputs, in this format if all have it."""


def join(weights: Sequence[StoredWeight]) -> StoredWeight:
    """Outputs of several weights one behind the other."""
    first, *others = weights
    return first.joined(others) if others else first
