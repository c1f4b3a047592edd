import itertools
import math

import numpy as np
import pytest
from scipy import stats

from harness.reports.significance import Entrant, holm, mcnemar_p, paired_t_p, standings


def test_paired_t_agrees_with_scipy_and_leaves_incomplete_pairs_out():
    rng = np.random.default_rng(0)
    a = rng.normal(size=20)
    b = a + rng.normal(0.3, 0.5, size=20)
    assert paired_t_p(a.tolist(), b.tolist()) == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-9)
    longer = paired_t_p([*a.tolist(), None, 1.0], [*b.tolist(), 9.0, None])
    assert longer == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-9)


def test_paired_t_without_spread_or_pairs():
    assert paired_t_p([1.0, 2.0], [1.0, 2.0]) == 1.0
    assert paired_t_p([2.0, 3.0], [1.0, 2.0]) == 0.0
    assert paired_t_p([1.0, None], [2.0, 3.0]) is None
    with pytest.raises(ValueError, match="differ in number: 1 and 2"):
        paired_t_p([1.0], [1.0, 2.0])


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (5, 0), (3, 9), (4, 4)])
def test_mcnemar_is_the_binomial_sum_over_discordant_pairs(only_a, only_b):
    a = [1.0] * only_a + [0.0] * only_b + [1.0] * 6
    b = [0.0] * only_a + [1.0] * only_b + [1.0] * 6
    n = only_a + only_b
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)) / 2**n
    assert mcnemar_p(a, b) == pytest.approx(min(1.0, 2 * tail))


def test_mcnemar_refuses_what_is_no_answer():
    with pytest.raises(ValueError, match="0 or 1"):
        mcnemar_p([0.5], [1.0])


def test_holm_of_the_textbook_in_any_order():
    # 0.01*4, max(0.04, 0.013*3), max(., 0.02*2), max(., 0.3*1)
    expected = {0.01: 0.04, 0.013: 0.04, 0.02: 0.04, 0.3: 0.3}
    for order in itertools.permutations(expected):
        assert holm(order) == pytest.approx([expected[p] for p in order])


def entrants(*shifts, spread=0.1, n=40):
    rng = np.random.default_rng(1)
    base = rng.normal(20, 5, size=n)
    values = [base + shift + rng.normal(0, spread, size=n) for shift in shifts]
    return [Entrant(float(v.mean()), v.tolist()) for v in values]


def test_best_tied_and_none_by_direction():
    assert standings([entrants(0, 1, 2)], "higher", "paired t") == [["none", "none", "best"]]
    assert standings([entrants(0, 1, 2)], "lower", "paired t") == [["best", "none", "none"]]
    assert standings([entrants(0, 2, 2)], "higher", "paired t") == [["none", "tied", "tied"]]
    assert standings([entrants(1), []], "higher", "paired t") == [["none"], []]


def test_nothing_is_best_over_an_entrant_that_could_not_be_compared():
    group = [*entrants(0, 2), Entrant(1.0, None), Entrant(1.0, [1.0] * 7)]
    assert standings([group], "higher", "paired t") == [["none", "none", "none", "none"]]


def test_all_groups_of_a_column_are_corrected_together():
    pair = entrants(0, 0.035)
    p = paired_t_p(pair[0].per_prompt, pair[1].per_prompt)
    assert 0.05 / 20 < p < 0.05
    assert "best" in standings([pair], "higher", "paired t")[0]
    # Nineteen more comparisons that show nothing leave nothing of it.
    many = standings([pair] * 1 + [entrants(0, 0)] * 19, "higher", "paired t")
    assert many[0] == ["tied", "tied"]


def test_equal_methods_are_called_best_at_most_at_the_level():
    rng = np.random.default_rng(2)
    claims = 0
    for _ in range(400):
        values = rng.normal(size=(3, 30))
        found = standings([[Entrant(float(v.mean()), v.tolist()) for v in values]], "higher", "paired t")
        claims += "best" in found[0]
    assert claims <= 0.05 * 400
