"""The parts of one answer, in the order in which the model wrote them: thoughts, text and calls."""

from __future__ import annotations

from gateway.tools.answer_parser import AnswerForm, AnswerParser
from gateway.tools.findings import Part, Spoken


class PartReader:
    """Reads the text of one answer as it comes.

    Args:
        form: how it is written; None = all of it is text.
    """

    def __init__(self, form: AnswerForm | None) -> None:
        self._parser: AnswerParser | None = None if form is None else form.parser(0)

    def feed(self, text: str, *, is_last: bool) -> tuple[Part, ...]:
        """More of the parts; none if nothing came to light."""
        if self._parser is None:
            return (Spoken(text),) if text else ()
        return self._parser.feed(text, is_last=is_last).parts
