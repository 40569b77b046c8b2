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


class TextRefused(EmbeddingFailed):
    """A text, and not the embedder, is at fault: other texts may have vectors."""


class EmbedderRefused(Exception):
    """No embedder can be had from what is given: files or settings; the message names which, and what is wrong with it."""


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
            One per text; None for a text that the model would not see whole: it is empty, longer than the window (it is never truncated),
            or has words that the model knows as "unknown" alone.

        Raises:
            EmbeddingFailed: there is none to be had.
        """

    async def close(self) -> None:
        """Lets go of threads and connections."""
