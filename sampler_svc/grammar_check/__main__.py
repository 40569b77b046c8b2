"""`python -m sampler_svc.grammar_check` checks grammars for the sampler that starts it, on its standard streams, until these end."""

from __future__ import annotations

import sys

from sampler_svc.grammar_check.fork_server import ForkServer


def main() -> None:
    """Serves until standard input ends."""
    ForkServer(sys.stdin.fileno(), sys.stdout.fileno()).serve()


if __name__ == "__main__":
    main()
