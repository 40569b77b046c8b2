"""`python -m compute_svc.kernels.native.build [--into FOLDER]` builds the library for an image: for every instruction set of its architecture."""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

from compute_svc.kernels.cpu_features import X86_MACHINES, InstructionSet
from compute_svc.kernels.native.compiling import PREBUILT, build, find_compiler, library_name


def build_all(folder: Path) -> None:
    """Builds what is missing in the folder.

    Raises:
        BuildError: There is no compiler, or it fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sets: tuple[InstructionSet, ...] = ("avx512_vnni", "avx2", "portable") if platform.machine() in X86_MACHINES else ("portable",)
    compiler = find_compiler()
    for instruction_set in sets:
        target = folder / f"{library_name(instruction_set)}.so"
        build(instruction_set, compiler, target)
        target.with_suffix(".lock").unlink()


def main() -> None:
    """Builds for an image."""
    parser = argparse.ArgumentParser(prog="python -m compute_svc.kernels.native.build", description="Builds the kernels for CPUs.")
    parser.add_argument("--into", type=Path, default=PREBUILT, help="folder; default: beside the package, where libraries are looked for")
    build_all(parser.parse_args().into)


if __name__ == "__main__":
    main()
