"""The error tree: what a caller sees is the same wherever the failure crosses a process border."""

from __future__ import annotations

import grpc
import pytest

from triserve.rpc import errors
from triserve.v1 import common_pb2

ALL = [
    errors.InvalidRequest,
    errors.PromptTooLong,
    errors.Unauthenticated,
    errors.PeerRefused,
    errors.NotFound,
    errors.FingerprintMismatch,
    errors.Overloaded,
    errors.Unavailable,
    errors.DeadlineExceeded,
    errors.Cancelled,
    errors.Internal,
]


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.reason)
def test_an_error_survives_a_multiplexed_stream(cls: type[errors.ServiceError]) -> None:
    back = errors.from_proto(errors.to_proto(cls("what happened", field="prompt")))
    assert type(back) is cls
    assert (back.message, back.field) == ("what happened", "prompt")


def test_an_unknown_reason_falls_back_to_the_status_code() -> None:
    error = errors.from_proto(common_pb2.Error(code=grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], reason="FROM_THE_FUTURE", message="later"))
    assert type(error) is errors.Overloaded


def test_an_unknown_code_is_an_internal_error() -> None:
    assert type(errors.from_proto(common_pb2.Error(code=4711, reason="?"))) is errors.Internal


def test_the_general_class_of_a_shared_status_is_the_first_in_the_tree() -> None:
    error = errors.from_proto(common_pb2.Error(code=grpc.StatusCode.INVALID_ARGUMENT.value[0], reason="?"))
    assert type(error) is errors.InvalidRequest


def test_reasons_are_unique_and_every_class_has_an_http_status() -> None:
    assert len({cls.reason for cls in ALL}) == len(ALL)
    assert all(400 <= cls.http_status < 600 for cls in ALL)


def test_prompt_too_long_names_field_and_both_numbers() -> None:
    error = errors.PromptTooLong.of(got=9001, limit=8192, field="messages")
    assert str(error) == "messages has 9001 tokens, the limit is 8192"
    assert error.field == "messages"
