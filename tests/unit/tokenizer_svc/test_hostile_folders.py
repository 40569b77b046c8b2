"""Whatever stands in a model folder's small files: it is refused as a ModelFolderError that names the file, or the folder is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from tests.examples import examples
from tests.fakes.tokenizers import write_model_folder
from tokenizer_svc.inspect import audit_folder
from tokenizer_svc.model_folder import ModelFolderError

_TOKEN = {"content": "<|extra|>", "special": True, "normalized": False}
FIELDS: dict[str, tuple[str, ...]] = {
    "config": ("vocab_size", "padded_vocab_size", "eos_token_id"),
    "generation_config": (
        "do_sample",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "typical_p",
        "repetition_penalty",
        "eos_token_id",
        "num_beams",
        "bad_words_ids",
    ),
    "tokenizer_config": (
        "eos_token",
        "bos_token",
        "additional_special_tokens",
        "extra_special_tokens",
        "added_tokens_decoder",
        "chat_template",
    ),
    "special_tokens_map": ("eos_token", "additional_special_tokens"),
    "added_tokens": ("<|extra|>", ""),
    "tokenizer": ("added_tokens", "model", "post_processor", "normalizer", "pre_tokenizer", "decoder", "truncation", "padding", "version"),
}
_deep: Any = 1
for _ in range(300):
    _deep = [_deep]
VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 3, 518, 5000, 1 << 40, 10**400, 0.5, 1e300, float("inf"), float("nan")),
    *(
        "",
        "x",
        "</s>",
        "y" * 100_000,
        [],
        {},
        ["x"],
        [1, -1],
        [None],
        [[1]],
        [{}],
        {"content": 3},
        {"x": "y"},
        {"x": None},
        {"1": "x"},
        _deep,
    ),
    *(
        {"518": _TOKEN},
        {"-1": _TOKEN},
        {"1.5": _TOKEN},
        {"518": {"content": ""}},
        {"518": None},
        {"0": _TOKEN},
        [_TOKEN],
        [{**_TOKEN, "id": 518}],
    ),
    *({"name": "default", "template": 3}, [{"name": "default", "template": 3}], [{"name": ["x"]}], "{{ messages", "{% for %}"),
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing wrong in it."""
    return write_model_folder(tmp_path_factory.mktemp("sound"), template=None)


@examples(300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_values_in_any_fields_are_refused_by_file_or_read(sound: Path, tmp_path: Path, data: st.DataObject) -> None:
    contents: dict[str, dict[str, Any]] = {name: {} for name in FIELDS}
    contents |= {name: json.loads((sound / f"{name}.json").read_text()) for name in ("tokenizer", "tokenizer_config")}
    places = [(file, field) for file, fields in FIELDS.items() for field in fields]
    for file, field in data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=3, unique=True)):
        contents[file][field] = data.draw(st.sampled_from(VALUES))
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    try:
        audit_folder(tmp_path)
    except ModelFolderError as error:
        assert ".json" in str(error) or "template" in str(error)
        assert len(str(error)) < 4000


@pytest.mark.parametrize("name", ["config", "generation_config", "tokenizer_config", "special_tokens_map", "added_tokens", "tokenizer"])
def test_a_file_nested_too_deeply_is_refused_by_name(tmp_path: Path, name: str) -> None:
    write_model_folder(tmp_path, template=None)
    (tmp_path / f"{name}.json").write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(ModelFolderError, match=rf"{name}\.json cannot be read: it is nested too deeply"):
        audit_folder(tmp_path)
