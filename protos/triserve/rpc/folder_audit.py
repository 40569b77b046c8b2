"""What a stage found in a model folder and what it made of it: one table, logged when the stage loads and printed by `triserve inspect`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple


class Fact(NamedTuple):
    """One line of the table.

    Attributes:
        what: "context limit".
        value: "1024 tokens".
        source: The file and field it came from: "config.json: rope_scaling.factor".
    """

    what: str
    value: str
    source: str


class FolderAudit(NamedTuple):
    """What became of a folder's files.

    Attributes:
        facts: What was decided, and from which field.
        used: For each file, its fields that bear on something; nested ones as "rope_scaling.factor".
        without_effect: For each file, the fields that bear on nothing here.
        problems: What the folder says and cannot be done, in whole sentences.
    """

    facts: tuple[Fact, ...]
    used: Mapping[str, tuple[str, ...]]
    without_effect: Mapping[str, tuple[str, ...]]
    problems: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The table, in columns."""
        widths = [max((len(fact[column]) for fact in self.facts), default=0) for column in (0, 1)]
        table = [f"{fact.what:<{widths[0]}}  {fact.value:<{widths[1]}}  {fact.source}".rstrip() for fact in self.facts]
        table += [f"{file}, used: {', '.join(fields)}" for file, fields in self.used.items() if fields]
        table += [f"{file}, without effect: {', '.join(fields)}" for file, fields in self.without_effect.items() if fields]
        return [*table, *(f"note: {problem}" for problem in self.problems)]

    def to_json(self) -> str:
        """One JSON object on one line, which `from_json` reads."""
        return json.dumps({**self._asdict(), "facts": [fact._asdict() for fact in self.facts]}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> FolderAudit:
        """The audit that another process printed.

        Raises:
            ValueError: The text is no audit.
        """
        try:
            content: dict[str, Any] = json.loads(text)
            facts = tuple(Fact(**fact) for fact in content["facts"])
            used, unused = ({file: tuple(fields) for file, fields in content[name].items()} for name in ("used", "without_effect"))
            return cls(facts, used, unused, tuple(content["problems"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no audit of a folder: {error}") from error
