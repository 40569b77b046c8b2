"""Who has which part of a model: all of it is somebody's, and what cannot be shared is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from compute_svc.models.registry import load_model, read_config
from compute_svc.models.tensor_shapes import expected_shapes
from compute_svc.models.weights import SINGLE_FILE, CheckpointError, open_checkpoint
from compute_svc.parallel.groups.rank_group import ALONE, Collectives, RankGroup
from compute_svc.parallel.parts.shares import Cut, Share, require_divisible
from compute_svc.parallel.parts.sliced_checkpoint import SlicedCheckpoint
from tests.fakes.checkpoints import save_checkpoint
from tests.fakes.thread_ranks import ThreadRanks

CPU = torch.device("cpu")

SHARED = [
    ("llama", {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True}, 2),
    ("llama", {"num_key_value_heads": 1}, 3),
    ("gpt2", {"n_head": 6}, 2),
    ("gpt_neox", {}, 2),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}, 2),
    ("phi3", {}, 2),
    ("mixtral", {}, 2),
    ("gpt_oss", {}, 2),
    ("deepseek_v3", {}, 2),
]


@pytest.mark.parametrize(("family", "fields", "size"), SHARED, ids=lambda value: value if isinstance(value, str) else None)
def test_the_parts_of_all_ranks_are_the_whole_checkpoint(family: str, fields: dict[str, Any], size: int, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, family, **{"intermediate_size": 96, **fields} if family not in {"gpt2"} else fields)
    config, names, *_ = read_config(tmp_path)
    with open_checkpoint(tmp_path) as whole:
        names = names.fitting(whole.tensors)
        parts = [SlicedCheckpoint(whole, config, names, Share(rank, size), range(config.num_layers)) for rank in range(size)]
        cuts = [Share(rank, size).cuts(config, names) for rank in range(size)]
        shares = [expected_shapes(Share(rank, size).config(config), names) for rank in range(size)]
        for name in expected_shapes(config, names):
            tensor = whole.read(name, torch.float32, CPU)
            taken = [part.read(name, torch.float32, CPU) for part in parts]
            if name not in cuts[0]:
                assert all(torch.equal(one, tensor) for one in taken), name
                continue
            places = [cut[name].order for cut in cuts]
            for one, order, part, shapes in zip(taken, places, parts, shares, strict=True):
                assert torch.equal(one, tensor.index_select(cuts[0][name].dim, order)), name
                assert part.tensors[name].shape == tuple(one.shape)
                # But for logits, whose last ranks may have fewer, a part is a tensor of the rank's own model.
                assert names.lm_head in name or shapes[name] == tuple(one.shape), name
            assert set(torch.cat(places).tolist()) == set(range(tensor.shape[cuts[0][name].dim])), name


def test_a_rank_looks_at_nothing_of_the_others(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "llama")
    tensors = load_file(tmp_path / SINGLE_FILE)
    for name in ("q_proj", "k_proj", "v_proj"):
        weight = tensors[f"model.layers.1.self_attn.{name}.weight"]
        weight[len(weight) // 2 :] = torch.nan
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        weight = tensors[f"model.layers.1.{name}.weight"]
        weight[:, weight.shape[1] // 2 :] = torch.nan
    save_file(tensors, tmp_path / SINGLE_FILE, metadata={"format": "pt"})
    first, second = ThreadRanks(2).groups
    load_model(tmp_path, dtype=torch.float32, device=CPU, ranks=first)
    with pytest.raises(CheckpointError, match="holds numbers that are not finite"):
        load_model(tmp_path, dtype=torch.float32, device=CPU, ranks=second)


REFUSED = [
    ("llama", {}, 4, "which does not divide the 6 query heads of LlamaForCausalLM"),
    ("llama", {"intermediate_size": 81}, 2, "which does not divide the 81 numbers of an MLP's width of LlamaForCausalLM"),
    (
        "llama",
        {"num_attention_heads": 12, "num_key_value_heads": 4, "intermediate_size": 96},
        6,
        "which neither divides the 4 key heads of LlamaForCausalLM nor is",
    ),
    ("mixtral", {"intermediate_size": 81}, 2, "which does not divide the 81 numbers of an expert's width"),
    ("olmo2", {}, 2, "Olmo2ForCausalLM normalises all heads together"),
]


@pytest.mark.parametrize(
    ("family", "fields", "size", "message"), REFUSED, ids=[f"{case[0]}-{case[2]}-{index}" for index, case in enumerate(REFUSED)]
)
def test_what_cannot_be_shared_is_refused_by_name(family: str, fields: dict[str, Any], size: int, message: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, family, **fields)
    config = read_config(tmp_path).config
    with pytest.raises(ValueError, match=f"COMPUTE_TENSOR_PARALLEL is {size}.*{message}"):
        require_divisible(config, size)
    require_divisible(config, 1)


def test_a_cut_of_several_ranges_takes_them_in_their_order() -> None:
    cut = Cut(1, ((4, 6), (0, 1)))
    assert cut.take(torch.arange(14).view(2, 7)).tolist() == [[4, 5, 0], [11, 12, 7]]
    assert (cut.order.tolist(), cut.length, cut.shape((2, 7))) == ([4, 5, 0], 3, (2, 3))


def test_one_rank_alone_sums_nothing_and_adds_all() -> None:
    part = torch.ones(2, 3)
    assert ALONE.sum_(part) is part
    assert ALONE.once(part) is part
    assert ALONE.side_by_side(part, 3) is part


def test_what_ranks_have_past_the_vocabulary_is_left_out() -> None:
    ranks = RankGroup(0, 3, Collectives(lambda part: None, lambda part: None, lambda part: [part, part + 10, part + 20]))
    part = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert ranks.side_by_side(part, 5).tolist() == [[1, 2, 11, 12, 21], [3, 4, 13, 14, 23]]
    assert ranks.side_by_side(part, 3).tolist() == [[1, 2, 11], [3, 4, 13]]
