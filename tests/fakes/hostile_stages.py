"""Stages that answer as the fakes do and spoil their answers in turn."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeAlias

from google.protobuf.message import Message
from hypothesis import strategies as st

from tests.fakes.fake_compute import FakeCompute
from tests.fakes.fake_sampler import FakeSampler
from tests.fakes.fake_tokenizer import FakeTokenizer
from tests.fakes.hostile_messages import Changes, changed, hostile_bytes, hostile_changes
from tests.fakes.hostile_peers import HostileServer, Item
from triserve.v1 import common_pb2, compute_pb2, sampler_pb2, tokenizer_pb2

_SAMPLER_LIFETIME_S = 60.0
_LIFETIME_S = 0.2

# What a hostile stage makes of its next answer: another, or a proper one with some fields changed.
Deed: TypeAlias = "bytes | Changes"


def deed(kind: type[Message]) -> st.SearchStrategy[Deed]:
    """What a peer does in place of a message of this kind."""
    return st.one_of(hostile_changes(kind), hostile_bytes(kind))


def deeds(kind: type[Message], *, most: int = 12) -> st.SearchStrategy[list[Deed]]:
    """What a peer does, one after the other."""
    return st.lists(deed(kind), min_size=1, max_size=most)


def done(deed: Deed, proper: Message) -> Item:
    """What is sent in place of a proper message."""
    return deed if isinstance(deed, bytes) else changed(proper, deed)


class HostileSampler:
    """Draws as the fake does, and spoils its answers in turn; then it behaves."""

    def __init__(self, fingerprint: common_pb2.Fingerprint, deeds: Sequence[Deed], listen: str = "127.0.0.1:0") -> None:
        self.fake = FakeSampler(fingerprint)
        self._deeds = list(deeds)
        self.server = HostileServer(
            "triserve.v1.SamplerService", {"Sample": (sampler_pb2.SampleRequest, self._talk)}, listen=listen, lifetime_s=_SAMPLER_LIFETIME_S
        )

    async def _talk(self, requests: AsyncIterator[Any]) -> AsyncIterator[Item]:
        async for answer in self.fake.Sample(requests, None):  # type: ignore[arg-type]  # it does not look at its context
            yield done(self._deeds.pop(0), answer) if self._deeds else answer


class HostileTokenizer:
    """Encodes as the fake does, and spoils its answers in turn; then it ends every stream."""

    def __init__(self, deeds: Sequence[Deed], info: Deed, lifetime_s: float = _LIFETIME_S) -> None:
        self.fake = FakeTokenizer()
        self._deeds = list(deeds)
        self._info = info
        self.server = HostileServer(
            "triserve.v1.TokenizerService",
            {"Tokenize": (tokenizer_pb2.TokenizeRequest, self._talk)},
            {"GetTokenizerInfo": (tokenizer_pb2.GetTokenizerInfoRequest, lambda: done(self._info, self.fake.info))},
            lifetime_s=lifetime_s,
        )

    async def _talk(self, requests: AsyncIterator[Any]) -> AsyncIterator[Item]:
        async for answer in self.fake.Tokenize(requests, None):
            if not self._deeds:
                return
            yield done(self._deeds.pop(0), answer)


class HostileCompute:
    """Answers as the fake does, and spoils its messages in turn; then it ends every stream."""

    def __init__(self, deeds: Sequence[Deed], lifetime_s: float = _LIFETIME_S) -> None:
        self.fake = FakeCompute()
        self._deeds = list(deeds)
        self.server = HostileServer(
            "triserve.v1.ComputeService", {"Generate": (compute_pb2.GenerateRequest, self._talk)}, lifetime_s=lifetime_s
        )

    async def _talk(self, requests: AsyncIterator[Any]) -> AsyncIterator[Item]:
        async for message in self.fake.Generate(requests, None):
            if message.HasField("hello"):
                yield message
            elif not self._deeds:
                return
            else:
                yield done(self._deeds.pop(0), message)
