"""Takes the rows of a step by what they need, looks as far as is enough nearly always, reads once, and looks again where it was not enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from compute_svc.drawing import blocks
from compute_svc.drawing.changes import RowToDraw, apply_changes
from compute_svc.drawing.gumbel_max import FIRST_BLOCKS, FIRST_HEAD_BLOCKS, UNRANKED, can_ask, choose
from compute_svc.drawing.history import History
from compute_svc.drawing.logprobs import logprobs
from compute_svc.drawing.noise import xtc_uniforms
from compute_svc.drawing.request_draw import RequestDraw
from compute_svc.drawing.results import Drawn, RowLogprobs, RowStatus
from compute_svc.drawing.rows import Needs, RowNumbers
from compute_svc.kernels.draw import has_kernel, likeliest
from compute_svc.kernels.host.host_copy import PendingRead, rows_of, to_device

# Rows of so many logits in all go through together, on a CPU for its cache, elsewhere for the memory of temporaries.
_CPU_CELLS = 1 << 20
_DEVICE_CELLS = 1 << 24
# So many times more blocks are looked at where it was not enough.
_GROWTH = 8
_IS_DRAWN = 1
_IS_RANKED = 2
_DECIDED = _IS_DRAWN | _IS_RANKED


class _Effort(NamedTuple):
    """How closely to look at a row.

    Attributes:
        num_blocks: Of how many blocks to compute all noise.
        head_blocks: How many blocks the head of its ranking is taken from, or that it is not ranked.
        whole_logprobs: Whether to rank the whole row for its log-probabilities.
    """

    num_blocks: int = FIRST_BLOCKS
    head_blocks: int = FIRST_HEAD_BLOCKS
    whole_logprobs: bool = False


class _Way(NamedTuple):
    """What rows that go through together have in common."""

    changes: bool
    needs: Needs | None  # None = greedy
    num_blocks: int
    head_blocks: int


class _Found(NamedTuple):
    """What one look found of some rows: [1, rows] each, but for what is said of log-probabilities.

    Attributes:
        tokens: int64.
        raw_best: float32, the largest logit that the model gave.
        best: float32, the largest after changes.
        flags: int64, `_IS_DRAWN` and `_IS_RANKED`.
        logprobs: [1, wanting rows * (1 + named)] float32, of the drawn token and of named ids, of the rows that want them and in their order, as
            the following.
        top_ids: [1, wanting rows * k] int64.
        top_logprobs: [1, wanting rows * k] float32.
        is_reported: int64, 0 where these ids may not be the likeliest.
    """

    tokens: torch.Tensor
    raw_best: torch.Tensor
    best: torch.Tensor
    flags: torch.Tensor
    logprobs: torch.Tensor
    top_ids: torch.Tensor
    top_logprobs: torch.Tensor
    is_reported: torch.Tensor


class SameDraws:
    """What stays the same of some requests' draws from step to step.

    Args:
        draws: Of the requests, in the order of their rows.

    Attributes:
        draws: The same.
        is_bare: Whether nothing but the largest logit is wanted of any.
        is_plain: Whether all are drawn with noise from the logits as the model gives them, behind the same kinds of filters, and nothing else
            is wanted of them.
        bare_from: From this position on none bans its stop ids.
    """

    def __init__(self, draws: Sequence[RequestDraw]) -> None:
        self.draws = draws
        self.is_bare = all(draw.is_bare for draw in draws)
        self.bare_from = max((draw.bare_from for draw in draws), default=0)
        kinds = {draw.needs(xtc=False) for draw in draws if draw.is_plain}
        self.is_plain = len(kinds) == 1 and all(draw.is_plain for draw in draws)
        if self.is_plain:
            (self.needs,) = kinds
            self.seeds = np.array([draw.seed for draw in draws], dtype=np.uint64)
            self.settings = np.array([draw.settings for draw in draws]).T.copy()


class _Columns(NamedTuple):
    """The same on the host, flat."""

    tokens: npt.NDArray[np.int64]
    raw_best: npt.NDArray[np.float32]
    best: npt.NDArray[np.float32]
    flags: npt.NDArray[np.int64]
    logprobs: npt.NDArray[np.float32]
    top_ids: npt.NDArray[np.int64]
    top_logprobs: npt.NDArray[np.float32]
    is_reported: npt.NDArray[np.int64]


class _Wanting(NamedTuple):
    """Rows that want log-probabilities: `places` in the step, `indices` among the rows looked at, and of how many ids at most, likely and named."""

    places: list[int]
    indices: list[int]
    k: int
    num_named: int


def greedy(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The likeliest id of each row, the lowest among equals, and its logit.

    Args:
        logits: [rows, width] float32.

    Returns:
        [rows, 1] int64 and float32.
    """
    if logits.device.type == "cpu":
        # numpy's argmax is an order of magnitude faster than torch's, one row after the other.
        values = logits.numpy()
        tokens = values.argmax(axis=1)
        best = values[np.arange(len(values)), tokens]
        return torch.from_numpy(tokens[:, None]), torch.from_numpy(best[:, None])
    if has_kernel(logits.device.type):
        return likeliest(logits)
    ids = logits.argmax(dim=1, keepdim=True)
    return ids, logits.gather(1, ids)


