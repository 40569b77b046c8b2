"""Runs the checks of one client and says how each went, one JSON object a line. Runs in the client's own environment."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from importlib import metadata

QUESTION = [{"role": "user", "content": "What is a merge step?"}]
# The server's name for its model; the command line is the server's address, without /v1, this, and where its replica speaks vLLM's engine gRPC.
MODEL = sys.argv[2]

Check = Callable[[str], None]


def run(package: str, checks: dict[str, Check]) -> None:
    """Runs checks with the server's address.

    Args:
        package: the client's name on PyPI.
        checks: by feature; one that raises has failed.
    """
    url = sys.argv[1]
    for feature, check in checks.items():
        failure = ""
        try:
            check(url)
        except Exception as error:  # noqa: BLE001 - whatever a client raises is the outcome of its check
            traceback.print_exc()
            failure = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        line = {"client": package, "version": metadata.version(package), "feature": feature, "failure": failure}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


def require(condition: object, what: str) -> None:
    """Fails the check.

    Raises:
        AssertionError: the condition does not hold; says what should.
    """
    if not condition:
        raise AssertionError(what)
