"""`python -m compute_svc.parallel.processes.follower FD` computes as the first rank of its model says, at the other end of that socket."""

from __future__ import annotations

import logging
import socket
import sys

import numpy as np
import torch

from compute_svc.engine.child_process import end_with_parent
from compute_svc.engine.start.loading import Part, load_part
from compute_svc.engine.steps.decode_graphs import DecodeGraphs, decode_graphs
from compute_svc.models.weights import CheckpointError
from compute_svc.parallel.processes.batch_wire import decode_batch, decode_rows
from compute_svc.parallel.processes.channel import Channel, Kind, Message
from compute_svc.parallel.processes.start import Start, meeting_of
from compute_svc.settings import Settings
from triserve.rpc import garbage
from triserve.rpc.telemetry import configure_logging


def follow(channel: Channel) -> int:
    """Loads a part and computes with it until the other end is closed; returns the exit status."""
    message = channel.receive()
    if message is None:
        return 0
    start = Start.model_validate_json(message.content)
    settings = Settings.model_validate_json(start.settings)
    # What all ranks would say the first one says.
    configure_logging(f"compute rank {start.rank}", level=logging.ERROR, as_json=settings.log_format == "json")
    torch.set_num_threads(settings.threads_per_rank)
    meeting = meeting_of(settings, start.rank, start.place)
    has_joined = False

    def join() -> None:
        nonlocal has_joined
        channel.send(Kind.LOADED)
        has_joined = True
        meeting.join()

    try:
        part = load_part(settings, meeting.groups, join=join)
    except (CheckpointError, ValueError) as error:
        if has_joined:
            # Nobody reads; all look at how this process ends.
            raise
        channel.send(Kind.FAILED, str(error).encode())
        # Whoever reads it closes the stream; until then there is no other reason for this end.
        channel.receive()
        return 1
    garbage.settle()
    rank = _Follower(part, channel)
    while (message := channel.receive()) is not None:
        rank.do(message)
    meeting.leave()
    return 0


class _Follower:
    """Does what the first rank says.

    Args:
        part: What it computes with.
        channel: Where answers go.
    """

    def __init__(self, part: Part, channel: Channel) -> None:
        self._part = part
        self._channel = channel
        self._graphs: DecodeGraphs | None = None

    def do(self, message: Message) -> None:
        """One message."""
        model, kv, config = self._part
        kind, content = message
        if kind is Kind.FORWARD:
            model.forward(decode_batch(content), kv)
        elif kind is Kind.DECODE:
            assert self._graphs is not None, "graphs are recorded before they are run"
            self._graphs.run(decode_rows(content), None)
        elif kind is Kind.GRAPHS:
            make = decode_graphs(model, kv, config)
            assert make is not None, "ranks have devices of one kind"
            self._graphs = make(int.from_bytes(content, "little"))
        elif kind is Kind.COUNT:
            count = kv.count_finite(np.frombuffer(content, dtype=np.int64))
            self._channel.send(Kind.COUNTED, count.to_bytes(8, "little"))
        else:
            raise AssertionError(f"a rank is not asked for {kind.name}")


def main() -> None:
    """Computes until the other end is closed."""
    end_with_parent()
    configure_logging("compute rank")
    sys.exit(follow(Channel(socket.socket(fileno=int(sys.argv[1])))))


if __name__ == "__main__":
    main()
