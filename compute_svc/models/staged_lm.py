"""One stage of a model that a pipeline computes."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from compute_svc.kernels.linear import padded_count
from compute_svc.kv.page_store import KvPageStore
from compute_svc.layers.forward_batch import ForwardBatch, ForwardOutput, batch_on
from compute_svc.models.causal_lm import CausalLM, padded
from compute_svc.parallel.groups.stage_group import StageGroup
from compute_svc.parallel.parts.micro_batches import least_tokens, micro_batches


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class StagedLM(CausalLM):
    """Some layers of a model; all stages must be given the same batches, and the first one gets what they give together.

    A batch goes through the stages in parts, one behind the other, so that they compute at the same time. Then the last stage gives the first one the
    hidden states of the rows that are wanted. Every stage takes and gives in the order of the parts, and the last one gives back when it has taken
    all: nobody waits for a stage that waits for it, whether giving waits or not.

    Attributes:
        stages: The pipeline.
    """

    stages: StageGroup = field(kw_only=True)

    @torch.inference_mode()
    def forward_with_hidden(self, batch: ForwardBatch, kv: KvPageStore) -> ForwardOutput:
        """See `CausalLM`; on stages behind the first there are no rows. The batch's tensors are on the host."""
        stages, computed = self.stages, []
        for part in micro_batches(batch, stages.count, kv.page_size_tokens, least_tokens(self.device.type)):
            given = None if stages.is_first else self._take(part.num_tokens)
            hidden = self.compute(batch_on(part, self.device), kv, given)
            if stages.is_last:
                computed.append(hidden[: part.num_tokens])
            else:
                stages.give(hidden)
        num_logits, num_vectors = len(batch.logit_rows), 0 if batch.hidden_rows is None else len(batch.hidden_rows)
        if stages.is_last:
            wanted = batch.logit_rows if batch.hidden_rows is None else torch.cat((batch.logit_rows, batch.hidden_rows))
            stages.give(torch.cat(computed).index_select(0, padded(wanted.to(self.device), self.dtype)))
        stages.settle()
        if not stages.is_first:
            return ForwardOutput(torch.empty((0, self.config.vocab_size), device=self.device), None)
        rows = torch.arange(num_logits + num_vectors, device=self.device)
        return self.read(self._take(len(rows)), rows[:num_logits], rows[num_logits:] if batch.hidden_rows is not None else None)

    def takes_graphs(self, kv: KvPageStore) -> bool:
        """See `CausalLM`: no graph reaches over stages."""
        return False

    def _take(self, num_rows: int) -> torch.Tensor:
        return self.stages.take(padded_count(num_rows, self.dtype, self.device), self.hidden_size, self.dtype, self.device)
