"""The device that tests pretend is as strict as one that is there."""

from __future__ import annotations

import pytest
import torch

from tests.triton_device import DEVICE

import triton  # isort: skip  - the interpreter is chosen before
import triton.language as tl  # isort: skip
from compute_svc.engine.steps import decode_graphs  # isort: skip
from tests.pretend_cuda import pretend_cuda  # isort: skip

pytestmark = pytest.mark.skipif(DEVICE.type != "cpu", reason="there is a real device")


@triton.jit
def fill_kernel(out, number):
    tl.store(out, number)


def test_what_is_made_there_says_so_and_so_does_what_comes_of_it() -> None:
    with pretend_cuda():
        made = torch.zeros(3, 4, device="cuda")
        for one in (made, made[1:], made.t().contiguous(), made.sum(), torch.zeros_like(made), made.new_empty(2), made.to(torch.bfloat16)):
            assert one.device == torch.device("cuda:0")
        assert made.add_(1) is made and made.tolist() == [[1.0] * 4] * 3
        assert made.cpu().device.type == "cpu" and torch.ones(2).device.type == "cpu"


def test_copies_share_nothing_with_what_they_are_of() -> None:
    with pretend_cuda():
        on_host = torch.zeros(3)
        there = on_host.to("cuda")
        back = there.cpu()
        there.fill_(5)
        assert on_host.tolist() == back.tolist() == [0, 0, 0]
        assert back.copy_(there).tolist() == [5, 5, 5] and back.device.type == "cpu"


def test_tensors_of_host_and_device_are_not_mixed() -> None:
    with pretend_cuda():
        there = torch.ones(3, device="cuda")
        assert (there * torch.tensor(2.0)).tolist() == [2, 2, 2], "numbers may be of the host"
        with pytest.raises(RuntimeError, match="mixes tensors of host and device"):
            there + torch.ones(3)
        with pytest.raises(TypeError, match="has no array"):
            there.numpy()


def test_waits_for_the_device_are_told() -> None:
    with pretend_cuda() as pretended:
        there = torch.ones(3, device="cuda")
        assert not pretended.waits
        there.sum().item()
        if there.max() > 0:
            there.cpu()
        assert pretended.waits == ["item", "__bool__", "cpu"]


def test_a_graph_must_launch_what_it_has_recorded() -> None:
    with pretend_cuda():
        out, numbers = torch.zeros(1, device="cuda"), [1, 1, 2]

        def compute() -> torch.Tensor:
            fill_kernel[(1,)](out, numbers.pop(0))
            return out.clone()

        recorded = decode_graphs.CudaRecorder().record(compute)
        assert recorded.output.tolist() == [1]
        recorded.replay()
        assert recorded.output.tolist() == [1]
        with pytest.raises(AssertionError, match="replayed"):
            recorded.replay()
