import numpy as np

from harness.reports.significance import Entrant, standings
from harness.reports.statistics import paired_p_value


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
    p = paired_p_value(pair[0].per_prompt, pair[1].per_prompt)
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
