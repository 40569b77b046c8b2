"""Another model is rolled out under load, every stage of it: each answer is the old model's or the new one's, and none fails."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.e2e.pods import Pods, Stage, StreamingClients, running_pods
from tests.fakes.gateway_fleet import eventually

TINY = Path(__file__).parents[1] / "tiny_model"
STAGES: tuple[Stage, ...] = ("tokenizer", "sampler", "compute")


def _small_files(folder: Path, target: Path) -> Path:
    """What tokenizers and samplers have of a model: all but its weights."""
    target.mkdir()
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, target)
    return target


@pytest.fixture
def other_weights(tmp_path: Path) -> Path:
    """The small model with other weights, which answers otherwise."""
    folder = tmp_path / "other"
    shutil.copytree(TINY, folder)
    weights = load_file(folder / "model.safetensors")
    save_file({name: -array if "o_proj" in name else array for name, array in weights.items()}, folder / "model.safetensors")
    return folder


@pytest.fixture
def other_tokenizer(other_weights: Path) -> Path:
    """And with a tokenizer that is another one, though it does the same."""
    file = other_weights / "tokenizer.json"
    file.write_text(file.read_text() + "\n")
    return other_weights


async def _some(clients: StreamingClients, count: int) -> None:
    """Returns when so many more answers have come."""
    end = len(clients.answers) + count
    await eventually(lambda: len(clients.answers) >= end or clients.failures, f"{count} more answers came")


async def _answered_by(pods: Pods, clients: StreamingClients, old: set[str], new: Path, replaced: dict[Stage, Path]) -> None:
    """Rolls every stage: newcomers first, then the old ones go."""
    before = {stage: pods.of(stage) for stage in STAGES}
    for stage in STAGES:
        await pods.add(stage, replaced[stage])
    await _some(clients, 4)
    await asyncio.gather(*(pods.remove(pod) for stage in STAGES for pod in before[stage]))
    await _some(clients, 8)
    await clients.end()
    assert not clients.failures, clients.failures[0]
    first_new = next(index for index, answer in enumerate(clients.answers) if answer not in old)
    assert len(set(clients.answers)) == 2 and old < set(clients.answers)
    assert clients.answers[-1] not in old, "the new model serves at the end"
    assert first_new > 0


async def test_other_weights_are_rolled_out_stage_by_stage(other_weights: Path, tmp_path: Path) -> None:
    small = _small_files(TINY, tmp_path / "small")
    async with running_pods() as pods:
        await asyncio.gather(pods.add("tokenizer", small), pods.add("sampler", small), pods.add("compute", TINY))
        await pods.until_ready()
        clients = StreamingClients(pods.url, 3)
        await _some(clients, 4)
        old = set(clients.answers)
        assert len(old) == 1
        for stage in STAGES[:2]:
            (pod,) = pods.of(stage)
            await pods.add(stage, small)
            await pods.remove(pod)
            await _some(clients, 2)
        (pod,) = pods.of("compute")
        await pods.add("compute", other_weights)
        await _some(clients, 4)
        await pods.remove(pod)
        await _some(clients, 4)
        await clients.end()
        assert not clients.failures, clients.failures[0]
        assert len(set(clients.answers)) == 2 and clients.answers[-1] not in old


async def test_another_tokenizer_and_its_weights_are_rolled_out_beside_the_old_ones(other_tokenizer: Path) -> None:
    async with running_pods() as pods:
        await asyncio.gather(*(pods.add(stage, TINY) for stage in STAGES))
        await pods.until_ready()
        clients = StreamingClients(pods.url, 3)
        await _some(clients, 4)
        old = set(clients.answers)
        await _answered_by(pods, clients, old, other_tokenizer, dict.fromkeys(STAGES, other_tokenizer))
