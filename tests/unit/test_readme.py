"""The README says what the code does."""

from __future__ import annotations

import re

from tests.readme_settings import README, with_table


def test_the_table_of_settings_is_current() -> None:
    text = README.read_text()
    assert with_table(text) == text, "run python tests/readme_settings.py"


def test_every_link_of_the_readme_leads_to_a_file() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README.read_text())
    assert links
    for link in links:
        assert link.startswith("http") or (README.parent / link).exists(), link
