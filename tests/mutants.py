"""Changes the pure modules one small place at a time and asks whether a test notices: `make mutants`, or `python -m tests.mutants --help`.

cosmic-ray makes the changes. A sample of places is drawn over all modules, a change at each, and the module's own tests run against a copy of
the tree that has the change. One that hangs counts as noticed only if the tests' own time limit ended it. Places where a change changes nothing that can be
tested are left out: annotations, which nobody evaluates; protocols, which nobody runs; asserts and the `strict=True` of zip, which guard what never happens;
and stars that are no operators (`def f(a, *, b)`, `[*a]`, `{**a}`), of which cosmic-ray makes operators: what it writes there is no Python, or allows more
ways to call and changes none. So are `==` in the place of `is` and `!=` in that of `is not`: for None and members of enums, of which we ask, they are the same.
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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple, TypeVar

import cosmic_ray.ast
import cosmic_ray.mutating
import cosmic_ray.plugins
import torch

from tests.environment import describe_environment

T = TypeVar("T")

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "tests" / "bench" / "results" / "mutants.json"
# Each pure module, and the tests that answer for it.
MODULES = {
    "compute_svc/engine/engine.py": ["tests/unit/compute_svc/engine"],
    "compute_svc/kv/page_pool.py": ["tests/unit/compute_svc/kv/test_page_pool.py"],
    "compute_svc/kv/page_table.py": ["tests/unit/compute_svc/kv/test_page_table.py"],
    "compute_svc/kv/radix_tree.py": [
        "tests/unit/compute_svc/kv/test_radix_tree_counts.py",
        "tests/unit/compute_svc/kv/test_radix_tree.py",
        "tests/unit/compute_svc/kv/test_radix_tree_any_use.py",
    ],
    "compute_svc/replica/dispatcher.py": ["tests/unit/compute_svc/replica/test_dispatcher.py"],
    "compute_svc/replica/sampler_ledger.py": ["tests/unit/compute_svc/replica/test_sampler_ledger.py"],
    "compute_svc/replica/sampler_link.py": [
        "tests/unit/compute_svc/replica/test_sampler_link_frames.py",
        "tests/unit/compute_svc/replica/test_sampler_link.py",
    ],
    "compute_svc/scheduler/batch_slots.py": ["tests/unit/compute_svc/scheduler/test_batch_slots.py"],
    "compute_svc/scheduler/followers.py": [
        "tests/unit/compute_svc/scheduler/test_shared_prompts.py",
        "tests/unit/compute_svc/scheduler/test_scheduler.py",
    ],
    "compute_svc/scheduler/kv_memory.py": [
        "tests/unit/compute_svc/scheduler/test_kv_memory_window.py",
        "tests/unit/compute_svc/scheduler/test_kv_memory_limits.py",
        "tests/unit/compute_svc/scheduler/test_kv_memory.py",
        "tests/unit/compute_svc/scheduler/test_kv_memory_any_use.py",
    ],
    "compute_svc/scheduler/policies/fair_tenants.py": [
        "tests/unit/compute_svc/scheduler/test_fair_tenants.py",
        "tests/unit/compute_svc/scheduler/test_policies.py",
    ],
    "compute_svc/scheduler/reservation.py": [
        "tests/unit/compute_svc/scheduler/test_reservation_limits.py",
        "tests/unit/compute_svc/scheduler/test_reservation.py",
        "tests/unit/compute_svc/scheduler/test_run_pool.py",
        "tests/unit/compute_svc/scheduler/test_kv_memory_window.py",
        "tests/unit/compute_svc/scheduler/test_kv_memory_limits.py",
        "tests/unit/compute_svc/scheduler/test_kv_memory_any_use.py",
    ],
    "compute_svc/scheduler/scheduler.py": [
        "tests/unit/compute_svc/scheduler/test_scheduler_borders.py",
        "tests/unit/compute_svc/scheduler/test_scheduler.py",
        "tests/unit/compute_svc/scheduler/test_making_way.py",
        "tests/unit/compute_svc/scheduler/test_shared_prompts.py",
        "tests/unit/compute_svc/scheduler/test_policies.py",
        "tests/unit/compute_svc/engine/test_engine.py",
    ],
    "compute_svc/drawing/changes.py": ["tests/unit/compute_svc/drawing/test_changes.py"],
    "compute_svc/drawing/gumbel_max.py": ["tests/unit/compute_svc/drawing"],
    "compute_svc/drawing/history.py": ["tests/unit/compute_svc/drawing/test_changes.py"],
    "compute_svc/drawing/request_draw.py": ["tests/unit/compute_svc/drawing", "tests/integration/compute/test_draws_agree.py"],
    "compute_svc/engine/steps/step_drawing.py": ["tests/unit/compute_svc/engine/test_engine.py"],
    "gateway/flow/admission.py": ["tests/unit/gateway/flow/test_admission.py", "tests/unit/gateway/flow"],
    "gateway/flow/generations/answer.py": ["tests/unit/gateway/flow/generations/test_answer.py", "tests/unit/gateway/flow"],
    "gateway/flow/generations/live_generation.py": ["tests/unit/gateway/flow/generations/test_generation.py", "tests/unit/gateway/flow"],
    "gateway/flow/pipeline.py": ["tests/unit/gateway/flow/test_pipeline.py", "tests/unit/gateway/flow"],
    "gateway/flow/resolve.py": ["tests/unit/gateway/flow/test_resolve.py", "tests/unit/gateway/flow"],
    "gateway/flow/token_rules.py": ["tests/unit/gateway/flow/test_token_rules.py"],
    "gateway/tools/answer_parser.py": ["tests/unit/gateway/tools"],
    "gateway/tools/call_formats.py": ["tests/unit/gateway/tools"],
    "gateway/tools/call_objects.py": ["tests/unit/gateway/tools"],
    "gateway/tools/characters.py": ["tests/unit/gateway/tools"],
    "gateway/tools/findings.py": ["tests/unit/gateway/tools"],
    "gateway/tools/harmony.py": ["tests/unit/gateway/tools"],
    "gateway/tools/python_literal.py": ["tests/unit/gateway/tools/test_call_formats.py"],
    "gateway/tools/pythonic.py": ["tests/unit/gateway/tools/test_call_formats.py"],
    "gateway/http/openai/answer.py": ["tests/unit/gateway/http/openai/test_answer.py", "tests/unit/gateway/http"],
    "prompt_cache/eviction.py": ["tests/unit/prompt_cache/test_memory_store.py"],
    "prompt_cache/flights/flight.py": ["tests/unit/prompt_cache/flights"],
    "prompt_cache/memory_store.py": ["tests/unit/prompt_cache/test_memory_store.py"],
    "prompt_cache/semantic/budget.py": ["tests/unit/prompt_cache/semantic/test_budget.py"],
    "prompt_cache/semantic/evaluator.py": ["tests/unit/prompt_cache/semantic/test_evaluator.py"],
    "prompt_cache/semantic/semantic_cache.py": ["tests/unit/prompt_cache/semantic/test_semantic_cache.py"],
    "prompt_cache/redis_store.py": ["tests/unit/prompt_cache/test_redis_store.py"],
    "sampler_svc/drawing/changes.py": ["tests/unit/sampler_svc/drawing/test_changes.py"],
    "sampler_svc/text/detokenizer.py": ["tests/unit/sampler_svc/text/test_detokenizer.py", "tests/unit/sampler_svc/test_request_state.py"],
    "sampler_svc/drawing/draw.py": ["tests/unit/sampler_svc/drawing/test_draw.py"],
    "sampler_svc/drawing/noise.py": ["tests/unit/sampler_svc/drawing/test_noise.py"],
    "sampler_svc/session.py": ["tests/unit/sampler_svc/test_session.py"],
    "sampler_svc/text/stop_matcher.py": [
        "tests/unit/sampler_svc/text/test_stop_matcher.py",
        "tests/unit/sampler_svc/test_request_state.py",
    ],
    "tokenizer_svc/chat_encoder.py": ["tests/unit/tokenizer_svc/test_chat_encoder.py"],
    "tokenizer_svc/lanes.py": ["tests/unit/tokenizer_svc/test_lanes.py"],
    "tokenizer_svc/sampling_strings.py": ["tests/unit/tokenizer_svc/test_sampling_strings.py"],
    "tokenizer_svc/tool_forms.py": ["tests/unit/tokenizer_svc/test_tool_forms.py", "tests/unit/tokenizer_svc/test_tools_in_chats.py"],
    "tokenizer_svc/token_texts.py": ["tests/unit/tokenizer_svc/test_token_texts.py"],
}
_SAME = ("_Is_Eq", "_IsNot_NotEq")
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
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), help="how many are tried at once (default: a core each)"
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    chosen = parser.parse_args(arguments)
    modules = chosen.modules or list(MODULES)
    if unknown := [module for module in modules if module not in MODULES]:
        parser.error(f"no tests are named for {', '.join(unknown)}")
    mutants = _draw(modules, chosen.count, chosen.seed)
    survivors = _try_all(mutants, chosen.workers)
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
        if operator_class.arguments() or name.endswith(_SAME):
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
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
            yield _Place(node.annotation.lineno, node.annotation.col_offset), _end(node.annotation)
        elif isinstance(node, ast.Assert) or (
            isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "Protocol" for base in node.bases)
        ):
            yield _Place(node.lineno, node.col_offset), _end(node)
        elif isinstance(node, ast.Starred):
            yield _Place(node.lineno, node.col_offset), _Place(node.value.lineno, node.value.col_offset)
        elif isinstance(node, ast.Dict):
            yield from (_double_star(value) for key, value in zip(node.keys, node.values, strict=True) if key is None)
        elif isinstance(node, ast.keyword) and node.arg is None:
            yield _double_star(node.value)
        elif isinstance(node, ast.keyword) and node.arg == "strict" and ast.unparse(node.value) == "True":
            yield _Place(node.value.lineno, node.value.col_offset), _end(node.value)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if node.returns is not None:
                yield _Place(node.returns.lineno, node.returns.col_offset), _end(node.returns)
            if node.args.kwonlyargs and node.args.vararg is None:
                before: list[ast.arg | ast.expr] = [*node.args.posonlyargs, *node.args.args, *node.args.defaults]
                first = node.args.kwonlyargs[0]
                yield max(map(_end, before), default=_Place(node.lineno, node.col_offset)), _Place(first.lineno, first.col_offset)


def _double_star(unpacked: ast.expr) -> tuple[_Place, _Place]:
    end = _Place(unpacked.lineno, unpacked.col_offset)
    return end._replace(column=end.column - len("**")), end


def _end(node: ast.arg | ast.expr | ast.stmt) -> _Place:
    assert node.end_lineno is not None and node.end_col_offset is not None, "parsed code has ends"
    return _Place(node.end_lineno, node.end_col_offset)


def _try_all(mutants: Sequence[Mutant], num_workers: int) -> list[dict[str, object]]:
    """Those that survived; as many copies of the tree as workers, each with one change at a time."""
    with tempfile.TemporaryDirectory(prefix="triserve-mutants-") as folder:
        copies: SimpleQueue[Path] = SimpleQueue()
        tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
        for number in range(num_workers):
            copy = Path(folder, str(number))
            copy.mkdir()
            subprocess.run(["tar", "-cf", str(copy / "tree.tar"), "--null", "-T", "-"], cwd=ROOT, input=tracked, check=True)
            subprocess.run(["tar", "-xf", "tree.tar"], cwd=copy, check=True)
            copies.put(copy)

        def in_a_copy(job: Callable[[Path], T]) -> T:
            copy = copies.get()
            try:
                return job(copy)
            finally:
                copies.put(copy)

        def check_green(tests: Sequence[str]) -> None:
            if in_a_copy(lambda copy: _run_tests(copy, tests, is_shown=True)) != 0:
                raise SystemExit(f"{' '.join(tests)} fail without any change")

        def attempt(mutant: Mutant) -> tuple[str, str, float]:
            began = time.monotonic()
            return *in_a_copy(lambda copy: _try(copy, mutant)), time.monotonic() - began

        survivors = []
        with ThreadPoolExecutor(num_workers) as workers:
            list(workers.map(check_green, sorted({tuple(MODULES[mutant.module]) for mutant in mutants})))
            for number, (mutant, (verdict, change, took_s)) in enumerate(zip(mutants, workers.map(attempt, mutants), strict=True), 1):
                sys.stdout.write(f"{number:3} {verdict:8} {took_s:5.1f} s  {mutant.module}:{mutant.line} {mutant.operator}\n")
                if verdict != "noticed":
                    sys.stdout.write(change + "\n")
                    survivors.append({**mutant._asdict(), "verdict": verdict, "change": change})
                sys.stdout.flush()
    return survivors


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
        status = _run_tests(copy, MODULES[mutant.module])
    finally:
        path.write_text(source)
    verdict = "hung" if status is None else "survived" if status == 0 else "noticed"
    return verdict, "\n".join(lines[:1])


def _run_tests(copy: Path, tests: Sequence[str], *, is_shown: bool = False) -> int | None:
    """The tests' exit status; None if they had to be ended from outside."""
    # The limit ends the process: raised within a test it is an error like another, for which hypothesis looks for a shorter example.
    limit = [f"--timeout={_TEST_LIMIT_S}", "--timeout-method=thread"]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--hypothesis-profile", "no shrinking", *limit, *tests]
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
