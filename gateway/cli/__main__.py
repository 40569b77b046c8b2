"""`triserve`: one command, one file for each of its subcommands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

from gateway.cli import bench, chat, convert, pin, up

_COMMANDS = (
    ("up", up, "start every part on this machine and keep it running"),
    ("chat", chat, "talk to a server"),
    ("bench", bench, "measure a server"),
    ("convert", convert, "make a model folder of a GGUF file or of pytorch_model*.bin"),
    ("pin", pin, "keep a system prompt in the prefix cache of compute replicas"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and leaves with its status.

    Args:
        arguments: without the program's name; None = the process's own.
    """
    parser = argparse.ArgumentParser(prog="triserve", description="Serves open-weight language models as three stages.")
    parser.add_argument("--version", action="version", version=f"triserve {version('triserve')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, module, summary in _COMMANDS:
        command = commands.add_parser(name, help=summary, description=module.__doc__)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    parsed = parser.parse_args(arguments)
    sys.exit(parsed.run(parsed))


if __name__ == "__main__":
    main()