def draw_step(logits: torch.Tensor, rows: Sequence[RowToDraw], history: History) -> Drawn:
    """Draws a token of each row.

    Args:
        logits: [rows, width] float32; stays as it is.
        rows: At least one.

    Effects: history counts the tokens of rows with penalties.
    """
    step = Step(logits, rows, history)
    while step.open:
        step.take(step.look())
    return step.drawn


def draw_plain(
    logits: torch.Tensor, same: SameDraws, positions: npt.NDArray[np.int64], on_tokens: Callable[[torch.Tensor], None] | None = None
) -> tuple[npt.NDArray[np.int64], list[int]]:
    """Draws rows that are plain, with one look.

    Args:
        logits: [rows, width] float32; stays as it is.
        positions: [rows].
        on_tokens: See `Drawer.draw`.

    Returns:
        [rows] int64, the tokens; and the places of rows that are broken or want a closer look.
    """
    parts = []
    head_blocks = _first_head(same.needs, logits.device)
    for first in range(0, len(logits), rows_at_once(logits)):
        some = slice(first, first + rows_at_once(logits))
        numbers = RowNumbers.send(same.seeds[some], positions[some], same.settings[:, some], same.needs, logits.device)
        choice = choose(logits[some], numbers, FIRST_BLOCKS, head_blocks)
        parts.append((choice.tokens, choice.best, (choice.is_drawn & choice.is_ranked).to(torch.int64)))
    joined = [_joined(one) for one in zip(*parts, strict=True)]
    read = PendingRead(*joined)
    if on_tokens is not None:
        on_tokens(joined[0][0])
    tokens, best, is_decided = read.take()
    return tokens[0], np.flatnonzero((is_decided[0] == 0) | ~np.isfinite(best[0])).tolist()


def _first_head(needs: Needs | None, device: torch.device) -> int:
    """How many blocks the head of a ranking is taken from first."""
    return UNRANKED if needs is not None and can_ask(needs, device) else FIRST_HEAD_BLOCKS


