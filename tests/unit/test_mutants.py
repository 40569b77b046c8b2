"""What `make mutants` changes is what runs, and nothing of what runs is left out."""

from __future__ import annotations

from typing import Any

import pytest

# cosmic-ray is an extra of its own.
mutants: Any = pytest.importorskip("tests.mutants")

SOURCE = """\
class Port(Protocol):
    def choose(self, by: bool = True) -> None: ...

class Thing(Port):
    size: int | None = 1

def f(a: int | str = 2, *, b: int | None = 3, **more: int | None) -> int | None:
    assert a > 4 and b
    return g(*a * 5, **b, c=[*a], d={**b, 6: a ** b}, e=zip(a, b, strict=True), h=zip(a, strict=False))

def k(*rest: int | None, c: int = 7) -> None:
    pass

def m(*, d: int = 8) -> None:
    pass
"""


def test_what_nobody_runs_and_what_is_no_operator_is_left_out_and_all_else_is_not() -> None:
    places = list(mutants._left_out(SOURCE))
    kept = ["".join(_kept(line, number, places)) for number, line in enumerate(SOURCE.splitlines(), start=1)]
    assert [line.replace(" ", "") for line in kept if line.strip()] == [
        "classThing(Port):",
        "size:=1",
        "deff(a:=2b:=3,**more:)->:",
        "returng(a*5,b,c=[a],d={b,6:a**b},e=zip(a,b,strict=),h=zip(a,strict=False))",
        "defk(*rest:,c:=7)->:",
        "pass",
        "d:=8)->:",
        "pass",
    ]


def _kept(line: str, number: int, places: list[tuple[Any, Any]]) -> list[str]:
    return [letter for column, letter in enumerate(line) if not any(first <= (number, column) < last for first, last in places)]
