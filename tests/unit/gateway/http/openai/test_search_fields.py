"""What clients write to have answers searched for."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.flow.limits import Limits
from gateway.flow.search.kinds import Beams, BestOf, Contrast, Search
from gateway.http.openai.chat_body import ChatBody
from gateway.http.openai.completion_body import CompletionBody
from gateway.http.openai.parsing import parse_body
from triserve.rpc.errors import InvalidRequest

BEAMS = {"use_beam_search": True}


def search(**fields: Any) -> Search | None:
    """The same for chats and completions."""
    chat = parse_body(ChatBody, {"messages": [{"role": "user", "content": "a"}], **fields}, Limits()).search
    assert chat == parse_body(CompletionBody, {"prompt": "a", **fields}, Limits()).search
    return chat


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"n": 3}, None),
        ({"best_of": 1}, None),
        ({"n": 3, "best_of": 3}, None),
        ({"best_of": 2}, BestOf(width=2)),
        ({"n": 3, "best_of": 2}, BestOf(width=2)),
        ({"use_beam_search": False, "length_penalty": 1, "early_stopping": False}, None),
        ({**BEAMS}, Beams(width=1)),
        ({**BEAMS, "n": 3}, Beams(width=3)),
        ({**BEAMS, "n": 3, "best_of": 4}, Beams(width=4, field="best_of")),
        ({**BEAMS, "n": 2, "length_penalty": 0}, Beams(width=2, length_penalty=0.0)),
        ({**BEAMS, "n": 2, "early_stopping": True}, Beams(width=2, early_stopping=True)),
        ({**BEAMS, "n": 2, "early_stopping": "never"}, Beams(width=2, early_stopping="never")),
        ({"penalty_alpha": 0}, None),
        ({"penalty_alpha": 0.0, "best_of": 2}, BestOf(width=2)),
        ({"penalty_alpha": 0.6, "top_k": 4}, Contrast(alpha=0.6, width=4)),
        ({"penalty_alpha": 1, "top_k": 0}, Contrast(alpha=1.0, width=0)),
    ],
)
def test_a_body_asks_for_a_search(fields: dict[str, Any], expected: Search | None) -> None:
    assert search(**fields) == expected


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"length_penalty": 0.5}, "length_penalty"),
        ({"early_stopping": "never"}, "early_stopping"),
        ({**BEAMS, "early_stopping": "always"}, "early_stopping"),
        ({**BEAMS, "early_stopping": 1}, "early_stopping"),
        ({**BEAMS, "length_penalty": "1"}, "length_penalty"),
        ({"use_beam_search": 1}, "use_beam_search"),
        ({"best_of": 2.0}, "best_of"),
        ({"penalty_alpha": 0.6}, "top_k"),
        ({"penalty_alpha": 0.6, "top_k": 4, "best_of": 2}, "best_of"),
        ({"penalty_alpha": 0.6, "top_k": 4, **BEAMS}, "use_beam_search"),
        ({"penalty_alpha": True, "top_k": 4}, "penalty_alpha"),
    ],
)
def test_a_field_without_what_it_belongs_to_or_of_another_type_is_refused_by_name(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        search(**fields)
    assert caught.value.field == field
