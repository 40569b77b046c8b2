"""The schema: generated code is current, unset differs from zero, every element is explained."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from triserve.v1 import common_pb2, compute_pb2, sampler_pb2

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
        if re.match(r"(message|enum|service|rpc|oneof|optional|repeated|[\w.]+ \w+ = \d+|[A-Z_]+ = \d+)", text) and not text.startswith("syntax"):
            assert previous.startswith("//"), f"{path.name}:{number} has no comment: {text}"
        previous = text


def test_rows_of_a_frame_travel_as_packed_columns() -> None:
    rows = 256
    frame = sampler_pb2.SampleRequest(
        frame=1, request=[1] * rows, position=[2] * rows, kind=[sampler_pb2.ROW_KIND_DRAWN] * rows, token=[300] * rows, num_candidates=[0] * rows
    )
    assert len(frame.SerializeToString()) < rows * 8
