"""A question that was asked, with its answer, as it is kept beside its vector."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from prompt_cache.entry import CachedAnswer, answer_from, columns_of
from prompt_cache.sealing import CorruptEntry, Sealer


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is kept.

    Attributes:
        question: Normalised.
        answer: To it.
    """

    question: str
    answer: CachedAnswer


class RecordCodec:
    """Turns records into sealed bytes and back.

    Args:
        secrets: As `Sealer` has them.
    """

    def __init__(self, secrets: Sequence[bytes]) -> None:
        self._sealer = Sealer(secrets, "record")

    def encode(self, scope: str, entry_id: str, record: Record) -> bytes:
        """The bytes of a record, valid in this scope and under this id alone.

        Raises:
            ValueError: The answer breaks its own types.
        """
        body = json.dumps([record.question, columns_of(record.answer)], ensure_ascii=False, separators=(",", ":"))
        return self._sealer.seal(f"{scope}:{entry_id}", body.encode())

    def decode(self, scope: str, entry_id: str, data: bytes) -> Record:
        """The record in the bytes.

        Raises:
            CorruptEntry: They are no whole record of this id; or, as UnknownKey, sealed with a secret that is not here.
        """
        try:
            columns = json.loads(self._sealer.open(f"{scope}:{entry_id}", data))
            if not isinstance(columns, list) or len(columns) != 2 or not isinstance(columns[0], str):
                raise ValueError("a record is a question and an answer")
            return Record(question=columns[0], answer=answer_from(columns[1]))
        except ValueError as error:
            raise CorruptEntry from error
