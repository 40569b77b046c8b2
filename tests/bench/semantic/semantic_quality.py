"""What a semantic cache serves rightly and wrongly: similarity alone, with our guards, with the learned bound, and two other caches.

One half of the pair set at a time: every first question is in one cache, every second one is asked, and whatever is served is judged. A hit is true
when it is the pair's own entry and the pair is a paraphrase; every other hit is false. The threshold is chosen on the tuning half, before the
held-out half is looked at. The guards were written with that half in view, so that they serve nothing false there says little: the threshold is the
highest that costs few of the true hits. All systems get the same vectors; a question without a vector (beyond the window, or of words that the
embedder does not know) is asked of none of them and counts as a miss.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gateway.cli.cache_embedder import NAME, embedders_folder
from gateway.cli.hardware import describe_hardware
from prompt_cache.embedding.embedder import Vector
from prompt_cache.embedding.onnx_embedder import OnnxEmbedder
from prompt_cache.semantic.normalise import normalise
from prompt_cache.vectors.vector_store import Observation
from tests.bench.semantic.semantic_decisions import Decide, Nearest, by_bound_alone, by_guards, by_learned_bound, by_threshold, observe
from tests.bench.semantic.semantic_scores import CELL_HEADINGS, Served, cells, kinds_failed, scores_by_language, table
from tests.question_pairs import PairFile, read_pairs

ROOT = Path(__file__).parents[3]
RESULTS = Path(__file__).parents[1] / "results" / "semantic_quality.json"
PEERS_PYTHON = ROOT / ".venv-semantic-peers" / "bin" / "python"
PEER_SETTINGS: dict[str, list[dict[str, float]]] = {
    "gptcache": [{}, {"similarity_threshold": 0.95}],
    "redisvl": [{}, {"distance_threshold": 0.05}],
}
_PEER_PATIENCE_S = 300
# Of the true hits that guards leave at any threshold, those that the chosen one must keep.
_KEPT_HITS = 0.95
_CHAIN = "guards, cosine >="
SHOWN_THRESHOLDS = (0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.97, 0.99)
# What the default may be: hundredths. Below 0.5 MiniLM calls much similar that has only the subject in common.
GRID = tuple(round(0.5 + step / 100, 2) for step in range(50))


# What guards and thresholds are fitted to first, then what they are only measured with.
FILES: tuple[PairFile, ...] = ("tuning", "tuning_more", "held_out", "fresh")


class HalfOfPairs:
    """The pairs of a half, their vectors, and each asked question's nearest kept ones."""

    def __init__(self, half: PairFile, embedder: OnnxEmbedder, num_neighbours: int) -> None:
        self.name = half
        self.pairs = read_pairs(half)
        self.vectors: dict[str, Vector] = {}
        for text in (text for pair in self.pairs for text in (pair.first, pair.second)):
            (vector,) = embedder.embed_now([normalise(text)])
            if vector is not None:
                self.vectors[text] = vector
        self.kept = [index for index, pair in enumerate(self.pairs) if pair.first in self.vectors]
        matrix = np.stack([self.vectors[self.pairs[index].first] for index in self.kept])
        self._nearest = {
            index: self._neighbours(matrix @ self.vectors[pair.second], num_neighbours)
            for index, pair in enumerate(self.pairs)
            if pair.second in self.vectors
        }

    def _neighbours(self, cosines: Vector, count: int) -> list[Nearest]:
        return [
            Nearest(pair_index=self.kept[row], question=self.pairs[self.kept[row]].first, cosine=float(cosines[row]))
            for row in np.argsort(-cosines, kind="stable")[:count]
        ]

    @property
    def num_without_vector(self) -> int:
        """Questions that no system was asked or given."""
        return 2 * len(self.pairs) - len(self.vectors)

    def nearest(self, index: int) -> list[Nearest]:
        """Of the second question of a pair; empty if it has no vector."""
        return self._nearest.get(index, [])

    def served(self, decide: Decide, most: int | None = None) -> Served:
        """For every question asked, the first that may be served of all its neighbours or of the nearest `most`."""
        return [
            next((near.pair_index for near in self.nearest(index)[:most] if decide(pair.second, near)), None)
            for index, pair in enumerate(self.pairs)
        ]


def choose_threshold(half: HalfOfPairs) -> float:
    """The highest of the grid at which threshold and guards serve nothing false and keep most true hits of the lowest such threshold."""
    counted = {threshold: scores_by_language(half.pairs, half.served(by_guards(threshold)))["all"] for threshold in GRID}
    safe = {threshold: of.true_hits for threshold, of in counted.items() if not of.false_hits + of.strays}
    if not safe:
        raise SystemExit(f"guards serve something false at every threshold up to {GRID[-1]}: there is no default to choose")
    return max(threshold for threshold, true_hits in safe.items() if true_hits >= _KEPT_HITS * max(safe.values()))


class Learned(NamedTuple):
    """What the tuning half showed: of whatever is nearest, and of what threshold and guards let through."""

    of_all: list[Observation]
    of_passed: list[Observation]


def learn(tuning: HalfOfPairs, threshold: float) -> Learned:
    """What comparisons with the model would have shown on the tuning half. No entry of it is in the other half: all of it stands for each entry."""
    met = [
        (pair.second, near, pair.same and near.pair_index == index)
        for index, pair in enumerate(tuning.pairs)
        for near in tuning.nearest(index)[:1]
    ]
    return Learned(observe(lambda asked, near: True, met), observe(by_guards(threshold), met))


