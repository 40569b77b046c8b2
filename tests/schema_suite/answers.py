"""Answers that are drawn at random from what masks allow, and whether they are what their schema says."""

from __future__ import annotations

import ipaddress
import json
import random
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from jsonschema import FormatChecker
from jsonschema.validators import validator_for

from sampler_svc.grammars import GrammarState
from triserve.rpc.token_mask import unpacked

# Where a text may end it does with such a chance; behind so many tokens what closes it goes before all else.
_ENDS = 0.4
_PATIENCE = 40
_CLOSING = ('"', "}", "]", '"}', '"]', "]}")

CHECKER = FormatChecker()


def _checks(name: str, check: Callable[[str], object]) -> None:
    CHECKER.checks(name, raises=(ValueError, AssertionError))(lambda value: not isinstance(value, str) or bool(check(value) or True))


def _require(is_held: object) -> None:
    if not is_held:
        raise ValueError


_LABEL = r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_DURATION = r"P(?!$)(\d+Y)?(\d+M)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+S)?)?|P\d+W"
# Those that jsonschema knows by packages of their own alone.
_checks("date-time", lambda value: _require(datetime.fromisoformat(value).utcoffset() is not None))
_checks("time", lambda value: _require(datetime.fromisoformat(f"2000-01-01T{value}").utcoffset() is not None))
_checks("duration", lambda value: _require(re.fullmatch(_DURATION, value)))
_checks("hostname", lambda value: _require(len(value) <= 253 and re.fullmatch(rf"{_LABEL}(\.{_LABEL})*", value)))
_checks("uri", lambda value: _require(re.fullmatch(r"[a-zA-Z][a-zA-Z0-9+.-]*:[!-~]*", value) and (urlsplit(value), True)[1]))
_checks("ipv6", lambda value: ipaddress.IPv6Address(value))
_checks("byte", lambda value: _require(len(value) % 4 == 0 and re.fullmatch(r"[A-Za-z0-9+/]*={0,2}", value)))


class Drawer:
    """Draws answers for one vocabulary.

    Args:
        texts: what each id is written as.
        end: the id that ends answers.
    """

    def __init__(self, texts: Sequence[bytes], end: int) -> None:
        self._texts = texts
        self._end = end
        self._closing = np.array([token for token, text in enumerate(texts) if text.decode(errors="replace") in _CLOSING])

    def draw(self, state: GrammarState, chosen: random.Random, most: int) -> str | None:
        """Any allowed tokens to the end; None = it has not ended in so many."""
        text = b""
        for count in range(most):
            allowed = unpacked(state.allowed(), len(self._texts))
            if allowed[self._end] and (chosen.random() < _ENDS or allowed.sum() == 1):
                return text.decode()
            allowed[self._end] = False
            closers = self._closing[allowed[self._closing]]
            ids = closers if closers.size and chosen.random() < (0.2 if count < _PATIENCE else 0.9) else np.flatnonzero(allowed)
            assert ids.size, "something is allowed until the text is whole"
            token = int(ids[chosen.randrange(ids.size)])
            text += self._texts[token]
            assert state.advance([token]), "what is allowed can be drawn"
            if state.is_over:
                return text.decode()
        return None


def fault_of(text: str, schema: dict[str, Any]) -> str | None:
    """Why a text is not what a schema allows; None = it is. Numbers are taken as they are written, not as the nearest double."""
    try:
        value = json.loads(text, parse_float=Decimal)
    except ValueError as error:
        return f"no JSON: {error}"
    exact = json.loads(json.dumps(schema), parse_float=Decimal)
    fault = next(validator_for(schema)(exact, format_checker=CHECKER).iter_errors(value), None)
    return None if fault is None else f"{fault.validator}: {fault.message}"[:200]
