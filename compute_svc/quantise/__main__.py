"""`python -m compute_svc.quantise SOURCE FOLDER --weights FORMAT`: the compute stage's part of `triserve quantize`; config.json and weights.

Standard output is a line of JSON after every part, {"done": bytes, "total": bytes}, and one at the end, {"source_bytes", "num_bytes", "notes"}.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

from compute_svc.kv.kv_format import KV_FORMATS
from compute_svc.models.weights import CheckpointError
from compute_svc.quantise.folder import Method, quantise_folder, round_to_nearest
from compute_svc.quantise.layerwise import Calibrated
from compute_svc.quantise.scheme import GROUPS, OWN_ACTIVATIONS, POSSIBLE_ACTIVATIONS, Scheme


def main() -> None:
    """Quantises; ends with status 1 and one line if it cannot."""
    arguments = _parser().parse_args()
    try:
        scheme = Scheme(
            weights=arguments.weights,
            group=arguments.group or (GROUPS[0] if arguments.weights == "int4" else 0),
            activations=arguments.activations or OWN_ACTIVATIONS[arguments.weights],
            head=arguments.head,
            nested=arguments.nested,
            kv_format=arguments.kv_format,
        )
        written = quantise_folder(arguments.source, arguments.folder, scheme, _method(arguments), _tell)
    except (CheckpointError, ValueError, OSError) as error:
        raise SystemExit(f"compute_svc.quantise: {error}") from None
    sys.stdout.write(json.dumps(written._asdict()) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="compute_svc.quantise", description=__doc__)
    parser.add_argument("source", type=Path, help="a folder with config.json and safetensors or a GGUF file")
    parser.add_argument("folder", type=Path, help="where to; must exist")
    parser.add_argument("--weights", choices=tuple(OWN_ACTIVATIONS), required=True)
    parser.add_argument("--group", type=int, choices=GROUPS, help="of int4 and int8: inputs that share a scale")
    activations = sorted({one for several in POSSIBLE_ACTIVATIONS.values() for one in several})
    parser.add_argument("--activations", choices=activations, help="what weights are made to be multiplied by")
    parser.add_argument("--head", action="store_true", help="the logits' projection becomes int8")
    parser.add_argument("--nested", action="store_true", help="of nf4: scales are quantised in turn")
    parser.add_argument("--kv-format", choices=tuple(KV_FORMATS), help="what config.json says keys and values are to be kept as")
    parser.add_argument("--method", choices=("rtn", "gptq", "awq", "smoothquant"), default="rtn", help="how codes are chosen")
    parser.add_argument("--calibration-ids", type=Path, help="of gptq and awq: token ids as little-endian integers of 32 bits")
    return parser


def _method(arguments: argparse.Namespace) -> Method:
    """Raises ValueError if options do not go with each other."""
    if arguments.method == "rtn":
        return round_to_nearest
    allowed = {"gptq": ("int4", "int8"), "awq": ("int4",), "smoothquant": ("int8",)}[arguments.method]
    if arguments.weights not in allowed:
        raise ValueError(f"--method {arguments.method} does not go with --weights {arguments.weights}: {' or '.join(allowed)} does")
    if arguments.calibration_ids is None:
        raise ValueError(f"--method {arguments.method} needs a calibration text")
    ids = np.frombuffer(arguments.calibration_ids.read_bytes(), "<i4").astype(np.int64)
    return Calibrated(arguments.method, torch.from_numpy(ids))


def _tell(done: int, total: int) -> None:
    sys.stdout.write(json.dumps({"done": done, "total": total}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
