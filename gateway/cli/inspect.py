"""`triserve inspect`: says what would be made of a model without serving it: family, sizes, limits, tokens, defaults, memory, and where each came from.

Each stage looks at its own files, in a process of its own; what a stage cannot do with the model, or a stage that is not installed, is said.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from gateway.cli.extras import MissingExtra
from gateway.cli.model_files.model_folder import ModelUnavailable, download_from_hub, resolve_model
from triserve.rpc.folder_audit import FolderAudit

_TIMEOUT_S = 300


class Stage(NamedTuple):
    """A stage that reads model folders.

    Attributes:
        name: also of the extra that installs it.
        package: its own.
        needs: a package that only the extra brings.
    """

    name: str
    package: str
    needs: str

    @property
    def is_installed(self) -> bool:
        """Whether both packages are there."""
        return find_spec(self.package) is not None and find_spec(self.needs) is not None


STAGES = (Stage("compute", "compute_svc", "torch"), Stage("tokenizer", "tokenizer_svc", "tokenizers"))


class StageReport(NamedTuple):
    """What one stage said.

    Attributes:
        stage: which.
        audit: its part of the table; None = it could not make one.
        fault: why not.
    """

    stage: Stage
    audit: FolderAudit | None
    fault: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="as behind --model of `triserve up`: a model folder, a GGUF file, org/name of the Hugging Face hub, or tiny",
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints the table; returns 0 if every installed stage can serve the model."""
    try:
        folder = resolve_model(arguments.model, download_from_hub, os.environ).folder
    except (MissingExtra, ModelUnavailable) as error:
        sys.stderr.write(f"triserve inspect: {error}\n")
        return 1
    with ThreadPoolExecutor(len(STAGES)) as threads:
        reports = list(threads.map(lambda stage: ask_stage(stage, folder), STAGES))
    sys.stdout.write("\n".join(as_text(folder, reports)) + "\n")
    has_answer = any(report.audit is not None for report in reports)
    has_refusal = any(report.audit is None and report.stage.is_installed for report in reports)
    return 0 if has_answer and not has_refusal else 1


def ask_stage(stage: Stage, folder: Path) -> StageReport:
    """What one stage makes of a folder; starts a process and waits for it."""
    if not stage.is_installed:
        return StageReport(stage, None, f"not installed: pip install 'triserve[{stage.name}]'")
    # -P: a folder of the same name where the command was called is not taken for the stage.
    command = (sys.executable, "-P", "-m", f"{stage.package}.inspect", str(folder))
    try:
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return StageReport(stage, None, f"has not answered after {_TIMEOUT_S} s")
    if ended.returncode:
        lines = ended.stderr.strip().splitlines()
        return StageReport(stage, None, lines[-1] if lines else f"ended with status {ended.returncode}")
    return StageReport(stage, FolderAudit.from_json(ended.stdout))


def as_text(folder: Path, reports: Sequence[StageReport]) -> list[str]:
    """The whole table, in columns: facts of all stages first, then what became of each file's fields, then what cannot be done."""
    audits = [report.audit for report in reports if report.audit is not None]
    used: dict[str, tuple[str, ...]] = {}
    without_effect: dict[str, tuple[str, ...]] = {}
    for audit in audits:
        for whole, part in ((used, audit.used), (without_effect, audit.without_effect)):
            for file, fields in part.items():
                whole[file] = (*whole.get(file, ()), *fields)
    faults = [f"{report.stage.name}: {report.fault}" for report in reports if report.audit is None]
    facts = tuple(fact for audit in audits for fact in audit.facts)
    merged = FolderAudit(facts, used, without_effect, tuple(problem for audit in audits for problem in audit.problems))
    return [str(folder), *merged.lines(), *faults]
