"""What a leader writes for followers in other processes, and its encrypted bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from prompt_cache.entry import CachedDelta, answer_from
from prompt_cache.flights.flight import Failed, Finished
from prompt_cache.keys import CacheKey
from prompt_cache.sealing import CorruptEntry, Sealer


class Record(NamedTuple):
    """One entry of a flight's stream."""

    # Number of its first delta in the answer.
    first: int
    deltas: tuple[CachedDelta, ...]
    # Failed = the leader gave up, and somebody may take over. None = it goes on.
    end: Finished | Failed | None


class RecordCodec:
    """Turns records into bytes and back, sealed as entries are but for a purpose of their own: neither passes for the other.

    Args:
        secrets: as `Sealer` has them; the same in all gateways that share a Redis.
    """

    def __init__(self, secrets: Sequence[bytes]) -> None:
        self._sealer = Sealer(secrets, "flight")

    def encode(self, key: CacheKey, record: Record) -> bytes:
        """The bytes of a record, valid under this key alone.

        Raises:
            ValueError: the text is not Unicode.
        """
        columns = (
            record.first,
            [delta.text for delta in record.deltas],
            [delta.token_ids for delta in record.deltas],
            record.end.reason if isinstance(record.end, Failed) else record.end,
        )
        return self._sealer.seal(key.digest, json.dumps(columns, ensure_ascii=False, separators=(",", ":")).encode())

    def decode(self, key: CacheKey, data: bytes) -> Record:
        """The record in the bytes.

        Raises:
            CorruptEntry: they are not a whole record of this key.
        """
        body = self._sealer.open(key.digest, data)
        try:
            return _record_from(json.loads(body))
        except ValueError as error:
            raise CorruptEntry from error


def _record_from(columns: Any) -> Record:
    """The record in decoded columns; ValueError where anything is off."""
    if not isinstance(columns, list) or len(columns) != 4:
        raise ValueError("a record has four columns")
    first, texts, ids, end = columns
    if type(first) is not int or first < 0:
        raise ValueError("the first delta has a number")
    if not (end is None or isinstance(end, str) or (isinstance(end, list) and len(end) == 2)):
        raise ValueError("an end is a reason, or a finish reason and a count")
    finish_reason, prompt_tokens = end if isinstance(end, list) else ("stop", 0)
    answer = answer_from([texts, ids, finish_reason, prompt_tokens, 0, 0])
    if isinstance(end, list):
        return Record(first, answer.deltas, Finished(answer.finish_reason, answer.prompt_tokens))
    return Record(first, answer.deltas, None if end is None else Failed(end))
