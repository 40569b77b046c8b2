"""Patterns of names mean what Python's expressions mean, in bounded time; what is more is refused."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from compute_svc.models.quantised.name_patterns import NamePattern
from compute_svc.models.weights import CheckpointError

_ATOMS = st.sampled_from(["a", "b", ".", r"\.", r"\d", "[ab]", "[^a]", "a*", ".*", "b+", "a?", "(a|b)", "(?:ab|)", "$", "1"])


@example("$a*", "", False)
@example("a$b?", "a", True)
@example("$b", "", False)
@settings(max_examples=60)
@given(st.lists(_ATOMS, max_size=6).map("".join), st.text("ab1.é", max_size=8), st.booleans())
def test_patterns_match_what_python_says(pattern: str, name: str, is_anchored: bool) -> None:
    whole = f"^{pattern}" if is_anchored else pattern
    assert NamePattern(whole, "ignore").matches(name) == (re.match(whole, name) is not None)


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        (".*lm_head", "lm_head", True),
        (r".*\.mlp\.gate$", "model.layers.3.mlp.gate", True),
        (r".*\.mlp\.gate$", "model.layers.3.mlp.gate_proj", False),
        (r"model\.layers\.[0-9]+\.self_attn\.(q|k|v)_proj$", "model.layers.10.self_attn.k_proj", True),
        ("vision_tower.*", "model.vision_tower.x", False),
        (r"^(model|lm)\..*", "lm.x", True),
    ],
)
def test_patterns_of_published_checkpoints_are_known(pattern: str, name: str, matches: bool) -> None:
    assert NamePattern(pattern, "ignore").matches(name) is matches


def test_no_pattern_takes_longer_than_its_length_times_the_names() -> None:
    assert not NamePattern(".*a" * 150 + "b", "ignore").matches("a" * 500)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "(a|b)*",
        "a{3}",
        "(?!a)b",
        r"(a)\1",
        "a**",
        "a" * 501,
        "(" * 20,
        "a)",
        "(a",
        "[a",
        "[b-a]",
        "(a|b)" * 7,
        "b^a",
        "*a",
        r"\b",
    ],
)
def test_other_patterns_are_refused(pattern: str) -> None:
    with pytest.raises(CheckpointError, match=r"ignore: the pattern .* is not supported"):
        NamePattern(pattern, "ignore")
