"""One measurement of a kernel: checked against a reference, timed on rotating inputs, told as a share of what the device allows."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch

from tests.bench.gpu.ceilings import Ceilings
from tests.bench.gpu.timing import Call, measure

Key: TypeAlias = tuple[str, str, str, str]


class Prepared(NamedTuple):
    """A case, ready to run.

    Attributes:
        calls: The same on inputs that lie elsewhere.
        result: What the first call computes, after it has run.
        reference: The same in float32 or better.
        note: What is to be known of it.
    """

    calls: Sequence[Call]
    result: Callable[[], torch.Tensor]
    reference: Callable[[], torch.Tensor]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Case:
    """What to measure.

    Attributes:
        part: Of the report.
        name: A row of the report's table, "decode bf16".
        load: A column, "64x1024".
        who: "ours", or whose kernel it is.
        num_bytes: Read and written at least.
        operations: Of the arithmetic.
        kind: Whose rate counts: "bf16", "int8" or "fp8".
        tolerance: Largest error, ||result - reference|| / ||reference||.
        prepare: Makes the inputs.
    """

    part: str
    name: str
    load: str
    who: str
    num_bytes: float
    prepare: Callable[[], Prepared]
    operations: float = 0.0
    kind: str = "bf16"
    tolerance: float = 1e-2


class Fatal(Exception):
    """A kernel has broken the device's context: nothing more runs in this process."""


@dataclass
class Rows:
    """What was found, row by row; a case that fails is a row with its error.

    Attributes:
        device: Where.
        ceilings: What to compare with; None = check without timing.
        skipped: Cases that are not begun, by `key_of`: they would break the device's context.
        output: Written before and after every case, for whoever waits for a process that may not end; None = nowhere.
        found: The rows.
    """

    device: torch.device
    ceilings: Ceilings | None = None
    skipped: frozenset[Key] = frozenset()
    output: Path | None = None
    found: list[dict[str, Any]] = field(default_factory=list)

    def add(self, cases: Iterable[Case]) -> None:
        """Runs cases in order.

        Raises:
            Fatal: One has broken the device's context; its row is there.
        """
        for case in cases:
            row: dict[str, Any] = {"part": case.part, "name": case.name, "load": case.load, "who": case.who, "failed": "did not end"}
            self.found.append(row)
            if key_of(row) in self.skipped:
                row["failed"] = "skipped: it broke the device's context"
                continue
            self._write()
            try:
                found = self._run(case)
                del row["failed"]
                row |= found
            except Exception as error:  # noqa: BLE001 - the rest goes on, and the row says what happened
                row["failed"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
                row["where"] = traceback.format_exc(limit=-3).splitlines()[-6:]
                self._require_sound()
            self._write()

    def _require_sound(self) -> None:
        if self.device.type != "cuda":
            return
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            self.found[-1]["fatal"] = True
            self._write()
            raise Fatal(str(error)) from error

    def _write(self) -> None:
        if self.output is not None:
            self.output.write_text(json.dumps(self.found) + "\n")

    def _run(self, case: Case) -> dict[str, Any]:
        ready = case.prepare()
        ready.calls[0]()
        row: dict[str, Any] = {"error": float(f"{relative_error(ready.result(), ready.reference()):.3g}")}
        if not row["error"] <= case.tolerance:
            row["failed"] = f"off by {row['error']}, the limit is {case.tolerance}"
        if ready.note:
            row["note"] = ready.note
        if self.ceilings is None:
            return row
        for call in ready.calls[1:]:
            call()
        timed = measure(ready.calls, self.device)
        limit = self.ceilings.limit_s(case.num_bytes, case.operations, case.kind)
        return {
            **row,
            "us": _rounded(1e6 * timed.seconds),
            "percent_of_ceiling": round(100 * limit / timed.seconds, 1),
            "gb_per_s": _rounded(case.num_bytes / timed.seconds / 1e9),
            **({"tflop_per_s": _rounded(case.operations / timed.seconds / 1e12)} if case.operations else {}),
            "bytes": int(case.num_bytes),
            "spread": round(timed.spread, 2),
            "timed_by": timed.how,
        }


def key_of(row: dict[str, Any]) -> Key:
    """What tells a row from others."""
    return row["part"], row["name"], row["load"], row["who"]


def relative_error(result: torch.Tensor, reference: torch.Tensor) -> float:
    """||result - reference|| / ||reference||; not a number where a result is none."""
    result, reference = result.double(), reference.double()
    return float((result - reference).norm() / reference.norm().clamp_min(1e-30))


def _rounded(number: float) -> float:
    return float(f"{number:.4g}")


def table(found: Sequence[dict[str, Any]]) -> list[str]:
    """Lines for a terminal: name and who, then for each load microseconds and the percentage of the ceiling."""
    lines: list[str] = []
    for part in dict.fromkeys(row["part"] for row in found):
        rows = [row for row in found if row["part"] == part]
        loads = list(dict.fromkeys(row["load"] for row in rows))
        lines.append(f"{part:<25}" + "".join(f"{load:>13}" for load in loads))
        for name, who in dict.fromkeys((row["name"], row["who"]) for row in rows):
            cells = {row["load"]: _cell(row) for row in rows if (row["name"], row["who"]) == (name, who)}
            lines.append(f"{name + ' ' + who:<25}" + "".join(f"{cells.get(load, '-'):>13}" for load in loads))
    return lines


def _cell(row: dict[str, Any]) -> str:
    if "us" not in row:
        return "FAILED" if "failed" in row else "ok"
    micros = row["us"]
    return f"{micros:.{0 if micros >= 100 else 1}f} {row['percent_of_ceiling']:.0f}%" + ("!" if "failed" in row else "")
