"""`python -m tokenizer_svc.calibration_ids FOLDER TEXT IDS`: the token ids of a text, for a quantisation that is calibrated; serves nothing.

IDS becomes a file of little-endian integers of 32 bits. Nothing is added to the text's own tokens.
"""

from __future__ import annotations

import argparse
import array
import sys
from pathlib import Path

from tokenizer_svc.model_folder import ModelFolderError, read_model_folder
from tokenizer_svc.tokenizer import Tokenizer
from triserve.rpc.errors import InvalidRequest

# A token has a few bytes: a longer text has no part in what is read of it.
_BYTES_PER_TOKEN = 32


def main() -> None:
    """Writes the file; ends with status 1 and one line if it cannot."""
    parser = argparse.ArgumentParser(prog="tokenizer_svc.calibration_ids", description=__doc__)
    parser.add_argument("folder", type=Path, help="the model's")
    parser.add_argument("text", type=Path, help="UTF-8")
    parser.add_argument("ids", type=Path, help="where to")
    parser.add_argument("--limit", type=int, required=True, help="the most tokens to write")
    arguments = parser.parse_args()
    try:
        ids = read_ids(arguments.folder, arguments.text, arguments.limit)
        arguments.ids.write_bytes(ids.tobytes())
    except (ModelFolderError, InvalidRequest, OSError, ValueError) as error:
        raise SystemExit(f"tokenizer_svc.calibration_ids: {error}") from None


def read_ids(folder: Path, text: Path, limit: int) -> array.array[int]:
    """The first token ids of a text, little-endian.

    Args:
        folder: The model's.
        text: UTF-8; its beginning is read alone.
        limit: The most of them.

    Raises:
        ModelFolderError: The folder has no tokenizer.
        InvalidRequest: It cannot spell the text.
        OSError: The text cannot be read.
        ValueError: It is not UTF-8.
    """
    with text.open("rb") as file:
        content = file.read(limit * _BYTES_PER_TOKEN)
        is_whole = not file.read(1)
    try:
        words = content.decode("utf-8")
    except UnicodeDecodeError as error:
        # The last character may be cut where the text is.
        if is_whole or error.start < len(content) - 4:
            raise ValueError(f"{text} is not UTF-8: {error.reason} at byte {error.start}") from error
        words = content[: error.start].decode("utf-8")
    ids = array.array("i", Tokenizer(read_model_folder(folder)).encode(words, add_special_tokens=False, field="the text")[:limit])
    if sys.byteorder == "big":
        ids.byteswap()
    return ids


if __name__ == "__main__":
    main()
