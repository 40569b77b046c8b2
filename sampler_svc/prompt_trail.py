"""The tokens of a prompt with their log-probabilities, in the order in which compute reads them, each with its part of the prompt's text."""

from __future__ import annotations

from collections.abc import Sequence

from sampler_svc.errors import Disagreement
from sampler_svc.logprobs import LogprobTrail, PromptPart, TextLogprob, TokenLogprob
from sampler_svc.text.detokenizer import open_detokenizer
from sampler_svc.text.vocabulary import Vocabulary


class PromptTrail:
    """What is told of one prompt.

    Special tokens are a part of the prompt's text, by their names.

    Args:
        vocabulary: of the tokenizer.
        tokens: the prompt, at least one id.
        num_top: how many of the likeliest are told with each token.
    """

    __slots__ = ("_detokenizer", "_num_top", "_position", "_text_length", "_tokens", "_trail", "num_told")

    def __init__(self, vocabulary: Vocabulary, tokens: Sequence[int], num_top: int) -> None:
        self._tokens = tokens
        self._num_top = num_top
        self._detokenizer = open_detokenizer(vocabulary.with_special_tokens, ())
        self._trail = LogprobTrail()
        self._position = 0
        self._text_length = 0
        self.num_told = 0
        """Tokens that `begin` and `read` have returned."""

    @property
    def is_whole(self) -> bool:
        """Whether every token was read."""
        return self._position == len(self._tokens)

    def begin(self) -> list[TextLogprob]:
        """The first token, before which there is nothing that would say how likely it is; none while its text is half a character."""
        return self._take([TokenLogprob(self._tokens[0], 0.0, [])])

    def read(self, part: PromptPart) -> list[TextLogprob]:
        """The next tokens whose text is whole.

        Raises:
            Disagreement: the part does not go on where the one before has ended, goes on too far, or has no numbers.
        """
        if part.first_position != self._position:
            raise Disagreement(f"log-probabilities of the prompt begin at token {part.first_position}, the next is {self._position}")
        return self._take(part.entries(self._tokens[self._position : self._position + len(part.token)], self._num_top))

    def _take(self, entries: Sequence[TokenLogprob]) -> list[TextLogprob]:
        for entry in entries:
            pending = self._detokenizer.pending
            fed = self._detokenizer.feed_exactly(entry.token)
            self._text_length += len(fed.text)
            self._trail.feed(entry, fed, pending_before=pending, pending=self._detokenizer.pending)
        self._position += len(entries)
        if self.is_whole:
            rest = self._detokenizer.flush()
            self._text_length += len(rest)
            self._trail.flush(rest)
        told = self._trail.sent(self._text_length)
        self.num_told += len(told)
        return told
