"""Tokenizers whose every piece is written out, for texts whose tokens a test must know."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models


def tokenizer_of(pieces: Sequence[str], decoder: decoders.Decoder | None, *, special: Sequence[str] = ()) -> Tokenizer:
    """A tokenizer that decodes the given pieces; ids count from 0, the special ones after the others.

    Args:
        pieces: distinct, as the vocabulary writes them.
        decoder: None = pieces are joined by spaces.
        special: tokens that are no text.
    """
    tokenizer = Tokenizer(models.WordLevel({piece: index for index, piece in enumerate(pieces)}, unk_token=pieces[0]))
    if decoder is not None:
        tokenizer.decoder = decoder
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def byte_tokenizer(*more: str, special: Sequence[str] = ("<eos>",)) -> Tokenizer:
    """Ids 0 to 255 are the bytes, then come pieces of ASCII text without spaces, then the special tokens."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + index) for index, byte in enumerate(others)}
    return tokenizer_of([letters[byte] for byte in range(256)] + list(more), decoders.ByteLevel(), special=special)


def llama_decoder() -> decoders.Decoder:
    """Spaces as ▁, bytes as <0xHH>, one space less at the beginning of the text."""
    return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
