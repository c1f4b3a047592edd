"""How often the change-point test finds a step where there is none: prints the table of docs/leaderboard.md.

`python tools/change_point_rates.py`
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from harness.reports.statistics import ALPHA, change_points

SERIES = 4000
LENGTHS = (3, 6, 12, 24, 48)
Draw = Callable[[np.random.Generator, tuple[int, int]], NDArray[np.float64]]
NOISE: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "Laplace": lambda rng, shape: rng.laplace(size=shape),
    "Student's t, 3 degrees": lambda rng, shape: rng.standard_t(3, size=shape),
    "log-normal, sigma 0.5": lambda rng, shape: rng.lognormal(0.0, 0.5, size=shape),
}


def main() -> None:
    """Print the table."""
    print(f"| scatter | {' | '.join(f'{length} rows' for length in LENGTHS)} |")
    print(f"|---|{'---:|' * len(LENGTHS)}")
    for name, draw in NOISE.items():
        rates = []
        for length in LENGTHS:
            series = draw(np.random.default_rng(length), (SERIES, length))
            rates.append(sum(bool(change_points(list(one), ALPHA)) for one in series) / SERIES)
        print(f"| {name} | {' | '.join(f'{100 * rate:.1f} %' for rate in rates)} |")


if __name__ == "__main__":
    main()
