"""Runs checks over cases and lays out what they found."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.oracle.cases import Case
from tests.oracle.checks import CHECKS, CPU, Trial, checks_of

_FAIL = "FAIL"
# A check that a case's oracle cannot be asked for.
_NONE = "-"
_CELL_WIDTH = max(len(name) for name in CHECKS) + 2


@dataclass
class Line:
    """One case and what became of it.

    Attributes:
        case: Which.
        cells: By check.
        figures: By check, of those that did not fail.
        failures: By check, what was wrong.
    """

    case: Case
    cells: dict[str, str] = field(default_factory=dict)
    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def fail(self, check: str, error: Exception) -> None:
        """Notes that a check failed."""
        self.cells[check] = _FAIL
        self.failures[check] = f"{type(error).__name__}: {error}"

    def as_json(self) -> dict[str, Any]:
        """For a results file."""
        return {"case": self.case.name, "architecture": self.case.architecture, "figures": self.figures, "failures": self.failures}


def compare(case: Case, checks: Sequence[str], device: torch.device = CPU) -> Line:
    """Writes a case's checkpoint into a temporary folder and runs checks on it; a check that fails keeps no other from running."""
    possible = checks_of(case)
    line = Line(case, cells={check: _NONE for check in checks if check not in possible})
    asked = [check for check in checks if check in possible]
    with tempfile.TemporaryDirectory() as folder:
        try:
            trial = Trial(case, Path(folder), device)
        except Exception as error:  # noqa: BLE001 - a table shows every case, and whatever stops one is its failure
            for check in asked:
                line.fail(check, error)
            return line
        for check in asked:
            try:
                outcome = CHECKS[check](trial)
            except Exception as error:  # noqa: BLE001 - likewise
                line.fail(check, error)
            else:
                line.cells[check] = outcome.cell
                line.figures[check] = outcome.figures
    return line


def header(cases: Sequence[Case], checks: Sequence[str]) -> str:
    """The table's first line."""
    return _row("case", checks, _name_width(cases))


def layout(line: Line, cases: Sequence[Case], checks: Sequence[str]) -> str:
    """A case's line in the table of some cases."""
    return _row(line.case.name, [line.cells[check] for check in checks], _name_width(cases))


def _name_width(cases: Sequence[Case]) -> int:
    return max(len(case.name) for case in cases) + 2


def _row(name: str, cells: Sequence[str], name_width: int) -> str:
    return (name.ljust(name_width) + "".join(cell.ljust(_CELL_WIDTH) for cell in cells)).rstrip()
