"""Ranks with a part of each weight give together what the whole model gives, in every family and format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from compute_svc.models.causal_lm import CausalLM
from compute_svc.models.registry import load_model, read_model_config
from compute_svc.models.weights import CheckpointError
from compute_svc.parallel.groups.rank_group import ALONE, RankGroup
from compute_svc.parallel.parts.shares import require_divisible
from tests.fakes.checkpoints import EXAMPLES, save_checkpoint
from tests.fakes.forward_driver import ForwardDriver
from tests.fakes.quantised_checkpoints import SCHEMES, save_quantised
from tests.fakes.thread_ranks import ThreadRanks

PROMPTS = [[5, 7, 11, 3, 2, 9, 1], [4] * 20, [8, 1]]
# Sums in another order: a few units in the last place of logits of about five.
TOLERANCE = 1e-4

# Those that are not what a family's first variant is, for what they have: a key head that several ranks have, in each layout; biases of all
# products; heads that are wider or fewer; experts of all kinds.
MORE = [
    ("falcon", "mqa-parallel", 3),
    ("gpt_bigcode", "mqa", 2),
    ("gpt2", "tied", 3),
    ("llama", "mqa-biases", 2),
    ("falcon", "mha-serial-biases", 3),
    ("deepseek_v2", "wide-values-query-latent-yarn", 2),
    ("deepseek_v3", "query-latent-yarn", 2),
    ("gpt_oss", "mqa-odd-heads-all-full", 3),
    ("qwen2_moe", "shared-expert", 2),
    ("mpt", "six-heads", 3),
    ("cohere", "mha-biases-untied", 2),
]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _load(folder: Path, ranks: RankGroup = ALONE) -> CausalLM:
    return load_model(folder, dtype=torch.float32, device=torch.device("cpu"), ranks=ranks)


def _logits(model: CausalLM, prompts: Sequence[Sequence[int]] = PROMPTS) -> torch.Tensor:
    """Of every token of prompts, and of one decoded behind each beside another prompt."""
    driver = ForwardDriver(model)
    requests = [driver.request(prompt, 40) for prompt in prompts]
    first = driver.step([], [(request, len(request.tokens)) for request in requests], all_logits=True)
    for request in requests:
        request.tokens.append(6)
    return torch.cat((first, driver.step(requests, [(driver.request([3, 1, 4], 8), 3)], all_logits=True)))


def _assert_ranks_give_the_whole(folder: Path, size: int) -> None:
    expected = _logits(_load(folder))
    first, *others = ThreadRanks(size).run(lambda ranks: _logits(_load(folder, ranks)))
    torch.testing.assert_close(first, expected, atol=TOLERANCE, rtol=0)
    assert torch.equal(first.argmax(dim=1), expected.argmax(dim=1))
    assert all(other.shape[1] == -(-expected.shape[1] // size) for other in others), "each projects to its part of the vocabulary"


def _save_shared(folder: Path, family: str, size: int) -> None:
    """The first variant of a family that so many ranks can share."""
    for fields in EXAMPLES[family].variants.values():
        save_checkpoint(folder, family, **fields)
        try:
            require_divisible(read_model_config(folder), size)
        except ValueError:
            continue
        return
    raise AssertionError(f"no variant of {family} can be shared by {size} ranks")


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(EXAMPLES.keys() - {"olmo2", "olmo3", "olmoe"}))
def test_two_ranks_give_what_the_whole_model_gives(family: str, tmp_path: Path) -> None:
    _save_shared(tmp_path, family, 2)
    _assert_ranks_give_the_whole(tmp_path, 2)


@pytest.mark.parametrize(("family", "variant", "size"), MORE, ids=lambda value: str(value))
def test_ranks_give_what_the_whole_model_gives(family: str, variant: str, size: int, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, family, **EXAMPLES[family].variants[variant])
    _assert_ranks_give_the_whole(tmp_path, size)


@pytest.mark.parametrize("scheme", ["int8-weights-alone", "int4-weights-alone", "fp8", "nf4"])
def test_ranks_share_codes_as_they_share_numbers(scheme: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 256}
    folder = save_quantised(tmp_path, "llama", SCHEMES[scheme], **sizes)

    def logits(ranks: RankGroup) -> torch.Tensor:
        # As they are: rounded activations have a scale for each rank's part.
        return _logits(load_model(folder, dtype=torch.float32, device=torch.device("cpu"), activations="float", ranks=ranks))

    expected = logits(ALONE)
    first, _ = ThreadRanks(2).run(logits)
    torch.testing.assert_close(first, expected, atol=TOLERANCE, rtol=0)


def test_integer_products_of_ranks_are_no_farther_from_unrounded_ones_than_those_of_one(tmp_path: Path) -> None:
    sizes = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 256}
    folder = save_quantised(tmp_path, "llama", SCHEMES["int8"], **sizes)
    exact = _logits(load_model(folder, dtype=torch.float32, device=torch.device("cpu"), activations="float"))
    alone = _logits(_load(folder))
    first, _ = ThreadRanks(2).run(lambda ranks: _logits(_load(folder, ranks)))
    # Each rank rounds its part of the activations to a scale of its own.
    assert not torch.allclose(alone, exact, atol=TOLERANCE, rtol=0), "activations are rounded"
    assert (first - exact).norm() < 1.2 * (alone - exact).norm()


def test_groups_that_ranks_would_break_are_refused_by_name(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "intermediate_size": 96}
    folder = save_quantised(tmp_path, "llama", SCHEMES["int4-weights-alone"], **sizes)
    message = (
        r"weight model\.layers\.0\.self_attn\.o_proj\.weight: its inputs are in groups of \d+, .* COMPUTE_TENSOR_PARALLEL = 1 serves it"
    )
    with pytest.raises(CheckpointError, match=message):
        ThreadRanks(2).run(lambda ranks: _load(folder, ranks))
