"""What every embedder is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

# A gateway without a semantic cache starts without numpy.
if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Vector: TypeAlias = "npt.NDArray[np.float32]"


class EmbeddingFailed(Exception):
    """No vector can be had now: the model or the endpoint fails, or what it gives is no use as a vector."""


class Embedder(Protocol):
    """Turns texts into unit vectors, off the event loop."""

    @property
    def id(self) -> str:
        """Names model, revision and number format; vectors of embedders with different ids are never compared."""

    @property
    def dimensions(self) -> int:
        """Length of a vector."""

    @property
    def is_weak(self) -> bool:
        """Whether it compares spelling and not meaning."""

    async def embed(self, texts: Sequence[str]) -> list[Vector | None]:
        """Unit vectors, [dimensions] each.

        Returns:
            One per text; None for a text that is empty or longer than the model's window: it is never truncated.

        Raises:
            EmbeddingFailed: there is none to be had.
        """

    async def close(self) -> None:
        """Lets go of threads and connections."""
