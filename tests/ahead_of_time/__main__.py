"""python -m tests.ahead_of_time: compiles every kernel and prints a JSON list of what each uses; --capability for some GPUs alone."""

from __future__ import annotations

import argparse
import json
import pkgutil
import sys
from dataclasses import asdict
from importlib import import_module

import tests.ahead_of_time
from tests.ahead_of_time.compiling import SHARED_LIMITS, Case, compile_case


def main() -> int:
    """Prints; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m tests.ahead_of_time", description=__doc__)
    parser.add_argument("--capability", type=int, nargs="+", choices=list(SHARED_LIMITS), default=list(SHARED_LIMITS))
    parser.add_argument("--only", default="", help="cases with this in their name")
    parser.add_argument("--one-of-each", action="store_true", help="of each kernel its first case")
    chosen = parser.parse_args()
    rows = []
    seen = set()
    for case in all_cases():
        if chosen.only not in case.name or (chosen.one_of_each and case.kernel in seen):
            continue
        seen.add(case.kernel)
        for capability in chosen.capability:
            if case.capabilities and capability not in case.capabilities:
                continue
            compiled = compile_case(case, capability)
            wanted = case.instructions if capability == max(SHARED_LIMITS) else ()
            rows.append({"kernel": case.name, **asdict(compiled), "wanted_instructions": wanted})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    json.dump(rows, sys.stdout, indent=1)
    return 0


def all_cases() -> list[Case]:
    """Those of all modules here that are named *_cases."""
    names = sorted(module.name for module in pkgutil.iter_modules(tests.ahead_of_time.__path__) if module.name.endswith("_cases"))
    return [case for name in names for case in import_module(f"tests.ahead_of_time.{name}").CASES]


if __name__ == "__main__":
    sys.exit(main())
