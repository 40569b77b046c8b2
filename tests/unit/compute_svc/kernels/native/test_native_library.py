"""The library is built once, by whom it may be, and used only where it computes rightly."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from compute_svc.engine.start.loading import load_engine
from compute_svc.kernels.native import (
    NativeKernelsError,
    NativeLibrary,
    choice,
    compiling,
    known_answers,
    native_library,
    use_native_kernels,
)
from compute_svc.kernels.native.build import build_all
from compute_svc.kernels.native.compiling import BuildError, Compiler, build, find_library, library_name
from compute_svc.kernels.native.library import load_library
from compute_svc.kernels.quantise_rows import quantise_rows
from compute_svc.settings import Settings
from tests.fakes.native_libraries import native_libraries


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of libraries."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "triserve" / "native"


@pytest.fixture
def choosing() -> Iterator[None]:
    """Afterwards this process chooses anew."""
    yield
    choice.checked_library.cache_clear()
    load_library.cache_clear()
    use_native_kernels("auto")


def fake_compiler(folder: Path, body: str) -> Path:
    """A program in place of a compiler; it writes a line to `calls` for each thing that it compiles."""
    program = folder / "fake-c++"
    program.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo fake 1.0 && exit\necho "$@" >> {folder}/calls\n{body}\n')
    program.chmod(0o700)
    return program


WRITES_A_FILE = 'while [ "$1" != -o ]; do shift; done; echo made > "$2"'


def test_a_library_is_built_once_into_a_folder_of_the_users_own(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(fake_compiler(tmp_path, WRITES_A_FILE)))

    first = find_library("portable")
    calls = (tmp_path / "calls").read_text()

    assert first.parent == cache
    assert first.read_text() == "made\n"
    assert cache.stat().st_mode & 0o777 == 0o700
    assert find_library("portable") == first
    assert (tmp_path / "calls").read_text() == calls
    assert sorted(path.suffix for path in cache.iterdir()) == [".lock", ".so"]


def test_of_two_that_want_it_one_builds(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The lock is of an open file, so threads stand for processes.
    monkeypatch.setenv("CXX", str(fake_compiler(tmp_path, WRITES_A_FILE)))
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(find_library, ["portable", "portable"])
    assert first == second
    linked = [line for line in (tmp_path / "calls").read_text().splitlines() if "-shared" in line]
    assert len(linked) == 1


def test_another_compiler_or_version_has_another_library(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = fake_compiler(tmp_path, WRITES_A_FILE)
    monkeypatch.setenv("CXX", str(program))
    first = find_library("portable")
    program.write_text(program.read_text().replace("fake 1.0", "fake 1.1"))
    assert find_library("portable") != first


def test_what_was_built_beside_the_package_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++")
    monkeypatch.setattr(compiling, "PREBUILT", tmp_path)
    prebuilt = tmp_path / f"{library_name('portable')}.so"
    prebuilt.touch()
    assert find_library("portable") == prebuilt


def test_a_build_for_an_image_leaves_libraries_where_they_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(fake_compiler(tmp_path, WRITES_A_FILE)))
    monkeypatch.setattr(compiling, "PREBUILT", tmp_path / "prebuilt")
    build_all(tmp_path / "prebuilt")
    monkeypatch.setenv("CXX", "/nowhere/c++")
    assert find_library("portable").parent == tmp_path / "prebuilt"
    assert {path.suffix for path in (tmp_path / "prebuilt").iterdir()} == {".so"}


def test_other_sources_are_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one.cpp").write_text("int a;")
    monkeypatch.setattr(compiling, "SOURCES", tmp_path)
    first = library_name("portable")
    (tmp_path / "one.cpp").write_text("int b;")
    assert library_name("portable") != first


def test_a_folder_that_others_may_write_to_is_not_run_from(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(fake_compiler(tmp_path, WRITES_A_FILE)))
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    with pytest.raises(BuildError, match="others may write to it"):
        find_library("portable")


def test_a_compiler_that_fails_says_why_and_leaves_nothing(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(fake_compiler(tmp_path, "echo no such header; exit 1")))
    with pytest.raises(BuildError, match="failed: no such header"):
        find_library("portable")
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_a_compiler_that_hangs_is_stopped_with_all_that_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_TIME_LIMIT_S", 0.2)
    held = tmp_path / "held"
    os.mkfifo(held)
    reader = os.open(held, os.O_RDONLY | os.O_NONBLOCK)
    compiler = Compiler([str(fake_compiler(tmp_path, f"exec 3> {held}; sleep 600 & wait"))], "")
    with pytest.raises(BuildError, match="not done in"):
        build("portable", compiler, tmp_path / "x.so")
    os.set_blocking(reader, True)
    # The end comes when the last of those that hold it open has ended.
    assert os.read(reader, 1) == b""
    os.close(reader)


@pytest.mark.usefixtures("choosing")
def test_without_a_compiler_torchs_operations_compute_and_the_log_says_why_once(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++")
    choice.checked_library.cache_clear()
    load_library.cache_clear()

    use_native_kernels("auto")

    assert native_library() is None
    assert quantise_rows(torch.ones(1, 4)).codes.tolist() == [[127] * 4]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "there is no C++ compiler: tried /nowhere/c++" in caplog.text
    with pytest.raises(NativeKernelsError, match="COMPUTE_NATIVE_KERNELS is required, but they cannot be used"):
        use_native_kernels("required")


@pytest.mark.usefixtures("choosing")
def test_an_engine_that_requires_them_does_not_start_without(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    monkeypatch.setenv("COMPUTE_MODEL", str(tmp_path))
    monkeypatch.setenv("COMPUTE_NATIVE_KERNELS", "required")
    monkeypatch.setenv("CXX", "/nowhere/c++")
    choice.checked_library.cache_clear()
    load_library.cache_clear()
    with pytest.raises(NativeKernelsError, match="COMPUTE_NATIVE_KERNELS is required"):
        load_engine(Settings())


@pytest.mark.usefixtures("choosing")
def test_a_library_that_computes_wrongly_is_not_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    native_libraries()
    choice.checked_library.cache_clear()
    answers = known_answers.expected_products
    monkeypatch.setattr(known_answers, "expected_products", lambda *arguments: answers(*arguments) + 1.0)

    use_native_kernels("auto")

    assert native_library() is None
    assert "int_linear of 8 bits gives wrong answers" in caplog.text


@pytest.mark.usefixtures("choosing")
def test_what_is_off_is_not_loaded() -> None:
    use_native_kernels("off")
    assert native_library() is None


def test_threads_are_of_torchs_openmp_and_no_second_one_is_loaded() -> None:
    library = native_libraries()[0]
    assert library.uses_threads
    needed = subprocess.run(["ldd", library.path], capture_output=True, text=True, check=True).stdout
    assert not re.search("omp", needed)
    # In a process of its own: other packages of the tests bring theirs.
    code = f"import torch, ctypes; ctypes.CDLL({str(library.path)!r}); print(open('/proc/self/maps').read())"
    maps = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert len({line.split()[-1] for line in maps.splitlines() if re.search(r"lib(gomp|iomp5|omp)\b", line)}) == 1


def test_a_function_that_there_is_not_is_an_error() -> None:
    library: NativeLibrary = native_libraries()[0]
    with pytest.raises(AttributeError):
        library.function("triserve_nothing", ())
