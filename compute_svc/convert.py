"""Writes the compute stage's part of a model folder: `python -m compute_svc.convert MODEL.gguf FOLDER`; config.json and the weights."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from compute_svc.models.gguf.model import read_model
from triserve.model_files.gguf_file import open_gguf
from triserve.model_files.gguf_header import GgufError


def main() -> None:
    """Converts; ends with status 1 and one line if it cannot."""
    parser = argparse.ArgumentParser(prog="compute_svc.convert", description=__doc__)
    parser.add_argument("source", type=Path, help="a GGUF file, any part of a split one")
    parser.add_argument("folder", type=Path, help="where to; must exist")
    parser.add_argument(
        "--weights",
        choices=("linked", "safetensors"),
        default="linked",
        help="link the GGUF files, or write safetensors (default: %(default)s)",
    )
    arguments = parser.parse_args()
    try:
        convert_gguf(arguments.source, arguments.folder, safetensors=arguments.weights == "safetensors")
    except (GgufError, OSError) as error:
        raise SystemExit(f"compute_svc.convert: {error}") from None


def convert_gguf(source: Path, folder: Path, *, safetensors: bool) -> None:
    """Writes config.json, and links to the GGUF files or float32 safetensors.

    Args:
        source: The file, or a part of a split one.
        folder: Where to; must exist.
        safetensors: Whether to write the weights anew.

    Raises:
        GgufError: The file cannot be used.
        OSError: The folder cannot be written.
    """
    file = open_gguf(source)
    model = read_model(file)
    if safetensors:
        # Only this needs torch, which takes seconds to import.
        import torch  # noqa: PLC0415

        from compute_svc.models.safetensors_files import float32_sizes, write_tensors  # noqa: PLC0415

        sizes = float32_sizes({name: recipe.shape for name, recipe in model.recipes.items()})
        write_tensors(sizes, lambda name: torch.from_numpy(model.recipes[name].read()), folder)
    else:
        for path in file.paths:
            (folder / path.name).symlink_to(path.resolve())
    (folder / "config.json").write_text(json.dumps(model.config, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
    sys.exit(0)
