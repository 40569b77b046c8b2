"""Changes the pure modules one small place at a time and asks whether a test notices: `make mutants`, or `python -m tests.mutants --help`.

cosmic-ray makes the changes. A sample of places is drawn over all modules, a change at each, and the module's own tests run against a copy of
the tree that has the change. One that hangs counts as noticed only if the tests' own time limit ended it. Places where a change changes nothing that can be
tested are left out: annotations, which nobody evaluates, and asserts, which guard what never happens.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cosmic_ray.ast
import cosmic_ray.mutating
import cosmic_ray.plugins
import torch

from tests.environment import describe_environment

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "tests" / "bench" / "results" / "mutants.json"
# Each pure module, and the tests that answer for it.
MODULES = {
    "compute_svc/engine/engine.py": ["tests/unit/compute_svc/engine"],
    "compute_svc/kv/page_pool.py": ["tests/unit/compute_svc/kv"],
    "compute_svc/kv/page_table.py": ["tests/unit/compute_svc/kv"],
    "compute_svc/kv/radix_tree.py": ["tests/unit/compute_svc/kv"],
    "compute_svc/replica/dispatcher.py": ["tests/unit/compute_svc/replica"],
    "compute_svc/replica/sampler_ledger.py": ["tests/unit/compute_svc/replica"],
    "compute_svc/replica/sampler_link.py": ["tests/unit/compute_svc/replica"],
    "compute_svc/scheduler/batch_slots.py": ["tests/unit/compute_svc/scheduler"],
    "compute_svc/scheduler/followers.py": ["tests/unit/compute_svc/scheduler"],
    "compute_svc/scheduler/kv_memory.py": ["tests/unit/compute_svc/scheduler"],
    "compute_svc/scheduler/policies/fair_tenants.py": ["tests/unit/compute_svc/scheduler"],
    "compute_svc/scheduler/reservation.py": ["tests/unit/compute_svc/scheduler"],
    "compute_svc/scheduler/scheduler.py": ["tests/unit/compute_svc/scheduler", "tests/unit/compute_svc/engine/test_engine.py"],
    "gateway/flow/admission.py": ["tests/unit/gateway/flow"],
    "gateway/flow/answer.py": ["tests/unit/gateway/flow"],
    "gateway/flow/generation.py": ["tests/unit/gateway/flow", "tests/integration/test_gateway_openai.py"],
    "gateway/flow/pipeline.py": ["tests/unit/gateway/flow", "tests/integration/test_gateway_openai.py"],
    "gateway/flow/resolve.py": ["tests/unit/gateway/flow"],
    "gateway/flow/token_rules.py": ["tests/unit/gateway/flow"],
    "gateway/http/openai_answer.py": ["tests/unit/gateway/http", "tests/integration/test_gateway_openai.py"],
    "prompt_cache/redis_store.py": ["tests/unit/prompt_cache", "tests/integration/test_prompt_cache.py"],
    "sampler_svc/changes.py": ["tests/unit/sampler_svc"],
    "sampler_svc/detokenizer.py": ["tests/unit/sampler_svc"],
    "sampler_svc/draw.py": ["tests/unit/sampler_svc"],
    "sampler_svc/session.py": ["tests/unit/sampler_svc"],
    "sampler_svc/stop_matcher.py": ["tests/unit/sampler_svc"],
    "tokenizer_svc/chat_encoder.py": ["tests/unit/tokenizer_svc"],
    "tokenizer_svc/lanes.py": ["tests/unit/tokenizer_svc"],
    "tokenizer_svc/sampling_strings.py": ["tests/unit/tokenizer_svc/test_sampling_strings.py"],
    "tokenizer_svc/token_texts.py": ["tests/unit/tokenizer_svc/test_token_texts.py"],
}
_TEST_LIMIT_S = 30
# Above what the tests allow themselves: whatever reaches it hangs where their own limit does not help.
_RUN_LIMIT_S = 180


class Mutant(NamedTuple):
    """One change."""

    module: str
    line: int
    operator: str
    occurrence: int


class _Place(NamedTuple):
    line: int
    column: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints what survived and writes the results file; the exit status is 1 where fewer were noticed than wanted."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"files to change (default: {len(MODULES)} pure modules)")
    parser.add_argument("--count", type=int, default=100, help="how many changes")
    parser.add_argument("--seed", type=int, default=0, help="another one draws other changes")
    parser.add_argument("--wanted", type=float, default=0.95, help="share that must be noticed")
    parser.add_argument("--output", type=Path, default=RESULTS)
    chosen = parser.parse_args(arguments)
    modules = chosen.modules or list(MODULES)
    if unknown := [module for module in modules if module not in MODULES]:
        parser.error(f"no tests are named for {', '.join(unknown)}")
    mutants = _draw(modules, chosen.count, chosen.seed)
    survivors = _try_all(mutants)
    noticed = len(mutants) - len(survivors)
    document = {
        "what": "small changes of pure modules that a test noticed",
        **describe_environment(torch.device("cpu")),
        "seed": chosen.seed,
        "mutants": len(mutants),
        "noticed": noticed,
        "survivors": survivors,
    }
    chosen.output.write_text(json.dumps(document, indent=1) + "\n")
    sys.stdout.write(f"{noticed} of {len(mutants)} noticed; {chosen.output}\n")
    return 0 if noticed >= chosen.wanted * len(mutants) else 1


def _draw(modules: Sequence[str], count: int, seed: int) -> list[Mutant]:
    """As many changes, each at a place of its own: places are drawn evenly, then one of the changes possible there."""
    chance = random.Random(seed)
    places: dict[tuple[str, _Place], list[Mutant]] = {}
    for module in modules:
        for place, mutant in _possible(module):
            places.setdefault((module, place), []).append(mutant)
    keys = sorted(places)
    return [chance.choice(places[key]) for key in chance.sample(keys, min(count, len(keys)))]


def _possible(module: str) -> Iterator[tuple[_Place, Mutant]]:
    source = (ROOT / module).read_text()
    left_out = list(_left_out(source))
    tree = cosmic_ray.ast.get_ast(source)
    for name in cosmic_ray.plugins.operator_names():
        operator_class = cosmic_ray.plugins.get_operator(name)
        if operator_class.arguments():
            continue
        operator = operator_class()
        occurrence = 0
        for node in cosmic_ray.ast.ast_nodes(tree):
            for start, _ in operator.mutation_positions(node):
                place = _Place(*start)
                if not any(first <= place < last for first, last in left_out):
                    yield place, Mutant(module, place.line, name.removeprefix("core/"), occurrence)
                occurrence += 1


def _left_out(source: str) -> Iterator[tuple[_Place, _Place]]:
    for node in ast.walk(ast.parse(source)):
        parts: list[ast.AST | None] = []
        if isinstance(node, ast.arg | ast.AnnAssign):
            parts = [node.annotation]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            parts = [node.returns]
        elif isinstance(node, ast.Assert):
            parts = [node]
        for part in parts:
            if isinstance(part, ast.expr | ast.stmt):
                assert part.end_lineno is not None and part.end_col_offset is not None, "parsed code has ends"
                yield _Place(part.lineno, part.col_offset), _Place(part.end_lineno, part.end_col_offset)


def _try_all(mutants: Sequence[Mutant]) -> list[dict[str, object]]:
    survivors = []
    with tempfile.TemporaryDirectory(prefix="triserve-mutants-") as folder:
        copy = Path(folder)
        tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
        subprocess.run(["tar", "-cf", str(copy / "tree.tar"), "--null", "-T", "-"], cwd=ROOT, input=tracked, check=True)
        subprocess.run(["tar", "-xf", "tree.tar"], cwd=copy, check=True)
        _require_green(copy, sorted({mutant.module for mutant in mutants}))
        for number, mutant in enumerate(mutants, 1):
            began = time.monotonic()
            verdict, change = _try(copy, mutant)
            sys.stdout.write(f"{number:3} {verdict:8} {time.monotonic() - began:5.1f} s  {mutant.module}:{mutant.line} {mutant.operator}\n")
            sys.stdout.flush()
            if verdict != "noticed":
                sys.stdout.write(change + "\n")
                survivors.append({**mutant._asdict(), "verdict": verdict, "change": change})
    return survivors


def _require_green(copy: Path, modules: Sequence[str]) -> None:
    for module in modules:
        if _run_tests(copy, module, is_shown=True) != 0:
            raise SystemExit(f"the tests of {module} fail without any change")


def _try(copy: Path, mutant: Mutant) -> tuple[str, str]:
    path = copy / mutant.module
    source = path.read_text()
    operator = cosmic_ray.plugins.get_operator(f"core/{mutant.operator}")()
    changed = cosmic_ray.mutating.mutate_code(source, operator, mutant.occurrence)
    assert changed is not None, "the place was found before"
    old, new = source.splitlines(), changed.splitlines()
    lines = [f"- {a.strip()}\n+ {b.strip()}" for a, b in zip(old, new, strict=False) if a != b]
    try:
        path.write_text(changed)
        status = _run_tests(copy, mutant.module)
    finally:
        path.write_text(source)
    verdict = "hung" if status is None else "survived" if status == 0 else "noticed"
    return verdict, "\n".join(lines[:1])


def _run_tests(copy: Path, module: str, *, is_shown: bool = False) -> int | None:
    """The tests' exit status; None if they had to be ended from outside."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"--timeout={_TEST_LIMIT_S}", *MODULES[module]]
    environment = {**os.environ, "PYTHONPATH": f"{copy}{os.pathsep}{copy / 'protos'}", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        run = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=_RUN_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return None
    if is_shown and run.returncode:
        sys.stdout.write(run.stdout)
    return run.returncode


if __name__ == "__main__":
    sys.exit(main())
