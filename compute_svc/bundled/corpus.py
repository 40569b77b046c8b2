"""English that every machine with Python has: docstrings and comments of the standard library."""

from __future__ import annotations

import ast
import inspect
import io
import re
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

# Installations differ in these: distributions leave them out or patch them.
_LEFT_OUT = frozenset({"antigravity", "ensurepip", "idlelib", "lib2to3", "sitecustomize", "test", "this", "tkinter", "turtledemo", "venv"})
_SHORTEST_PASSAGE_CHARS = 80


def stdlib_files() -> list[Path]:
    """Source files of the standard library, sorted by path."""
    root = Path(sysconfig.get_path("stdlib"))
    files: list[Path] = []
    for name in sorted(sys.stdlib_module_names - _LEFT_OUT):
        module = root / f"{name}.py"
        if module.is_file():
            files.append(module)
        elif (root / name).is_dir():
            files.extend(path for path in sorted((root / name).rglob("*.py")) if not _LEFT_OUT & set(path.relative_to(root).parts))
    return files


def passages_of(source: str) -> Iterator[str]:
    """Docstrings of a module in the order of its syntax tree, then its blocks of comments.

    Raises:
        SyntaxError: the source does not parse.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield inspect.cleandoc(docstring)
    block: list[str] = []
    last_line = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        if token.start[0] != last_line + 1 and block:
            yield "\n".join(block)
            block = []
        last_line = token.start[0]
        block.append(re.sub(r"^#+:? ?", "", token.string))
    if block:
        yield "\n".join(block)


def stdlib_passages() -> list[str]:
    """Every passage of prose in the standard library once, in a fixed order.

    The text is that of the running Python: another minor version gives another corpus, and so another model.
    """
    passages: dict[str, None] = {}
    for path in stdlib_files():
        try:
            source = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # a few files are in another encoding on purpose
            continue
        for passage in passages_of(source):
            if len(passage) >= _SHORTEST_PASSAGE_CHARS and sum(c.isalpha() for c in passage) > len(passage) // 2:
                passages[passage] = None
    return list(passages)