def rows_at_once(logits: torch.Tensor) -> int:
    """How many rows go through together."""
    cells = _CPU_CELLS if logits.device.type == "cpu" else _DEVICE_CELLS
    return max(1, cells // logits.shape[1])


class Step:
    """The rows of a step, some of which are still open.

    Attributes:
        open: Places of the rows that are not decided.
        drawn: What the others draw.
    """

    def __init__(self, logits: torch.Tensor, rows: Sequence[RowToDraw], history: History) -> None:
        num = len(rows)
        self._logits, self._rows, self._history = logits, rows, history
        self._num_blocks = blocks.count(logits.shape[1])
        self._drops = _dropping(rows)
        needs = [None if row.draw.greedy else row.draw.needs(xtc=place in self._drops) for place, row in enumerate(rows)]
        self._efforts = [_Effort(head_blocks=_first_head(one, logits.device)) for one in needs]
        self._order: list[int] = []
        self._wanting = _Wanting([], [], 0, 0)
        self.open = list(range(num))
        self.drawn = Drawn(np.zeros(num, dtype=np.int64), {}, {})

    def look(self) -> _Found:
        """Looks at the open rows, without waiting for the device."""
        self._order.clear()
        parts = []
        for way, places in self._ways().items():
            for some in self._pieces(places):
                parts.append(self._look_at(way, some))
                self._order += some
        tokens, raw_best, best, flags = (_joined(one) for one in zip(*parts, strict=True))
        return _Found(tokens, raw_best, best, flags, *self._report(tokens))

    def take(self, found: _Found) -> None:
        """Waits for what a look found.

        Effects: rows that are decided are no longer open; the others are looked at more closely next time.
        """
        on_host = PendingRead(*found).take()
        columns = _Columns(*(one[0] for one in on_host))
        wanting, flags = self._wanting, columns.flags.tolist()
        self.drawn.tokens[self._order] = columns.tokens
        is_finite, is_possible = np.isfinite(columns.raw_best).tolist(), (columns.best > -np.inf).tolist()
        undecided = []
        reports = dict(zip(wanting.places, range(len(wanting.places)), strict=True))
        for index, place in enumerate(self._order):
            report = reports.get(place)
            if not is_finite[index]:
                self.drawn.failed[place] = RowStatus.BROKEN
            elif not is_possible[index]:
                self.drawn.failed[place] = RowStatus.IMPOSSIBLE
            elif flags[index] == _DECIDED and report is None:
                continue
            elif self._look_closer(place, flags[index], is_reported=report is None or bool(columns.is_reported[report])):
                undecided.append(place)
            elif report is not None:
                self.drawn.logprobs[place] = self._row_logprobs(place, report, columns)
        self.open = sorted(undecided)

    def _ways(self) -> dict[_Way, list[int]]:
        ways: dict[_Way, list[int]] = {}
        for place in self.open:
            row, effort = self._rows[place], self._efforts[place]
            needs = None if row.draw.greedy else row.draw.needs(xtc=place in self._drops)
            if needs is not None and self._logits.device.type != "cpu":
                # There each operation costs the same for one row and for many: what needs no ranking is kept apart, no more.
                needs = Needs(rank=needs.rank)
            way = _Way(row.draw.changes_at(row.position), needs, effort.num_blocks, effort.head_blocks)
            ways.setdefault(way, []).append(place)
        return ways

    def _pieces(self, places: list[int]) -> Iterator[list[int]]:
        step = rows_at_once(self._logits)
        for start in range(0, len(places), step):
            yield places[start : start + step]

    def _look_at(self, way: _Way, places: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """[rows, 1] each: the first four fields of `_Found`."""
        logits, rows = self._copy(places, writable=way.changes), [self._rows[place] for place in places]
        raw_best = logits.amax(dim=1, keepdim=True) if way.changes else None
        if way.changes:
            apply_changes(logits, rows, self._history)
        if way.needs is None:
            tokens, best = greedy(logits)
            flags = torch.full_like(tokens, _DECIDED)
        else:
            choice = choose(logits, self._numbers(places, rows), way.num_blocks, way.head_blocks)
            tokens, best = choice.tokens, choice.best
            flags = choice.is_drawn * _IS_DRAWN + choice.is_ranked * _IS_RANKED
        return tokens, best if raw_best is None else raw_best, best, flags

    def _copy(self, places: list[int], *, writable: bool) -> torch.Tensor:
        """[len(places), width]: some rows of logits, the same memory where that is possible."""
        first, last = places[0], places[-1]
        if last - first + 1 == len(places):
            some = self._logits[first : last + 1]
            return some.clone() if writable else some
        return rows_of(self._logits, places)

    def _numbers(self, places: list[int], rows: Sequence[RowToDraw]) -> RowNumbers:
        drops = [place in self._drops for place in places]
        kinds = {row.draw.needs(xtc=drop) for row, drop in zip(rows, drops, strict=True)}
        needs = kinds.pop() if len(kinds) == 1 else Needs(*map(any, zip(*kinds, strict=True)))
        settings = np.array([row.draw.settings_with_xtc if drop else row.draw.settings for row, drop in zip(rows, drops, strict=True)])
        return RowNumbers.send(_seeds(rows), _positions(rows), settings.T, needs, self._logits.device)

    def _report(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The last four fields of `_Found`."""
        wanted = [(place, index) for index, place in enumerate(self._order) if self._rows[place].draw.top_logprobs is not None]
        if not wanted:
            self._wanting = _Wanting([], [], 0, 0)
            nothing, no_ids = tokens.new_empty((1, 0), dtype=torch.float32), tokens.new_empty((1, 0))
            return nothing, no_ids, nothing, no_ids
        # Those that need no closer look go first, so that pieces differ from each other and not inside.
        wanted.sort(key=lambda one: self._efforts[one[0]].whole_logprobs)
        places, indices = [place for place, _ in wanted], [index for _, index in wanted]
        k = min(max((self._rows[place].draw.top_logprobs or 0 for place in places), default=0), self._logits.shape[1])
        named = self._named(places)
        self._wanting = _Wanting(places, indices, k, named.shape[1])
        parts, done = [], 0
        for is_whole in (False, True):
            for some in self._pieces([place for place in places if self._efforts[place].whole_logprobs == is_whole]):
                drawn = rows_of(tokens.view(-1, 1), indices[done : done + len(some)])
                told = torch.cat((drawn, named[done : done + len(some)]), dim=1) if named.shape[1] else drawn
                parts.append(logprobs(self._copy(some, writable=False), told, k, whole_rows=is_whole))
                done += len(some)
        drawn, ids, values, decided = (_joined(one) for one in zip(*parts, strict=True))
        return drawn, ids, values, decided.to(torch.int64)

    def _named(self, places: list[int]) -> torch.Tensor:
        """[rows, most named ids of one] int64, filled up with 0."""
        named = [self._rows[place].draw.sampling.logprob_token_ids for place in places]
        ids = np.zeros((len(named), max(map(len, named))), dtype=np.int64)
        for row, some in zip(ids, named, strict=True):
            row[: len(some)] = some
        return torch.from_numpy(ids) if self._logits.device.type == "cpu" else to_device([ids], self._logits.device)[0]

    def _look_closer(self, place: int, flags: int, *, is_reported: bool) -> bool:
        """Whether a row must be looked at again; it then is, more closely."""
        effort = self._efforts[place]
        is_drawn, is_ranked = bool(flags & _IS_DRAWN), bool(flags & _IS_RANKED)
        self._efforts[place] = closer = _Effort(
            effort.num_blocks if is_drawn or not is_ranked else min(effort.num_blocks * _GROWTH, self._num_blocks),
            effort.head_blocks if is_ranked else min(max(effort.head_blocks * _GROWTH, FIRST_HEAD_BLOCKS), self._num_blocks),
            effort.whole_logprobs or not is_reported,
        )
        return closer != effort

    def _row_logprobs(self, place: int, report: int, columns: _Columns) -> RowLogprobs:
        k, draw = self._wanting.k, self._rows[place].draw
        assert draw.top_logprobs is not None, "only rows that want them are reported"
        of_row = slice(report * k, report * k + min(draw.top_logprobs, k))
        first = report * (1 + self._wanting.num_named)
        drawn, *named = columns.logprobs[first : first + 1 + len(draw.sampling.logprob_token_ids)].tolist()
        return RowLogprobs(drawn, columns.top_ids[of_row].astype(np.uint32), columns.top_logprobs[of_row], tuple(named))


def _joined(pieces: Sequence[torch.Tensor]) -> torch.Tensor:
    """[1, n]: rows of all pieces, one after the other."""
    return (pieces[0] if len(pieces) == 1 else torch.cat(list(pieces))).reshape(1, -1)


def _dropping(rows: Sequence[RowToDraw]) -> set[int]:
    """Places of the rows in which XTC acts."""
    places = [place for place, row in enumerate(rows) if row.draw.may_drop]
    if not places:
        return set()
    some = [rows[place] for place in places]
    uniforms = xtc_uniforms(_seeds(some), _positions(some)).tolist()
    return {place for place, row, uniform in zip(places, some, uniforms, strict=True) if uniform < row.draw.sampling.xtc_probability}


def _seeds(rows: Sequence[RowToDraw]) -> npt.NDArray[np.uint64]:
    return np.array([row.draw.seed for row in rows], dtype=np.uint64)


def _positions(rows: Sequence[RowToDraw]) -> npt.NDArray[np.int64]:
    return np.array([row.position for row in rows], dtype=np.int64)
