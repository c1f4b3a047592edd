"""Kurtosis salience and the balanced mix of widths."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.methods.salience import balanced_bits, best_count, descending, pearson_kurtosis, swap_counts


def test_kurtosis_is_scipys() -> None:
    rng = np.random.default_rng(0)
    rows = np.stack(
        [
            rng.normal(3, 1, 5000),
            rng.laplace(0, 2, 5000),
            rng.uniform(-1, 1, 5000),
            rng.standard_t(4, 5000) * 1e-12,
        ]
    ).astype(np.float32)
    expected = scipy.stats.kurtosis(rows.astype(np.float64), axis=1, fisher=False, bias=True)
    got = pearson_kurtosis(torch.from_numpy(rows))
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-6)
    assert abs(float(got[0]) - 3) < 0.3
    assert abs(float(got[2]) - 1.8) < 0.1


def test_constant_rows_rank_lowest_and_are_finite() -> None:
    weight = torch.stack(
        [torch.zeros(64), torch.full((64,), 0.1), torch.linspace(-1, 1, 64), torch.ones(64) * 3e-20]
    )
    kurtosis = pearson_kurtosis(weight)
    assert kurtosis.tolist()[:2] == [0, 0]
    assert float(kurtosis[3]) == 0
    assert descending(kurtosis).tolist()[0] == 2


def test_ties_keep_their_order() -> None:
    assert descending(torch.tensor([1.0, 2.0, 1.0, 2.0])).tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize(
    ("rows", "counts"),
    [(9, [0]), (10, [0, 1, 2, 3, 4, 5]), (192, [0, 19, 38, 57, 76, 95]), (72, [0, 7, 14, 21, 28, 35])],
)
def test_swaps_go_from_0_to_50_per_cent(rows: int, counts: list[int]) -> None:
    assert swap_counts(rows) == counts


@given(st.integers(1, 200), st.integers(2, 7), st.data())
@settings(deadline=None, max_examples=60)
def test_mean_width_is_exact_and_follows_the_order(rows: int, bits: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, rows // 2))
    order = torch.tensor(data.draw(st.permutations(range(rows))))
    assigned = balanced_bits(order, count, bits)
    assert int(assigned.sum()) == rows * bits
    assert set(assigned[order[:count]].tolist()) <= {bits + 1}
    assert set(assigned[order[rows - count :]].tolist()) <= {bits - 1}


def test_more_than_half_cannot_be_swapped() -> None:
    with pytest.raises(ValueError, match="cannot raise and lower 3 of 5 rows"):
        balanced_bits(torch.arange(5), 3, 4)


def test_best_count_is_the_exhaustive_optimum() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        order = torch.randperm(40, generator=generator)
        plain = torch.rand(40, generator=generator)
        error = {3: plain * 2.5, 4: plain, 5: plain * 0.3}
        totals = {}
        for count in range(0, 21, 4):
            total = 0.0
            for position, row in enumerate(order.tolist()):
                width = 5 if position < count else 3 if position >= 40 - count else 4
                total += float(error[width][row])
            totals[count] = total
        assert totals[best_count(order, error, 4)] == pytest.approx(min(totals.values()))


def test_equal_errors_keep_the_plain_layer() -> None:
    same = torch.ones(20)
    assert best_count(torch.arange(20), dict(zip((1, 2, 3), itertools.repeat(same))), 2) == 0
