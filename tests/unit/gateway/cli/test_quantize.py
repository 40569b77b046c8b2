from __future__ import annotations

import pytest

from gateway.cli.quantize import progress_bar


def test_a_terminal_shows_a_bar_and_anything_else_a_line_every_ten_percent(capsys: pytest.CaptureFixture[str]) -> None:
    for is_terminal in (True, False):
        with progress_bar(is_terminal) as shown:
            for done in range(0, 1001, 25):
                shown(done * 1_000_000, 1_000_000_000)
        said = capsys.readouterr().err
        if is_terminal:
            assert "100%|" in said
            assert "\n" not in said.strip()
        else:
            assert said.splitlines() == [f"quantised {percent} % of 1000.0 MB" for percent in range(10, 101, 10)]
