from __future__ import annotations

from pathlib import Path

from compute_svc.bundled.corpus import passages_of, stdlib_files

SOURCE = '''"""Module."""
# One comment
# of two lines.
import os


class Thing:
    """Class.

        indented
    """

    def act(self):
        """Function."""
        return "# not a comment"
'''


def test_docstrings_come_in_order_and_comments_after_them() -> None:
    assert list(passages_of(SOURCE)) == ["Module.", "Class.\n\nindented", "Function.", "One comment\nof two lines."]


def test_standard_library_files_have_one_order_and_no_tests() -> None:
    files = stdlib_files()
    assert len(files) > 200
    assert files == stdlib_files()
    names = {path.name for path in files}
    assert {"argparse.py", "typing.py"} <= names
    assert not any("test" in path.parts or "site-packages" in path.parts for path in files)
    assert all(isinstance(path, Path) for path in files)
