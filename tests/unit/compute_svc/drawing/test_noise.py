"""Noise is Philox's, the same in numpy and in torch."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from compute_svc.drawing import noise_cpu, noise_device
from compute_svc.drawing.noise import Streams, key_words, of_blocks, smallest, xtc_uniforms
from tests.fakes.literal_draw import exponential, philox
from tests.fakes.wait_detector import no_waiting

META = torch.device("meta")


def _streams(seeds: list[int], positions: list[int]) -> Streams:
    keys = torch.from_numpy(key_words(np.array(seeds, dtype=np.uint64)))[:, :, None]
    return Streams(keys, torch.tensor(positions)[:, None])


def test_the_generator_gives_what_its_authors_publish() -> None:
    """The known answers of Philox4x32-10 for a counter and key of zeros."""
    zeros = torch.zeros((1, 1), dtype=torch.int64)
    words = noise_device.words(torch.zeros((2, 1, 1), dtype=torch.int64), zeros, zeros, zeros)
    assert words[0, 0].tolist() == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    on_cpu = noise_cpu.philox(np.zeros((2, 1, 1), dtype=np.uint64), np.zeros((2, 1, 1), dtype=np.uint64))
    assert on_cpu[:, 0, 0, ::-1].reshape(-1).tolist() == words[0, 0].tolist()


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**31 - 1)), min_size=1, max_size=4), st.integers(1, 2))
def test_both_ways_to_make_it_make_the_same(rows: list[tuple[int, int]], spans: int) -> None:
    streams, num = _streams([seed for seed, _ in rows], [position for _, position in rows]), 256 * spans
    least = smallest(streams, num)
    torch.testing.assert_close(noise_device.smallest(streams.keys, streams.positions, num), least, rtol=1e-14, atol=0)
    blocks = torch.arange(3 * len(rows)).view(len(rows), 3) * 37 % num
    chosen = least.gather(1, blocks)
    theirs = noise_device.of_blocks(streams.keys, streams.positions, blocks, chosen)
    torch.testing.assert_close(theirs, of_blocks(streams, blocks, chosen), rtol=1e-14, atol=0)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**31 - 1), st.integers(0, 511))
def test_exponentials_are_those_of_the_contract(seed: int, position: int, block: int) -> None:
    streams, blocks = _streams([seed], [position]), torch.tensor([[block]])
    least = smallest(streams, 512).gather(1, blocks)
    ids = [(block >> 8 << 12) + (block & 255) + 256 * lane for lane in range(16)]
    expected = [exponential(seed, position, one) for one in ids]
    np.testing.assert_allclose(of_blocks(streams, blocks, least)[0, 0].numpy(), expected, rtol=1e-14)
    assert min(expected) == float(least) or abs(min(expected) / float(least) - 1) < 1e-14


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**31 - 1))
def test_xtc_decides_by_a_word_of_its_own(seed: int, position: int) -> None:
    uniform = xtc_uniforms(np.array([seed], dtype=np.uint64), np.array([position]))
    assert uniform.tolist() == [(philox((0, position, 0, 1), seed)[0] + 0.5) / 2**32]


def test_making_it_waits_for_no_device() -> None:
    keys, positions = torch.empty((2, 3, 1), dtype=torch.int64, device=META), torch.empty((3, 1), dtype=torch.int64, device=META)
    with no_waiting():
        least = smallest(Streams(keys, positions), 512)
        blocks = torch.empty((3, 5), dtype=torch.int64, device=META)
        assert of_blocks(Streams(keys, positions), blocks, least.gather(1, blocks)).shape == (3, 5, 16)
