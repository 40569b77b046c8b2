"""How much JSON some bytes hold, counted without parsing them: a few passes over the bytes, whatever is in them."""

from __future__ import annotations

from gateway.flow.limits import Limits
from triserve.rpc.errors import InvalidRequest

# The conversion of a decimal number costs the square of its digits; the largest double has 309 of them.
MAX_NUMBER_DIGITS = 400

_BRACKETS_ALONE = bytes(set(range(256)) - set(b"[]{}"))
_DIGITS_ALIKE = bytes.maketrans(b"0123456789", b"0" * 10)


def check_structure(body: bytes | bytearray, limits: Limits) -> None:
    """Refuses a body that would become too many, too deep or too long values. Exact for JSON; for other bytes no more than a bound.

    Raises:
        InvalidRequest: naming the limit.
    """
    # Every value takes a byte at least: a small body has nothing to count but its depth and its digits.
    small = len(body) <= limits.max_json_items
    if small and body.count(b"[") + body.count(b"{") <= limits.max_json_depth and len(body) <= MAX_NUMBER_DIGITS:
        return
    outside, num_strings = _outside_strings(body, most=limits.max_json_items)
    brackets = outside.translate(None, _BRACKETS_ALONE)
    _check_items(num_strings + brackets.count(b"[") + brackets.count(b"{") + _num_literals(outside), limits)
    # An object or a list has one value more than commas, or none.
    if outside.count(b",") >= limits.max_json_values:
        raise InvalidRequest(f"the body has more than {limits.max_json_values} values, the limit")
    _check_depth(brackets, limits.max_json_depth)
    if b"0" * (MAX_NUMBER_DIGITS + 1) in outside.translate(_DIGITS_ALIKE):
        raise InvalidRequest(f"the body has a number of more than {MAX_NUMBER_DIGITS} digits, the limit")


def _outside_strings(body: bytes | bytearray, *, most: int) -> tuple[bytes, int]:
    """What stands outside of strings, and how many strings there are."""
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    num_strings = body.count(b'"') // 2
    if num_strings > most:
        # Before they are cut apart: each would become an object.
        _refuse_items(most)
    return b"".join(body.split(b'"')[::2]), num_strings


def _num_literals(outside: bytes) -> int:
    """true, false, null, and numbers with a point or an exponent; one with both counts twice."""
    words = [outside.count(letter) for letter in (b"t", b"f", b"n")]
    exponents = outside.count(b"e") + outside.count(b"E") - words[0] - words[1]
    return sum(words) + max(0, exponents) + outside.count(b".")


def _check_items(num_items: int, limits: Limits) -> None:
    if num_items > limits.max_json_items:
        _refuse_items(limits.max_json_items)


def _refuse_items(limit: int) -> None:
    raise InvalidRequest(f"the body has more than {limit} names and values that are no whole numbers, the limit")


def _check_depth(brackets: bytes, max_depth: int) -> None:
    depth = 0
    for bracket in brackets:
        depth += 1 if bracket in b"[{" else -1
        if depth > max_depth:
            raise InvalidRequest(f"the body is nested deeper than {max_depth} levels, the limit")
