"""Model folders in thirty variants: ends of answers, special tokens, limits, defaults, rotary parameters and tied-ness are what transformers reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from compute_svc.models.registry import read_model_config
from tests.fakes.tokenizers import KINDS, write_model_folder
from tokenizer_svc.model_folder import SPECIAL_TOKEN_NAMES, read_model_folder
from tokenizer_svc.tokenizer import Tokenizer, eos_token_ids

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 48,
    "intermediate_size": 80,
    "max_position_embeddings": 256,
    "num_attention_heads": 6,
    "num_hidden_layers": 3,
    "rms_norm_eps": 1e-5,
    "vocab_size": 1000,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
EXTRA = {"content": "<|extra|>", "special": True, "normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
NEXT = "the next free id"

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"config": {"tie_word_embeddings": True}},
    "gemma-tied-by-default": {"config": {"architectures": ["GemmaForCausalLM"], "model_type": "gemma", "head_dim": 8}},
    "mistral-not-tied-by-default": {"config": {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}},
    "gpt-neox-rotary-share": {
        "config": {"architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "rotary_pct": 0.5, "rotary_emb_base": 5000}
    },
    "theta": {"config": {"rope_theta": 500000.0}},
    "theta-in-parameters": {"config": {"rope_parameters": {"rope_type": "default", "rope_theta": 750000.0}}},
    "old-linear": {"config": {"rope_theta": 5000.0, "rope_scaling": {"type": "linear", "factor": 4.0}}},
    "linear": {"config": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}},
    "yarn": {"config": {"rope_scaling": YARN}},
    "yarn-scaled-already": {"config": {"max_position_embeddings": 1024, "rope_scaling": YARN}},
    "yarn-in-parameters": {"config": {"rope_parameters": {**YARN, "rope_theta": 10000.0}}},
    "llama3": {"config": {"max_position_embeddings": 512, "rope_theta": 500000.0, "rope_scaling": LLAMA3}},
    "dynamic": {"config": {"rope_scaling": {"type": "dynamic", "factor": 2.0}}},
    "eos-in-config-alone": {"config": {"eos_token_id": 5}},
    "eos-list-in-config": {"config": {"eos_token_id": [5, 7]}},
    "eos-in-generation": {"generation_config": {"eos_token_id": [3, 4]}},
    "eos-in-both": {"config": {"eos_token_id": 5}, "generation_config": {"eos_token_id": 3}},
    "no-eos": {"config": {"eos_token_id": None}},
    "sampled": {"generation_config": {"do_sample": True, "temperature": 0.5, "top_k": 20, "top_p": 0.75}},
    "min-p": {"generation_config": {"do_sample": True, "min_p": 0.25, "repetition_penalty": 1.5}},
    "typical-p": {"generation_config": {"do_sample": True, "typical_p": 0.75}},
    "greedy": {"generation_config": {"do_sample": False, "repetition_penalty": 1.25}},
    "no-defaults": {"generation_config": {"transformers_version": "4.50.0"}},
    "tokens-as-objects": {"tokenizer_config": {"eos_token": {"__type": "AddedToken", **EXTRA, "content": "<|im_end|>"}}},
    "other-eos": {"tokenizer_config": {"eos_token": "<|eot_id|>", "pad_token": "<|end|>"}},
    "additional-special": {"tokenizer_config": {"additional_special_tokens": ["<|system|>", "<|user|>"]}},
    "token-in-decoder-alone": {"tokenizer_config": {"added_tokens_decoder": {NEXT: EXTRA}, "eos_token": "<|extra|>"}},
    "plain-token-in-decoder-alone": {"tokenizer_config": {"added_tokens_decoder": {NEXT: {**EXTRA, "special": False}}}},
    "tokens-in-map-too": {"special_tokens_map": {"eos_token": "<|im_end|>"}, "tokenizer_config": {"eos_token": "<|eot_id|>"}},
    "prepending": {"kind": "prepending_bpe", "config": {"vocab_size": 2000}},
    "unigram": {"kind": "metaspace_unigram"},
}


@pytest.fixture(params=VARIANTS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder of a variant."""
    variant = VARIANTS[request.param]
    files: dict[str, Any] = {name: dict(content) for name, content in variant.items() if name != "kind"}
    kind = variant.get("kind", "byte_level_bpe")
    free_id = 1 + max(json.loads(KINDS[kind]())["added_tokens"], key=lambda token: int(token["id"]))["id"]
    declared = files.get("tokenizer_config", {}).pop("added_tokens_decoder", None)
    if declared is not None:
        files["tokenizer_config"]["added_tokens_decoder"] = {str(free_id): token for token in declared.values()}
    return write_model_folder(tmp_path, kind=kind, **{**files, "config": {**CONFIG, **files.get("config", {})}})


