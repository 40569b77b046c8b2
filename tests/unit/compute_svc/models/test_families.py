"""A family is one file: what it says is found, and nothing of it can be forgotten without a word."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from compute_svc.models import families, unsupported
from compute_svc.models.registry import ALL_FAMILIES, FAMILIES, Family, find_families
from tests.oracle.cases import Case, all_cases
from tests.oracle.checks import checks_of

WHOLE = """
from compute_svc.models.example import Example
ARCHITECTURES = ({architecture!r},)
EXAMPLES = (Example(model_type={model_type!r}, fields={{}}, variants={{"plain": {{}}}}),)
def read(fields, architecture): ...
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of an empty package of families, `somebodys_families`."""
    folder = tmp_path / "somebodys_families"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [name for name in sys.modules if name.startswith("somebodys_families")]:
        del sys.modules[name]


def write(folder: Path, name: str, architecture: str, model_type: str) -> None:
    (folder / f"{name}.py").write_text(WHOLE.format(architecture=architecture, model_type=model_type))


def imported() -> ModuleType:
    importlib.invalidate_caches()
    return importlib.import_module("somebodys_families")


def test_every_file_of_the_folder_is_a_family() -> None:
    files = {path.stem for path in Path(families.__path__[0]).glob("*.py")} - {"__init__"}

    assert {family.name for family in ALL_FAMILIES} == files
    assert set(FAMILIES) == {name for family in ALL_FAMILIES for name in family.ARCHITECTURES}


def test_a_new_file_is_found_without_a_list(package: Path) -> None:
    write(package, "nobodys", "NobodysForCausalLM", "nobodys")

    (family,) = find_families(imported())

    assert (family.name, family.ARCHITECTURES, family.EXAMPLES[0].model_type) == ("nobodys", ("NobodysForCausalLM",), "nobodys")


@pytest.mark.parametrize(("dropped", "message"), [("ARCHITECTURES", "ARCHITECTURES"), ("EXAMPLES", "EXAMPLES"), ("def read", "read")])
def test_a_file_that_forgets_something_is_named(package: Path, dropped: str, message: str) -> None:
    write(package, "nobodys", "NobodysForCausalLM", "nobodys")
    path = package / "nobodys.py"
    path.write_text("\n".join(line for line in path.read_text().splitlines() if not line.startswith(dropped)))

    with pytest.raises(TypeError, match=rf"somebodys_families\.nobodys is no model family: it lacks {message}"):
        find_families(imported())


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (("AForCausalLM", "a"), ("AForCausalLM", "b"), "architecture AForCausalLM is claimed twice, by the families one and two"),
        (("AForCausalLM", "a"), ("BForCausalLM", "a"), "model_type a is claimed twice, by the families one and two"),
    ],
)
def test_two_files_that_claim_the_same_are_named(package: Path, first: tuple[str, str], second: tuple[str, str], message: str) -> None:
    write(package, "one", *first)
    write(package, "two", *second)

    with pytest.raises(ValueError, match=message):
        find_families(imported())


def test_what_a_family_reads_is_not_said_to_be_missing() -> None:
    # Suffixes that stand for something else in other families are looked at only where no family reads the name.
    assert not {name for name in FAMILIES if name in unsupported._PARTS}


def cases_by_architecture() -> dict[str, list[Case]]:
    by_architecture: dict[str, list[Case]] = {architecture: [] for architecture in FAMILIES}
    for case in all_cases():
        by_architecture[case.architecture].append(case)
    return by_architecture


@pytest.mark.parametrize("architecture", FAMILIES)
def test_every_architecture_is_held_against_another_implementation_and_its_bits_against_the_batch(architecture: str) -> None:
    cases = cases_by_architecture()[architecture]

    assert cases, f"{architecture} has no case: give its family an Example, or tests/oracle/references a reference"
    for case in cases:
        assert {"logits", "invariance", "greedy", "prefix", "preemption"} <= set(checks_of(case))


@pytest.mark.parametrize("family", ALL_FAMILIES, ids=lambda family: family.name)
def test_every_example_is_of_a_type_its_family_reads_and_has_sizes_and_variants(family: Family) -> None:
    for example in family.EXAMPLES:
        assert MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[example.model_type] in family.ARCHITECTURES
        assert example.fields and example.variants, f"{example.model_type} has no sizes or no variants"
        assert example.published.keys() <= example.variants.keys()
