"""Runs the pods of the overlay dev from the images that `make images` built, streams answers through them and ends them one by one.

Needs root, for namespaces of network, mounts and processes in which podman runs: what it leaves on the machine is nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.deploy.manifests import load
from tests.images.check import run
from tests.images.control_groups import remove_empty
from tests.images.node import DNS_ADDRESS
from tests.images.podman import ImageStore, Podman
from tests.images.stand_ins import images_missing

_PROGRAMS = ("podman", "conmon", "unshare", "ip", "iptables", "mount")
_RUNTIMES = ("runc", "crun")
_SETTINGS = Path("/etc/containers")


def main() -> int:
    """Looks whether all that it needs is there, then does it in namespaces of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inside", nargs=3, metavar=("DRIVER", "STORE", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside is not None:
        driver, store, folder = arguments.inside
        return _inside(ImageStore(driver, store), Path(folder))
    manifests = load("dev")
    missing = ["root"] if os.geteuid() != 0 else []
    missing += [program for program in _PROGRAMS if shutil.which(program) is None]
    missing += ["runc or crun"] if not any(map(shutil.which, _RUNTIMES)) else []
    if not missing:
        missing = [f"the image {image} (make images)" for image in images_missing(manifests)]
    if missing:
        sys.stderr.write(f"make images-check needs {', '.join(missing)}\n")
        return 2
    return _in_namespaces()


def _in_namespaces() -> int:
    """Whatever podman starts is a child of the new process namespace's first, and dies with it."""
    store = subprocess.run(
        ["podman", "info", "--format", "{{.Store.GraphDriverName}} {{.Store.GraphRoot}}"], capture_output=True, text=True, check=True
    ).stdout.split()
    with tempfile.TemporaryDirectory() as folder:
        namespaces = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc", "--"]
        # The namespace's first process has to wait for those whose parents are gone: podman does not take a container for ended before.
        shell = ["sh", "-c", '"$@"; exit $?', "sh"]
        inside = [sys.executable, "-m", "tests.images", "--inside", *store, folder]
        try:
            return subprocess.run([*namespaces, *shell, *inside], check=False).returncode
        finally:
            remove_empty()


def _inside(store: ImageStore, folder: Path) -> int:
    # Only this namespace sees them, and they go with it.
    for place in (folder, Path("/run")):
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", str(place)], check=True)
    settings = folder / "settings"
    shutil.copytree(_SETTINGS, settings)
    subprocess.run(["mount", "--bind", str(settings), str(_SETTINGS)], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["ip", "address", "add", f"{DNS_ADDRESS}/32", "dev", "lo"], check=True)
    runtime = next(name for name in _RUNTIMES if shutil.which(name))
    return asyncio.run(run(Podman(_SETTINGS, folder, store, runtime=runtime), folder))


if __name__ == "__main__":
    sys.exit(main())
