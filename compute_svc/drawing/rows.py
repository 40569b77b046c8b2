"""What is known of the rows that are drawn together, as tensors with an entry per row, and what narrows down the ids of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from compute_svc.drawing.noise import Streams, key_words
from compute_svc.kernels.host.host_copy import to_device


class Settings(NamedTuple):
    """Numbers of a request that its draws depend on; what does not act is what changes nothing.

    Attributes:
        temperature: Above 0.
        top_k: More than there are ids = all.
        typical_p: 1 = all.
        top_p: 1 = all.
        min_p: 0 = all.
        top_n_sigma: Infinite = all.
        xtc_threshold: Infinite where XTC does not act at this position.
    """

    temperature: float
    top_k: float
    typical_p: float
    top_p: float
    min_p: float
    top_n_sigma: float
    xtc_threshold: float


class Needs(NamedTuple):
    """What at least one of the rows that are drawn together needs.

    Attributes:
        rank: A filter that counts or sums along the ranking.
        mass: Such a filter without top_k, which so sums over the whole row.
        typical: typical_p.
        min_p: min_p.
        sigma: top_n_sigma.
        xtc: XTC, at this position.
    """

    rank: bool = False
    mass: bool = False
    typical: bool = False
    min_p: bool = False
    sigma: bool = False
    xtc: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class RowNumbers:
    """The numbers of some rows on their device.

    Attributes:
        streams: Where the noise comes from.
        settings: [7, rows, 1] float64, the fields of `Settings`.
        needs: Of these rows.
    """

    streams: Streams
    settings: torch.Tensor
    needs: Needs

    @classmethod
    def send(
        cls,
        seeds: npt.NDArray[np.uint64],
        positions: npt.NDArray[np.int64],
        settings: npt.NDArray[np.float64],
        needs: Needs,
        device: torch.device,
    ) -> RowNumbers:
        """Brings them to a device, in one copy that nobody waits for.

        Args:
            seeds: [rows].
            positions: [rows].
            settings: [7, rows].
        """
        packed = np.empty((10, len(seeds), 1), dtype=np.int64)
        packed[:2, :, 0] = key_words(seeds)
        packed[2, :, 0] = positions
        packed.view(np.float64)[3:, :, 0] = settings
        words = torch.from_numpy(packed) if device.type == "cpu" else to_device([packed], device)[0]
        return cls(Streams(words[:2], words[2]), words[3:].view(torch.float64), needs)

    def of(self, start: int, end: int) -> RowNumbers:
        """Those of a range of rows."""
        return RowNumbers(self.streams.of(start, end), self.settings[:, start:end], self.needs)

    @property
    def temperature(self) -> torch.Tensor:
        """[rows, 1]; so are the following."""
        return self.settings[0]

    @property
    def top_k(self) -> torch.Tensor:
        return self.settings[1]

    @property
    def typical_p(self) -> torch.Tensor:
        return self.settings[2]

    @property
    def top_p(self) -> torch.Tensor:
        return self.settings[3]

    @property
    def min_p(self) -> torch.Tensor:
        return self.settings[4]

    @property
    def top_n_sigma(self) -> torch.Tensor:
        return self.settings[5]

    @property
    def xtc_threshold(self) -> torch.Tensor:
        return self.settings[6]


@dataclass(slots=True, eq=False)
class Survivors:
    """Which ids of each row the filters leave: all conditions hold. None = no row has such a condition.

    Attributes:
        top_score: [rows, 1] float64, the largest score of the row.
        best_score: The same of what is left when min_p comes, which compares with it.
        min_logit: [rows, 1] float64, what top_n_sigma asks of a logit.
        first_key: [rows, 1] int64, the lowest rank key: XTC dropped those before.
        last_key: [rows, 1] int64, the highest rank key.
        mean: [rows, 1] float64, the expected score, less the row's best.
        reach: [rows, 1] float64, how far a score may be from that.
        reach_key: [rows, 1] int64, the highest rank key of those that are exactly so far from it.
        decided: [rows, 1] bool, whether the filters could tell from what they looked at.
    """

    top_score: torch.Tensor
    best_score: torch.Tensor
    min_logit: torch.Tensor | None = None
    first_key: torch.Tensor | None = None
    last_key: torch.Tensor | None = None
    mean: torch.Tensor | None = None
    reach: torch.Tensor | None = None
    reach_key: torch.Tensor | None = None
    decided: torch.Tensor | None = None
