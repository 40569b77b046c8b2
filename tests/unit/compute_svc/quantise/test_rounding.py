from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from compute_svc.quantise.nf4 import dynamic_table, nested_absmax
from compute_svc.quantise.rounding import round_weight
from compute_svc.quantise.scheme import Scheme, WeightForm
from compute_svc.quantise.stored_forms import as_stored, bitsandbytes, compressed_tensors
from compute_svc.stored_weights.codes import NF4

FORMS = {
    "int8": WeightForm("int8", 96, "int8"),
    "int8-g32": WeightForm("int8", 32, "int8"),
    "int4-g32": WeightForm("int4", 32, "float"),
    "int4-row": WeightForm("int4", 96, "float"),
    "fp8": WeightForm("fp8", 96, "fp8"),
}


def _matrix(rows: int = 7, columns: int = 96, seed: int = 0) -> torch.Tensor:
    return torch.randn((rows, columns), generator=torch.Generator().manual_seed(seed)) * torch.logspace(-3, 2, rows)[:, None]


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_no_number_is_further_off_than_half_a_step_of_its_group(form: WeightForm, scale_dtype: torch.dtype) -> None:
    weight = _matrix()
    coded = round_weight(weight, form, scale_dtype)
    steps = coded.scales.float().abs().repeat_interleave(coded.group, dim=1)[:, : weight.shape[1]]
    error = (coded.dense(torch.float32) - weight).abs()
    # int4 clips: at most one step beyond the last code. An e4m3 number has three digits behind the first.
    allowed = {"int8": 0.51 * steps, "int4": 2.6 * steps, "fp8": weight.abs() / 16 + steps / 512}[form.code]
    assert bool((error <= allowed * 1.01).all())


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_zeros_and_the_smallest_numbers_stay_finite(form: WeightForm) -> None:
    weight = torch.zeros((3, 96))
    weight[1] = torch.finfo(torch.float32).tiny / 64
    dense = round_weight(weight, form, torch.float16).dense(torch.float32)
    assert bool((dense == 0).all())


def test_int4_searches_a_scale_with_less_error_than_the_largest_number_gives() -> None:
    weight = _matrix(32, 256)
    searched = round_weight(weight, WeightForm("int4", 64, "float"), torch.float32).dense(torch.float32)
    grouped = weight.view(32, -1, 64)
    scales = grouped.abs().amax(dim=-1, keepdim=True) / 7
    plain = ((grouped / scales).round() * scales).view(32, -1)
    relative = (searched - weight).norm(dim=1) / (plain - weight).norm(dim=1)
    assert bool((relative < 0.9).all())


def test_a_matrix_of_many_rows_is_rounded_as_each_row_is_by_itself() -> None:
    weight = _matrix(1500, 128)
    whole = round_weight(weight, WeightForm("int4", 64, "float"), torch.float32)
    alone = round_weight(weight[1400:1401].clone(), WeightForm("int4", 64, "float"), torch.float32)
    assert torch.equal(whole.data[1400:1401], alone.data)
    assert torch.equal(whole.scales[1400:1401], alone.scales)


@pytest.mark.parametrize(("bits", "columns"), [(4, 96), (4, 20), (8, 96), (8, 6)])
def test_packed_codes_unpack_as_compressed_tensors_says(bits: int, columns: int) -> None:
    form = WeightForm("int4" if bits == 4 else "int8", columns, "float")
    coded = round_weight(_matrix(5, columns), form, torch.float32)
    tensors = compressed_tensors("m", coded, packed=True)
    packed = tensors["m.weight_packed"].numpy().astype(np.int64) & 0xFFFFFFFF
    codes = np.array(
        [[(row[k * bits // 32] >> (k * bits % 32)) % (1 << bits) - (1 << (bits - 1)) for k in range(columns)] for row in packed]
    )
    assert np.array_equal(codes, coded.codes().numpy())
    assert tensors["m.weight_packed"].dtype == torch.int32
    assert tensors["m.weight_packed"].shape == (5, -(-columns * bits // 32))
    assert tensors["m.weight_shape"].tolist() == [5, columns]


def test_nf4_takes_the_nearest_quantile_and_puts_the_first_code_in_the_high_half() -> None:
    weight = _matrix(3, 128)
    coded = round_weight(weight, WeightForm("nf4", 64, "float"), torch.float32)
    tensors = bitsandbytes("m", coded, nested=False, dtype=torch.float32)
    data, absmax = tensors["m.weight"].flatten().numpy(), tensors["m.weight.absmax"].numpy()
    table = np.array(NF4, dtype=np.float32)
    for place, number in enumerate(weight.flatten().numpy()):
        code = data[place // 2] >> 4 if place % 2 == 0 else data[place // 2] & 15
        best = np.abs(table - number / absmax[place // 64]).min()
        assert abs(table[code] - number / absmax[place // 64]) <= best + 1e-6
    assert absmax.tolist() == weight.view(-1, 64).abs().amax(dim=1).tolist()


def test_nested_scales_are_near_and_what_is_told_of_them_is_what_is_read() -> None:
    coded = round_weight(_matrix(40, 1024).abs() + 0.1, WeightForm("nf4", 64, "float"), torch.float32)
    inner = nested_absmax(coded.scales)
    assert len(inner.scales) == 3
    assert inner.codes.dtype == torch.uint8
    read = as_stored(coded, nested=True)
    spread = (coded.scales - inner.offset).abs().max()
    assert float((read.scales - coded.scales).abs().max() / spread) < 0.03
    assert torch.equal(read.data, coded.data)
    assert as_stored(coded, nested=False) is coded
    assert torch.equal(replace(coded, scales=inner.dense().view_as(coded.scales)).dense(torch.float32), read.dense(torch.float32))


def test_the_dynamic_table_has_every_size_of_number_with_both_signs() -> None:
    table = dynamic_table()
    assert len(table) == len(set(table.tolist())) == 256
    assert table[-1] == 1.0
    assert 0.0 in table.tolist()
    assert torch.equal(table[:127], -table[128:255].flip(0))
    assert float(table[128]) == pytest.approx(0.55e-6)


def test_options_that_do_not_go_together_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="--activations fp8 does not go with --weights int4: float or int8 does"):
        Scheme(weights="int4", group=128, activations="fp8")
    with pytest.raises(ValueError, match="--group is for int4 and int8 alone and one of 128, 64, 32"):
        Scheme(weights="fp8", group=64, activations="fp8")
    with pytest.raises(ValueError, match="--nested is for nf4 alone"):
        Scheme(weights="int8", activations="int8", nested=True)
    with pytest.raises(ValueError, match="--head does not go with --weights nf4"):
        Scheme(weights="nf4", activations="float", head=True)
