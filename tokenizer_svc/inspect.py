"""`python -m tokenizer_svc.inspect FOLDER` prints, as JSON, what the tokenize stage would make of a model folder; serves nothing."""

from __future__ import annotations

import sys
from pathlib import Path

from tokenizer_svc.chat_template import ChatTemplate, RenderLimits, TemplateSourceError
from tokenizer_svc.folder_audit import audit_tokenizer
from tokenizer_svc.model_folder import ModelFolderError, read_model_folder
from tokenizer_svc.tokenizer import Tokenizer
from triserve.rpc.folder_audit import FolderAudit


def audit_folder(path: Path) -> FolderAudit:
    """What serving the folder would log.

    Raises:
        ModelFolderError: the folder cannot be served.
    """
    folder = read_model_folder(path)
    if folder.chat_template is None:
        return audit_tokenizer(folder, Tokenizer(folder), None)
    try:
        template = ChatTemplate(folder.chat_template, folder.special_tokens, limits=RenderLimits())
    except TemplateSourceError as error:
        raise ModelFolderError(f"{path}: the chat template has an error on {error}") from error
    return audit_tokenizer(folder, Tokenizer(folder, frames_with=template.frames_with), template)


def main() -> None:
    """Prints one line; ends with status 1 and one line on standard error if the folder cannot be served."""
    try:
        sys.stdout.write(audit_folder(Path(sys.argv[1])).to_json() + "\n")
    except ModelFolderError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
