"""All ways to compute a mixture of experts: the chosen ones alone, and where the host must not wait to learn which were chosen, all or grouped."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from compute_svc.kernels.grouped_mlp import Clamp, GroupedMlps, aten, group_mlps, group_weights, grouped_mlp
from compute_svc.kernels.grouped_mlp.aten import takes_groups
from compute_svc.kernels.linear import LinearWeight
from compute_svc.layers import mlp as mlp_module
from compute_svc.layers.decoder_layer import DecoderLayer
from compute_svc.layers.mlp import ClampedMlp, ExpertMlp, Mlp, _sum_all, _sum_chosen, group_experts
from compute_svc.layers.router import Router
from compute_svc.models.registry import load_model
from tests.fakes.checkpoints import save_checkpoint
from tests.fakes.forward_driver import ForwardDriver
from tests.fakes.kernel_closeness import assert_kernel_close
from tests.fakes.wait_detector import no_waiting

HIDDEN, WIDTH, EXPERTS, PER_TOKEN = 16, 24, 5, 2
DTYPES = [pytest.param(torch.float32, id="float32"), pytest.param(torch.bfloat16, id="bfloat16")]


def _weight(rows: int, columns: int, generator: torch.Generator, dtype: torch.dtype) -> LinearWeight:
    return LinearWeight.plain((torch.randn((rows, columns), generator=generator) * columns**-0.5).to(dtype), None)


def _experts(dtype: torch.dtype) -> list[Mlp]:
    generator = torch.Generator().manual_seed(0)
    sizes = ((WIDTH, HIDDEN), (WIDTH, HIDDEN), (HIDDEN, WIDTH))
    drawn = [[_weight(*size, generator, dtype) for size in sizes] for _ in range(EXPERTS)]
    return [Mlp(gate, up, down, "silu") for gate, up, down in drawn]


def _together(experts: Sequence[Mlp], device: str = "cpu") -> GroupedMlps:
    into = group_weights([[one for one in (expert.gate, expert.up) if one is not None] for expert in experts])
    down = group_weights([[expert.down] for expert in experts])
    assert into is not None and down is not None
    into, down = (dataclasses.replace(weight, data=weight.data.to(device)) for weight in (into, down))
    return GroupedMlps(into, down, "silu")


def _tokens(count: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, and of each the weights and numbers of its experts, of which the third is nobody's."""
    generator = torch.Generator().manual_seed(1)
    scores = torch.rand((count, EXPERTS), generator=generator)
    scores[:, 2] = 0
    return torch.randn((count, HIDDEN), generator=generator).to(dtype), *scores.topk(PER_TOKEN)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_tokens", [2, 9, 40])
def test_all_ways_are_the_definition(num_tokens: int, dtype: torch.dtype) -> None:
    experts = _experts(dtype)
    x, weights, chosen = _tokens(num_tokens, dtype)
    expected = torch.zeros((num_tokens, HIDDEN))
    for token in range(num_tokens):
        for weight, number in zip(weights[token], chosen[token].tolist(), strict=True):
            gate, up, down = (
                one.data.double() for one in (experts[number].gate, experts[number].up, experts[number].down) if one is not None
            )
            row = x[token].double()
            expected[token] += weight * (torch.nn.functional.silu(gate @ row) * (up @ row) @ down.T).float()

    for name, result in {
        "chosen": _sum_chosen(x, weights, chosen, experts),
        "all": _sum_all(x, weights, chosen, experts),
        "grouped": grouped_mlp(x, weights, chosen, _together(experts)),
    }.items():
        assert result.dtype == torch.float32
        assert_kernel_close(name, result.to(dtype), expected.to(dtype))


