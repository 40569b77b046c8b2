"""Written references: families that transformers does not ship, computed plainly from what was published of them; knows nothing of this engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.oracle.references.baichuan import Baichuan
from tests.oracle.references.chatglm import ChatGlm
from tests.oracle.references.internlm import InternLm
from tests.oracle.references.internlm2 import InternLm2
from tests.oracle.references.qwen import Qwen
from tests.oracle.references.written_model import Streaming, WrittenModel

__all__ = ["CASES", "ReferenceCase", "Streaming", "WrittenModel"]


@dataclass(frozen=True)
class ReferenceCase:
    """One small model that a loader is held against.

    Attributes:
        name: Of the case, its family first.
        architecture: As config.json names it.
        family: Its reference.
        options: What differs from the reference's defaults.
        streaming: How it is served; None = as published.
    """

    name: str
    architecture: str
    family: type[WrittenModel]
    options: dict[str, Any] = field(default_factory=dict)
    streaming: Streaming | None = None

    def build(self, seed: int = 0) -> WrittenModel:
        """The model, with random parameters of that seed."""
        # A reference's own constructor takes the architecture first; the base class's, which it calls, does not.
        family: Any = self.family
        options = self.options if self.streaming is None else {**self.options, "streaming": self.streaming}
        model: WrittenModel = family(self.architecture, seed=seed, **options)
        return model


_ROTARY = {"base": 500, "type": "dynamic"}
_DYNAMIC, _LINEAR = {"type": "dynamic", "factor": 2.0}, {"type": "linear", "factor": 4.0}

CASES = (
    ReferenceCase("chatglm-two-groups", "ChatGLMModel", ChatGlm),
    ReferenceCase("chatglm-one-group-wide-heads", "ChatGLMForConditionalGeneration", ChatGlm, {"groups": 1, "head_dim": 20}),
    ReferenceCase("chatglm-group-per-head-rope-ratio", "ChatGLMModel", ChatGlm, {"groups": 6, "head_dim": 8, "rope_ratio": 50}),
    ReferenceCase("chatglm-head-by-head", "ChatGLMModel", ChatGlm, {"groups": 0}),
    ReferenceCase("chatglm-no-biases", "ChatGLMModel", ChatGlm, {"qkv_bias": False}),
    ReferenceCase("chatglm-all-biases", "ChatGLMModel", ChatGlm, {"linear_bias": True}),
    ReferenceCase("baichuan-7b", "BaiChuanForCausalLM", Baichuan, {"generation": 1, "size": "7B"}),
    ReferenceCase("baichuan-7b-longer-vocabulary", "BaiChuanForCausalLM", Baichuan, {"generation": 1, "size": "7B", "vocabulary": 64003}),
    ReferenceCase("baichuan-13b-odd-heads", "BaichuanForCausalLM", Baichuan, {"generation": 1, "size": "13B"}),
    ReferenceCase("baichuan-13b-power-of-two-heads", "BaichuanForCausalLM", Baichuan, {"generation": 1, "size": "13B", "heads": 8}),
    ReferenceCase("baichuan2-7b", "BaichuanForCausalLM", Baichuan, {"generation": 2, "size": "7B", "heads": 4}),
    ReferenceCase("baichuan2-13b-odd-heads", "BaichuanForCausalLM", Baichuan, {"generation": 2, "size": "13B", "heads": 3}),
    ReferenceCase("internlm-biases", "InternLMForCausalLM", InternLm),
    ReferenceCase("internlm-no-biases", "InternLMForCausalLM", InternLm, {"bias": False, "heads": 4}),
    ReferenceCase("internlm-rotary-field", "InternLMForCausalLM", InternLm, {"rotary": _ROTARY}),
    ReferenceCase("internlm2-two-groups", "InternLM2ForCausalLM", InternLm2),
    ReferenceCase("internlm2-one-group-dynamic", "InternLM2ForCausalLM", InternLm2, {"groups": 1, "rope_scaling": _DYNAMIC}),
    ReferenceCase("internlm2-group-per-head-linear", "InternLM2ForCausalLM", InternLm2, {"groups": 6, "rope_scaling": _LINEAR}),
    ReferenceCase("internlm2-biases", "InternLM2ForCausalLM", InternLm2, {"groups": 3, "bias": True}),
    ReferenceCase("internlm2-streaming", "InternLM2ForCausalLM", InternLm2, streaming=Streaming(window=23, sinks=4)),
    ReferenceCase("qwen", "QWenLMHeadModel", Qwen),
    ReferenceCase("qwen-other-base-unstretched", "QWenLMHeadModel", Qwen, {"heads": 4, "rotary_emb_base": 1000000, "stretched": False}),
    ReferenceCase("qwen-all-biases", "QWenLMHeadModel", Qwen, {"no_bias": False}),
    ReferenceCase("qwen-partial-rotary", "QWenLMHeadModel", Qwen, {"heads": 3, "rotary_pct": 0.5}),
    ReferenceCase(
        "qwen-partial-rotary-streaming", "QWenLMHeadModel", Qwen, {"heads": 3, "rotary_pct": 0.5}, Streaming(window=140, sinks=9)
    ),
)
"""Every case there is."""
