"""Graphs that draw: each step computes and draws what it is asked for, whatever the device holds of steps before, and is sent no more than it lacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from compute_svc.drawing import DirectDraws
from compute_svc.engine.steps.decode_graphs import DecodeRows, Recorded
from compute_svc.engine.steps.drawing_graphs import DrawingGraphs, RowDraws
from compute_svc.kernels.draw import reference
from compute_svc.layers.forward_batch import NO_SLOT, DecodeColumns
from tests.fakes.eager_graphs import EagerRecorder, draw_rows

CPU = torch.device("cpu")
WIDTH, PAGE, MAX_PAGES, MAX_ROWS = 17, 4, 6, 5


class _Decode:
    """Logits of a hash of the columns, as they are when it is called; fails where it is told to."""

    def __init__(self) -> None:
        self.seen: DecodeColumns | None = None
        self.fails = False

    def __call__(self, columns: DecodeColumns) -> torch.Tensor:
        if self.fails:
            raise RuntimeError("the device is lost")
        self.seen = DecodeColumns(*(one.clone() for one in columns))
        seeds = columns.token_ids * 7 + columns.positions * 3 + columns.slots + columns.kv_lengths * 5
        return torch.sin(seeds[:, None] * 1.7 + torch.arange(WIDTH)).to(torch.float32) * 4


class _Asked(NamedTuple):
    rows: DecodeRows
    draws: RowDraws


def _graphs(decode: Callable[[DecodeColumns], torch.Tensor], recorder: Any) -> DrawingGraphs:
    return DrawingGraphs(
        decode, max_requests=MAX_ROWS, max_pages=MAX_PAGES, device=CPU, recorder=recorder, page_size_tokens=PAGE, draw_into=draw_rows
    )


def _asked(random: np.random.Generator, count: int) -> _Asked:
    lengths = random.integers(1, PAGE * (MAX_PAGES - 2), count)
    table = random.permutation(100)[: count * MAX_PAGES].reshape(count, MAX_PAGES)
    temperatures = random.choice([0.0, 0.7, 1.5], count)
    direct = DirectDraws(random.integers(-(2**63), 2**63 - 1, count), temperatures, random.choice([0.0, 0.2], count))
    # Tokens may have been dropped, so that a position is no place in the table.
    return _Asked(_rows(lengths + 3, lengths, table), RowDraws(direct, random.integers(0, 50, count)))


def _rows(positions: np.ndarray, lengths: np.ndarray, table: np.ndarray) -> DecodeRows:
    places = lengths - 1
    slots = table[np.arange(len(lengths)), places // PAGE] * PAGE + places % PAGE
    return DecodeRows(positions, slots, lengths, table[:, : -(-int(lengths.max()) // PAGE)])


def _next(asked: _Asked, table: np.ndarray, kept: np.ndarray) -> _Asked:
    """The step behind one, of some of its rows."""
    rows, draws = asked
    one = _rows(rows.positions[kept] + 1, rows.kv_lengths[kept] + 1, table[kept])
    return _Asked(one, RowDraws(draws.direct.some(kept), draws.positions[kept] + 1))


def _check(decode: _Decode, asked: _Asked, tokens: np.ndarray, found: np.ndarray, logits: torch.Tensor) -> None:
    """That a step was of what was asked for, and drew what the reference draws."""
    seen, (rows, draws), count = decode.seen, asked, len(tokens)
    assert seen is not None
    assert seen.token_ids[:count].tolist() == tokens.tolist()
    assert seen.positions[:count].tolist() == rows.positions.tolist()
    assert seen.slots[:count].tolist() == rows.slots.tolist() and set(seen.slots[count:].tolist()) <= {NO_SLOT}
    assert seen.kv_lengths[:count].tolist() == rows.kv_lengths.tolist() and not seen.kv_lengths[count:].any()
    assert (seen.page_table[:count, : rows.page_table.shape[1]].numpy() == rows.page_table).all()
    direct = draws.direct
    assert direct.min_ps is not None
    expected = [
        reference.draw(values, int(seed), int(position), temperature, min_p)
        for values, seed, position, temperature, min_p in zip(
            logits.numpy(), direct.seeds.view(np.uint64), draws.positions, direct.temperatures, direct.min_ps, strict=True
        )
    ]
    assert found[0].tolist() == expected and not found[1].any()


def test_each_step_is_of_what_is_asked_for_whatever_came_before() -> None:
    random, decode = np.random.default_rng(0), _Decode()
    graphs = _graphs(decode, EagerRecorder())
    asked, table, found = None, np.empty(0), torch.empty(0)
    for turn in range(300):
        kind = random.integers(0, 8)
        if asked is None or kind == 0:
            count = int(random.integers(1, MAX_ROWS + 1))
            asked = _asked(random, count)
            table = np.pad(asked.rows.page_table, ((0, 0), (0, MAX_PAGES)))
            table[:, asked.rows.page_table.shape[1] :] = random.integers(0, 100, (count, MAX_PAGES))
            tokens: Any = random.integers(0, WIDTH, count)
            given, chosen = tokens, None
        else:
            kept = np.arange(len(asked.rows.positions))
            if kind == 1 and len(kept) > 1:
                kept = np.sort(random.permutation(kept)[:-1])
            asked, table = _next(asked, table, kept), table[kept]
            given, chosen = found[0], None if len(kept) == found.shape[1] else kept
            tokens = found[0].numpy()[kept]
            if kind == 2:
                given, chosen = found[0].clone(), None if chosen is None else chosen
        if kind == 3:
            decode.fails = True
            try:
                graphs.step(asked.rows, given, chosen, asked.draws)
            except RuntimeError:
                asked, decode.fails = None, False
                continue
            raise AssertionError("the step fails")
        # What is computed without a draw in between is sent anew, too.
        tokens = tokens.copy()
        logits, found = graphs.step(asked.rows, given, chosen, asked.draws)
        _check(decode, asked, tokens, found.numpy(), logits)
        if turn % 11 == 0:
            one = _asked(random, 2)
            assert graphs.run(one.rows, np.array([1, 2])).shape == (2, WIDTH)
            assert decode.seen is not None and decode.seen.token_ids[:2].tolist() == [1, 2]
            asked = None
        elif int(asked.rows.kv_lengths.max()) >= PAGE * MAX_PAGES:
            asked = None


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's modes have no types
    """Counts what is done with tensors but for looking at parts of them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        if name not in ("view", "slice", "select", "alias", "unsqueeze", "detach"):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


class _NoReplays:
    """Implements `Recorder`: a replay does nothing that is counted."""

    def record(self, compute: Callable[[], torch.Tensor]) -> Recorded:
        """See `Recorder`."""
        return Recorded(lambda: None, compute())


def test_a_run_of_the_same_requests_is_sent_new_pages_and_nothing_else() -> None:
    graphs = _graphs(_Decode(), _NoReplays())
    table = np.arange(12).reshape(2, MAX_PAGES)
    direct = DirectDraws(np.array([1, 2]), np.array([1.0, 0.0]), None)
    lengths, found, done = np.array([1, 2]), None, []
    for step in range(6):
        with _Operations() as operations:
            tokens = np.array([3, 4]) if found is None else found[0]
            found = graphs.step(_rows(lengths + step - 1, lengths + step, table), tokens, None, RowDraws(direct, lengths + step)).found
        done.append(operations.names)
    assert "copy_" in done[0]
    # The second row begins a page with its fifth token: the table of a step is as wide as the longest row needs.
    assert [len(names) > 0 for names in done] == [True, False, False, True, False, False]
    assert done[3].count("index_copy_") == 1 and "copy_" not in done[3]