@pytest.mark.parametrize("way", ["all", "grouped"])
def test_what_an_expert_makes_of_a_token_it_was_not_chosen_for_counts_for_nothing(way: str) -> None:
    experts = _experts(torch.float32)
    experts[3].down.data.fill_(torch.inf)
    x, weights, chosen = torch.ones((2, HIDDEN)), torch.full((2, 2), 0.5), torch.tensor([[1, 0], [0, 4]])

    total = _sum_all(x, weights, chosen, experts) if way == "all" else grouped_mlp(x, weights, chosen, _together(experts))

    assert torch.isfinite(total).all() and total.any()


class _CountedMlp(Mlp):
    """An expert that knows how often it was computed."""

    calls: ClassVar[Counter[int]] = Counter()

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None, *arguments: Any, **options: Any) -> torch.Tensor:
        """See `Mlp`."""
        self.calls[id(self)] += 1
        return Mlp.forward(self, x, residual, *arguments, **options)


def _counted(mlp: Mlp | ClampedMlp) -> _CountedMlp:
    assert isinstance(mlp, Mlp)
    return _CountedMlp(mlp.gate, mlp.up, mlp.down, mlp.activation)


@pytest.fixture
def calls() -> Counter[int]:
    _CountedMlp.calls.clear()
    return _CountedMlp.calls


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 7])
def test_padding_is_sent_to_no_expert(num_tokens: int, calls: Counter[int]) -> None:
    experts = tuple(_counted(expert) for expert in _experts(torch.float32))
    router = LinearWeight.plain(torch.eye(EXPERTS, HIDDEN), None)
    mlp = ExpertMlp(Router(router, PER_TOKEN, normalise=True), experts, None, None)
    # Tokens want the first two experts, padding the others.
    x = torch.zeros((8, HIDDEN))
    x[:num_tokens, :2] = 1.0
    x[num_tokens:, 2:EXPERTS] = 1.0
    residual = torch.ones_like(x)

    result = mlp.forward(x, residual, num_tokens)

    assert [calls[id(expert)] for expert in experts] == [1, 1, 0, 0, 0]
    assert torch.equal(result[num_tokens:], residual[num_tokens:])
    assert torch.equal(result[:num_tokens], mlp.forward(x, residual)[:num_tokens])


def test_one_token_reads_the_weights_of_its_own_experts_alone(calls: Counter[int], tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "mixtral", num_local_experts=8)
    model = load_model(tmp_path, dtype=torch.float32, device=torch.device("cpu"))
    layers = []
    for layer in model.layers:
        assert isinstance(layer, DecoderLayer) and isinstance(layer.mlp, ExpertMlp) and not isinstance(layer.mlp.experts, GroupedMlps)
        mlp = dataclasses.replace(layer.mlp, experts=tuple(_counted(expert) for expert in layer.mlp.experts))
        layers.append(dataclasses.replace(layer, mlp=mlp))
    driver = ForwardDriver(dataclasses.replace(model, layers=tuple(layers)))
    request = driver.request(list(range(12)), 12)

    for token in range(12):
        calls.clear()
        driver.step([request] if token else [], [] if token else [(request, 1)])
        assert calls.total() == 2 * len(layers), "two experts of each layer for a token"


def test_grouped_experts_wait_for_nothing() -> None:
    on_device = _together(_experts(torch.bfloat16), "meta")
    router = LinearWeight.plain(torch.empty((EXPERTS, HIDDEN), dtype=torch.bfloat16, device="meta"), None)
    mlp = ExpertMlp(Router(router, PER_TOKEN, normalise=True), on_device, None, None)

    with no_waiting():
        result = mlp.forward(torch.empty((9, HIDDEN), dtype=torch.bfloat16, device="meta"), None)

    assert result.shape == (9, HIDDEN) and result.dtype == torch.bfloat16


