"""transformers on the same device with the same weights: its forward pass, its KV cache and a greedy loop as `generate` runs it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from compute_svc.models.gguf.checkpoint import GgufTensors
from tests.bench.gpu.random_model import RandomWeights

# Prompts are taken into its cache in pieces of so many tokens: activations of 256 prompts at once would not fit beside two copies of an 8B model.
_PIECE_TOKENS = 16384


def load_rival(model: Path | RandomWeights, dtype: torch.dtype, device: torch.device) -> Any:
    """The same model as transformers has it, weights and all on the device; from a GGUF file where the folder has one."""
    transformers.logging.disable_progress_bar()
    if isinstance(model, Path):
        if any(model.glob("*.gguf")):
            return _unpacked(model, dtype, device)
        return transformers.AutoModelForCausalLM.from_pretrained(model, dtype=dtype).to(device).eval()
    return _with_weights(model, dtype, device)


@torch.inference_mode()
def _with_weights(weights: RandomWeights, dtype: torch.dtype, device: torch.device) -> Any:
    config = transformers.AutoConfig.for_model(**weights.fields)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    for name, parameter in model.named_parameters():
        parameter.copy_(weights.read(name, dtype, device))
    return model


# Its own reader of GGUF files needs one package more.
@torch.inference_mode()
def _unpacked(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    tensors = GgufTensors(folder)
    fields = json.loads((folder / "config.json").read_text())
    config = getattr(transformers, fields["architectures"][0]).config_class(**fields)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).to(device).eval()
    for name, parameter in model.named_parameters():
        parameter.copy_(tensors.get_tensor(name))
    return model


class TransformersRival:
    """Times it.

    Args:
        model: From `load_rival`.
    """

    name = "transformers"

    def __init__(self, model: Any) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        self._cached: tuple[torch.Tensor, Any, torch.Tensor] | None = None

    @torch.inference_mode()
    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """[tokens, vocab] float32 on the CPU, of one sequence [tokens]."""
        found: torch.Tensor = self._model(tokens[None].to(self._device), use_cache=False).logits[0].float().cpu()
        return found

    @torch.inference_mode()
    def decode(self, prompts: torch.Tensor, warm_up: int, steps: int) -> float:
        """Seconds for `steps` greedy tokens of each of [requests, tokens] prompts, behind some that warm up. The prompts' KV is kept for the next call."""
        cached = self._cached
        if cached is None or not torch.equal(cached[0], prompts):
            self._cached = None
            cached = self._cached = self._take_in(prompts)
        _, cache, tokens = cached
        seconds = 0.0
        for number in range(warm_up + steps):
            began = time.perf_counter()
            output = self._model(tokens[:, None], past_key_values=cache, use_cache=True, logits_to_keep=1)
            tokens = output.logits[:, -1].argmax(dim=-1)
            tokens.tolist()  # as a server does, which must tell its clients
            seconds += (time.perf_counter() - began) * (number >= warm_up)
        cache.crop(-(warm_up + steps))
        return seconds

    def _take_in(self, prompts: torch.Tensor) -> tuple[torch.Tensor, Any, torch.Tensor]:
        """The prompts, their KV and the first token of each [requests]."""
        cache: Any = None
        output: Any = None
        for piece in torch.split(prompts.to(self._device), max(1, _PIECE_TOKENS // prompts.shape[0]), dim=1):
            output = self._model(piece, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
        return prompts, cache, output.logits[:, -1].argmax(dim=-1)

    @torch.inference_mode()
    def prefill(self, prompts: torch.Tensor) -> float:
        """Seconds from [requests, tokens] prompts to the first token of each."""
        self._cached = None
        began = time.perf_counter()
        self._model(prompts.to(self._device), use_cache=True, logits_to_keep=1).logits[:, -1].argmax(dim=-1).tolist()
        return time.perf_counter() - began

    def forget(self) -> None:
        """Frees the kept KV."""
        self._cached = None
