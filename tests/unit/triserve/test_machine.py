"""What a process may use of its machine, from the texts of the files that say it."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest

from triserve.rpc.machine import granted_cores, granted_memory_bytes, group_folders, usable_cores, usable_memory_bytes


@pytest.mark.parametrize(
    ("cpu_max", "cfs", "cores"),
    [
        ([], [], 8),
        (["max 100000\n"], [], 8),
        (["200000 100000\n"], [], 2),
        (["250000 100000\n"], [], 2),
        (["50000 100000\n"], [], 1),
        (["1600000 100000\n"], [], 8),
        (["max 100000", "300000 100000", "max 100000"], [], 3),
        ([], [("-1\n", "100000\n")], 8),
        ([], [("400000\n", "100000\n"), ("100000", "50000")], 2),
        (["", "x y", "100 0"], [("", ""), ("100000", "")], 8),
    ],
)
def test_a_quota_leaves_as_many_whole_cores_as_it_pays_for(cpu_max: list[str], cfs: list[tuple[str, str]], cores: int) -> None:
    assert granted_cores(8, cpu_max=cpu_max, cfs=cfs) == cores


def test_memory_is_the_least_that_the_machine_and_every_group_allow() -> None:
    meminfo = "MemTotal:       1000 kB\nMemFree:  10 kB\n"
    assert granted_memory_bytes(meminfo, []) == 1_024_000
    assert granted_memory_bytes(meminfo, ["max\n", "500000\n", "9223372036854771712\n"]) == 500_000
    assert granted_memory_bytes("", ["max"]) is None


@pytest.mark.parametrize(
    ("text", "folders"),
    [
        ("0::/\n", ["."]),
        ("0::/pods/a\n", ["pods/a", "pods", "."]),
        (
            "4:cpu,cpuacct:/docker/x\n3:memory:/y\n",
            ["cpu,cpuacct/docker/x", "cpu,cpuacct/docker", "cpu,cpuacct", "cpu/docker/x", "cpu/docker", "cpu"],
        ),
        ("0::/../../outside\n", ["."]),
        ("", []),
        ("nonsense\n", []),
    ],
)
def test_a_group_is_limited_by_those_around_it_too(text: str, folders: list[str]) -> None:
    assert group_folders(text, "cpu") == [PurePosixPath(folder) for folder in folders]


def test_this_machine_grants_something() -> None:
    assert usable_cores() >= 1
    memory = usable_memory_bytes()
    assert memory is None or memory > 1 << 20
