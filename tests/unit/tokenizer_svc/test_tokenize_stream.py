"""The stream: answers in any order, errors that end one request alone, cancellation, bounds, leaving."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from concurrent.futures import Future

import pytest

from tokenizer_svc.tokenize_stream import Answer, TokenizeStream
from triserve.rpc.errors import InvalidRequest, Unavailable
from triserve.v1 import tokenizer_pb2 as pb

PATIENCE_S = 30


class Desk:
    """Takes requests and answers them when the test says so; a text "now" at once, "no" not at all, "bug" by failing."""

    def __init__(self) -> None:
        self.futures: list[Future[Answer]] = []

    def begin(self, request: pb.TokenizeRequest) -> Future[Answer]:
        text = request.encode.text.text
        if text == "no":
            raise InvalidRequest("no", field="prompt")
        if text == "bug":
            raise ZeroDivisionError("secret")
        future: Future[Answer] = Future()
        if text == "now":
            future.set_result(pb.EncodeResponse(token_ids=[1]))
        self.futures.append(future)
        return future


class Gateway:
    """One end of a stream: sends requests, takes answers."""

    def __init__(self, desk: Desk, *, max_under_way: int = 8) -> None:
        self.stream = TokenizeStream(desk.begin, max_under_way=max_under_way)
        self.sent: asyncio.Queue[pb.TokenizeRequest | None] = asyncio.Queue()
        self.answers = self.stream.serve(self._requests())

    async def _requests(self) -> AsyncIterator[pb.TokenizeRequest]:
        while (request := await self.sent.get()) is not None:
            self.sent.task_done()
            yield request

    def send(self, number: int, text: str = "later") -> None:
        self.sent.put_nowait(pb.TokenizeRequest(request=number, encode=pb.EncodeRequest(text=pb.TextInput(text=text))))

    def cancel(self, number: int, value: bool = True) -> None:
        self.sent.put_nowait(pb.TokenizeRequest(request=number, cancel=value))

    def end(self) -> None:
        self.sent.put_nowait(None)

    async def answer(self) -> pb.TokenizeResponse:
        return await asyncio.wait_for(anext(self.answers), PATIENCE_S)

    async def settle(self) -> None:
        """Waits until everything sent has been read."""
        await self.sent.join()
        for _ in range(5):
            await asyncio.sleep(0)

    async def is_over(self) -> bool:
        with pytest.raises(StopAsyncIteration):
            await self.answer()
        return True


async def begun(gateway: Gateway) -> asyncio.Task[pb.TokenizeResponse]:
    """The first answer, awaited in the background, so that the stream runs."""
    task = asyncio.ensure_future(gateway.answer())
    await gateway.settle()
    return task


async def test_answers_come_in_the_order_they_are_ready() -> None:
    desk = Desk()
    gateway = Gateway(desk)
    for number in (1, 2, 3):
        gateway.send(number)
    first = await begun(gateway)
    desk.futures[2].set_result(pb.EncodeResponse(token_ids=[30]))
    assert (await first).request == 3
    desk.futures[0].set_result(pb.DecodeResponse(text="one"))
    answer = await gateway.answer()
    assert (answer.request, answer.WhichOneof("result"), answer.decoded.text) == (1, "decoded", "one")
    gateway.end()
    desk.futures[1].set_result(pb.EncodeResponse())
    assert (await gateway.answer()).request == 2
    assert await gateway.is_over()


async def test_a_bad_request_gets_an_error_and_the_stream_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    gateway = Gateway(Desk())
    gateway.send(1, "no")
    gateway.send(2, "bug")
    gateway.send(3, "now")
    with caplog.at_level(logging.ERROR):
        refused, failed, fine = [await gateway.answer() for _ in range(3)]
    assert (refused.request, refused.error.reason, refused.error.field) == (1, "INVALID_REQUEST", "prompt")
    assert (failed.request, failed.error.reason, failed.error.message) == (2, "INTERNAL", "internal error")
    assert "ZeroDivisionError" in caplog.text
    assert (fine.request, list(fine.encoded.token_ids)) == (3, [1])


async def test_work_that_fails_later_gets_an_error_too() -> None:
    desk = Desk()
    gateway = Gateway(desk)
    gateway.send(1)
    first = await begun(gateway)
    desk.futures[0].set_exception(InvalidRequest("late", field="messages"))
    assert (await first).error.field == "messages"


async def test_a_number_under_way_cannot_be_used_again_until_it_is_answered() -> None:
    desk = Desk()
    gateway = Gateway(desk)
    gateway.send(7)
    gateway.send(7)
    duplicate = await gateway.answer()
    assert (duplicate.request, duplicate.error.field) == (7, "request")
    desk.futures[0].set_result(pb.EncodeResponse(token_ids=[5]))
    assert list((await gateway.answer()).encoded.token_ids) == [5]
    gateway.send(7, "now")
    assert (await gateway.answer()).request == 7


async def test_a_cancelled_request_is_never_answered_and_its_number_is_free() -> None:
    desk = Desk()
    gateway = Gateway(desk)
    gateway.send(1)
    gateway.cancel(1)
    gateway.send(1, "now")
    assert list((await gateway.answer()).encoded.token_ids) == [1]
    assert desk.futures[0].cancelled()
    gateway.end()
    assert await gateway.is_over()


async def test_cancelling_what_has_begun_leaves_it_to_be_answered() -> None:
    desk = Desk()
    gateway = Gateway(desk)
    gateway.send(1)
    first = await begun(gateway)
    assert desk.futures[0].set_running_or_notify_cancel()
    gateway.cancel(1)
    gateway.cancel(99)
    await gateway.settle()
    desk.futures[0].set_result(pb.EncodeResponse(token_ids=[4]))
    assert list((await first).encoded.token_ids) == [4]


async def test_a_cancel_that_is_false_is_refused() -> None:
    gateway = Gateway(Desk())
    gateway.cancel(3, value=False)
    answer = await gateway.answer()
    assert (answer.request, answer.error.field) == (3, "cancel")


async def test_requests_under_way_are_bounded_with_the_limit_named() -> None:
    desk = Desk()
    gateway = Gateway(desk, max_under_way=2)
    for number in (1, 2, 3):
        gateway.send(number)
    answer = await gateway.answer()
    assert (answer.request, answer.error.reason) == (3, "OVERLOADED")
    assert "the limit is 2" in answer.error.message
    gateway.cancel(1)
    gateway.send(4, "now")
    assert (await gateway.answer()).request == 4


async def test_a_gateway_that_reads_no_answers_is_not_read_either() -> None:
    gateway = Gateway(Desk(), max_under_way=3)
    for number in range(50):
        gateway.send(number, "now")
    assert (await gateway.answer()).request == 0
    for _ in range(200):
        await asyncio.sleep(0)
    assert gateway.sent.qsize() >= 40
    assert [(await gateway.answer()).request for _ in range(49)] == list(range(1, 50))


async def test_a_stream_that_ends_early_drops_what_is_queued() -> None:
    desk = Desk()
    gateway = Gateway(desk)
    gateway.send(1)
    gateway.send(2)
    first = await begun(gateway)
    assert desk.futures[1].set_running_or_notify_cancel()
    first.cancel()
    await asyncio.wait([first])
    assert desk.futures[0].cancelled()
    desk.futures[1].set_result(pb.EncodeResponse())
    await asyncio.sleep(0)


async def test_leaving_ends_an_idle_stream_at_once() -> None:
    gateway = Gateway(Desk())
    waiting = await begun(gateway)
    gateway.stream.leave()
    with pytest.raises(Unavailable):
        await waiting


async def test_leaving_answers_what_is_under_way_and_refuses_the_rest() -> None:
    desk = Desk()
    gateway = Gateway(desk)
    gateway.send(1)
    first = await begun(gateway)
    gateway.stream.leave()
    gateway.send(2)
    assert ((await first).request, first.result().error.reason) == (2, "UNAVAILABLE")
    desk.futures[0].set_result(pb.EncodeResponse(token_ids=[8]))
    assert list((await gateway.answer()).encoded.token_ids) == [8]
    with pytest.raises(Unavailable):
        await gateway.answer()


async def test_no_task_is_left_behind() -> None:
    before = asyncio.all_tasks()
    gateway = Gateway(Desk())
    gateway.send(1, "now")
    gateway.end()
    assert (await gateway.answer()).request == 1
    assert await gateway.is_over()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


def many(*numbers: int, text: str = "now", takes_more: bool = True) -> pb.TokenizeRequest:
    encode = pb.EncodeRequest(text=pb.TextInput(text=text))
    first, *others = [pb.TokenizeRequest(request=number, encode=encode) for number in numbers]
    first.more.extend(others)
    first.takes_more = takes_more
    return first


async def test_requests_that_come_in_one_message_are_each_answered_and_in_one_message_where_the_gateway_takes_that() -> None:
    gateway = Gateway(Desk())
    gateway.sent.put_nowait(many(1, 2, 3))
    answer = await gateway.answer()
    assert [one.request for one in (answer, *answer.more)] == [1, 2, 3]
    assert all(list(one.encoded.token_ids) == [1] for one in (answer, *answer.more))


async def test_a_gateway_that_does_not_say_so_gets_one_answer_in_each_message() -> None:
    gateway = Gateway(Desk())
    gateway.sent.put_nowait(many(1, 2, 3, takes_more=False))
    answers = [await gateway.answer() for _ in range(3)]
    assert [one.request for one in answers] == [1, 2, 3]
    assert not any(one.more for one in answers)


async def test_one_of_several_that_is_wrong_harms_none_of_the_others() -> None:
    gateway = Gateway(Desk())
    message = many(1, 2, 3)
    message.more[0].encode.text.text = "no"
    message.more[1].more.add(request=4)
    gateway.sent.put_nowait(message)
    answer = await gateway.answer()
    assert [(one.request, one.error.field) for one in (answer, *answer.more)] == [(1, ""), (2, "prompt"), (3, "more")]


async def test_a_request_is_cancelled_by_one_of_several() -> None:
    desk = Desk()
    gateway = Gateway(desk)
    gateway.send(1)
    gateway.send(2)
    first = await begun(gateway)
    message = many(9)
    message.more.add(request=1, cancel=True)
    gateway.sent.put_nowait(message)
    assert (await first).request == 9
    assert desk.futures[0].cancelled() and not desk.futures[1].cancelled()


async def test_answers_of_many_ids_go_in_messages_of_their_own() -> None:
    desk = Desk()
    gateway = Gateway(desk)
    gateway.sent.put_nowait(many(1, 2, 3, text="later"))
    first = await begun(gateway)
    for future in desk.futures:
        future.set_result(pb.EncodeResponse(token_ids=range(60_000)))
    answers = [await first, await gateway.answer(), await gateway.answer()]
    assert [(one.request, len(one.more)) for one in answers] == [(1, 0), (2, 0), (3, 0)]
