"""Text of an answer as it grows: whole characters only, and in the end the text of all its tokens after the prompt.

The library's own stream ends with an "invalid prefix" error where the text of earlier tokens changes under later ones (bytes
that turn out to be no character), so it is not used.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple, Protocol

from sampler_svc.text.vocabulary import Vocabulary

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# A character has four bytes at most, and every token at least one: more tokens than these cannot be waiting for its end.
_MAX_HELD_TOKENS = 3
# Enough for half a character or the neighbour of the answer's first token.
_CONTEXT_TOKENS = 4
_MAX_WINDOW_TOKENS = 32


class Fed(NamedTuple):
    """What one token did."""

    text: str  # that is certain with it
    added: bytes  # its own bytes at this place; none if it is no text


class Detokenizer(Protocol):
    """One answer's text."""

    @property
    def pending(self) -> bool:
        """Whether something is held back."""

    def feed(self, token: int) -> str:
        """The text that is certain with one more token; what may be half a character is held back."""

    def feed_exactly(self, token: int) -> Fed:
        """`feed`, and the bytes by which the token added to the text."""

    def interrupt(self) -> str:
        """What is held back, since text stands here that no token gives: half characters become U+FFFD. The text goes on behind it."""

    def flush(self) -> str:
        """The end of the text: half characters become U+FFFD. Nothing may be fed afterwards."""


def open_detokenizer(vocabulary: Vocabulary, prompt_token_ids: Sequence[int], *, joins_special_tokens: bool = False) -> Detokenizer:
    """A detokenizer for the answer to a prompt.

    A character that the prompt leaves half belongs to the answer's text.

    Args:
        vocabulary: of the tokenizer.
        prompt_token_ids: what is answered.
        joins_special_tokens: whether no space stands between the names of special tokens that follow each other, where they are shown.
    """
    context = list(islice((token for token in reversed(prompt_token_ids) if vocabulary.is_text(token)), _CONTEXT_TOKENS))
    context.reverse()
    if vocabulary.independent:
        return ByteDetokenizer(vocabulary, context)
    return WindowDetokenizer(vocabulary, context, joins_special_tokens=joins_special_tokens)


class ByteDetokenizer:
    """For vocabularies whose tokens are bytes of their own: decodes the stream of bytes.

    A character once whole stays. Where the library takes back a whole run of byte tokens because of one bad byte, only the bad
    byte becomes U+FFFD here.

    Args:
        vocabulary: `independent`.
        context: the prompt's last tokens that are text.
    """

    __slots__ = ("_begun", "_pending", "_texts", "_vocabulary")

    def __init__(self, vocabulary: Vocabulary, context: Sequence[int]) -> None:
        self._vocabulary = vocabulary
        self._texts = vocabulary.texts
        self._pending = b""
        self._begun = False
        for token in context:
            self.feed(token)

    @property
    def pending(self) -> bool:
        """See `Detokenizer`."""
        return bool(self._pending)

    def feed_exactly(self, token: int) -> Fed:
        """See `Detokenizer`."""
        added = self._vocabulary.text_bytes(token) if self._begun else self._vocabulary.first_bytes(token)
        return Fed(self.feed(token), added)

    def feed(self, token: int) -> str:
        """See `Detokenizer`."""
        if self._begun and not self._pending:
            text = self._texts.get(token)
            if text is not None:
                return text
        if self._begun:
            return self._decode(self._vocabulary.text_bytes(token))
        self._begun = self._vocabulary.is_text(token)
        return self._decode(self._vocabulary.first_bytes(token))

    def interrupt(self) -> str:
        """See `Detokenizer`."""
        self._begun = True
        return self.flush()

    def flush(self) -> str:
        """See `Detokenizer`."""
        pending, self._pending = self._pending, b""
        if self._vocabulary.one_replacement_per_byte:
            return REPLACEMENT * len(pending)
        return pending.decode(errors="replace")

    def _decode(self, more: bytes) -> str:
        data = self._pending + more
        text = ""
        while True:
            try:
                whole, consumed = codecs.utf_8_decode(data, "strict", False)
            except UnicodeDecodeError as error:
                text += data[: error.start].decode() + self._replace(data[error.start : error.end])
                data = data[error.end :]
            else:
                self._pending = data[consumed:]
                return text + whole

    def _replace(self, bad: bytes) -> str:
        return REPLACEMENT * (len(bad) if self._vocabulary.one_replacement_per_byte else 1)


class WindowDetokenizer:
    """For any other vocabulary: decodes the newest tokens together with the one before them, and takes the difference.

    Args:
        vocabulary: any.
        context: the prompt's last tokens that are text.
        joins_special_tokens: see `open_detokenizer`; bytes of their own never have such a space.
    """

    __slots__ = ("_delivered", "_emitted", "_joins", "_vocabulary", "_window")

    def __init__(self, vocabulary: Vocabulary, context: Sequence[int], *, joins_special_tokens: bool = False) -> None:
        self._vocabulary = vocabulary
        # Special tokens before which no space is put where another one precedes them.
        self._joins = vocabulary.special_names if joins_special_tokens else {}
        # [0, _delivered) of the window gave _emitted, with which the window's text begins; the others are held back.
        self._window = list(context)
        self._delivered = len(self._window)
        self._emitted = vocabulary.decode(self._window)

    @property
    def pending(self) -> bool:
        """See `Detokenizer`."""
        return bool(self._window[self._delivered :])

    def feed_exactly(self, token: int) -> Fed:
        """See `Detokenizer`. Bytes of a token that is a part of a character are those it has in the vocabulary."""
        held = self.pending
        text = self.feed(token)
        whole = not held and not self.pending and REPLACEMENT not in text
        return Fed(text, text.encode() if whole else self._vocabulary.text_bytes(token))

    def feed(self, token: int) -> str:
        """See `Detokenizer`."""
        if not self._vocabulary.is_text(token):
            return ""
        joined = token in self._joins and bool(self._window) and self._window[-1] in self._joins
        self._window.append(token)
        text = self._vocabulary.decode(self._window)
        if text.endswith(REPLACEMENT) and len(self._window) - self._delivered <= _MAX_HELD_TOKENS:
            return ""
        new = self._emit(text)
        return new.removeprefix(" ") if joined else new

    def interrupt(self) -> str:
        """See `Detokenizer`."""
        return self.flush()

    def flush(self) -> str:
        """See `Detokenizer`."""
        return self._emit(self._vocabulary.decode(self._window))

    def _emit(self, text: str) -> str:
        new = text[len(self._emitted) :]
        # Tokens that add nothing do not push out the one that did, for the next token's text may depend on it.
        if new or len(self._window) > _MAX_WINDOW_TOKENS:
            self._window = self._window[self._delivered if new else -_CONTEXT_TOKENS :]
            self._emitted = self._vocabulary.decode(self._window)
        self._delivered = len(self._window)
        return new