def test_ends_of_answers_are_those_of_transformers_and_the_folders_other_files(folder: Path) -> None:
    own = read_model_folder(folder)
    ours = set(eos_token_ids(Tokenizer(own), own))
    config = transformers.AutoConfig.from_pretrained(folder)
    has_generation = (folder / "generation_config.json").exists()
    generation = (
        transformers.GenerationConfig.from_pretrained(folder) if has_generation else transformers.GenerationConfig.from_model_config(config)
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    assert _ids(generation.eos_token_id) <= ours
    assert ours <= _ids(generation.eos_token_id) | _ids(config.eos_token_id) | _ids(tokenizer.eos_token_id)


def test_special_tokens_are_those_of_transformers(folder: Path) -> None:
    own = read_model_folder(folder)
    tokenizer = Tokenizer(own)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)

    for name in SPECIAL_TOKEN_NAMES:
        token = own.special_tokens.get(name)
        assert token == getattr(theirs, name, None)
        if token is not None:
            assert tokenizer.token_id(token) == getattr(theirs, f"{name}_id")
    special = {token.content for token in theirs.added_tokens_decoder.values() if token.special and len(token.content) > 1}
    assert special <= tokenizer.special_tokens.aliases.keys()
    assert tokenizer.vocab_size == len(theirs)
    for text in ("Hello, what is the capital of France?", "a <think> b"):
        assert tokenizer.encode(text, add_special_tokens=True, field="text") == theirs.encode(text)


def test_the_authors_defaults_are_those_of_transformers(folder: Path) -> None:
    path = folder / "generation_config.json"
    if not path.exists():
        assert not any(value is not None for value in vars(read_model_folder(folder).defaults).values())
        return
    defaults, theirs = read_model_folder(folder).defaults, transformers.GenerationConfig.from_pretrained(folder)
    published = json.loads(path.read_text())
    for name, value in vars(defaults).items():
        if published.get("do_sample") is False and name != "repetition_penalty":
            assert value == (0.0 if name == "temperature" else None)
        else:
            assert value == (getattr(theirs, name) if name in published else None)


def test_sizes_rotary_parameters_and_tied_ness_are_those_of_transformers(folder: Path) -> None:
    config, theirs = read_model_config(folder), transformers.AutoConfig.from_pretrained(folder)
    rope = config.kinds[0].rope
    parameters = theirs.rope_parameters

    assert rope is not None and rope.theta == parameters["rope_theta"]
    assert rope.dims == int(config.head_dim * parameters.get("partial_rotary_factor", 1.0))
    kind = parameters["rope_type"]
    assert (rope.scaling.kind if rope.scaling is not None else "default") == ("default" if kind == "dynamic" else kind)
    if rope.scaling is not None:
        assert rope.scaling.factor == parameters["factor"]
    assert config.tie_word_embeddings == bool(theirs.tie_word_embeddings)
    assert config.max_position_embeddings == _limit(theirs)
    assert (config.vocab_size, config.num_layers, config.num_heads) == (
        theirs.vocab_size,
        theirs.num_hidden_layers,
        theirs.num_attention_heads,
    )


def _limit(config: Any) -> int:
    """What servers of transformers' configs serve: the stretched length, which some configs give already."""
    parameters = config.rope_parameters
    given: int = config.max_position_embeddings
    if parameters["rope_type"] not in ("linear", "yarn"):
        return given
    return max(given, int((parameters.get("original_max_position_embeddings") or given) * parameters["factor"]))


def _ids(value: int | list[int] | None) -> set[int]:
    return set() if value is None else {value} if isinstance(value, int) else set(value)
