"""Runs the tokenize stage: `python -m tokenizer_svc`."""

from __future__ import annotations

from tokenizer_svc.model_folder import ModelFolderError
from tokenizer_svc.service import TokenizerService
from tokenizer_svc.settings import Settings
from triserve.rpc.server import run_service


def main() -> None:
    """Serves until SIGTERM; ends with status 1 and one line if the model folder cannot be served."""
    try:
        run_service("tokenizer", Settings, TokenizerService)
    except ModelFolderError as error:
        raise SystemExit(f"tokenizer: {error}") from None


if __name__ == "__main__":
    main()
