"""pytorch_model*.bin become safetensors of the same model, and nothing a file names is called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from compute_svc.models.pickled_checkpoint import convert_pickled
from compute_svc.models.registry import load_model
from compute_svc.models.weights import CheckpointError
from tests.fakes.checkpoints import save_checkpoint
from tests.fakes.forward_driver import ForwardDriver

TOKENS = [3, 77, 12, 90]


def logits(folder: Path) -> torch.Tensor:
    driver = ForwardDriver(load_model(folder, dtype=torch.float32, device=torch.device("cpu")))
    with torch.inference_mode():
        return driver.step([], [(driver.request(TOKENS, 4), 4)], all_logits=True)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("num_files", [1, 2])
def test_a_pickled_checkpoint_is_the_same_model_as_safetensors(num_files: int, zipped: bool, tmp_path: Path) -> None:
    published, source, folder = tmp_path / "published", tmp_path / "source", tmp_path / "folder"
    for path in (published, source, folder):
        path.mkdir()
    tensors = save_checkpoint(published, "llama", tie_word_embeddings=True).state_dict()
    assert tensors["lm_head.weight"].data_ptr() == tensors["model.embed_tokens.weight"].data_ptr()
    names = list(tensors)
    if num_files == 1:
        torch.save(tensors, source / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    else:
        weight_map = {name: f"pytorch_model-{1 + index % 2}.bin" for index, name in enumerate(names)}
        for file in set(weight_map.values()):
            part = {name: tensor for name, tensor in tensors.items() if weight_map[name] == file}
            torch.save(part, source / file, _use_new_zipfile_serialization=zipped)
        (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    convert_pickled(source, folder)
    (folder / "config.json").write_text((published / "config.json").read_text())
    torch.testing.assert_close(logits(folder), logits(published), rtol=0, atol=0)


class Hostile:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self._path,)


def test_a_pickle_that_calls_something_is_refused_and_calls_nothing(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    torch.save({"weight": torch.ones(2), "x": Hostile(touched)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin cannot be read as tensors alone"):
        convert_pickled(tmp_path, tmp_path)
    assert not touched.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "holds a list, not tensors by name"),
        ({"state_dict": {"weight": torch.ones(2)}}, "no plain tensors: state_dict"),
        ({"weight": torch.ones(2).to_sparse()}, "no plain tensors: weight"),
    ],
)
def test_what_is_not_tensors_by_name_is_refused(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=message):
        convert_pickled(tmp_path, tmp_path)


def test_damaged_files_and_indexes_that_point_elsewhere_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds neither"):
        convert_pickled(tmp_path, tmp_path)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"w": "../other.bin"}}))
    with pytest.raises(CheckpointError, match=r"'\.\./other\.bin'; only \.bin files beside the index"):
        convert_pickled(tmp_path, tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(CheckpointError, match="cannot be read as tensors alone"):
        convert_pickled(tmp_path, tmp_path)
