"""`triserve`: one command, one file for each of its subcommands."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version

from gateway.cli.extras import EXTRA_OF, MissingExtra
from gateway.cli.options import OptionParser

# Name, module, summary. A module has `add_arguments(parser)` and `run(arguments) -> status`; only that of the command is imported.
_COMMANDS = (
    ("up", "gateway.cli.up", "start every part on this machine and keep it running"),
    ("chat", "gateway.cli.chat", "talk to a server"),
    ("bench", "gateway.cli.bench", "measure a server"),
    ("convert", "gateway.cli.convert", "make a model folder of a GGUF file or of pytorch_model*.bin"),
    ("quantize", "gateway.cli.quantize", "make a model folder with quantised weights of a float one"),
    ("fetch", "gateway.cli.fetch", "put a model's files into a folder, each checked against its sha256"),
    ("inspect", "gateway.cli.inspect", "say what would be made of a model, without serving it"),
    ("cache", "gateway.cli.cache", "look into a server's prompt cache, fill it, forget it, explain it; build an embedder"),
    ("pin", "gateway.cli.pin", "keep a system prompt in the prefix cache of compute replicas"),
)
# The status of a program that a closed pipe ends: 128 and the number of SIGPIPE.
_BROKEN_PIPE = 141


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and leaves with its status.

    Args:
        arguments: without the program's name; None = the process's own.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    wanted = next((word for word in given if not word.startswith("-")), None)
    parser = OptionParser(prog="triserve", description="Serves open-weight language models as three stages.")
    parser.add_argument("--version", action="version", version=f"triserve {version('triserve')}")
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, module, summary in _COMMANDS:
        command = commands.add_parser(name, help=summary)
        if name == wanted:
            _fill(command, module)
    parsed = parser.parse_args(given)
    if getattr(parsed, "ca", None) is not None and not parsed.url.startswith("https://"):
        parser.error("argument --ca: --url has no https:// address, so there is no certificate to check")
    if wanted is None:
        parser.print_help()
        sys.exit(0)
    try:
        sys.exit(parsed.run(parsed))
    except BrokenPipeError:
        # Whoever read the output has left. Python would try to write the rest of it once more as it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_BROKEN_PIPE)


def _fill(command: OptionParser, module: str) -> None:
    """Gives a command its options, or ends the process saying which packages it lacks."""
    try:
        loaded = import_module(module)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA_OF:
            raise
        command.exit(1, f"{command.prog}: {MissingExtra([package])}\n")
    command.description = loaded.__doc__
    loaded.add_arguments(command)
    command.set_defaults(run=loaded.run)


if __name__ == "__main__":
    main()
