"""Runs the checks of one client and says how each went, one JSON object a line. Runs in the client's own environment."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from importlib import metadata
from typing import Literal

from pydantic import BaseModel, Field

QUESTION = [{"role": "user", "content": "What is a merge step?"}]
# The command line is the server's address, without /v1, its name for its model, where its replica speaks vLLM's engine gRPC, and a folder of its tokenizer.
MODEL = sys.argv[2]
FOLDER = sys.argv[4]


# A small model names what is allowed, or nothing of sense: what it is asked for is bounded.
class Trip(BaseModel):
    """A trip to a city."""

    city: Literal["Paris", "Rome"]
    days: int = Field(ge=1, le=7)


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
