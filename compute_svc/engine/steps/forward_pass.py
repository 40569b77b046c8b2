"""What computes a plan: the model as it comes, or with decode steps as graphs and one step ahead."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from compute_svc.drawing import OnTokens
from compute_svc.engine.model import HiddenStatesModel, Model
from compute_svc.engine.steps.batch_builder import BatchBuilder
from compute_svc.engine.steps.run_ahead import Computed, RunAhead
from compute_svc.kv.page_store import KvPageStore
from compute_svc.layers.forward_batch import ForwardOutput
from compute_svc.scheduler.base import Plan


class ForwardPass:
    """Computes plans.

    Args:
        model: The model.
        kv: Its keys and values.
        builder: Makes batches of plans.
        hidden_states: The model, where it gives hidden states.
        ahead: Computes decode rows in advance; None = every plan is computed when it is there.
    """

    def __init__(
        self, model: Model, kv: KvPageStore, builder: BatchBuilder, hidden_states: HiddenStatesModel | None, ahead: RunAhead | None
    ) -> None:
        self._model = model
        self._kv = kv
        self._builder = builder
        self._hidden_states = hidden_states
        self.ahead = ahead

    def run(self, plan: Plan, num_drawn: int) -> Computed:
        """Logits, and hidden states where a plan wants them.

        Args:
            plan: Not empty.
            num_drawn: How many of its rows are drawn; those that a prompt is told of come behind them.

        Raises:
            RuntimeError: The model gave another number of rows.
        """
        computed = Computed(self._compute(plan)) if self.ahead is None else self.ahead.forward(plan, self._compute)
        num_rows = num_drawn + sum(len(chunk.logprob_tokens) for chunk in plan.prefills)
        if len(computed.output.logits) != num_rows:
            # Rows are told apart by their place alone: one that is missing would hand its neighbours' tokens around.
            raise RuntimeError(f"the model gave {len(computed.output.logits)} rows of logits for {num_rows}")
        return computed

    def begin_next(self, plan: Plan) -> OnTokens | None:
        """Begins the step behind a plan, once its tokens are drawn on the device; None = nothing is to be begun."""
        ahead = self.ahead
        if ahead is None or not all(chunk.completes for chunk in plan.prefills):
            # What is left of a prompt shares its step with those that decode.
            return None
        return lambda tokens, direct: ahead.begin(plan.wanted_rows, tokens, direct)

    def know(self, tokens: npt.NDArray[np.int64]) -> None:
        """The tokens that the next step was begun with, [rows], now that the host has them."""
        if self.ahead is not None:
            self.ahead.know(tokens)

    def drop(self) -> None:
        """A step has failed: what was computed in advance is not wanted."""
        if self.ahead is not None:
            self.ahead.drop()

    def _compute(self, plan: Plan) -> ForwardOutput:
        batch = self._builder.build(plan)
        if batch.hidden_rows is None:
            return ForwardOutput(self._model.forward(batch, self._kv), None)
        assert self._hidden_states is not None, "who wants hidden states is refused where there are none"
        return self._hidden_states.forward_with_hidden(batch, self._kv)
