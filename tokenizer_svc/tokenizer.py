"""Encodes text into token ids and decodes ids into text, with the model's own tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tokenizers import Tokenizer as FastTokenizer

from tokenizer_svc import tokenizer_definition
from tokenizer_svc.model_folder import ModelFolder, ModelFolderError
from tokenizer_svc.special_tokens import SpecialTokens, new_salt
from tokenizer_svc.token_reach import token_reach
from triserve.rpc.errors import InvalidRequest, PromptTooLong

# Encoded whatever their limit, in a millisecond or two: of shorter texts the exact number of tokens is told.
_CHEAP_CHARS = 16 * 1024


_MOST_REASON_CHARS = 500


class Decoded(NamedTuple):
    """Text of some token ids.

    Attributes:
        text: what they say; bytes that are not UTF-8 are U+FFFD.
        tokens: the vocabulary's string of each id, "" where it has none.
    """

    text: str
    tokens: list[str]


class Tokenizer:
    """A model's tokenizer. Nothing in it changes after it is made, so threads may share it.

    No text encodes to a special token's id by what it says: only `special_tokens.aliases` do, and `unk_token` for what the
    vocabulary has no piece for.

    Attributes:
        unknown_id: stands for what the vocabulary has no piece for; None = nothing does.

    Args:
        folder: the model's.
        frames_with: whether the model's template frames turns with a token; such a token is treated as special though it is not marked
            so, as the tokens for user and assistant are in some published models.

    Raises:
        ModelFolderError: tokenizer.json is not one.
    """

    def __init__(self, folder: ModelFolder, *, frames_with: Callable[[str], bool] = lambda token: False) -> None:
        try:
            definition = tokenizer_definition.prepare(
                folder.definition,
                (*folder.special_tokens.values(), *folder.additional_special_tokens),
                declared=folder.declared_tokens,
                num_rows=folder.num_rows,
            )
            self._named = _build(definition)
            added = tokenizer_definition.added_tokens(definition)
            framing = {token.content for token in added if frames_with(token.content)}
            self.special_tokens = SpecialTokens(added, framing=framing, salt=new_salt())
            self._aliased = _build(tokenizer_definition.with_aliases(definition, self.special_tokens.aliases))
            self._reach = token_reach(definition, aliases=self.special_tokens.aliases)
            self.unknown_id = tokenizer_definition.unknown_id(definition)
            self.vocab_size = 1 + max(tokenizer_definition.highest_id(definition), *self._named.get_added_tokens_decoder(), -1)
        except Exception as error:  # the library raises nothing more precise
            # What it says may hold as much of the file as there is.
            raise ModelFolderError(f"{folder.path / 'tokenizer.json'}: {str(error)[:_MOST_REASON_CHARS]}") from error
        moved = [token["content"] for token in definition["added_tokens"] if self.token_id(token["content"]) != token["id"]]
        moved += [name for name, alias in self.special_tokens.aliases.items() if self._aliased.token_to_id(alias) != self.token_id(name)]
        if moved:
            raise ModelFolderError(f"{folder.path / 'tokenizer.json'}: {moved[0]!r} has another id than its place in added_tokens gives it")

    def token_id(self, token: str) -> int | None:
        """The id of a token of the vocabulary; None if it is not one."""
        token_id: int | None = self._named.token_to_id(token)
        return token_id

    def encode(
        self, text: str, *, add_special_tokens: bool, field: str, max_tokens: int | None = None, keep_last: int | None = None
    ) -> list[int]:
        """The ids of a text, in which special tokens' names are text and their aliases special tokens.

        A text that is too long by its bytes alone is refused before it is encoded, which would take seconds and gigabytes.

        Args:
            text: any Unicode text.
            add_special_tokens: whether the tokenizer adds its own around it, such as begin-of-text.
            field: what to name in an error.
            max_tokens: most ids; None = no limit.
            keep_last: so many of the last ids are kept, at least 1, and count against `max_tokens`; None = all are.

        Raises:
            InvalidRequest: the vocabulary cannot spell the text.
            PromptTooLong: more ids than `max_tokens`.
        """
        if keep_last is not None and max_tokens is not None and keep_last <= max_tokens:
            max_tokens = None
        reach = self._reach if len(text) > _CHEAP_CHARS else None
        if max_tokens is not None and reach is not None and reach.is_exceeded(text, max_tokens):
            raise PromptTooLong(f"{field} has {len(text)} characters, which are more than {max_tokens} tokens, the limit", field=field)
        try:
            # A batch of one: `encode` holds the interpreter's lock to the end, this does not.
            encodings = self._aliased.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        except Exception as error:
            # The library raises nothing more precise, and what it says may show an alias.
            raise InvalidRequest(f"{field} cannot be encoded: the vocabulary has no token for a part of it", field=field) from error
        ids: list[int] = encodings[0].ids
        if keep_last is not None:
            ids = ids[-keep_last:]
        if max_tokens is not None and len(ids) > max_tokens:
            raise PromptTooLong.of(got=len(ids), limit=max_tokens, field=field)
        return ids

    def token_texts(self) -> dict[int, str]:
        """What each id, in rising order, adds to a text that has begun: bytes that are no character are U+FFFD, special tokens nothing."""
        token_ids = sorted(set(self._named.get_vocab().values()))
        anchor, before = self._anchor(token_ids)
        texts = self._named.decode_batch([[*anchor, token_id] for token_id in token_ids], skip_special_tokens=True)
        return {token_id: text.removeprefix(before) for token_id, text in zip(token_ids, texts, strict=True)}

    def _anchor(self, token_ids: Sequence[int]) -> tuple[list[int], str]:
        """A token that nothing behind it changes, and its text. Without one before it a token would be the beginning of a text, where
        decoders leave out spaces."""
        for token_id in token_ids:
            text, twice = self._named.decode_batch([[token_id], [token_id, token_id]], skip_special_tokens=True)
            if text.isascii() and text.isalnum() and len(twice) > len(text) and twice.startswith(text):
                return [token_id], text
        return [], ""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool, return_tokens: bool) -> Decoded:
        """The text of token ids.

        Args:
            token_ids: of 32 bits; one that has no token says nothing: a model's logits may be wider than its vocabulary, and give such ids.
            skip_special_tokens: whether special tokens leave no text.
            return_tokens: whether to fill `Decoded.tokens`.
        """
        text = self._named.decode_batch([token_ids], skip_special_tokens=skip_special_tokens)[0]
        tokens = [self._named.id_to_token(token_id) or "" for token_id in token_ids] if return_tokens else []
        return Decoded(text, tokens)


def _build(definition: tokenizer_definition.Definition) -> FastTokenizer:
    return FastTokenizer.from_str(json.dumps(definition, ensure_ascii=False))


def eos_token_ids(tokenizer: Tokenizer, folder: ModelFolder) -> list[int]:
    """Ids that end an answer, without repeats: those of the model's configuration, then the tokenizer's own."""
    eos = folder.special_tokens.get("eos_token")
    own = None if eos is None else tokenizer.token_id(eos)
    return list(dict.fromkeys([*folder.eos_token_ids, *([] if own is None else [own])]))
