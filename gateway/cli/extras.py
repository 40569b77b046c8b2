"""Which packages a command needs besides the ones that are always there, and with which extra pip installs them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.util import find_spec

# By the name under which each is imported; the first extra that has it. pyproject.toml says the same by the names of distributions.
EXTRA_OF = {
    "tokenizers": "tokenizer",
    "jinja2": "tokenizer",
    "torch": "compute",
    "safetensors": "compute",
    "numpy": "compute",
    "gguf": "compute",
    "redis": "cache",
    "aiohttp": "gateway",
    "tqdm": "gateway",
}


class MissingExtra(Exception):
    """Packages are not installed; the message says with what they are."""

    def __init__(self, packages: Iterable[str]) -> None:
        missing = sorted(packages)
        extras = ",".join(sorted({EXTRA_OF[package] for package in missing}))
        are = "is" if len(missing) == 1 else "are"
        super().__init__(f"{' and '.join(missing)} {are} not installed: pip install 'triserve[{extras}]'")


def require_installed(packages: Iterable[str], *, find: Callable[[str], object] = find_spec) -> None:
    """Returns if packages can be imported; imports none.

    Args:
        packages: of `EXTRA_OF`.
        find: returns something for what is there and None for what is not.

    Raises:
        MissingExtra: names those that are missing and the extras that have them.
    """
    missing = [package for package in packages if find(package) is None]
    if missing:
        raise MissingExtra(missing)
