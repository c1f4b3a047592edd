"""How often the intervals of FID and KID differences hold the truth: `python tools/interval_coverage.py RUN`.

The recogniser's features of a run's images, cell and reference paired by prompt, are taken as the population.
Samples of N pairs are drawn from it with replacement, and each sample's interval is compared with the
difference of the population itself, which is known. Real images are the first 2,048 of the rendered scenes.
Printed per cell: the share of intervals that hold the truth (with Wilson's 95 % interval), how many of the
others lie above and below it, the mean error of the estimate in standard errors (its bias), and the mean of
the intervals' standard errors by the spread of the estimates (1 is right). Further rows compare two quantized
cells with each other, as tables do.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from harness.datasets.scenes.recogniser import reference_features
from harness.metrics.fid import frechet_distance, gaussian, gaussian_of
from harness.metrics.fid_delta import fid_delta
from harness.metrics.kid_delta import kid_delta
from harness.reports.record import Record, read_records
from harness.reports.statistics import Interval, wilson_interval
from harness.reports.statistics.intervals import CONFIDENCE

Array = NDArray[np.float64]
SEED, REAL = 0, 2048
_Z = 1.959963984540054
"""Normal quantile of a two-sided 95 % interval; the intervals' own is Student's, 0.5 % wider at N = 256."""


def features(run: Path, record: Record) -> Array:
    """Return the features of a cell's images, float64 [n, 64], in the order of the prompts."""
    files = sorted((run / "cells" / record.identity.cell / "blocks").glob("*/features.safetensors"))
    parts = [load_file(path)["features"] for path in files]
    return np.concatenate(parts)[: record.result.n].astype(np.float64)


def population_fid(x: Array, real: Array) -> float:
    """Return the FID of a population whose every member is a row: its covariance is over n, not n - 1."""
    mean = x.mean(axis=0)
    centred = x - mean
    return frechet_distance(gaussian_of(mean, centred.T @ centred / len(x)), gaussian(real))


def population_kid(x: Array, real: Array) -> float:
    """Return the squared MMD of such a population, less the real images' own term."""
    width = x.shape[1]
    within, across = ((x @ other.T / width + 1.0) ** 3 for other in (x, real))
    return float(within.mean() - 2.0 * across.mean())


KINDS: dict[str, tuple[Callable[..., Interval], Callable[[Array, Array], float]]] = {
    "FID": (fid_delta, population_fid),
    "KID": (kid_delta, population_kid),
}


def simulate(kind: str, pair: tuple[Array, Array], real: Array, n: int, times: int) -> str:
    """Return one row's figures: coverage, misses, bias and the ratio of standard errors."""
    difference, distance = KINDS[kind]
    truth = distance(pair[0], real) - distance(pair[1], real)
    rng = np.random.default_rng(SEED)
    found = np.empty((times, 3))
    for index in range(times):
        rows = rng.integers(0, len(pair[0]), n)
        found[index] = difference(pair[0][rows], pair[1][rows], real)
    value, lo, hi = found.T
    share, least, most = wilson_interval(int(((lo <= truth) & (truth <= hi)).sum()), times)
    spread, error = float(value.std(ddof=1)), float((hi - lo).mean()) / 2 / _Z
    above, below = float((lo > truth).mean()), float((hi < truth).mean())
    bias = float(value.mean() - truth) / spread
    return (
        f"{truth:.4g} | {share:.3f} [{least:.3f}, {most:.3f}] | {above:.3f} / {below:.3f} | {bias:+.2f} "
        f"| {error / spread:.2f} |"
    )


def main() -> None:
    """Print one row per cell and kind of distance."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="a run of the embedded models with at least 256 prompts")
    parser.add_argument("--n", type=int, default=256, help="pairs in a sample")
    parser.add_argument("--times", type=int, default=2000, help="samples")
    options = parser.parse_args()
    real = reference_features()[:REAL].numpy().astype(np.float64)
    by_model: dict[str, dict[str, Array]] = {}
    for record in read_records(options.run):
        if record.result.state == "ok":
            one = record.identity
            label = one.method if one.method == "reference" else f"{one.method} W{one.wbits}A{one.abits}"
            by_model.setdefault(one.model, {})[label] = features(options.run, record)
    print(f"Samples: {options.times} of N = {options.n}; nominal coverage {CONFIDENCE:g}.\n")
    print("| pair | of | true difference | coverage | above / below | bias in SE | SE by spread |")
    print("| --- " * 7 + "|")
    for model, cells in by_model.items():
        reference = cells.pop("reference")
        pairs = {f"{label}, reference": (rows, reference) for label, rows in cells.items()}
        for a, b in list(combinations(cells, 2))[:3]:
            pairs[f"{a}, {b}"] = cells[a], cells[b]
        for label, pair in pairs.items():
            for kind in KINDS:
                shown = simulate(kind, pair, real, options.n, options.times)
                print(f"| {model} {label} ({len(pair[0])}) | {kind} | {shown}", flush=True)


if __name__ == "__main__":
    main()
