"""The content of one answer, without what the model thinks before it: all that doors show which have no form for the rest."""

from __future__ import annotations

from gateway.tools.answer_parser import AnswerForm, AnswerParser


class ContentReader:
    """Reads the text of one answer as it comes.

    Args:
        form: how it is written; None = all of it is content.
    """

    def __init__(self, form: AnswerForm | None) -> None:
        self._parser: AnswerParser | None = None if form is None else form.parser(0)

    def feed(self, text: str, *, is_last: bool) -> str:
        """More of the content, which may be none yet."""
        return text if self._parser is None else self._parser.feed(text, is_last=is_last).content
