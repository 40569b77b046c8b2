"""From a model folder to an engine; all of it in the engine's process."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from compute_svc.engine.engine import Engine
from compute_svc.engine.start.device_memory import CudaMemory, DeviceMemory, MemoryFigures, kv_bytes_of
from compute_svc.engine.start.first_pass import first_logits, require_finite_logits
from compute_svc.engine.start.largest_steps import LargestSteps, StepSizes
from compute_svc.engine.start.number_format import NumberFormat, choose_format, memory_of, require_room
from compute_svc.engine.steps.decode_graphs import DecodeGraphs, decode_graphs
from compute_svc.engine.steps.step_drawing import DrawConfig, DrawPlace
from compute_svc.kernels.attention.kv_chunks import CHUNK_TOKENS
from compute_svc.kernels.backend import use_batch_invariance, use_triton_kernels, uses_triton
from compute_svc.kernels.cpu_features import multiplies_bfloat16
from compute_svc.kernels.device_features import has_float8
from compute_svc.kernels.fp8_linear import has_fp8_products
from compute_svc.kernels.linear.ints import keeps_integers
from compute_svc.kernels.native import use_native_kernels
from compute_svc.kv.kv_format import KvFormat, choose_kv_format
from compute_svc.kv.page_store import KvPageStore
from compute_svc.models.causal_lm import CausalLM
from compute_svc.models.config import ModelConfig, StreamingWindow
from compute_svc.models.folder_audit import audit_checkpoint
from compute_svc.models.quantised.coded_tensor import CodeUse
from compute_svc.models.registry import load_model, read_config, read_model_config
from compute_svc.models.weights import count_numbers, stored_tensors
from compute_svc.parallel.groups.collectives import Groups
from compute_svc.parallel.parts.layer_shares import layers_of, require_stages
from compute_svc.parallel.parts.shares import require_divisible
from compute_svc.parallel.processes.leader import Leader
from compute_svc.parallel.processes.led_graphs import LedGraphs
from compute_svc.parallel.processes.led_model import LedModel, LedPageStore
from compute_svc.parallel.processes.start import rank_device, require_devices
from compute_svc.scheduler.base import SchedulerConfig
from compute_svc.scheduler.kv_memory import KvMemory
from compute_svc.scheduler.length_predictor import WindowedLengthPredictor
from compute_svc.scheduler.policies import make_policy
from compute_svc.scheduler.reservation import PredictedMemory
from compute_svc.settings import Settings
from triserve.rpc.machine import usable_memory_bytes

logger = logging.getLogger(__name__)

_MEMORIES = {"pages": KvMemory, "predicted": PredictedMemory}
_PERCENT_PER_LINE = 10
_CPU_KV_CACHE_BYTES = 1 << 30
_NO_LIMIT_BYTES = 1 << 62
# Sines and cosines of so many positions are half a gigabyte at 64 rotary pairs.
_MAX_STREAMED_TOKENS = 1 << 19


class Part(NamedTuple):
    """What a rank computes with; where there is one, what the engine computes with.

    Attributes:
        model: Its part of the model.
        kv: Its heads' keys and values, of its layers.
        config: Sizes, the same on every rank.
    """

    model: CausalLM
    kv: KvPageStore
    config: SchedulerConfig


def load_engine(settings: Settings, memory: DeviceMemory | None = None, on_lost: Callable[[str], None] = lambda reason: None) -> Engine:
    """Loads the model and makes the engine around it.

    Args:
        settings: The operator's.
        memory: Of the device, which is measured before keys and values get their share; None = that of a CUDA device, and on a CPU none is measured.
        on_lost: Told why nothing can be computed any more, where other ranks are lost; from any thread.

    Raises:
        CheckpointError: The folder holds no model this engine can serve.
        ValueError: A setting does not fit the model.
        RanksLost: Another rank has ended.
    """
    if settings.num_ranks == 1:
        return _engine(settings, load_part(settings, Groups(), memory=memory), None)
    require_devices(settings)
    whole = read_model_config(settings.model)
    require_divisible(whole, settings.tensor_parallel)
    require_stages(whole, settings.pipeline_parallel)
    leader = Leader(settings, on_lost)
    try:
        part = load_part(settings, leader.groups, join=leader.join, make_kv=partial(LedPageStore, leader), memory=memory)
        return _engine(settings, part, leader)
    except BaseException:
        leader.close()
        raise


def load_part(
    settings: Settings,
    groups: Groups,
    *,
    join: Callable[[], None] = lambda: None,
    make_kv: Callable[..., KvPageStore] = KvPageStore,
    memory: DeviceMemory | None = None,
) -> Part:
    """Loads a rank's part of the model and makes room for its keys and values; all ranks do so together.

    Args:
        settings: The same on all ranks.
        groups: Which part.
        join: Called once the weights are there; when it returns, all ranks have theirs.
        make_kv: Makes the room, with the arguments of `KvPageStore`.
        memory: See `load_engine`.

    Raises:
        CheckpointError: The folder holds no model this engine can serve.
        ValueError: A setting does not fit the model.
        RanksLost: Another rank has ended.
    """
    everyone = groups.everyone
    device = rank_device(settings, everyone.rank)
    _choose_kernels(settings, device)
    if everyone.size > 1 and device.type == "cuda":
        # Kernels are launched on the current one, whatever their arguments are on.
        torch.cuda.set_device(device)
    format_ = _number_format(settings, device)
    kv_format = _kv_format(settings, format_.dtype, device)
    model = load_model(
        settings.model,
        dtype=format_.dtype,
        device=device,
        max_tokens=_most_distant_tokens(settings),
        streaming=_streaming_window(settings),
        activations=settings.activations,
        on_progress=_ProgressLog(),
        ranks=groups.tensor,
        stages=groups.stages,
    )
    join()
    if everyone.is_first:
        require_finite_logits(model)
    else:
        # The first one gets all ranks' logits.
        first_logits(model)
    kv_bytes = _kv_bytes(settings, model, kv_format, _memory_of(device) if memory is None else memory)
    # Pages have the same numbers on all ranks: there are as many as where there is least room.
    config = scheduler_config(settings, model.config, kv_format, kv_bytes, partial(everyone.least, device=device))
    kv = _page_store(kv_bytes, config, model, kv_format, make_kv)
    _require_one_order(settings, model, kv)
    return Part(model, kv, config)


def _engine(settings: Settings, part: Part, leader: Leader | None) -> Engine:
    model, kv, config = part
    for line in audit_checkpoint(settings.model).lines():
        logger.info("%s", line)
    logger.info("stores KV in %s: %d bytes a token, %d a page", kv.format.name, kv.bytes_per_page // kv.page_size_tokens, kv.bytes_per_page)
    if model.sinks:
        logger.info("streaming: a token sees the first %d tokens and at most %s before it, itself included", model.sinks, model.kv_window)
    logger.info(
        "ready: %s from %s, %s on %s, %d KV pages of %d tokens, %s",
        model.config.architecture,
        settings.model.name,
        str(model.dtype).removeprefix("torch."),
        settings.device,
        config.num_pages,
        config.page_size_tokens,
        f"{torch.get_num_threads()} threads" + ("" if leader is None else f" on each of {settings.num_ranks} ranks"),
    )
    if settings.pipeline_parallel > 1:
        logger.info("a pipeline of %s: decode steps are no CUDA graphs, and none is begun ahead", _described_stages(settings))
    led = model if leader is None else LedModel(model, leader)
    kind = DecodeGraphs if leader is None else partial(LedGraphs, leader)
    return Engine(
        led,
        kv,
        config,
        logits_width=model.config.vocab_size,
        device=rank_device(settings, 0),
        policy=make_policy(settings.policy),
        predictor=WindowedLengthPredictor(),
        make_memory=_MEMORIES[settings.kv_reservation],
        drawing=DrawConfig(DrawPlace[settings.draw.upper()], settings.audited_share),
        hidden_states=led,
        dtype=model.dtype,
        kernels=model.kernels,
        make_graphs=decode_graphs(model, kv, config, kind) if settings.cuda_graphs else None,
        batches_on=None if leader is None else torch.device("cpu"),
    )


def _described_stages(settings: Settings) -> str:
    count, num_layers = settings.pipeline_parallel, read_model_config(settings.model).num_layers
    sizes = [str(len(layers_of(stage, count, num_layers))) for stage in range(count)]
    return f"{count} stages of {', '.join(sizes)} layers"


def _choose_kernels(settings: Settings, device: torch.device) -> None:
    """Raises ValueError if what is required cannot be used on the device."""
    use_native_kernels(settings.native_kernels if device.type == "cpu" else "off")
    use_triton_kernels(settings.triton_kernels, device.type)
    use_batch_invariance(settings.batch_invariant, device.type)


def _number_format(settings: Settings, device: torch.device) -> NumberFormat:
    """What the model will be computed in; the log says why, and what it takes."""
    config = read_model_config(settings.model)
    tensors = stored_tensors(settings.model)
    on_cpu = device.type == "cpu"
    fast = multiplies_bfloat16() if on_cpu else torch.cuda.is_bf16_supported(including_emulation=False)
    format_ = choose_format(settings.dtype, count_numbers(tensors), device=device.type, multiplies_bfloat16=fast)
    num_bytes = memory_of(tensors, format_.dtype, _kept_codes(settings, device))
    # The logits' projection has a layout of its own, so a tied embedding is there twice.
    num_bytes += config.tie_word_embeddings * config.vocab_size * config.hidden_size * format_.dtype.itemsize
    if on_cpu:
        usable_bytes, size = usable_memory_bytes(), settings.num_ranks
        share_bytes = None if usable_bytes is None else usable_bytes // size
        warning = require_room(num_bytes // size, format_, _cpu_kv_bytes(settings), share_bytes)
        if warning is not None:
            logger.warning("%s", warning)
    logger.info("computes in %s, %s: weights of %d MB", format_.name, format_.reason, num_bytes // 1_000_000)
    return format_


def _kept_codes(settings: Settings, device: torch.device) -> list[CodeUse]:
    """Codes of weights that stay as they are: on a CPU those that are multiplied as integers, elsewhere those that a kernel makes numbers, too."""
    if device.type != "cpu":
        kept: list[CodeUse] = ["integers", "integers by int8"] if uses_triton(device.type) else []
        return [*kept, "float8"] if settings.activations == "auto" and has_fp8_products(device) else kept
    uses: tuple[tuple[CodeUse, bool], ...] = (("integers", False), ("integers by int8", True))
    return [use for use, made_for_int8 in uses if keeps_integers(settings.activations, made_for_int8=made_for_int8)]


def _kv_format(settings: Settings, dtype: torch.dtype, device: torch.device) -> KvFormat:
    """What keys and values will be stored as.

    Raises:
        ValueError: The device has no instructions for it; names who asks for it.
    """
    told = read_config(settings.model).kv_format
    format_ = choose_kv_format(settings.kv_format, told, dtype)
    if format_.dtype == torch.float8_e4m3fn and not has_float8(device):
        who = "COMPUTE_KV_FORMAT" if settings.kv_format != "auto" else f"triserve_kv_format of {settings.model.name}/config.json"
        raise ValueError(
            f"{who} is {format_.name}, which {settings.device} cannot have: it takes a CUDA device of compute capability 8.9 or above"
        )
    return format_


def _memory_of(device: torch.device) -> DeviceMemory | None:
    return CudaMemory(device) if device.type == "cuda" else None


def _measured(model: CausalLM, limits: SchedulerConfig, settings: Settings, kv_format: KvFormat, memory: DeviceMemory) -> MemoryFigures:
    """What is to be known of a device before keys and values get their share of it."""
    longest = limits.max_model_len_tokens
    in_pages = longest if limits.window_tokens is None else min(longest, limits.sliding_tokens)
    sizes = StepSizes(limits.step_budget_tokens, limits.max_running_requests, in_pages, longest, limits.page_size_tokens)
    began = time.perf_counter()
    figures = LargestSteps(model, kv_format, sizes, takes_graphs=settings.cuda_graphs and not limits.slides).measure(memory)
    logger.info("measured the largest steps in %.1f s", time.perf_counter() - began)
    return figures


def _kv_bytes(settings: Settings, model: CausalLM, kv_format: KvFormat, memory: DeviceMemory | None) -> int:
    """What keys and values get: on a CPU, whose memory is not measured, the setting or a default."""
    if memory is None:
        return _cpu_kv_bytes(settings)
    # Of these nothing that has to do with the pages there are is looked at.
    limits = scheduler_config(settings, model.config, kv_format, _NO_LIMIT_BYTES)
    share = settings.device_memory_share
    figures = _measured(model, limits, settings, kv_format, memory)
    kv_bytes = kv_bytes_of(settings.kv_cache_bytes, figures, share)
    logger.info("%d bytes for keys and values, of room for %d: %s", kv_bytes, figures.room(share), figures.described(share))
    return kv_bytes


def _cpu_kv_bytes(settings: Settings) -> int:
    return _CPU_KV_CACHE_BYTES if settings.kv_cache_bytes is None else settings.kv_cache_bytes


def _page_store(
    kv_bytes: int, config: SchedulerConfig, model: CausalLM, format_: KvFormat, make: Callable[..., KvPageStore]
) -> KvPageStore:
    whole = model.config
    sizes = (whole.num_layers, config.num_pages, config.page_size_tokens, whole.num_kv_heads, whole.kv_head_dim)
    try:
        return make(*sizes, format_.dtype, model.device, group=format_.group)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ValueError(f"COMPUTE_KV_CACHE_BYTES is {kv_bytes}, more than there is: {error}") from error


def _require_one_order(settings: Settings, model: CausalLM, kv: KvPageStore) -> None:
    if settings.batch_invariant and model.device.type != "cpu" and not model.attends_in_one_order(kv):
        raise ValueError(
            f"COMPUTE_BATCH_INVARIANT is set, and no kernel of attention keeps to one order of sums for {model.config.architecture} "
            "as it is served: with sinks, rounded slopes or heads wider than 256 there is none"
        )


def _streaming_window(settings: Settings) -> StreamingWindow | None:
    tokens = settings.streaming_window_tokens
    return None if tokens is None else StreamingWindow(tokens=tokens, sinks=settings.num_sinks)


def _most_distant_tokens(settings: Settings) -> int | None:
    """How far apart tokens may be that see each other; None = as far as the model allows."""
    window = settings.streaming_window_tokens
    return settings.max_model_len_tokens if window is None else window + settings.num_sinks


def scheduler_config(
    settings: Settings,
    model: ModelConfig,
    kv_format: KvFormat,
    kv_bytes: int | None = None,
    least: Callable[[int], int] = lambda number: number,
) -> SchedulerConfig:
    """The sizes that settings and model give together.

    Args:
        settings: The operator's.
        model: What is loaded.
        kv_format: What keys and values are stored as.
        kv_bytes: What keys and values get; None = what the settings say for a CPU.
        least: Of a number of every rank's.

    Raises:
        ValueError: naming the variable that does not fit.
    """
    longest = settings.max_model_len_tokens or model.max_position_embeddings
    distance = _most_distant_tokens(settings)
    if model.sinks and distance is not None and distance > model.max_position_embeddings:
        raise ValueError(
            f"COMPUTE_STREAMING_WINDOW_TOKENS is {settings.streaming_window_tokens}, "
            f"the limit is {model.max_position_embeddings - model.sinks}: window and sinks within what the model was made for"
        )
    if model.sinks:
        limit, whose = _MAX_STREAMED_TOKENS, "that of a streaming window"
    else:
        limit, whose = model.max_position_embeddings, "the model's own"
    if longest > limit:
        raise ValueError(f"COMPUTE_MAX_MODEL_LEN_TOKENS is {longest}, the limit is {whose}, {limit}")
    bytes_per_page = settings.page_size_tokens * kv_format.bytes_per_token(model.num_layers, model.num_kv_heads, model.kv_head_dim)
    kv_bytes = _cpu_kv_bytes(settings) if kv_bytes is None else kv_bytes
    num_pages = least(kv_bytes // bytes_per_page)
    if num_pages < 2:
        wanted = (
            f"it must be at least {2 * bytes_per_page}, two pages"
            if kv_bytes < 2 * bytes_per_page
            else "on another rank that is less than two pages"
        )
        raise ValueError(f"COMPUTE_KV_CACHE_BYTES is {kv_bytes}, {wanted}")
    config = SchedulerConfig(
        page_size_tokens=settings.page_size_tokens,
        num_pages=num_pages,
        max_model_len_tokens=longest,
        step_budget_tokens=settings.step_budget_tokens,
        max_running_requests=settings.max_running_requests,
        max_waiting_requests=settings.max_waiting_requests,
        window_tokens=_window_tokens(settings, model),
        chunk_tokens=CHUNK_TOKENS,
    )
    if config.max_request_tokens < longest:
        logger.warning("a request has at most %d tokens: COMPUTE_KV_CACHE_BYTES holds no more", config.max_request_tokens)
    return config


def _window_tokens(settings: Settings, model: ModelConfig) -> int | None:
    # Pages of another size do not end where chunks do; then everything is kept.
    return None if CHUNK_TOKENS % settings.page_size_tokens else model.kv_window


class _ProgressLog:
    """Logs how far loading is, every ten percent or so."""

    def __init__(self) -> None:
        self._next_percent = _PERCENT_PER_LINE

    def __call__(self, bytes_done: int, bytes_total: int) -> None:
        percent = 100 * bytes_done // max(1, bytes_total)
        if percent >= self._next_percent:
            logger.info("loaded %d %% of %d MB", percent, bytes_total // 1_000_000)
            self._next_percent = percent - percent % _PERCENT_PER_LINE + _PERCENT_PER_LINE
