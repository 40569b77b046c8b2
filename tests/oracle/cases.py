"""What is compared: one small checkpoint for each thing a family can do, and who knows its right logits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import transformers
from packaging.version import Version
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from compute_svc.models.config import StreamingWindow
from compute_svc.models.example import Fields
from tests.fakes.checkpoints import EXAMPLES, edit_config, save_checkpoint
from tests.oracle import references
from tests.oracle.references import ReferenceCase, WrittenModel


class Oracle(Protocol):
    """Somebody else's implementation of a family, with the weights of one checkpoint."""

    def logits(self, token_ids: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Logits of one sequence, computed whole.

        Args:
            token_ids: At least one.
            dtype: Of weights and activations; one of the case's.

        Returns:
            [tokens, vocab] float32.
        """
        ...


@dataclass(frozen=True, slots=True)
class Case:
    """One checkpoint to compare.

    Attributes:
        family: Whose.
        variant: What is special about it.
        architecture: The name its config.json gives.
        write: Writes it into a folder that exists; returns who knows its logits.
        dtypes: What its oracle can compute in.
        streaming: The window under which it is served; None = none.
    """

    family: str
    variant: str
    architecture: str
    write: Callable[[Path], Oracle]
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)
    streaming: StreamingWindow | None = None

    @property
    def name(self) -> str:
        """family/variant."""
        return f"{self.family}/{self.variant}"


class TransformersOracle:
    """The model that transformers made and saved."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._models = {torch.float32: model}

    @torch.inference_mode()
    def logits(self, token_ids: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """See `Oracle`."""
        if dtype not in self._models:
            model = copy.deepcopy(self._models[torch.float32])
            # Parameters alone, as when a checkpoint is loaded: rotary frequencies stay what they are.
            for parameter in model.parameters():
                parameter.data = parameter.data.to(dtype)
            self._models[dtype] = model
        logits: torch.Tensor = self._models[dtype](torch.tensor([list(token_ids)]), use_cache=False).logits[0].float()
        return logits


class WrittenOracle:
    """A reference written for a family that transformers does not ship."""

    def __init__(self, model: WrittenModel) -> None:
        self._model = model

    def logits(self, token_ids: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """See `Oracle`."""
        assert dtype == torch.float32, "written references compute in float32"
        return self._model.logits(token_ids)


def transformers_cases() -> list[Case]:
    """Those of families that transformers ships, and this version of it computes right."""
    cases = []
    for family, example in EXAMPLES.items():
        if family in families_left_out():
            continue
        for variant, overrides in example.variants.items():
            published = example.published.get(variant, {})
            architecture = published.get("architectures", [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family]])[0]
            cases.append(Case(family, variant, architecture, _writer(family, overrides, published)))
    return cases


def families_left_out() -> list[str]:
    """Those that the installed transformers is too old for."""
    return [family for family, example in EXAMPLES.items() if Version(transformers.__version__) < Version(example.right_since)]


def _writer(family: str, overrides: Fields, published: Fields) -> Callable[[Path], Oracle]:
    def write(folder: Path) -> Oracle:
        model = save_checkpoint(folder, family, **overrides)
        if published:
            edit_config(folder, **published)
        return TransformersOracle(model)

    return write


def written_cases() -> list[Case]:
    """Those of families that transformers does not ship."""
    return [_written_case(reference) for reference in references.CASES]


def _written_case(reference: ReferenceCase) -> Case:
    def write(folder: Path) -> Oracle:
        model = reference.build()
        model.save(folder)
        return WrittenOracle(model)

    family, _, variant = reference.name.partition("-")
    served = reference.streaming
    streaming = None if served is None else StreamingWindow(tokens=served.window, sinks=served.sinks)
    return Case(family, variant or "plain", reference.architecture, write, dtypes=(torch.float32,), streaming=streaming)


def all_cases() -> list[Case]:
    """Every case there is."""
    return [*transformers_cases(), *written_cases()]
