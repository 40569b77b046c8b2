"""The fields by which OpenAI's, vLLM's and transformers' clients ask for a search."""

from __future__ import annotations

from gateway.flow.search.kinds import Beams, BestOf, Contrast, EarlyStopping, Search
from triserve.rpc.errors import InvalidRequest


def early_stopping_of(value: object) -> EarlyStopping:
    """The field as it is, or a refusal that names its values."""
    if value is True or value is False or value == "never":
        return value
    raise ValueError('must be true, false or "never"')


def best_of(n: int | None, count: int | None) -> BestOf | None:
    """The best of several answers; None = all that are made are returned."""
    return None if count is None or count == (1 if n is None else n) else BestOf(width=count)


def beams_of(
    n: int | None, count: int | None, wanted: bool | None, *, length_penalty: float | None, early_stopping: EarlyStopping | None
) -> Beams | None:
    """A beam search; None = there is none.

    Args:
        n: answers to be returned; None = 1.
        count: beams; None = as many.
        wanted: whether it is asked for.
        length_penalty: None = 1.
        early_stopping: None = False.

    Raises:
        InvalidRequest: one of the last two is set, and no beam search is asked for.
    """
    if wanted:
        width, field = (1 if n is None else n, "n") if count is None else (count, "best_of")
        penalty = 1.0 if length_penalty is None else length_penalty
        return Beams(width=width, field=field, length_penalty=penalty, early_stopping=early_stopping or False)
    if length_penalty not in (None, 1):
        raise InvalidRequest("length_penalty is set, use_beam_search must be true with it", field="length_penalty")
    if early_stopping:
        raise InvalidRequest("early_stopping is set, use_beam_search must be true with it", field="early_stopping")
    return None


def contrast_of(alpha: float | None, top_k: int | None, *, others: Search | None) -> Contrast | None:
    """A contrastive search; None = there is none.

    Args:
        alpha: None and 0 = none.
        top_k: candidates; None = not said.
        others: the search that other fields ask for.

    Raises:
        InvalidRequest: another search is asked for too, or not how many candidates there are.
    """
    if not alpha:
        return None
    if others is not None:
        name = "best_of" if isinstance(others, BestOf) else "use_beam_search"
        raise InvalidRequest(f"{name} is not supported beside penalty_alpha", field=name)
    if top_k is None:
        raise InvalidRequest("penalty_alpha is set, top_k must be too", field="top_k")
    return Contrast(alpha=alpha, width=top_k)
