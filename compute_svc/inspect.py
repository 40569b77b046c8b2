"""`python -m compute_svc.inspect FOLDER` prints, as JSON, what the compute stage would make of a model folder; serves nothing."""

from __future__ import annotations

import sys
from pathlib import Path

from compute_svc.engine.start.number_format import choose_format
from compute_svc.kernels.cpu_features import multiplies_bfloat16
from compute_svc.models.folder_audit import audit_checkpoint
from compute_svc.models.weights import CheckpointError, count_numbers, stored_tensors
from compute_svc.quantise.expected_quality import quality_facts
from triserve.rpc.folder_audit import Fact, FolderAudit


def audit_folder(folder: Path) -> FolderAudit:
    """What serving the folder would log, and what this machine's CPU would compute it in.

    Raises:
        CheckpointError: the folder cannot be served.
    """
    audit = audit_checkpoint(folder)
    format_ = choose_format("auto", count_numbers(stored_tensors(folder)), device="cpu", multiplies_bfloat16=multiplies_bfloat16())
    return audit._replace(
        facts=(*audit.facts, *quality_facts(folder), Fact("computes in", f"{format_.name} on this machine's CPU", format_.reason))
    )


def main() -> None:
    """Prints one line; ends with status 1 and one line on standard error if the folder cannot be served."""
    try:
        sys.stdout.write(audit_folder(Path(sys.argv[1])).to_json() + "\n")
    except CheckpointError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
