"""Reads Dockerfiles, and says what is wrong with them: there is no hadolint to be had everywhere."""

from __future__ import annotations

import json
import re
import tomllib
from typing import NamedTuple

from tests.deploy.manifests import ROOT

USER = "10001:10001"
_DIGEST_OR_TAG = re.compile(r"[^:@]+(:(?!latest$)[\w.-]+|@sha256:[0-9a-f]{64})$")
_SECRET = re.compile(r"(PASSWORD|SECRET|TOKEN|CREDENTIAL|API_?KEY)", re.IGNORECASE)
_COMPILERS = re.compile(r"\b(gcc|g\+\+|clang|build-essential|cmake|rustc|cargo)(?!\w)")
_INSTALLS = re.compile(r"\b(pip3?|apt|apt-get|apk|dnf|yum)\b[^&|;]*\binstall\b")
# The stage that may have a compiler: what it builds is copied, and nothing it installed.
_COMPILING_STAGE = "native"
_EXTRA = re.compile(r'"\.\[([^\]]+)\]"')


class Instruction(NamedTuple):
    """One instruction, with lines that go on joined."""

    name: str
    value: str


class Stage(NamedTuple):
    """From one FROM to the next; the name may be empty."""

    image: str
    name: str
    instructions: list[Instruction]


def parsed(text: str) -> tuple[list[Instruction], list[Stage]]:
    """What stands before the first FROM, and the stages."""
    joined = re.sub(r"\\\n", " ", "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#")))
    before: list[Instruction] = []
    stages: list[Stage] = []
    for line in filter(str.strip, joined.splitlines()):
        name, _, value = line.strip().partition(" ")
        instruction = Instruction(name.upper(), " ".join(value.split()))
        if instruction.name == "FROM":
            image, _, name = instruction.value.partition(" AS ")
            stages.append(Stage(image, name, []))
        else:
            (stages[-1].instructions if stages else before).append(instruction)
    return before, stages


def problems(text: str) -> list[str]:
    """All that is wrong with a Dockerfile."""
    before, stages = parsed(text)
    everything = [*before, *(one for stage in stages for one in stage.instructions)]
    return [
        *_base_problems(before, stages),
        *(f"{one.name} {one.value} names a secret" for one in everything if one.name in ("ARG", "ENV") and _SECRET.search(one.value)),
        *(f"ADD {one.value}: COPY takes no addresses and unpacks nothing" for one in everything if one.name == "ADD"),
        *(problem for one in everything for problem in _copy_problems(one)),
        *(problem for stage in stages for one in stage.instructions if one.name == "RUN" for problem in _run_problems(one.value, stage)),
        *_final_problems(stages[-1].instructions),
    ]


def _base_problems(before: list[Instruction], stages: list[Stage]) -> list[str]:
    defaults = dict(one.value.split("=", 1) for one in before if one.name == "ARG" and "=" in one.value)
    found = [f"a stage is built on {stage.image}, not on BASE" for stage in stages if stage.image != "${BASE}"]
    if not _DIGEST_OR_TAG.match(defaults.get("BASE", "")):
        found.append(f"BASE is {defaults.get('BASE')}, which may be another image tomorrow")
    return found


def _copy_problems(one: Instruction) -> list[str]:
    """Sources are of the repository, and .dockerignore lets them through."""
    if one.name != "COPY" or one.value.startswith("--from="):
        return []
    sources = one.value.split()[:-1]
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    found = [f"there is no {source}" for source in sources if not (ROOT / source).exists()]
    return found + [f".dockerignore leaves {source} out" for source in sources if source not in allowed]


def _run_problems(command: str, stage: Stage) -> list[str]:
    if stage.name == _COMPILING_STAGE:
        return []
    found = ["it brings a compiler"] if _COMPILERS.search(command) else []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for install in re.split(r"&&", command):
        if not _INSTALLS.search(install):
            continue
        if "--constraint deploy/constraints.txt" not in install and "--no-deps" not in install:
            found.append(f"{install.strip()} installs whatever is newest")
        if "--no-cache-dir" not in install:
            found.append(f"{install.strip()} leaves a cache")
        extras = _EXTRA.search(install)
        named = extras[1].split(",") if extras is not None and extras[1] != "${EXTRAS}" else []
        found += [f"there is no extra {name}" for name in named if name not in project]
    return found


def _final_problems(instructions: list[Instruction]) -> list[str]:
    found = []
    users = [one.value for one in instructions if one.name == "USER"]
    if users[-1:] != [USER]:
        found.append(f"it runs as {users[-1] if users else 'root'}")
    runs = [one.value for one in instructions if one.name == "RUN"]
    found += [f"the last stage installs something: {run}" for run in runs if _INSTALLS.search(run)]
    # Of python's own images, and of Debian's.
    if not any("site-packages/pip " in run and "dist-packages/pip " in run and '! python3 -c "import pip"' in run for run in runs):
        found.append("pip stays in the image")
    if any(one.name == "COPY" and not one.value.startswith("--from=") for one in instructions):
        found.append("the last stage copies from the source")
    for one in instructions:
        if one.name in ("ENTRYPOINT", "CMD") and not _is_list(one.value):
            found.append(f"{one.name} {one.value} needs a shell")
    return found


def _is_list(value: str) -> bool:
    try:
        return isinstance(json.loads(value), list)
    except ValueError:
        return False
