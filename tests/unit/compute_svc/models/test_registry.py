"""Loading checkpoints: configs of every age, progress, and refusals that name what is wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from compute_svc.kv.page_store import KvPageStore
from compute_svc.layers.forward_batch import ForwardBatch
from compute_svc.layers.rotary_table import RopeScaling
from compute_svc.models.config import LayerKind, ModelConfig, Rope, UnsupportedModel
from compute_svc.models.registry import load_model, read_model_config
from compute_svc.models.weights import SINGLE_FILE, CheckpointError
from tests.fakes.checkpoints import edit_config, save_checkpoint
from tests.fakes.forward_driver import ForwardDriver

CPU = torch.device("cpu")

# A config of the years before rope_parameters, with nothing in it that has a default.
OLD_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 48,
    "intermediate_size": 80,
    "max_position_embeddings": 512,
    "num_attention_heads": 6,
    "num_hidden_layers": 3,
    "rms_norm_eps": 1e-5,
    "vocab_size": 97,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 64}


def config_of(folder: Path, fields: dict[str, Any]) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps({name: value for name, value in fields.items() if value is not ...}))
    return read_model_config(folder)


def edit_tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    """Adds, replaces or (None) removes tensors of a checkpoint; `__` in a name stands for a dot."""
    tensors: dict[str, torch.Tensor | None] = {**load_file(folder / SINGLE_FILE)}
    tensors.update({name.replace("__", "."): tensor for name, tensor in changes.items()})
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / SINGLE_FILE)


def test_an_old_config_is_read_with_the_defaults_of_its_family(tmp_path: Path) -> None:
    config = config_of(tmp_path, OLD_LLAMA)

    assert (config.num_kv_heads, config.head_dim, config.kinds) == (6, 8, (LayerKind(rope=Rope(dims=8)),))
    assert not (config.tie_word_embeddings or config.qkv_bias or config.output_bias or config.mlp_bias or config.qk_norm)


@pytest.mark.parametrize(
    ("fields", "theta", "scaling"),
    [
        ({"rope_theta": 5e5, "rope_scaling": None}, 5e5, None),
        ({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}}, 5e5, RopeScaling("linear", 2.0)),
        ({"rope_theta": 5e5, "rope_scaling": LLAMA3}, 5e5, RopeScaling("llama3", 8.0, 1.0, 4.0, 64)),
        ({"rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}}, 7.0, None),
        ({"rope_parameters": {**LLAMA3, "rope_theta": 7.0}}, 7.0, RopeScaling("llama3", 8.0, 1.0, 4.0, 64)),
    ],
)
def test_rotary_fields_are_read_from_new_and_old_places(
    fields: dict[str, Any], theta: float, scaling: RopeScaling | None, tmp_path: Path
) -> None:
    config = config_of(tmp_path, {**OLD_LLAMA, **fields})

    assert config.kinds == (LayerKind(rope=Rope(dims=8, theta=theta, scaling=scaling)),)


@pytest.mark.parametrize(
    ("fields", "windows"),
    [
        ({"architectures": ["MistralForCausalLM"]}, [4096] * 3),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": None}, [None] * 3),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 9}, [9] * 3),
        ({"architectures": ["LlamaForCausalLM"], "sliding_window": 9}, [None] * 3),
        ({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 9}, [None] * 3),
        ({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 9, "use_sliding_window": True}, [None] * 3),
        ({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 9, "use_sliding_window": True, "max_window_layers": 0}, [9] * 3),
        (
            {
                "architectures": ["Qwen3ForCausalLM"],
                "sliding_window": 9,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention"] * 3,
            },
            [9] * 3,
        ),
        (
            {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
            [None, 9, 9],
        ),
        ({"architectures": ["Gemma2ForCausalLM"], "sliding_window": 9}, [9, None, 9]),
        ({"architectures": ["Qwen3ForCausalLM"], "layer_types": ["full_attention"] * 3}, [None] * 3),
    ],
)
def test_a_window_is_what_the_family_makes_of_the_config(fields: dict[str, Any], windows: list[int | None], tmp_path: Path) -> None:
    config = config_of(tmp_path, {**OLD_LLAMA, **fields})

    assert [config.kinds[kind].window for kind in config.kind_of_layer] == windows


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"architectures": ["NobodysForCausalLM"]},
            "architecture NobodysForCausalLM is not supported; supported: .*LlamaForCausalLM, MPT",
        ),
        (
            {"architectures": ["Qwen3NextForCausalLM"]},
            "architecture Qwen3NextForCausalLM is not supported: it needs gated delta rule layers, .*; supported: .*LlamaForCausalLM",
        ),
        ({"architectures": ["LlavaForConditionalGeneration"]}, "LlavaForConditionalGeneration is not supported: it needs an encoder"),
        ({"architectures": ["StableLmForCausalLM"], "qk_layernorm": True}, "qk_layernorm True is not supported"),
        ({"architectures": ["CohereForCausalLM"], "use_qk_norm": True}, "use_qk_norm True is not supported"),
        ({"hidden_act": "mish"}, "hidden_act 'mish' is not supported; supported: silu"),
        ({"rope_scaling": {"rope_type": "proportional"}}, "rope type 'proportional' is not supported; supported: default, dynamic, linear"),
        (
            {"architectures": ["DeepseekV2ForCausalLM"], "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "topk_method": "noaux_tc"}
            | {"v_head_dim": 8, "kv_lora_rank": 16, "q_lora_rank": None, "n_routed_experts": 4, "num_experts_per_tok": 2}
            | {"moe_intermediate_size": 8},
            "topk_method 'noaux_tc' is not supported; supported: greedy, group_limited_greedy",
        ),
        ({"architectures": ["DeepseekV3ForCausalLM"], "attention_bias": True}, "attention_bias True is not supported; supported: False"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, r"differ between layers \(full_attention\) are not supported"),
        (
            {"architectures": ["Qwen3ForCausalLM"], "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
            r"layer_types \['sliding_attention'\] are not supported here; supported: full_attention",
        ),
        ({"architectures": ["PhiForCausalLM"], "qk_layernorm": True}, "qk_layernorm True is not supported"),
        ({"architectures": ["BloomForCausalLM"], "apply_residual_connection_post_layernorm": True}, "post_layernorm True is not supported"),
        ({"architectures": ["MptForCausalLM"], "attn_config": {"alibi": False}}, "alibi false is not supported; supported: true"),
    ],
)
def test_what_the_engine_does_not_do_is_refused_by_name(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        config_of(tmp_path, {**OLD_LLAMA, **fields})


CHATGLM = {
    "architectures": ["ChatGLMModel"],
    "ffn_hidden_size": 80,
    "hidden_size": 48,
    "num_attention_heads": 6,
    "num_layers": 3,
    "padded_vocab_size": 65024,
    "seq_length": 512,
}


@pytest.mark.parametrize(
    ("fields", "theta", "stretch"),
    [
        ({}, 10000.0, 1.0),
        ({"rope_ratio": 1}, 10000.0, 1.0),
        ({"rope_ratio": 8, "_name_or_path": "/models/ChatGLM2-6B-32k"}, 10000.0, 8.0),
        ({"rope_ratio": 8, "auto_map": {"AutoModel": "THUDM/chatglm2-6b-32k--modeling_chatglm.X"}}, 10000.0, 8.0),
        ({"rope_ratio": 50, "_name_or_path": "THUDM/chatglm3-6b-32k"}, 500000.0, 1.0),
        ({"rope_ratio": 500, "padded_vocab_size": 151552}, 5000000.0, 1.0),
    ],
)
def test_a_chatglm_that_divides_positions_is_told_by_its_name(fields: dict[str, Any], theta: float, stretch: float, tmp_path: Path) -> None:
    (kind,) = config_of(tmp_path, {**CHATGLM, **fields}).kinds

    assert kind.rope is not None and kind.rope.theta == theta
    assert kind.rope.scaling == (None if stretch == 1.0 else RopeScaling("linear", stretch))


@pytest.mark.parametrize("fields", [{}, {"_name_or_path": "/models/mine"}, {"auto_map": {"AutoModel": "modeling_chatglm.X"}}])
def test_a_chatglm_of_which_nothing_tells_what_its_ratio_means_is_refused(fields: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(
        UnsupportedModel, match=r"rope_ratio 50 divides positions in chatglm2-6b-32k and multiplies the base .* set _name_or_path"
    ):
        config_of(tmp_path, {**CHATGLM, "rope_ratio": 50, **fields})


@pytest.mark.parametrize(("max_tokens", "divisor"), [(None, 2.0), (128, 1.0), (129, 2.0), (600, 2.0)])
def test_a_model_with_two_sets_of_frequencies_takes_the_set_for_the_longest_request(
    max_tokens: int | None, divisor: float, tmp_path: Path
) -> None:
    rope = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    fields = {"architectures": ["Phi3ForCausalLM"], "rope_scaling": rope, "original_max_position_embeddings": 128}
    (tmp_path / "config.json").write_text(json.dumps({**OLD_LLAMA, **fields}))

    (kind,) = read_model_config(tmp_path, max_tokens=max_tokens).kinds

    assert kind.rope is not None and kind.rope.scaling is not None
    assert kind.rope.scaling.divisors == (divisor,) * 4
    # Attention is scaled by how far the checkpoint was stretched, whichever set is taken.
    assert kind.rope.scaling.amplitude == pytest.approx(math.sqrt(1 + math.log(4) / math.log(128)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": ...}, "names no architecture"),
        ({"architectures": "LlamaForCausalLM"}, "names no architecture"),
        ({"vocab_size": ...}, "lacks vocab_size"),
        ({"hidden_size": "48"}, "hidden_size is '48', it must be an integer of at least 1"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, it must be an integer of at least 1"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0, it must be a number above 0"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1, it must be true or false"),
        ({"num_key_value_heads": 4}, "num_attention_heads 6 is no multiple of num_key_value_heads 4"),
        ({"head_dim": 7}, "head_dim is 7, it must be even"),
        (
            {"architectures": ["DeepseekV3ForCausalLM"], "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
            | {"kv_lora_rank": 16, "q_lora_rank": None, "n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
            | {"first_k_dense_replace": 1, "n_group": 4, "topk_group": 2},
            "6 experts in 4 groups, of which 2 are chosen by their 2 best, do not fit each other",
        ),
        ({"rope_scaling": "linear"}, "rope_scaling must be an object"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling lacks factor"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1}}, "low_freq_factor 1.0 must be below high_freq_factor 1.0"),
        ({"architectures": ["Qwen2ForCausalLM"], "layer_types": ["full_attention"]}, "layer_types must list a kind for each layer"),
    ],
)
def test_a_senseless_config_is_refused_by_field(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        config_of(tmp_path, {**OLD_LLAMA, **fields})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__norm__weight": None, "lm_head__weight": None}, "missing: lm_head.weight, model.norm.weight"),
        ({"model__layers__3__mlp__x": torch.ones(1)}, r"unknown: model\.layers\.3\.mlp\.x"),
        ({"model__norm__weight": torch.ones(47)}, r"model\.norm\.weight \[47\] instead of \[48\]"),
        ({"model__norm__weight": torch.ones(48, dtype=torch.int8)}, r"in a dtype that is not read .*: model\.norm\.weight I8"),
    ],
)
def test_tensors_that_do_not_fit_the_config_are_listed(changes: dict[str, torch.Tensor | None], message: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "llama")
    edit_tensors(tmp_path, **changes)

    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path, dtype=torch.float32, device=CPU)


def test_a_missing_bias_and_an_extra_one_are_both_errors(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "llama")
    edit_config(tmp_path, attention_bias=True)

    with pytest.raises(CheckpointError, match=r"missing: .*self_attn\.k_proj\.bias.* and 4 more"):
        load_model(tmp_path, dtype=torch.float32, device=CPU)

    save_checkpoint(tmp_path, "llama", mlp_bias=True)
    edit_config(tmp_path, mlp_bias=False)
    with pytest.raises(CheckpointError, match=r"unknown: .*mlp\.down_proj\.bias"):
        load_model(tmp_path, dtype=torch.float32, device=CPU)


def test_leftovers_that_say_nothing_new_are_allowed_and_another_head_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_checkpoint(tmp_path, "llama", tie_word_embeddings=True)
    embedding = load_file(tmp_path / SINGLE_FILE)["model.embed_tokens.weight"]

    edit_tensors(tmp_path, lm_head__weight=embedding.clone(), model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(4))
    load_model(tmp_path, dtype=torch.float32, device=CPU)
    assert "differs" not in caplog.text

    edit_tensors(tmp_path, lm_head__weight=embedding + torch.randn_like(embedding))
    driver = ForwardDriver(load_model(tmp_path, dtype=torch.float32, device=CPU))
    logits = driver.step([], [(driver.request([5, 6, 7], 3), 3)])
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits[0], reference(torch.tensor([[5, 6, 7]])).logits[0, -1].detach(), rtol=1e-4, atol=1e-4)
    assert "lm_head.weight differs from model.embed_tokens.weight: it is used" in caplog.text

    edit_tensors(tmp_path, lm_head__weight=embedding[:5].clone())
    with pytest.raises(CheckpointError, match=r"lm_head\.weight \[5, 48\] instead of \[97, 48\]"):
        load_model(tmp_path, dtype=torch.float32, device=CPU)


def test_shards_load_like_one_file_and_progress_ends_at_the_whole(tmp_path: Path) -> None:
    whole, shards = tmp_path / "whole", tmp_path / "shards"
    whole.mkdir()
    shards.mkdir()
    save_checkpoint(whole, "qwen3")
    save_checkpoint(shards, "qwen3", max_shard_size="60KB")
    assert len(list(shards.glob("*.safetensors"))) > 2
    told: list[tuple[int, int]] = []

    models = [
        load_model(whole, dtype=torch.float32, device=CPU),
        load_model(shards, dtype=torch.float32, device=CPU, on_progress=lambda done, total: told.append((done, total))),
    ]

    logits = []
    for model in models:
        driver = ForwardDriver(model)
        logits.append(driver.step([], [(driver.request([5, 6, 7], 3), 3)]))
    assert torch.equal(*logits)
    num_bytes = sum(tensor.numel() * 4 for tensor in load_file(whole / SINGLE_FILE).values())
    assert told == sorted(told) and told[-1] == (num_bytes, num_bytes)


def test_a_dtype_nobody_computes_in_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"dtype is torch.float16; supported: torch.float32, torch.bfloat16"):
        load_model(tmp_path, dtype=torch.float16, device=CPU)


def test_kv_of_another_model_and_empty_batches_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "llama")
    model = load_model(tmp_path, dtype=torch.float32, device=CPU)
    one = torch.zeros(1, dtype=torch.int64)
    batch = ForwardBatch(one, one, one, 0, (0, 1), (1,), one[None], one, one, 1)

    with pytest.raises(ValueError, match=r"kv is for .* = \(3, 1, 8\), the model has \(3, 2, 8\)"):
        model.forward(batch, KvPageStore(3, 4, 16, 1, 8, torch.float32, CPU))
    with pytest.raises(ValueError, match="a batch must have tokens"):
        model.forward(
            ForwardBatch(one[:0], one[:0], one[:0], 0, (0,), (), one[:0, None], one[:0], one[:0], 0),
            KvPageStore(3, 4, 16, 2, 8, torch.float32, CPU),
        )


def test_a_step_may_ask_for_no_logits(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "llama")
    model = load_model(tmp_path, dtype=torch.float32, device=CPU)
    one = torch.zeros(1, dtype=torch.int64)
    kv = KvPageStore(3, 4, 16, 2, 8, torch.float32, CPU)

    logits = model.forward(ForwardBatch(one, one, one, 0, (0, 1), (1,), one[None], one[:0], one, 1), kv)

    assert logits.shape == (0, 97)
    assert kv.k(2)[:, 0, 0].any()


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({}, 512),
        ({"rope_scaling": {"type": "linear", "factor": 4}}, 2048),
        ({"rope_scaling": {"type": "linear", "factor": 4, "original_max_position_embeddings": 128}}, 512),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 512}}, 2048),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 128}}, 512),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, 2048),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.5, "rope_theta": 5e5, "original_max_position_embeddings": 512}}, 1280),
        ({"rope_scaling": {"type": "dynamic", "factor": 4}}, 512),
        ({"rope_scaling": LLAMA3}, 512),
        ({"architectures": ["Gemma3ForCausalLM"], "rope_scaling": {"rope_type": "linear", "factor": 8}}, 512),
    ],
)
def test_linear_and_yarn_stretch_the_limit_unless_it_is_given_stretched(fields: dict[str, Any], limit: int, tmp_path: Path) -> None:
    assert config_of(tmp_path, {**OLD_LLAMA, **fields}).max_position_embeddings == limit
