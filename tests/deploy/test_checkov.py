"""checkov finds nothing that is not argued for."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.manifests import OVERLAYS, ROOT, Manifests, load

_INSTALLED = ROOT / ".venv-k8s" / "bin" / "checkov"


def _checked(manifests: Manifests, folder: Path) -> dict[str, Any]:
    """What checkov says, without asking anybody on the network."""
    program = str(_INSTALLED) if _INSTALLED.is_file() else shutil.which("checkov")
    if program is None:
        pytest.skip("checkov is not installed: make k8s-tools puts it into .venv-k8s, 0.3 GB")
    file = folder / "overlay.yaml"
    file.write_text(yaml.safe_dump_all(manifests.objects))
    command = [program, "--framework", "kubernetes", "--skip-download", "--output", "json", "--file", str(file)]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    result: dict[str, Any] = json.loads(said.stdout)
    return result


def _names(found: list[dict[str, Any]]) -> list[str]:
    return sorted(f"{one['check_id']} {one['resource']}: {one['check_name']}" for one in found)


@pytest.mark.slow
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nothing_fails_and_what_is_skipped_says_why(overlay: str, tmp_path: Path) -> None:
    result = _checked(load(overlay), tmp_path)
    assert result["summary"]["passed"] > 400
    assert _names(result["results"]["failed_checks"]) == []
    skipped = result["results"]["skipped_checks"]
    assert {one["check_id"] for one in skipped} <= {"CKV_K8S_15", "CKV_K8S_35", "CKV_K8S_43"}
    assert all(len(one["check_result"]["suppress_comment"].split()) > 5 for one in skipped)


@pytest.mark.slow
def test_a_pod_that_may_do_too_much_fails(tmp_path: Path) -> None:
    broken = load("dev").copied()
    broken.pod("redis").main["securityContext"]["allowPrivilegeEscalation"] = True
    assert [one for one in _names(_checked(broken, tmp_path)["results"]["failed_checks"]) if one.startswith("CKV_K8S_20 ")]
