"""Observations and vectors survive packing, and nothing else is taken for them."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_cache.vectors.packing import Garbage, pack_observations, pack_vector, unpack_observations
from prompt_cache.vectors.vector_store import MAX_OBSERVATIONS, Observation

observations = st.builds(Observation, st.floats(-1, 1, width=32), st.booleans())


@given(st.lists(observations, max_size=MAX_OBSERVATIONS))
def test_observations_come_back(kept: list[Observation]) -> None:
    assert unpack_observations(pack_observations(kept)) == tuple(kept)


@given(st.binary(max_size=400))
def test_bytes_are_observations_or_garbage(data: bytes) -> None:
    try:
        unpacked = unpack_observations(data)
    except Garbage:
        return
    assert pack_observations(unpacked) == data
    assert all(abs(observation.cosine) <= 1.001 for observation in unpacked)


@pytest.mark.parametrize(
    "data",
    [
        b"1234",
        bytes(5 * (MAX_OBSERVATIONS + 1)),
        struct.pack("<fB", float("nan"), 0),
        struct.pack("<fB", 1.1, 0),
        struct.pack("<fB", 0.5, 2),
    ],
    ids=["half of one", "too many", "no number", "no cosine", "no yes or no"],
)
def test_what_is_no_observation_is_garbage(data: bytes) -> None:
    with pytest.raises(Garbage):
        unpack_observations(data)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2"])
def test_a_vector_is_packed_as_little_endian_float32_whatever_it_was(dtype: str) -> None:
    assert pack_vector(np.array([1, -0.5, 0], dtype), 3) == struct.pack("<3f", 1, -0.5, 0)


@pytest.mark.parametrize("shape", [(2,), (4,), (1, 3), (3, 1), ()])
def test_a_vector_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be \(3,\)"):
        pack_vector(np.ones(shape, np.float32), 3)
