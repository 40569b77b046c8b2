"""A package that is not installed is told of by the extra that has it, in every command."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from gateway.cli.__main__ import _COMMANDS
from gateway.cli.extras import EXTRA_OF, MissingExtra, require_installed

ROOT = Path(__file__).parents[4]
# What each command itself imports; `up` needs what its parts do as well.
IMPORTED = {"up": list(EXTRA_OF), "chat": ["aiohttp"], "bench": ["aiohttp", "tqdm"], "pin": ["aiohttp"]}


def triserve_without(packages: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line where packages are not installed."""
    program = f"""
import sys
from importlib.abc import MetaPathFinder
class Gone(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {packages!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Gone())
from importlib import util
find = util.find_spec
util.find_spec = lambda name, package=None: None if name in {packages!r} else find(name, package)
from gateway.cli.__main__ import main
main({list(arguments)!r})
"""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "package"), [(command, package) for command, packages in IMPORTED.items() for package in packages], ids=str
)
def test_a_command_without_a_package_says_how_to_install_it(command: str, package: str) -> None:
    ended = triserve_without([package], command)
    assert ended.returncode == 1
    assert ended.stderr == f"triserve {command}: {package} is not installed: pip install 'triserve[{EXTRA_OF[package]}]'\n"


def test_several_extras_are_named_at_once() -> None:
    with pytest.raises(MissingExtra, match=r"^tokenizers and torch are not installed: pip install 'triserve\[compute,tokenizer\]'$"):
        require_installed(EXTRA_OF, find=lambda name: None if name in ("torch", "tokenizers") else name)


def test_help_needs_no_extra() -> None:
    ended = triserve_without(list(EXTRA_OF), "--help")
    assert ended.returncode == 0
    assert all(name in ended.stdout for name, _, _ in _COMMANDS)


def test_the_table_says_what_pyproject_says() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for package, extra in EXTRA_OF.items():
        names = {re.match(r"[\w-]+", requirement)[0].replace("-", "_") for requirement in extras[extra]}  # type: ignore[index]
        assert package in names
