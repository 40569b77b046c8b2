"""What figures were measured with, for results files; needs no installed package but torch."""

from __future__ import annotations

import platform
import tomllib
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from gateway.cli.hardware import describe_hardware

_PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions, hardware, the device and the time, as results files have them.

    The version of this project is that of the source tree, which may run without being installed.
    """
    return {
        "triserve": tomllib.loads(_PYPROJECT.read_text())["project"]["version"],
        **{package: _version(package) for package in ("torch", "triton", "transformers", "numpy")},
        "python": platform.python_version(),
        "hardware": describe_hardware(),
        "device": describe_device(device),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def describe_device(device: torch.device) -> dict[str, Any]:
    """What computes: its name, and on CUDA what decides how fast and how exactly it does."""
    if device.type != "cuda":
        return {"name": device.type, "threads": torch.get_num_threads(), "capability": torch.backends.cpu.get_cpu_capability()}
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "float32_products": torch.backends.cuda.matmul.fp32_precision,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
