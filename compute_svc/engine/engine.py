"""The engine: model, KV and scheduler in one synchronous object; knows no wire, no thread and no clock."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch

from compute_svc.drawing import RowStatus
from compute_svc.engine.admittance import require_known_ids
from compute_svc.engine.model import HiddenStatesModel, Model
from compute_svc.engine.prefix_report import PrefixReport, load_of, prefix_stats_of
from compute_svc.engine.steps.batch_builder import BatchBuilder
from compute_svc.engine.steps.decode_graphs import DecodeGraphs
from compute_svc.engine.steps.forward_pass import ForwardPass
from compute_svc.engine.steps.masks import Masks, banned_all
from compute_svc.engine.steps.prompt_reading import NOTHING, Readings, read_chunks
from compute_svc.engine.steps.run_ahead import RunAhead
from compute_svc.engine.steps.step_drawing import DrawConfig, DrawnRow, RowsWriter, StepDrawing, StepDraws
from compute_svc.kv.page_store import KvPageStore
from compute_svc.scheduler.base import Phase, Plan, PlanFailed, RequestState, SchedulerConfig
from compute_svc.scheduler.batch_slots import Rows as Slots
from compute_svc.scheduler.kv_memory import KvMemory
from compute_svc.scheduler.length_predictor import LengthPredictor
from compute_svc.scheduler.policies.policy import Policy
from compute_svc.scheduler.scheduler import Scheduler
from compute_svc.wire.request import HiddenStates, Request, Tokens
from compute_svc.wire.step_output import Hidden, Load, Pinned, PrefixStats, Released, Rows, Started, StepOutput
from triserve.rpc.errors import Internal, InvalidRequest, Overloaded, ServiceError

logger = logging.getLogger(__name__)


# A step that fails costs its own requests. Where none succeeds between so many failures it is not the requests: a device that is lost
# fails every step, and another process may get it back. Fewer would let a burst of prompts that are too large for the memory end an engine
# that is well; each failure more costs only the requests of a step that a lost device would have failed anyway.
MAX_FAILED_STEPS = 8


class StepsFail(Exception):
    """So many steps have failed in a row that the engine is taken to be broken; its cause is what the last one failed with."""


class Engine:
    """Computes requests step by step.

    Rows are drawn here and their requests run ahead, unless they are to be drawn elsewhere: then the row comes out and the request waits for
    `verdict`. A request ends here by a stop id or by max_tokens; whoever looks at the text may end it earlier with `release`.

    A step that raises anything, a want of memory too, fails the requests it was to compute, and what it wrote is never used. The others go
    on as if it had not been, unless `MAX_FAILED_STEPS` fail in a row, or pages are not where they belong after it.

    Args:
        model: The model.
        kv: Its keys and values; as many pages as the configuration says.
        config: Sizes.
        logits_width: Number of logits of a row.
        device: Where model and KV are.
        policy: The order of service; None = first come, first served.
        predictor: Of the lengths of answers; None = max_tokens is expected.
        make_memory: Makes the KV memory: how pages are reserved.
        drawing: How rows are drawn; None = all of them here.
        hidden_states: The model, where it gives hidden states; None = requests that want some are refused.
        dtype: What weights and activations are; None = as the KV.
        kernels: Which compute, where others round otherwise.
        make_graphs: Makes graphs of decode steps for so many pages of a request at most; None = every step is launched as it comes.
        batches_on: Where the model wants the tensors of its batches; None = where it is.
    """

    def __init__(
        self,
        model: Model,
        kv: KvPageStore,
        config: SchedulerConfig,
        *,
        logits_width: int,
        device: torch.device,
        policy: Policy | None = None,
        predictor: LengthPredictor | None = None,
        make_memory: Callable[[SchedulerConfig], KvMemory] = KvMemory,
        drawing: DrawConfig | None = None,
        hidden_states: HiddenStatesModel | None = None,
        dtype: torch.dtype | None = None,
        kernels: str = "",
        make_graphs: Callable[[int], DecodeGraphs] | None = None,
        batches_on: torch.device | None = None,
    ) -> None:
        self.config = config
        self.logits_width = logits_width
        self.hidden_size = 0 if hidden_states is None else hidden_states.hidden_size
        self._hidden_states = hidden_states
        self._kv = kv
        # Names: "float32" and "int8-g32".
        self.dtype = str(kv.format.dtype if dtype is None else dtype).removeprefix("torch.")
        self.kv_format = kv.format.name
        self.kv_bytes_per_page = kv.bytes_per_page
        self.kernels = kernels
        self._scheduler = Scheduler(config, policy, predictor, make_memory)
        memory, ahead, how = self._scheduler.memory, None, drawing or DrawConfig()
        if make_graphs is not None and not config.slides:
            graphs = make_graphs(memory.tables.entries.shape[1])
            ahead = RunAhead(graphs, memory, config.page_size_tokens, device, keeps_logits=how.audited_share > 0)
        self._pass = ForwardPass(model, kv, BatchBuilder(config, memory.slots, batches_on or device), hidden_states, ahead)
        self._drawing = StepDrawing(logits_width, device, how, None if ahead is None else ahead.draw_into)
        self._steps = 0
        self._failed_steps = 0
        self._prefill_tokens = 0
        self._decode_tokens = 0
        self._has_arrivals = False
        self._started: list[Started] = []
        self._released: list[Released] = []
        self._pinned: list[Pinned] = []
        self._hidden: list[Hidden] = []
        self._prefix_report = PrefixReport(self._scheduler.memory.tree)
        self._masks = Masks(logits_width)
        # Called between computing and drawing where a mask is missing: whoever has it tells it by `mask`.
        self.look_for_masks: Callable[[], None] = lambda: None

    @property
    def next_deadline(self) -> float | None:
        """When a step is due even if nothing arrives; None = never."""
        return self._scheduler.next_deadline

    @property
    def load(self) -> Load:
        """How full the engine is now."""
        return load_of(self._scheduler, steps=self._steps, prefill_tokens=self._prefill_tokens, decode_tokens=self._decode_tokens)

    @property
    def prefix_stats(self) -> PrefixStats:
        """What the prefix cache holds and has been good for."""
        return prefix_stats_of(self._scheduler.memory)

    def submit(self, request: Request) -> None:
        """Puts a request in the queue; a prefix to pin that is cached is pinned at once.

        Raises:
            InvalidRequest: It can never fit, is complete already, has no prompt or an id without a logit, pins a part of a page, or wants
                hidden states that there are not.
            Overloaded: The queue is full, or too much would be pinned.
        """
        require_known_ids(request, self.logits_width)
        request.sampling.check(self.logits_width)
        if request.hidden_states is not HiddenStates.NONE and self._hidden_states is None:
            raise InvalidRequest("hidden_states is set, and this model gives none", field="hidden_states")
        if request.pins and request.prompt.size % self.config.page_size_tokens:
            raise InvalidRequest(
                f"token_ids has {request.prompt.size} ids, what is pinned is whole pages of {self.config.page_size_tokens}",
                field="token_ids",
            )
        self._has_arrivals = True
        if request.pins and self._scheduler.memory.pin(request.tenant, request.prompt):
            self._pinned.append(Pinned(request.number, request.prompt.size, 0))
            return
        self._scheduler.submit(request).draw = self._drawing.open(request)

    def release(self, number: int) -> bool:
        """Ends a request wherever it is, cancelled or finished; its pages are free when this returns.

        Returns:
            Whether it was here.
        """
        return self._release(number, None)

    def unpin(self, tenant: str, tokens: Tokens) -> bool:
        """Lets a pinned prefix go; returns whether it was pinned."""
        return self._scheduler.memory.unpin(tenant, tokens)

    def watch(self, wanted: bool) -> None:
        """From now on outputs tell how the prefix cache changes, the next one what it holds; or they do so no longer."""
        self._prefix_report.watch(wanted)

    def verdict(self, number: int, position: int, tokens: Sequence[int]) -> None:
        """Takes tokens drawn elsewhere, for a row that was given out; a request that has left is ignored.

        Effects: a verdict the engine did not ask for, or a token without a logit, fails the request.
        """
        state = self._scheduler.find(number)
        if state is None:
            return
        is_asked_for = state.awaiting and position == state.position and len(tokens) == 1
        if not is_asked_for or not all(0 <= token < self.logits_width for token in tokens):
            self.reject(number, Internal("the sampler's verdict does not fit the request"))
            return
        state.awaiting = False
        self._accept(state, tokens)

    def mask(self, number: int, position: int, allowed: bytes, forced: Sequence[int] = ()) -> None:
        """Takes what can be drawn next of a request that has a grammar; one that has left is ignored. A step may be under way.

        Effects: a mask that is none, or of another place, fails the request before the next step.
        """
        state = self._scheduler.find(number)
        if state is not None:
            self._masks.take(state, position, allowed, forced)

    def draw_kept(self) -> StepOutput | None:
        """Draws rows that have waited for their masks, in time for the next step; None if there is none."""
        for state in self._masks.unfit():
            self.reject(state.request.number, Internal("the sampler's mask does not fit the request"))
        states = [state for state in self._masks.told() if self._scheduler.find(state.request.number) is state]
        if not states:
            return None
        writer, rows = RowsWriter(), self._drawing.draw_kept(states)
        for state, row in zip(states, rows, strict=True):
            state.awaiting = False
            self._give_row(state, row, writer)
        return self._output(writer.rows())

    def reject(self, number: int, error: ServiceError) -> None:
        """Ends a request with an error; one that has left is ignored."""
        self._release(number, error)

    def pause(self, numbers: Sequence[int], *, paused: bool) -> None:
        """Keeps admitted requests out of the next steps, or lets them in again; they keep their KV. Others are ignored."""
        for number in numbers:
            state = self._scheduler.find(number)
            if state is not None and state.admitted_at is not None:
                state.paused = paused

    def step(self, now: float) -> StepOutput | None:
        """Computes one step.

        Args:
            now: Seconds on the caller's clock.

        Returns:
            What has happened since the last output; None if nothing has.
        """
        return self.run(self.plan(now))

    def plan(self, now: float) -> Plan:
        """The first half of a step: admits, preempts and ends what is over. `run` must follow.

        Raises:
            StepsFail: Too many steps have failed.
            AssertionError: A step has failed, and not everything is where it belongs.
        """
        failed = None
        try:
            plan = self._scheduler.step(now)
        except PlanFailed as error:
            logger.exception("a step failed")
            failed, plan = error, Plan(failures=error.failures)
        for failure in plan.failures:
            self._drawing.close(failure.state)
            self._released.append(Released(failure.state.request.number, failure.state.preemptions, failure.error))
        if failed is not None:
            # Nobody knows for whom it failed; who waits is as it was.
            self._fail_step(self._scheduler.running, failed)
        return plan

    def run(self, plan: Plan) -> StepOutput | None:
        """The second half of a step: computes the plan and draws what can be drawn here.

        Raises:
            StepsFail: Too many steps have failed.
            AssertionError: A step has failed, and not everything is where it belongs.
        """
        rows = None
        if not plan.is_empty:
            told = [(items, len(items)) for items in (self._started, self._released, self._pinned, self._hidden)]
            try:
                rows = self._compute(plan)
            except Exception as error:
                logger.exception("a step failed")
                for items, count in told:
                    del items[count:]
                self._fail_step([*plan.decodes, *(chunk.state for chunk in plan.prefills)], error)
            else:
                self._failed_steps = 0
                self._steps += 1
                self._prefill_tokens += sum(chunk.length for chunk in plan.prefills)
        elif not (self._has_arrivals or plan.admitted or self._released or self._prefix_report.is_due):
            return None
        self._has_arrivals = False
        return self._output(rows)

    def _output(self, rows: Rows | None) -> StepOutput:
        self._decode_tokens += max(len(rows.numbers), len(rows.tokens)) if rows is not None else 0
        changes = self._prefix_report.take()
        output = StepOutput(rows, self._started, self._released, self.load, self._pinned, changes, self._hidden)
        self._started, self._released, self._pinned, self._hidden = [], [], [], []
        return output

    def assert_consistent(self) -> None:
        """Checks that every page has one owner and every request one place."""
        self._scheduler.assert_consistent()

    def _compute(self, plan: Plan) -> Rows | None:
        states, rows = plan.wanted, plan.wanted_rows
        # All that is likely to fail comes before anything counts as computed.
        with torch.inference_mode():
            (logits, hidden), found = self._pass.run(plan, len(states))
            num_tokens = self._scheduler.memory.slots.num_tokens[rows]
            if states and self._drawing.untold(states, num_tokens):
                self.look_for_masks()
            draws = None
            if states:
                draws = self._drawing.draw(states, num_tokens, logits[: len(states)], self._pass.begin_next(plan), found)
                self._pass.know(draws.likely)
            readings = read_chunks(plan.prefills, logits[len(states) :], hidden) if plan.reads else NOTHING
        self._scheduler.complete(plan)
        writer = self._tell(plan, readings)
        if draws is not None:
            self._give_out(states, rows, len(plan.decodes), draws, writer)
        return writer.rows()

    def _tell(self, plan: Plan, readings: Readings) -> RowsWriter:
        """Tells what a step read of its prompts; returns what is to tell what it drew."""
        for chunk in plan.prefills:
            chunk.state.mark_read(chunk.start + chunk.length)
        self._hidden += readings.hidden
        for state in readings.broken:
            self._fail_broken(state)
        return RowsWriter(readings.prompt_logprobs)

    def _fail_step(self, states: Sequence[RequestState], error: Exception) -> None:
        self._failed_steps += 1
        self._pass.drop()
        logger.error("%d requests fail with their step, failure %d of %d in a row", len(states), self._failed_steps, MAX_FAILED_STEPS)
        for state in states:
            self._scheduler.fail(state.request.number)
            self._drawing.close(state)
            self._released.append(Released(state.request.number, state.preemptions, Internal("the step that computed the request failed")))
        # So that a caller who waits for something to happen asks for another step.
        self._has_arrivals = True
        self.assert_consistent()
        if self._failed_steps >= MAX_FAILED_STEPS:
            reason = error.__cause__ or error
            raise StepsFail(
                f"{self._failed_steps} steps have failed in a row, the last one with {type(reason).__name__}: {reason}"
            ) from error

    def _give_out(self, states: list[RequestState], slots: Slots, num_decodes: int, draws: StepDraws, writer: RowsWriter) -> None:
        """Tells what a step drew and goes on with its requests.

        Args:
            states: Requests with a row; those that decoded come first.
            slots: [rows] of the batch.
            num_decodes: How many decoded.
            draws: What the rows drew.
            writer: Is told.
        """
        # One by one go those that have just computed their prompt, and all where a row is more than its token.
        many = num_decodes if not draws.others or min(draws.others) >= num_decodes else 0
        if many:
            decoded, tokens, batch = slots[:many], draws.tokens[:many], self._scheduler.memory.slots
            writer.add_many(batch.number[decoded], batch.num_tokens[decoded] - batch.prompt_tokens[decoded], tokens)
            for index in self._scheduler.accept(decoded, tokens).tolist():
                self._release(states[index].request.number, None)
        for index in range(many, len(states)):
            row = draws.others.get(index)
            # One that was broken elsewhere has left.
            if states[index].phase is Phase.RUNNING:
                self._give_row(states[index], row or DrawnRow(RowStatus.DRAWN, int(draws.tokens[index]), None, None), writer)

    def _give_row(self, state: RequestState, row: DrawnRow, writer: RowsWriter) -> None:
        request = state.request
        if row.waits:
            state.awaiting = True
            return
        if state.num_tokens == state.num_given and not request.pins:
            assert state.admitted_at is not None, "a running request was admitted"
            self._started.append(Started(request.number, state.cached_tokens, request.submitted_at, state.admitted_at))
        if row.status is RowStatus.BROKEN:
            self._fail_broken(state)
        elif request.pins:
            self._keep(state)
        elif request.draws_nothing:
            writer.add_computed(request.number)
            self._release(request.number, None)
        elif row.status is RowStatus.IMPOSSIBLE:
            self._release(request.number, banned_all(request, state.position))
        else:
            tokens = self._scheduler.make_room(state, [row.token, *row.forced])
            writer.add(request.number, state.position, row, tokens)
            if row.status is None:
                state.awaiting = True
            else:
                self._accept(state, tokens)

    def _keep(self, state: RequestState) -> None:
        """Pins a prefix that is computed now; of its last token nothing is wanted."""
        request = state.request
        try:
            is_cached = self._scheduler.memory.pin(request.tenant, request.prompt)
        except Overloaded as error:
            self._release(request.number, error)
            return
        assert is_cached, "what was computed in whole pages is in the cache"
        self._pinned.append(Pinned(request.number, request.prompt.size, request.prompt.size - state.cached_tokens))
        self._scheduler.release(request.number)

    def _accept(self, state: RequestState, tokens: Sequence[int]) -> None:
        """Adds tokens to a request and ends the request if one of them is its last; what follows that is dropped."""
        request = state.request
        for token in tokens:
            state.append(token)
            count = state.position
            if count >= request.max_tokens or (token in request.stop_token_ids and count > request.min_tokens):
                self._release(request.number, None)
                return

    def _fail_broken(self, state: RequestState) -> None:
        """Fails a request whose row has no finite logits. Of its KV only what it found in the prefix cache stays there, if it is finite."""
        memory = self._scheduler.memory
        found = memory.shared_pages(state)[: state.num_found_pages]
        self._scheduler.fail(state.request.number, num_trusted=self._kv.count_finite(found))
        self._drawing.close(state)
        self._released.append(Released(state.request.number, state.preemptions, Internal("the model gave no finite logits")))

    def _release(self, number: int, error: ServiceError | None) -> bool:
        state = self._scheduler.release(number)
        if state is None:
            return False
        self._drawing.close(state)
        self._released.append(Released(number, state.preemptions, error))
        return True
