"""Sines and cosines of rotary positions."""

from __future__ import annotations

import math

import pytest
import torch

from compute_svc.layers.rotary_table import RopeScaling, RotaryTable, frequencies


def test_frequencies_fall_from_one_by_powers_of_theta() -> None:
    expected = [100.0 ** (-2 * pair / 8) for pair in range(4)]

    assert frequencies(8, 100.0, None).tolist() == pytest.approx(expected)
    assert frequencies(8, 100.0, RopeScaling("linear", 4.0)).tolist() == pytest.approx([value / 4 for value in expected])


def test_llama3_scaling_keeps_fast_pairs_and_divides_slow_ones() -> None:
    scaling = RopeScaling("llama3", 8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=256)
    plain = frequencies(64, 10000.0, None)
    scaled = frequencies(64, 10000.0, scaling)
    wavelengths = 2 * math.pi / plain

    fast, slow = wavelengths < 256 / 4, wavelengths > 256
    assert torch.equal(scaled[fast], plain[fast])
    torch.testing.assert_close(scaled[slow], plain[slow] / 8)
    between = ~fast & ~slow
    assert between.any() and (scaled[between] < plain[between]).all() and (scaled[between] > plain[between] / 8).all()


def test_a_position_has_the_same_values_however_the_table_grew() -> None:
    rates = frequencies(12, 10000.0, None)
    grown, at_once = RotaryTable(rates), RotaryTable(rates)
    positions = torch.tensor([0, 5, 1023, 1024, 3000])

    for limit in (1, 700, 1025, 2500):
        grown.at(torch.tensor([0]), limit)

    for one, other in zip(grown.at(positions, 3001), at_once.at(positions, 3001), strict=True):
        assert torch.equal(one, other)


def test_far_beyond_what_was_trained_differences_of_positions_still_count_exactly() -> None:
    rates = frequencies(12, 10000.0, None)
    table = RotaryTable(rates, trained_positions=4096)
    far = 1 << 18
    cos, sin = table.at(torch.tensor([far, far + 3]), far + 4)
    between = cos[0] * cos[1] + sin[0] * sin[1]
    angles = 3 * rates.double()
    torch.testing.assert_close(between[0], torch.cat((angles, angles)).cos().float(), atol=1e-6, rtol=0)
    assert torch.equal(table.at(torch.tensor([4000]), 4096)[0], RotaryTable(rates).at(torch.tensor([4000]), 4096)[0])


def test_cos_and_sin_are_those_of_position_times_frequency() -> None:
    rates = frequencies(6, 10.0, None)

    cos, sin = RotaryTable(rates).at(torch.tensor([7, 2]), 8)

    angles = torch.tensor([[7.0], [2.0]]) * rates
    torch.testing.assert_close(cos[:, 0], torch.cat((angles, angles), -1).cos())
    torch.testing.assert_close(sin[:, 0], torch.cat((-angles, angles), -1).sin())
