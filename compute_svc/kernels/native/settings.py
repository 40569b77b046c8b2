"""What building reads from the environment: variables that compilers and caches of every kind go by."""

from __future__ import annotations

import os
import shlex
from pathlib import Path


def compiler_commands() -> list[list[str]]:
    """Commands of C++ compilers to try in turn: CXX alone if it is set."""
    own = shlex.split(os.environ.get("CXX", ""))
    return [own] if own else [["g++"], ["clang++"], ["c++"]]


def cache_folder() -> Path:
    """Where built libraries are kept, of this user alone: under XDG_CACHE_HOME, or ~/.cache.

    Raises:
        RuntimeError: The user has no home.
    """
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "triserve" / "native"
