"""Options are checked as they are read, at the last allowed value and beyond it."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.options import OptionParser, api_key, certificates_file, host_port, readable_file, real, server_url, whole, writable_file


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("localhost:8000", "http://localhost:8000"),
        (":8000", "http://127.0.0.1:8000"),
        ("host", "http://host"),
        ("http://host:1/", "http://host:1"),
        ("https://host/v1", "https://host"),
        ("https://host/base/v1/", "https://host/base"),
        ("[::1]:8000", "http://[::1]:8000"),
        (" http://host:65535 ", "http://host:65535"),
    ],
)
def test_an_address_is_understood_as_it_is_usually_written(text: str, url: str) -> None:
    assert server_url(text) == url
    assert server_url(url) == url


@pytest.mark.parametrize("text", ["", "http://", "ftp://host", "host:65536", "host:x", "a b", "http://h?x=1", "http://u:p@h", "http://h\n"])
def test_what_is_no_address_is_refused_in_words(text: str) -> None:
    if text.strip() != text and text.strip():
        assert server_url(text) == "http://h"
        return
    with pytest.raises(ArgumentTypeError, match="is no"):
        server_url(text)


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("16", 16)])
def test_a_whole_number_may_be_at_the_ends_of_its_range(text: str, value: int) -> None:
    assert whole(1, 16)(text) == value


@pytest.mark.parametrize(("text", "value"), [("0", 0.0), ("1", 1.0), ("1e-9", 1e-9)])
def test_a_number_may_be_at_the_ends_of_its_range(text: str, value: float) -> None:
    assert real(0, 1)(text) == value


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (whole(1), "0", "0 is below 1"),
        (whole(1, 16), "17", "17 is above 16"),
        (whole(1), "1.5", "'1.5' is no whole number"),
        (real(0), "-0.1", "-0.1 is below 0"),
        (real(0, 1), "1.1", "1.1 is above 1"),
        (real(above=0), "0", "0 is not above 0"),
        (real(), "nan", "'nan' is no finite number"),
        (real(), "inf", "'inf' is no finite number"),
        (real(), "x", "'x' is no finite number"),
        (host_port, "host", "'host' is not of the form host:port"),
        (host_port, "host:0", "'host:0' is not of the form host:port"),
        (host_port, "http://host:1", "'http://host:1' is not of the form host:port"),
        (api_key, "a\nb", "the key has"),
        (api_key, "käy", "the key has"),
        (api_key, " k", "the key has"),
        (readable_file, "/no/such", "/no/such cannot be read: No such file or directory"),
        (certificates_file, "/no/such", "/no/such cannot be read: No such file or directory"),
        (certificates_file, __file__, f"{__file__} holds no certificate in PEM"),
        (writable_file, "/no/such/file", "/no/such/file cannot be written: there is no folder /no/such"),
    ],
)
def test_what_is_out_of_range_is_refused_in_words(read: Callable[[str], Any], text: str, message: str) -> None:
    with pytest.raises(ArgumentTypeError) as refused:
        read(text)
    assert str(refused.value).startswith(message)


def test_a_file_that_is_to_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    assert writable_file(str(file)) == file and not file.exists()
    file.write_text("before")
    assert writable_file(str(file)) == file and file.read_text() == "before"
    with pytest.raises(ArgumentTypeError, match="it is a folder"):
        writable_file(str(tmp_path))


def test_an_error_is_one_line_with_the_option_and_one_that_helps(capsys: pytest.CaptureFixture[str]) -> None:
    parser = OptionParser(prog="triserve bench")
    parser.add_argument("--requests", type=whole(1))
    with pytest.raises(SystemExit) as end:
        parser.parse_args(["--requests", "0"])
    shown = capsys.readouterr()
    assert (end.value.code, shown.out) == (1, "")
    assert shown.err.splitlines()[0] == "triserve bench: argument --requests: 0 is below 1"
    assert len(shown.err.splitlines()) == 2
