"""Packed weights: what they decode to, what they hold, and that their specs rebuild them."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from harness.kernels.quantizers.normal_float import nf_codebook, quantize_normal_float
from harness.kernels.quantizers.residual import fit_binary_planes
from harness.kernels.quantizers.uniform import dequantize_uniform, quantize_uniform
from harness.kernels.weights import (
    BinaryPlanesWeight,
    NormalFloatWeight,
    PackedWeight,
    RowMixedWeight,
    UniformWeight,
    weight_from_spec,
)


def values(rows: int, cols: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def uniform(w: Tensor, bits: int, group: int | None = None) -> UniformWeight:
    return UniformWeight.pack(quantize_uniform(w, bits, group=group), bits, "asymmetric", group)


def mixed(w: Tensor) -> RowMixedWeight:
    """Rows dealt to 2-bit and 3-bit uniform parts and to binary planes, in a scattered order."""
    row_part = torch.tensor([(7 * row + 3) % 3 for row in range(w.shape[0])], dtype=torch.uint8)
    parts: list[PackedWeight] = [
        uniform(w[row_part == 0], 2),
        uniform(w[row_part == 1], 3, 16),
        BinaryPlanesWeight.pack(fit_binary_planes(w[row_part == 2], 2)),
    ]
    return RowMixedWeight(parts, row_part)


def every_kind(w: Tensor) -> list[PackedWeight]:
    return [
        uniform(w, 3),
        uniform(w, 4, 16),
        UniformWeight.pack(quantize_uniform(w, 2, grid="midrise"), 2, "midrise"),
        UniformWeight.pack(quantize_uniform(w, 5, grid="narrow", group="tensor"), 5, "narrow", "tensor"),
        NormalFloatWeight.pack(quantize_normal_float(w, 4), 4),
        NormalFloatWeight.pack(quantize_normal_float(w, 3, 32), 3, 32),
        BinaryPlanesWeight.pack(fit_binary_planes(w, 3)),
        mixed(w),
    ]


KINDS = range(len(every_kind(values(6, 20))))


@pytest.mark.parametrize("index", KINDS)
@pytest.mark.parametrize(("rows", "cols"), [(6, 20), (9, 37), (12, 64)])
def test_bytes_are_those_of_the_buffers_and_nothing_is_a_parameter(index: int, rows: int, cols: int) -> None:
    weight = every_kind(values(rows, cols))[index]
    held = sum(t.numel() * t.element_size() for t in weight.state_dict().values())
    assert sum(weight.bytes_by_part().values()) == held
    assert set(weight.bytes_by_part()) <= {"codes", "scales", "zeros", "codebooks", "index"}
    assert all(weight.bytes_by_part().values())
    assert not list(weight.parameters())
    assert (weight.rows, weight.cols) == (rows, cols)
    assert weight.dequantize().shape == (rows, cols)
    assert weight.dequantize().dtype == torch.float32


@pytest.mark.parametrize("index", KINDS)
def test_spec_rebuilds_the_weight(index: int) -> None:
    weight = every_kind(values(9, 37))[index]
    empty = weight_from_spec(json.loads(json.dumps(weight.spec())))
    empty.load_state_dict(weight.state_dict())
    empty.check()
    assert type(empty) is type(weight)
    assert empty.spec() == weight.spec()
    assert torch.equal(empty.dequantize(), weight.dequantize())
    assert empty.mean_bits == weight.mean_bits


@pytest.mark.parametrize("index", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_casting_a_model_leaves_storage_alone(index: int, dtype: torch.dtype) -> None:
    weight = every_kind(values(9, 37))[index]
    before, dtypes = weight.dequantize(), {key: t.dtype for key, t in weight.state_dict().items()}
    weight.to(dtype)
    assert {key: t.dtype for key, t in weight.state_dict().items()} == dtypes
    assert torch.equal(weight.dequantize(), before)


def test_sizes_by_hand() -> None:
    """12 rows of 40 columns: 3 bits are 15 bytes a row, 16-column groups are three a row."""
    w = values(12, 40)
    assert uniform(w, 3).bytes_by_part() == {"codes": 180, "scales": 24, "zeros": 12}
    assert uniform(w, 3, 16).bytes_by_part() == {"codes": 180, "scales": 72, "zeros": 36}
    nf4 = NormalFloatWeight.pack(quantize_normal_float(w, 4), 4)
    assert nf4.bytes_by_part() == {"codes": 240, "scales": 8 * 4, "codebooks": 64}
    planes = BinaryPlanesWeight.pack(fit_binary_planes(w, 2))
    assert planes.bytes_by_part() == {"codes": 120, "scales": 48}
    both = RowMixedWeight([uniform(w[:4], 2), uniform(w[4:], 3)], torch.tensor([0] * 4 + [1] * 8))
    assert both.bytes_by_part() == {"codes": 4 * 10 + 8 * 15, "scales": 24, "zeros": 12, "index": 12}
    assert both.mean_bits == pytest.approx((4 * 2 + 8 * 3) / 12)


@given(st.integers(0, 10**6), st.lists(st.integers(0, 2), min_size=1, max_size=12), st.integers(1, 33))
def test_rows_of_mixed_width_land_where_they_belong(seed: int, owners: list[int], cols: int) -> None:
    w = values(len(owners), cols, seed)
    row_part = torch.tensor(owners, dtype=torch.uint8)
    used = sorted(set(owners))
    parts: list[PackedWeight] = [uniform(w[row_part == owner], owner + 1) for owner in used]
    renumbered = torch.tensor([used.index(owner) for owner in owners], dtype=torch.uint8)
    decoded = RowMixedWeight(parts, renumbered).dequantize()
    for row, owner in enumerate(owners):
        alone = quantize_uniform(w[row : row + 1], owner + 1)
        expected = dequantize_uniform(alone, owner + 1, grid="asymmetric", group=None)
        assert torch.equal(decoded[row : row + 1], expected)


def test_normal_float_blocks_run_over_rows() -> None:
    w = values(3, 50)
    weight = NormalFloatWeight.pack(quantize_normal_float(w, 4), 4)
    assert weight.absmax.tolist() == [float(w.flatten()[i : i + 64].abs().max()) for i in (0, 64, 128)]
    assert math.isclose(float(weight.dequantize().flatten()[:64].abs().max()), float(weight.absmax[0]))
    assert torch.equal(weight.codebook, nf_codebook(4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "magic"}, "kind must be one of"),
        ({"kind": None}, "kind must be one of"),
        ({"rows": 0}, "rows must be"),
        ({"rows": True}, "rows must be"),
        ({"cols": 2**40}, "cols must be"),
        ({"bits": 9}, "bits must be"),
        ({"bits": "4"}, "bits must be"),
        ({"grid": "odd"}, "grid must be one of"),
        ({"group": -1}, "a group is"),
        ({"group": [64]}, "a group is"),
        ({"grid": "narrow", "bits": 1}, "single level"),
    ],
)
def test_wrong_specs_are_refused(change: dict[str, object], message: str) -> None:
    spec = {**uniform(values(4, 20), 3, 16).spec(), **change}
    with pytest.raises(ValueError, match=message):
        weight_from_spec(spec)


def test_wrong_mixtures_are_refused() -> None:
    w = values(6, 20)
    spec = mixed(w).spec()
    changes: list[dict[str, object]] = [
        {"parts": []},
        {"parts": "all"},
        {"parts": [spec]},
        {"parts": spec["parts"][:-1]},
        {"parts": [1, 2, 3]},
        {"rows": 7},
        {"cols": 21},
    ]
    for change in changes:
        with pytest.raises(ValueError, match="part"):
            weight_from_spec({**spec, **change})
    with pytest.raises(ValueError, match="row_part gives"):
        RowMixedWeight([uniform(w, 2)], torch.ones(6))
    with pytest.raises(ValueError, match="columns"):
        RowMixedWeight([uniform(w, 2), uniform(values(6, 21), 2)], torch.arange(12) // 6)
    with pytest.raises(ValueError, match="not row-mixed"):
        RowMixedWeight([mixed(w)], torch.zeros(6))


def test_packing_codes_under_other_settings_is_refused() -> None:
    codes = quantize_uniform(values(4, 20), 3, group=8)
    with pytest.raises(ValueError, match="do not belong to group"):
        UniformWeight.pack(codes, 3, "asymmetric", 16)
    with pytest.raises(ValueError, match="do not belong together"):
        UniformWeight.pack(codes, 3, "narrow", 8)
    with pytest.raises(ValueError, match="does not fit 2 bits"):
        UniformWeight.pack(codes, 2, "asymmetric", 8)
    with pytest.raises(ValueError, match="do not belong to blocks"):
        NormalFloatWeight.pack(quantize_normal_float(values(4, 20), 4), 4, block=32)
