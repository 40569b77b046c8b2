"""The model folder: config, weights, tokenizer and chat template in the published layout."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from compute_svc.bundled.llama import Llama, LlamaShape
from compute_svc.bundled.train_tokenizer import END_OF_TEXT, END_OF_TURN, special_id

# Contents go in as they are: nothing is stripped, and an unknown role is an error.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] not in ['system', 'user', 'assistant'] -%}
{{- raise_exception('the role of a message is system, user or assistant') -}}
{%- endif -%}
{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>' -}}
{%- endif -%}
"""


def config_of(shape: LlamaShape, tokenizer: Tokenizer) -> dict[str, object]:
    """The contents of config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": [special_id(tokenizer, END_OF_TURN), special_id(tokenizer, END_OF_TEXT)],
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": shape.mlp_size,
        "max_position_embeddings": shape.max_positions,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": shape.num_heads,
        "num_hidden_layers": shape.num_layers,
        "num_key_value_heads": shape.num_kv_heads,
        "pad_token_id": special_id(tokenizer, END_OF_TEXT),
        "rms_norm_eps": shape.rms_eps,
        "rope_scaling": None,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": shape.vocab_size,
    }


def _write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def save_model(folder: Path, model: Llama, tokenizer: Tokenizer) -> None:
    """Writes a folder that any loader of Llama checkpoints reads; weights are rounded to bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(model.shape, tokenizer)
    _write_json(folder / "config.json", config)
    _write_json(
        folder / "generation_config.json",
        {"do_sample": False, "eos_token_id": config["eos_token_id"], "pad_token_id": config["pad_token_id"]},
    )
    _write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "clean_up_tokenization_spaces": False,
            "eos_token": END_OF_TURN,
            "model_max_length": model.shape.max_positions,
            "pad_token": END_OF_TEXT,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))
    weights = {name: weight.detach().to(torch.bfloat16).contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})


def load_shape(folder: Path) -> LlamaShape:
    """Reads the sizes from config.json."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return LlamaShape(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        mlp_size=config["intermediate_size"],
        max_positions=config["max_position_embeddings"],
        rope_theta=config["rope_theta"],
        rms_eps=config["rms_norm_eps"],
    )


def load_model(folder: Path) -> tuple[Llama, Tokenizer]:
    """Reads a folder written by `save_model`; weights are widened to float32."""
    model = Llama(load_shape(folder))
    model.load_state_dict({name: weight.float() for name, weight in load_file(str(folder / "model.safetensors")).items()})
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))
