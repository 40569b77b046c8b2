"""Files that are replaced while a process runs."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from triserve.rpc.reread import Reread


class Refused(Exception):
    """The content is not what it should be."""


def number_in(path: Path) -> Reread[int]:
    def read() -> int:
        try:
            return int(path.read_text())
        except (OSError, ValueError):
            raise Refused(f"{path} holds no number") from None

    return Reread((path,), read, refused=Refused)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "number"
    path.write_text("1")
    return path


def test_what_is_written_in_place_is_read(path: Path) -> None:
    reread = number_in(path)
    assert reread.current() == 1
    path.write_text("2")
    assert reread.current() == 2


def test_a_file_renamed_over_is_read_although_its_size_and_time_are_the_same(path: Path) -> None:
    reread = number_in(path)
    before = path.stat()
    other = path.with_name("other")
    other.write_text("3")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(path)
    assert reread.current() == 3


def test_a_link_that_leads_elsewhere_is_followed_as_in_volumes_of_kubernetes(tmp_path: Path) -> None:
    for name, value in (("one", "1"), ("two", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "number").write_text(value)
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "number").symlink_to("..data/number")
    reread = number_in(tmp_path / "number")
    (tmp_path / "..new").symlink_to("two")
    (tmp_path / "..new").rename(tmp_path / "..data")
    assert reread.current() == 2


@pytest.mark.parametrize("spoil", [lambda path: path.write_text("half a"), lambda path: path.unlink()], ids=["broken", "gone"])
def test_a_broken_replacement_leaves_the_last_good_one_and_one_line_that_names_the_file(
    path: Path, spoil: object, caplog: pytest.LogCaptureFixture
) -> None:
    reread = number_in(path)
    assert callable(spoil)
    spoil(path)
    assert [reread.current() for _ in range(3)] == [1, 1, 1]
    assert [record.getMessage() for record in caplog.records] == [f"{path} holds no number; what was read before stays in use"]
    path.write_text("4")
    assert reread.current() == 4


def test_a_file_that_changes_while_it_is_read_is_read_again_and_nothing_is_said_of_it(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writes = ["x", "5"]

    def read() -> int:
        text = path.read_text()
        if text == "2" and writes:
            # Somebody is in the middle of writing.
            path.write_text(writes.pop(0))
            raise Refused("half of it is there")
        try:
            return int(text)
        except ValueError:
            if writes:
                path.write_text(writes.pop(0))
            raise Refused("half of it is there") from None

    reread = Reread((path,), read, refused=Refused)
    path.write_text("2")
    with caplog.at_level(logging.WARNING):
        values = [reread.current() for _ in range(3)]
    assert values == [1, 1, 5]
    assert not caplog.records


def test_what_cannot_be_read_at_the_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Refused):
        number_in(tmp_path / "nothing")
