"""A share of the schema suite: whatever is drawn under a schema's masks, an answer that has ended is what the schema allows."""

from __future__ import annotations

import pytest

from tests.fakes.sampler_tokenizers import byte_tokenizer
from tests.schema_suite.__main__ import Suite
from tests.schema_suite.agents import agents
from tests.schema_suite.answers import fault_of
from tests.schema_suite.drafts import DRAFTS
from tests.schema_suite.generated import generated

WORDS = ("true", "null", '{"', '":', '",', "10", "name", '"}', "]}", "-0.", "e+", "2024")


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    path = tmp_path_factory.mktemp("model") / "tokenizer.json"
    byte_tokenizer(*WORDS).save(str(path))
    return Suite(path, end=256 + len(WORDS))


@pytest.mark.parametrize("part", ["generated", "drafts", "agents"])
def test_every_answer_that_has_ended_is_what_its_schema_allows(suite: Suite, part: str) -> None:
    schemas = {"generated": lambda: generated(40), "drafts": lambda: DRAFTS, "agents": agents}[part]()
    found = suite.answer(schemas, 1, 300)
    assert not found["faults"]
    assert found["valid"] == found["answers"]["finished"] > len(schemas) / 2
    assert found["refused"] < len(schemas) / 2


@pytest.mark.parametrize(
    ("text", "schema"),
    [
        ("1", {"type": "string"}),
        ('"2023-02-29"', {"format": "date"}),
        ('"12:00:60Z"', {"format": "time"}),
        ('"2024-01-01T00:00:00"', {"format": "date-time"}),
        ('"P"', {"format": "duration"}),
        ('"-a"', {"format": "hostname"}),
        ('"a b:"', {"format": "uri"}),
        ('"1::2::3"', {"format": "ipv6"}),
        ('"QQ="', {"format": "byte"}),
        ('"a"', {"format": "email"}),
        ('"1"', {"format": "ipv4"}),
        ('"1"', {"format": "uuid"}),
        ("0.295", {"multipleOf": 0.01}),
        ("{", {}),
    ],
)
def test_what_answers_are_held_against_finds_what_is_wrong(text: str, schema: dict[str, object]) -> None:
    assert fault_of(text, schema) is not None
