"""What is served is the least of what the peers can."""

from __future__ import annotations

import pytest

from gateway.errors import ModelNotFound
from gateway.flow.served_model import ServedNames, served_model
from triserve.v1 import common_pb2, compute_pb2, tokenizer_pb2


def replica(length: int, width: int) -> compute_pb2.GetComputeInfoResponse:
    return compute_pb2.GetComputeInfoResponse(
        fingerprint=common_pb2.Fingerprint(tokenizer_sha256="t", weights_revision="w"), max_model_len_tokens=length, logits_width=width
    )


def test_of_what_replicas_differ_in_the_least_is_served() -> None:
    tokenizer = tokenizer_pb2.GetTokenizerInfoResponse(fingerprint=common_pb2.Fingerprint(tokenizer_sha256="t"), eos_token_ids=[2, 500])
    model = served_model(tokenizer, [replica(100, 300), replica(50, 400)])
    assert (model.max_model_len_tokens, model.logits_width, model.weights_revision) == (50, 300, "w")
    assert model.eos_token_ids == (2,)


def test_an_unpublished_default_differs_from_zero() -> None:
    silent = served_model(tokenizer_pb2.GetTokenizerInfoResponse(), [replica(1, 1)])
    assert (silent.default_temperature, silent.default_top_k, silent.default_top_p) == (None, None, None)
    greedy = served_model(tokenizer_pb2.GetTokenizerInfoResponse(default_temperature=0, default_top_k=0, default_top_p=0), [replica(1, 1)])
    assert (greedy.default_temperature, greedy.default_top_k, greedy.default_top_p) == (0, 0, 0)


@pytest.mark.parametrize(
    ("policies", "by_priority"), [(["fcfs", "priority"], True), (["priority"], True), (["fcfs", "fair-tenants"], False), ([""], False)]
)
def test_priorities_count_where_one_replica_at_least_serves_by_them(policies: list[str], by_priority: bool) -> None:
    replicas = [compute_pb2.GetComputeInfoResponse(policy=policy) for policy in policies]
    assert served_model(tokenizer_pb2.GetTokenizerInfoResponse(), replicas).serves_by_priority is by_priority


def test_every_name_is_accepted_and_no_other() -> None:
    names = ServedNames(name="a", aliases=("b",))
    for name in ("a", "b", ""):
        names.require(name)
    with pytest.raises(ModelNotFound, match="'c'") as caught:
        names.require("c")
    assert caught.value.field == "model"