def test_experts_are_put_together_where_a_device_takes_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    experts = _experts(torch.bfloat16)
    assert group_experts(experts) == tuple(experts), "a CPU takes none"

    def grouped(into: Sequence[Sequence[LinearWeight]], down: Sequence[LinearWeight], *rest: Any) -> GroupedMlps:
        weights = group_weights(into), group_weights([[one] for one in down])
        assert weights[0] is not None and weights[1] is not None
        return GroupedMlps(weights[0], weights[1], *rest)

    monkeypatch.setattr(mlp_module, "group_mlps", grouped)
    together = group_experts(experts)

    assert isinstance(together, GroupedMlps) and together.activation == "silu" and together.clamp is None and together.count == EXPERTS
    assert together.down.data.shape == (EXPERTS, HIDDEN, WIDTH) and torch.equal(together.down.data[3], experts[3].down.data)
    gate, up = together.into.data.tensor_split(2, dim=1)
    fourth = experts[4].gate
    assert torch.equal(up[3], experts[3].up.data) and fourth is not None and torch.equal(gate[4], fourth.data)
    clamped = group_experts([ClampedMlp(one.gate, one.up, one.down, 1.7, 7.0) for one in experts if one.gate is not None])
    assert isinstance(clamped, GroupedMlps) and clamped.clamp == Clamp(1.7, 7.0)


def test_experts_without_gates_stay_apart() -> None:
    experts = [Mlp(None, one.up, one.down, "relu") for one in _experts(torch.bfloat16)]
    assert group_experts(experts) == tuple(experts)


@pytest.mark.parametrize("has_triton", [False, True])
def test_torch_takes_numbers_without_biases_and_triton_all(has_triton: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compute_svc.kernels.grouped_mlp.backend_for", lambda *_, **__: "triton" if has_triton else "aten")
    monkeypatch.setattr(aten, "takes_groups", lambda *_: True)
    every = [(one.gate, one.up, one.down) for one in _experts(torch.bfloat16)]
    plain = [[LinearWeight.plain(weight.data.to("meta"), None) for weight in three if weight is not None] for three in every]
    biased = [[dataclasses.replace(weight, bias=weight.data[:, 0]) for weight in three] for three in plain]

    def together(experts: Sequence[Sequence[LinearWeight]], clamp: Clamp | None = None) -> bool:
        return group_mlps([three[:2] for three in experts], [three[2] for three in experts], "silu", clamp) is not None

    assert together(plain)
    assert together(biased) == has_triton
    assert together(plain, Clamp(1.7, 7.0)) == has_triton


@pytest.mark.parametrize(
    ("device", "dtype", "size", "capability", "takes"),
    [
        ("cuda", torch.bfloat16, 24, (9, 0), True),
        ("cuda", torch.bfloat16, 24, (10, 0), True),
        ("cuda", torch.bfloat16, 24, (8, 0), False),
        ("cuda", torch.bfloat16, 24, (12, 0), False),
        ("cuda", torch.bfloat16, 20, (9, 0), False),
        ("cuda", torch.float32, 24, (9, 0), False),
        ("meta", torch.bfloat16, 24, (9, 0), False),
    ],
)
def test_groups_are_taken_where_torch_reads_them_on_the_device(
    device: str, dtype: torch.dtype, size: int, capability: tuple[int, int], takes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert takes_groups(torch.device(device), dtype, (16, size)) == takes


@pytest.mark.gpu
@pytest.mark.parametrize("num_tokens", [2, 9, 300])
def test_cuda_groups_as_the_cpu_does(num_tokens: int) -> None:
    if not torch.cuda.is_available() or not takes_groups(torch.device("cuda"), torch.bfloat16, (HIDDEN, WIDTH)):
        pytest.skip("there is no CUDA device that takes groups")
    experts = _experts(torch.bfloat16)
    on_device = _together(experts, "cuda")
    x, weights, chosen = _tokens(num_tokens, torch.bfloat16)
    aten.grouped_mlp(x.cuda(), weights.cuda(), chosen.cuda(), on_device)

    arguments = x.cuda(), weights.cuda(), chosen.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = aten.grouped_mlp(*arguments, on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")

    assert_kernel_close("grouped", result.cpu().bfloat16(), _sum_chosen(x, weights, chosen, experts).bfloat16())
