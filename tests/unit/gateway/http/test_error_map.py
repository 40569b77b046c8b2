"""Every error reads the same in JSON, in a stream and over gRPC."""

from __future__ import annotations

import logging

import pytest

from gateway import errors as own
from gateway.http.error_map import as_service_error, error_body, error_headers, openai_error
from triserve.rpc import errors as shared
from triserve.rpc.errors import Internal, ServiceError, Unavailable


def _tree(cls: type[ServiceError]) -> list[type[ServiceError]]:
    return [cls, *(below for child in cls.__subclasses__() for below in _tree(child))]


KINDS = [cls for cls in _tree(ServiceError) if cls.__module__ in (own.__name__, shared.__name__)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_has_a_type_and_a_code_and_names_its_field(kind: type[ServiceError]) -> None:
    error = kind("x") if kind is own.ModelNotFound else kind("x", field="f")
    body = error_body(error)["error"]
    assert set(body) == {"message", "type", "param", "code"}
    assert body["type"].endswith("_error")
    assert body["param"] == error.field
    assert (body["type"] == "invalid_request_error") == (400 <= error.http_status < 500 and error.http_status not in (401, 403, 404, 429))


@pytest.mark.parametrize(
    ("kind", "helps"), [(shared.Overloaded, True), (Unavailable, True), (shared.InvalidRequest, False), (Internal, False)]
)
def test_when_to_try_again_is_said_where_it_may_help(kind: type[ServiceError], helps: bool) -> None:
    assert ("Retry-After" in error_headers(kind("x"))) == helps


def test_an_error_class_of_tomorrow_reads_as_what_it_derives_from() -> None:
    class Tomorrow(shared.Overloaded):
        pass

    assert openai_error(Tomorrow("x")) == openai_error(shared.Overloaded("x"))


def test_an_error_of_ours_is_logged_and_hidden(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        error = as_service_error(ValueError("secret"), request_id="chatcmpl-1")
    assert type(error) is Internal
    assert error.message == "internal error"
    assert "chatcmpl-1" in caplog.text
    assert "secret" in caplog.text


def test_an_error_for_clients_is_passed_on() -> None:
    error = Unavailable("gone")
    assert as_service_error(error, request_id="x") is error
