"""What a small pool of KV is worth: by pages against the longest answer reserved, and in codes against numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from compute_svc.kv.kv_format import KV_FORMATS
from compute_svc.models.registry import load_model
from compute_svc.scheduler.base import SchedulerConfig
from compute_svc.scheduler.kv_memory import KvMemory
from compute_svc.scheduler.reservation import MaximumMemory, PredictedMemory
from gateway.cli.measuring.workload import PlannedRequest
from tests.bench.ablations.comparison import Comparison, Figures, Subject, in_turns
from tests.bench.ablations.engines import CPU, PAGE_SIZE_TOKENS, EngineSizes, Load, Outcome, Setup, make_engine, plan_requests
from tests.bench.number_formats.kv_formats import admission

_MEMORIES: dict[str, Callable[[SchedulerConfig], KvMemory]] = {
    "longest answer reserved": MaximumMemory,
    "pages": KvMemory,
    "pages, predicted": PredictedMemory,
}
_LIMIT_TOKENS = 512
_MAX_PROMPT, _MAX_OUTPUT = 128, 32
_POOL_TOKENS = 2048
_MAX_RUNNING = 64
_CHECKED_REQUESTS = 6
_FORMATS = ("float32", "bfloat16", "int8-g8", "int8-g64")
# In bfloat16.
_FORMAT_POOL_TOKENS = 1024


def reservation(setup: Setup) -> Iterator[Comparison]:
    """Clients leave max_tokens at the model's limit, and end their answers before it."""
    model = load_model(setup.folder, dtype=setup.dtype, device=CPU, activations="float")
    planned = plan_requests(model, setup.size(32, 12), max_prompt=_MAX_PROMPT, max_output=_MAX_OUTPUT)
    sizes = EngineSizes(_POOL_TOKENS // PAGE_SIZE_TOKENS, _LIMIT_TOKENS, _MAX_RUNNING)

    def run(memory: str) -> Outcome:
        return Load(make_engine(model, sizes, make_memory=_MEMORIES[memory]), planned, _LIMIT_TOKENS).run()

    maximum, *others = [run(memory).tokens for memory in _MEMORIES]
    assert all(one == maximum for one in others), "the same tokens whatever is reserved"

    def figures(memory: str) -> Figures:
        return run(memory).figures

    runs = in_turns({memory: partial(figures, memory) for memory in _MEMORIES}, setup.rounds)
    case = f"{len(planned)} requests, a pool of {_POOL_TOKENS} tokens, max_tokens up to {_LIMIT_TOKENS}"
    subject = Subject("reservation", case, "paging: +200 % under a small pool", "the same tokens")
    yield from subject.rows(runs, ("tokens_per_s", "requests_at_once"))


def kv_format(setup: Setup) -> Iterator[Comparison]:
    """As many bytes of KV in each format: requests at once, and what comes of them."""
    yield from _admitted(setup)
    model = load_model(setup.folder, dtype=setup.dtype, device=CPU, activations="float")
    shape = (model.config.num_layers, model.config.num_kv_heads, model.config.kv_head_dim)
    planned = plan_requests(model, setup.size(32, 12), max_prompt=_MAX_PROMPT, max_output=_MAX_OUTPUT)
    budget = _FORMAT_POOL_TOKENS * KV_FORMATS["bfloat16"].bytes_per_token(*shape)

    def run(name: str, asked: Sequence[PlannedRequest] = planned, requests_at_once: int = _MAX_RUNNING) -> Outcome:
        pages = budget // (PAGE_SIZE_TOKENS * KV_FORMATS[name].bytes_per_token(*shape))
        sizes = EngineSizes(pages, _MAX_PROMPT + _MAX_OUTPUT, requests_at_once)
        return Load(make_engine(model, sizes, KV_FORMATS[name]), asked).run()

    for name in _FORMATS:
        few = planned[:_CHECKED_REQUESTS]
        assert run(name, few).tokens == run(name, few, 1).tokens, f"KV in {name} gives the same tokens in any batch"

    def figures(name: str) -> Figures:
        return run(name).figures

    runs = in_turns({name: partial(figures, name) for name in _FORMATS}, setup.rounds)
    case = f"{len(planned)} requests in {budget / 1e6:.1f} MB of KV"
    for base in ("bfloat16", "float32"):
        subject = Subject("KV format", case, "PPL: +100 % requests", "the same tokens in any batch")
        compared = {base: runs[base], **{name: of for name, of in runs.items() if name.startswith("int8")}}
        yield from subject.rows(compared, ("tokens_per_s", "requests_at_once"))


def _admitted(setup: Setup) -> Iterator[Comparison]:
    """The scheduler alone, on lengths as they are; nothing is random, so that it is run once."""
    # In float32 there must be room for the longest of them.
    num, budget = setup.size(256, 64), 128 << 20
    figures = admission(num, budget)
    runs: dict[str, list[Figures]] = {name: [{"requests_at_once": figures[name]["running_requests"]}] for name in _FORMATS}
    base = runs.pop("bfloat16")
    del runs["float32"]
    for name, of in runs.items():
        limit = f"limit {figures[name]['limit_of_bfloat16']:.2f}"
        case = f"scheduler alone, {num} requests of the lengths file in {budget >> 20} MiB of KV"
        subject = Subject("KV format", case, f"PPL: +100 % requests; {limit}", "pages hold their own tokens, exact lengths")
        yield from subject.rows({"bfloat16": base, name: of}, ("requests_at_once",))
