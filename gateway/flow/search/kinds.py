"""How answers may be looked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

EarlyStopping: TypeAlias = bool | Literal["never"]


@dataclass(frozen=True, kw_only=True)
class BestOf:
    """So many answers are drawn to each prompt; those are returned whose tokens are likeliest on average."""

    width: int
    # The client's field that says so.
    field: str = "best_of"


@dataclass(frozen=True, kw_only=True)
class Beams:
    """Beam search: at each length the likeliest sequences are kept."""

    # Sequences kept.
    width: int
    # The client's field that says so.
    field: str = "n"
    # Sums of log-probabilities are divided by the length to this power.
    length_penalty: float = 1.0
    # When there are as many answers as beams: True = it ends; False = it ends when the likeliest beam scores less at its length than the worst of them;
    # "never" = when it would at any length up to the longest.
    early_stopping: EarlyStopping = False


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Contrastive search (Su et al., 2022): the next token is likely, and unlike all before it."""

    # How much unlike counts; the rest is how likely.
    alpha: float
    # Candidates that are compared.
    width: int
    # The client's field that says so.
    field: str = "top_k"


Search: TypeAlias = BestOf | Beams | Contrast
