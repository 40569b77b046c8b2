"""Podman, with settings and a store of its own: images are read from the machine's store, and nothing is written there."""

from __future__ import annotations

import asyncio
import json
import resource
from pathlib import Path
from typing import Any, NamedTuple

_START_S = 120.0


class PodmanFailed(Exception):
    """A call of podman ended otherwise than with 0; says which and what it printed."""


class ImageStore(NamedTuple):
    """Where the machine's images are."""

    driver: str
    folder: str


class Podman:
    """Calls of the program.

    Args:
        settings: Folder of its settings, which are written: where each podman looks for them, those too that it starts itself.
        folder: Of its containers and volumes; a tmpfs.
        images: The machine's.
        runtime: Program that starts containers, such as "runc".
    """

    def __init__(self, settings: Path, folder: Path, images: ImageStore, *, runtime: str) -> None:
        # Without CAP_SYS_RESOURCE a process gives its children no more than it has itself.
        most = {
            name: resource.getrlimit(number)[1] for name, number in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC))
        }
        ulimits = ", ".join(f'"{name}={limit}:{limit}"' for name, limit in most.items())
        (settings / "storage.conf").write_text(
            f'[storage]\ndriver = "{images.driver}"\nrunroot = "{folder}/run"\ngraphroot = "{folder}/store"\n'
            f'[storage.options]\nadditionalimagestores = ["{images.folder}"]\n'
        )
        (settings / "containers.conf").write_text(
            f'[containers]\nlog_driver = "k8s-file"\ndefault_ulimits = [{ulimits}]\n'
            f'[engine]\nruntime = "{runtime}"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
            f'[network]\nnetwork_backend = "netavark"\nnetwork_config_dir = "{folder}/networks"\n'
        )

    async def __call__(self, *words: str, within_s: float = _START_S) -> str:
        """What a call prints.

        Raises:
            PodmanFailed: it ended otherwise than with 0.
            TimeoutError: it did not end in time, and was killed.
        """
        status, said, wrong = await self._run(words, within_s)
        if status != 0:
            raise PodmanFailed(f"podman {' '.join(words)} ended with {status}: {wrong.strip() or said.strip()}")
        return said.strip()

    async def status(self, *words: str, within_s: float) -> int:
        """How a call ends.

        Raises:
            TimeoutError: it did not end in time, and was killed.
        """
        return (await self._run(words, within_s))[0]

    async def inspect(self, kind: str, name: str) -> dict[str, Any]:
        """What is known of a container, a pod or an image."""
        found = json.loads(await self(kind, "inspect", name))
        return dict(found[0] if isinstance(found, list) else found)

    async def _run(self, words: tuple[str, ...], within_s: float) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            "podman",
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            said, wrong = await asyncio.wait_for(process.communicate(), within_s)
        except TimeoutError:
            process.kill()
            await process.wait()
            raise
        assert process.returncode is not None, "it has ended"
        return process.returncode, said.decode(errors="replace"), wrong.decode(errors="replace")