def measure(half: HalfOfPairs, threshold: float, learned: Learned, peers_python: Path) -> tuple[dict[str, Served], dict[str, str]]:
    """What every system serves on one half, by a name for the table; and the version of each peer, or why it has no row."""
    served = {f"cosine >= {shown}": half.served(by_threshold(shown)) for shown in SHOWN_THRESHOLDS}
    served |= {f"{_CHAIN} {shown}": half.served(by_guards(shown)) for shown in sorted({*SHOWN_THRESHOLDS, threshold})}
    served |= {
        "bound alone, taught": half.served(by_bound_alone(learned.of_all), most=1),
        f"{_CHAIN} {threshold}, bound, fresh entries": half.served(by_learned_bound(threshold, ())),
        f"{_CHAIN} {threshold}, bound, taught": half.served(by_learned_bound(threshold, learned.of_passed)),
    }
    peers = {}
    for system, settings in PEER_SETTINGS.items():
        peers[system], by_setting = ask_peer(system, settings, half, peers_python)
        served |= {f"{system}, {setting}": hits for setting, hits in by_setting.items()}
    return served, peers


def ask_peer(system: str, settings: Sequence[Mapping[str, float]], half: HalfOfPairs, python: Path) -> tuple[str, dict[str, Served]]:
    """The version of another cache and what it serves by setting; or why it serves nothing."""
    if not python.exists():
        return f"not asked: {python.name} of .venv-semantic-peers is not there, make bench-semantic-quality makes it", {}
    asked = [index for index, pair in enumerate(half.pairs) if pair.second in half.vectors]
    task = {
        "vectors": {text: vector.tolist() for text, vector in half.vectors.items()},
        "kept": [half.pairs[index].first for index in half.kept],
        "asked": [half.pairs[index].second for index in asked],
        "settings": settings,
    }
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.run(
            [python, "-m", f"tests.bench.semantic_peers.ask_{system}"],
            input=json.dumps(task),
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=_PEER_PATIENCE_S,
            check=False,
        )
    if process.returncode:
        return f"failed with status {process.returncode}: {process.stderr.strip()[-500:]}", {}
    answer = json.loads(process.stdout)
    served: dict[str, Served] = {}
    for found in answer["settings"]:
        hits: list[int | None] = [None] * len(half.pairs)
        for index, row in zip(asked, found["served"], strict=True):
            hits[index] = None if row is None else half.kept[row]
        served[" ".join(f"{name} {value}" for name, value in found["setting"].items()) or "its defaults"] = hits
    return str(answer["version"]), served


def main() -> None:
    """Prints a table for each half and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--embedder", type=Path, default=embedders_folder(os.environ) / NAME, help="folder that `triserve cache build-embedder` made"
    )
    parser.add_argument("--neighbours", type=int, default=4, help="how many entries near a question our chain looks at")
    parser.add_argument("--half", choices=FILES, nargs="*", default=list(FILES), help="which files of pairs to measure")
    parser.add_argument("--kinds", action="store_true", help="also print which kinds of pairs our chain fails on")
    parser.add_argument("--peers-python", type=Path, default=PEERS_PYTHON, help="interpreter of the environment of semantic_peers")
    parser.add_argument("--output", type=Path, default=RESULTS, help="written when both halves are measured")
    arguments = parser.parse_args()
    embedder = OnnxEmbedder.open(arguments.embedder)
    tuning = HalfOfPairs("tuning", embedder, arguments.neighbours)
    threshold = choose_threshold(tuning)
    learned = learn(tuning, threshold)
    document: dict[str, Any] = {
        "what": " ".join((__doc__ or "").split("\n\n")[1].split()),
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("numpy", "onnxruntime", "tokenizers")},
        },
        "hardware": describe_hardware(),
        "embedder": embedder.id,
        "neighbours": arguments.neighbours,
        "threshold": threshold,
        "observations": {name: {"right": sum(one.is_same for one in of), "all": len(of)} for name, of in learned._asdict().items()},
        "halves": {},
    }
    for name in arguments.half:
        half = tuning if name == "tuning" else HalfOfPairs(name, embedder, arguments.neighbours)
        served, document["peers"] = measure(half, threshold, learned, arguments.peers_python)
        document["halves"][name] = report(half, served, f"{_CHAIN} {threshold}")
        if arguments.kinds:
            sys.stdout.write(json.dumps(kinds_failed(half.pairs, served[f"{_CHAIN} {threshold}"]), indent=1) + "\n")
    document["finished_at"] = datetime.now(UTC).isoformat(timespec="seconds")
    if set(arguments.half) == set(FILES):
        arguments.output.write_text(json.dumps(document, indent=1) + "\n")


def report(half: HalfOfPairs, served: Mapping[str, Served], chosen: str) -> dict[str, Any]:
    """Prints the half's table and the languages of the chosen row; returns everything by language for the results."""
    scores = {name: scores_by_language(half.pairs, hits) for name, hits in served.items()}
    sys.stdout.write(f"\n{half.name}: {len(half.pairs)} pairs, {half.num_without_vector} questions without a vector\n")
    rows = [(name, cells(of["all"])) for name, of in scores.items()]
    rows += [(f"{chosen}, {language}", cells(counted)) for language, counted in scores[chosen].items() if language != "all"]
    sys.stdout.write(table(rows, CELL_HEADINGS) + "\n")
    return {
        "pairs": len(half.pairs),
        "questions_without_vector": half.num_without_vector,
        "systems": {
            name: of["all"].as_json()
            | {"by_language": {language: " | ".join(cells(counted)) for language, counted in of.items() if language != "all"}}
            for name, of in scores.items()
        },
        "columns_by_language": " | ".join(CELL_HEADINGS),
    }


if __name__ == "__main__":
    main()
