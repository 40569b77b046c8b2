"""Images have no root, no secret, no pip and no compiler, and are built on what is pinned."""

from __future__ import annotations

import os
import stat
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.dockerfile import parsed, problems
from tests.deploy.manifests import ROOT, STAGES, load

DOCKER = ROOT / "deploy" / "docker"
DOCKERFILES = sorted(path.name for path in DOCKER.glob("Dockerfile*"))
DIGEST = f"python:3.12-slim@sha256:{'0' * 64}"


@pytest.mark.parametrize("name", DOCKERFILES)
def test_a_dockerfile_is_as_it_should_be(name: str) -> None:
    assert problems((DOCKER / name).read_text()) == []


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("USER 10001:10001\n", "", "runs as root"),
        ("USER 10001:10001", "USER root", "runs as root"),
        ("ARG BASE=python:3.12-slim", "ARG BASE=python:latest", "may be another image tomorrow"),
        ("ARG BASE=python:3.12-slim", "ARG BASE=python", "may be another image tomorrow"),
        ("FROM ${BASE} AS build", "FROM python:3.12 AS build", "not on BASE"),
        ("COPY gateway gateway", "ADD https://example.com/x.tgz /x", "ADD https://example.com"),
        ("COPY gateway gateway", "COPY gateways gateways", "there is no gateways"),
        ("COPY gateway gateway", "COPY tests tests", ".dockerignore leaves tests out"),
        ("ARG SERVICE\n", "ARG SERVICE\nARG HUB_TOKEN\n", "names a secret"),
        ("--constraint deploy/constraints.txt", "", "whatever is newest"),
        ("--no-cache-dir", "", "leaves a cache"),
        ('".[${EXTRAS}]"', '".[everything]"', "no extra everything"),
        ("WORKDIR /source\n", "RUN apt-get update && apt-get install gcc\nWORKDIR /source\n", "a compiler"),
        ("WORKDIR /\n", "RUN pip install x\n", "the last stage installs something"),
        ("/usr/local/lib/python3.*/site-packages/pip ", "", "pip stays"),
        ("/usr/lib/python3/dist-packages/pip ", "", "pip stays"),
        ("COPY --from=build /opt/triserve /opt/triserve", "COPY gateway /opt/triserve", "copies from the source"),
        ('ENTRYPOINT ["python", "-m"]', "ENTRYPOINT python -m", "needs a shell"),
    ],
)
def test_what_is_wrong_with_one_is_found(old: str, new: str, says: str) -> None:
    text = (DOCKER / "Dockerfile").read_text()
    assert old in text
    assert any(says in problem for problem in problems(text.replace(old, new)))


def test_the_compiler_of_the_kernels_is_in_no_stage_that_an_image_is_of() -> None:
    text = (DOCKER / "Dockerfile.compute-cpu").read_text()
    assert any("it brings a compiler" in problem for problem in problems(text.replace(" AS native", "")))
    copied = [one.value.split()[1:] for one in parsed(text)[1][-1].instructions if one.name == "COPY"]
    assert copied == [["/opt/triserve", "/opt/triserve"]]


def test_every_image_of_the_manifests_is_built_by_the_script() -> None:
    built = set((DOCKER / "build.sh").read_text().partition('case "$name" in')[2].replace("|", " ").replace(")", " ").split())
    images = {container["image"].partition(":")[0] for pod in load("dev").pods() for container in pod.containers} - {"redis"}
    assert {image.removeprefix("triserve-") for image in images} <= built


def test_the_manifests_versions_are_the_projects() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for overlay in ("dev", "cpu", "gpu"):
        for pod in load(overlay).pods():
            if pod.name in STAGES:
                assert pod.main["image"].endswith(f":{version}")


def test_every_package_of_the_wheel_is_in_the_image() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    for name in DOCKERFILES:
        _, stages = parsed((DOCKER / name).read_text())
        copied = {one.value.split()[0] for one in stages[0].instructions if one.name == "COPY"}
        assert {package.partition("/")[0] for package in packages} <= copied


def _build(
    tmp_path: Path, *names: str, engines: tuple[str, ...] = ("podman",), broken: tuple[str, ...] = (), **variables: str
) -> tuple[int, str, str]:
    """Runs the script with programs that write down how they are called. Returns its status, what it said, and the calls."""
    calls = tmp_path / "calls"
    calls.touch()
    for engine in (*engines, *broken):
        program = tmp_path / engine
        program.write_text(f'#!/bin/sh\n[ "$1" = info ] && exit {int(engine in broken)}\necho {engine} "$@" >> {calls}\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    environment = {"PATH": f"{tmp_path}:{os.defpath}", **variables}
    done = subprocess.run([str(DOCKER / "build.sh"), *names], env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr, calls.read_text()


@pytest.mark.parametrize("base", [None, "", "python:3.12-slim", "python:3.12-slim@sha256:12"])
def test_nothing_is_built_on_a_base_that_moves(tmp_path: Path, base: str | None) -> None:
    given: dict[str, Any] = {} if base is None else {"BASE": base}
    status, said, calls = _build(tmp_path, **given)
    assert (status, calls) == (2, "")
    assert "BASE must name an image by digest" in said


def test_all_but_cuda_are_built_unless_named(tmp_path: Path) -> None:
    status, _, calls = _build(tmp_path, BASE=DIGEST, TAG="7")
    assert status == 0
    assert [line.partition("--tag ")[2].split()[0] for line in calls.splitlines()] == [
        "triserve-gateway:7",
        "triserve-tokenizer:7",
        "triserve-sampler:7",
        "triserve-compute-cpu:7",
        "triserve-model-smollm2:7",
    ]
    first = f"podman build --file deploy/docker/Dockerfile --build-arg BASE={DIGEST} --build-arg SERVICE=gateway --tag triserve-gateway:7 ."
    assert calls.splitlines()[0] == first


def test_a_docker_without_its_daemon_is_passed_over(tmp_path: Path) -> None:
    status, _, calls = _build(tmp_path, "sampler", engines=("buildah",), broken=("docker", "podman"), BASE=DIGEST)
    assert status == 0
    assert calls.startswith("buildah build --file deploy/docker/Dockerfile ")


def test_where_nothing_can_build_that_is_said(tmp_path: Path) -> None:
    status, said, _ = _build(tmp_path, engines=(), broken=("docker", "podman", "buildah"), BASE=DIGEST)
    assert status == 2
    assert "neither docker nor podman nor buildah works here" in said


def test_an_image_that_there_is_not_is_said(tmp_path: Path) -> None:
    status, said, calls = _build(tmp_path, "compute", BASE=DIGEST)
    assert (status, calls) == (2, "")
    assert "there is no image compute" in said


def test_cuda_is_built_from_its_own_file_with_the_index_that_is_given(tmp_path: Path) -> None:
    _, _, calls = _build(
        tmp_path, "compute-cuda", BASE=DIGEST, TORCH_INDEX="https://packages.example.com/simple", BUILD_ARGS="--no-cache --pull"
    )
    assert "--file deploy/docker/Dockerfile.compute-cuda" in calls
    assert "--build-arg TORCH_INDEX=https://packages.example.com/simple --tag" in calls
    assert calls.endswith("--no-cache --pull .\n")
