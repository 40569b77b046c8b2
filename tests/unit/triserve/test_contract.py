"""The schema: generated code is current, unset differs from zero, every element is explained."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from tests.contract_fields import PUBLISHED, fields_of_the_contract
from triserve.v1 import chat_pb2, common_pb2, compute_pb2, sampler_pb2, tokenizer_pb2

ROOT = Path(__file__).parents[3]
PROTOS = sorted((ROOT / "protos/triserve/v1").glob("*.proto"))


def test_generated_code_is_current(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed")
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I", str(ROOT / "protos"), f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}"]
        + [str(path) for path in PROTOS],
        check=True,
    )
    for made in sorted(tmp_path.rglob("*.py")):
        committed = ROOT / "protos" / made.relative_to(tmp_path)
        assert committed.read_text() == made.read_text(), f"{committed.name} is stale: run make protos"


def test_generated_code_of_the_engines_wire_is_current(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed")
    source = "compute_svc/wire/engine_wire.proto"
    includes = ["-I", str(ROOT), "-I", str(ROOT / "protos")]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *includes, f"--python_out={tmp_path}", source], check=True, cwd=ROOT)
    made = tmp_path / "compute_svc/wire/engine_wire_pb2.py"
    assert (ROOT / "compute_svc/wire/engine_wire_pb2.py").read_text() == made.read_text(), "engine_wire_pb2.py is stale: run make protos"


def test_what_is_published_keeps_its_number_and_type() -> None:
    """A field that goes leaves `reserved` behind and its line here; a new one gets a line."""
    known = json.loads(PUBLISHED.read_text())
    assert fields_of_the_contract() == known, (
        f"run python -m tests.contract_fields if {PUBLISHED.name} lacks what is new; nothing in it may change"
    )


def test_an_unset_temperature_is_not_zero() -> None:
    unset, zero, half = common_pb2.SamplingParams(), common_pb2.SamplingParams(temperature=0), common_pb2.SamplingParams(temperature=0.5)
    for params, present, value in ((unset, False, 0.0), (zero, True, 0.0), (half, True, 0.5)):
        back = common_pb2.SamplingParams.FromString(params.SerializeToString())
        assert back.HasField("temperature") is present
        assert back.temperature == value


def test_every_scalar_of_the_parameters_tells_unset_from_zero() -> None:
    for message in (common_pb2.SamplingParams, common_pb2.StoppingParams):
        for field in message.DESCRIPTOR.fields:
            if not field.is_repeated:
                assert field.has_presence, f"{message.DESCRIPTOR.name}.{field.name} cannot tell unset from zero"


def test_enums_have_no_meaning_at_zero() -> None:
    for module in (common_pb2, compute_pb2, sampler_pb2):
        for enum in module.DESCRIPTOR.enum_types_by_name.values():
            assert enum.values_by_number[0].name.endswith("_UNSPECIFIED")


@pytest.mark.parametrize("path", PROTOS, ids=lambda path: path.stem)
def test_every_element_has_a_comment(path: Path) -> None:
    previous = ""
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        text = line.strip()
        if re.match(r"(message|enum|service|rpc|oneof|optional|repeated|[\w.]+ \w+ = \d+|[A-Z_]+ = \d+)", text) and not text.startswith(
            "syntax"
        ):
            assert previous.startswith("//"), f"{path.name}:{number} has no comment: {text}"
        previous = text


def test_rows_of_a_frame_travel_as_packed_columns() -> None:
    rows = 256
    frame = sampler_pb2.SampleRequest(
        frame=1,
        request=[1] * rows,
        position=[2] * rows,
        token=[300] * rows,
    )
    assert len(frame.SerializeToString()) < rows * 8


def _without_priority(message: type[Message]) -> type[Message]:
    """The message's class from the schema as it was before there were priorities."""
    pool = descriptor_pool.DescriptorPool()
    for module in (common_pb2, tokenizer_pb2, compute_pb2, chat_pb2):
        schema = descriptor_pb2.FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)
        for found in schema.message_type:
            kept = [field for field in found.field if field.name != "priority"]
            del found.field[:]
            found.field.extend(kept)
        pool.Add(schema)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(message.DESCRIPTOR.full_name))


_UINT32 = st.integers(0, 2**32 - 1)
_SHARED = {
    "sampling": st.builds(common_pb2.SamplingParams, temperature=st.none() | st.floats(0, 100, width=32), seed=st.none() | _UINT32),
    "stopping": st.builds(common_pb2.StoppingParams, max_tokens=st.none() | _UINT32, stop_strings=st.lists(st.text())),
}
_SUBMITS = st.fixed_dictionaries(
    {"request": _UINT32, "tenant": st.text(), "token_ids": st.lists(_UINT32), "deadline_ms": _UINT32, **_SHARED}
)
_CHATS = st.fixed_dictionaries({"model": st.text(), "ignore_eos": st.booleans(), "bypass_cache": st.booleans(), **_SHARED})


@pytest.mark.parametrize(
    ("message", "requests"), [(compute_pb2.SubmitRequest, _SUBMITS), (chat_pb2.ChatRequest, _CHATS)], ids=["submit", "chat"]
)
def test_a_normal_priority_changes_no_byte_and_any_other_is_only_added(
    message: type[Any], requests: st.SearchStrategy[dict[str, Any]]
) -> None:
    former = _without_priority(message)

    @given(requests, st.integers(-10, 10))
    def holds(fields: dict[str, Any], priority: int) -> None:
        now = message(**fields, priority=priority).SerializeToString(deterministic=True)
        before = former.FromString(now)
        before.DiscardUnknownFields()
        bytes_before = before.SerializeToString(deterministic=True)
        assert (now == bytes_before) is (priority == 0)
        assert message(**fields).SerializeToString(deterministic=True) == bytes_before
        assert message.FromString(bytes_before).priority == 0

    holds()
