"""How often the gate alarms wrongly and how soon it finds faults: `python tools/gate_figures.py OUT`.

One command makes everything: the baseline, the same cell with another batch size (the noise floor), real
re-runs with twenty other batch sizes, each taken to 64 and 256 prompts for as long as it is undecided, and
three faults injected into the stored checkpoint (low-rank branch removed, its rank quartered, one scale per
tensor in place of one per group of 64). Then it resamples re-runs from the measured differences and prints a
Markdown table. What is stored in OUT is not made again; `--baseline docs/results/gate/baseline.jsonl` takes
the baseline from records, and makes the checkpoint alone.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from harness.kernels.branch import LowRankBranch
from harness.kernels.layers import PackedLayer
from harness.kernels.quantizers.uniform import quantize_uniform
from harness.kernels.weights import UniformWeight
from harness.outlook import make_jobs
from harness.plan import make_plan
from harness.project import WORLD
from harness.reports.gate.quality import compare_metric, noise_margin, paired_differences
from harness.reports.gate.sequential import LOOKS
from harness.reports.gate.sides import by_name, read_side
from harness.reports.record import Record
from harness.reports.statistics import wilson_interval
from harness.request import Request
from harness.run import DEFAULT_WORLD, extend
from harness.store import RunStore

MODEL, METHOD, BITS = "tiny-dit", "svdquant", 4
PROMPTS, BLOCK, NOISE_BLOCK = 256, 16, 5
RERUN_BLOCKS = tuple(block for block in range(1, 23) if block not in {BLOCK, NOISE_BLOCK})
METRICS = ("psnr", "prompt_accuracy")
RESAMPLES, SEED, ALPHA = 5000, 0, 0.05

Values = dict[str, list[float | None]]
Gaps = dict[str, NDArray[np.float64]]


def remove_branch(layer: PackedLayer) -> None:
    """Drop the low-rank branch: the layer multiplies with the residual alone."""
    layer.branch = None


def quarter_rank(layer: PackedLayer) -> None:
    """Keep the first quarter of the branch's components."""
    branch = layer.branch
    if isinstance(branch, LowRankBranch):
        rank = branch.down.shape[0]
        mask = (torch.arange(rank) < max(1, rank // 4)).to(branch.down.dtype)
        with torch.no_grad():
            branch.down.mul_(mask[:, None])


def one_scale(layer: PackedLayer) -> None:
    """Round the weight once more with one scale for the whole tensor, as a lost group size would."""
    codes = quantize_uniform(layer.weight.dequantize(), BITS, grid="narrow", group="tensor")
    layer.weight = UniformWeight.pack(codes, BITS, "narrow", "tensor")


FAULTS: dict[str, Callable[[PackedLayer], None]] = {
    "branch removed": remove_branch,
    "rank quartered": quarter_rank,
    "group 64 to per-tensor": one_scale,
}


class Bench:
    """The stored cell and its reference, opened for generating with other batches or damaged weights."""

    def __init__(self, request: Request, out: Path) -> None:
        plan = make_plan(request, WORLD)
        jobs = make_jobs(plan, RunStore(out / "base"), DEFAULT_WORLD, WORLD)
        self.reference, self.cell = (jobs[cell.key] for cell in plan.cells)
        self.setting = self.cell.cell.setting
        self.out = out
        self.float = WORLD.open(self.setting)
        self.packed = self.damaged(lambda layer: None)

    def damaged(self, fault: Callable[[PackedLayer], None]) -> Any:
        """Return the quantized session with `fault` applied to each layer with a branch."""
        session: Any = WORLD.open(self.setting)
        session.load(self.cell.files.checkpoint)
        for layer in session.denoiser.modules():
            if isinstance(layer, PackedLayer) and layer.branch is not None:
                fault(layer)
        return session

    def values(self, name: str, session: Any, n: int, block: int, *, rerun: bool) -> Values:
        """Return the metrics of the first `n` prompts, generated in batches of `block`.

        OUT keeps them: a later call with more prompts makes only those that are missing.

        Args:
            name: what they are kept under.
            session: the quantized model.
            n: prompts.
            block: prompts in a batch.
            rerun: whether the reference is made anew in the same batches; otherwise in the baseline's.
        """
        path = self.out / f"{name.replace(' ', '-')}.json"
        found: Values = json.loads(path.read_text()) if path.is_file() else {metric: [] for metric in METRICS}
        while (start := len(found[METRICS[0]])) < n:
            prompts = self.cell.prompts[start : start + max(block, BLOCK // block * block)]
            images = self.generate(session, prompts, block)
            other = self.generate(self.float, prompts, block if rerun else BLOCK)
            _, made = WORLD.reduce(self.setting, prompts, (images, None), (other, None))
            found = {metric: found[metric] + made[metric] for metric in METRICS}
            path.write_text(json.dumps(found))
        return {metric: found[metric][:n] for metric in METRICS}

    def generate(self, session: Any, prompts: Sequence[Any], block: int) -> NDArray[np.uint8]:
        """Return the images of prompts in batches of `block`."""
        starts = range(0, len(prompts), block)
        return np.concatenate([session.generate(prompts[start : start + block]) for start in starts])


def quantized(records: Sequence[Record]) -> Record:
    """Return the record of the quantized cell."""
    return next(r for r in by_name(records, "the records").values() if r.identity.method == METHOD)


def verdict(differences: Gaps, margins: dict[str, float]) -> str:
    """Return the verdict on a cell, as the gate forms it for a baseline of 256 prompts and one cell."""
    found = [
        compare_metric(m, differences[m], margins[m], ALPHA / len(METRICS), PROMPTS).verdict for m in METRICS
    ]
    return next(v for v in ("fail", "undecided", "suspicious", "pass") if v in found)


def resampled(differences: Gaps, margins: dict[str, float], n: int, rng: np.random.Generator) -> list[str]:
    """Return the verdicts on runs of `n` prompts drawn with replacement from measured differences."""
    held = len(differences[METRICS[0]])
    chosen = (rng.integers(0, held, n) for _ in range(RESAMPLES))
    return [verdict({m: differences[m][rows] for m in METRICS}, margins) for rows in chosen]


def main() -> None:
    """Make what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder for runs and stored figures")
    parser.add_argument("--baseline", type=Path, help="records to take the baseline from")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    request = Request(models=(MODEL,), methods=(METHOD,), bits=str(BITS), prompts=PROMPTS)

    def made(name: str, **options: Any) -> list[Record]:
        asked = replace(request, out=out / name, **options)
        return extend(asked, Console(stderr=True), lambda cell: True)

    if arguments.baseline is None:
        base = made("base")
    else:
        made("base", prompts=LOOKS[0])  # for its checkpoint
        base = read_side(arguments.baseline)
    noise = made("noise", block=NOISE_BLOCK)
    print(table(quantized(base), quantized(noise), Bench(request, out)))


def gaps(values: Values, base: Record) -> Gaps:
    """Return the paired differences of each metric."""
    return {m: paired_differences(m, "higher", values[m], base.result.per_prompt[m]) for m in METRICS}


def rerun(bench: Bench, block: int, base: Record, margins: dict[str, float]) -> tuple[str, Gaps]:
    """Run the cell again in batches of `block`, look by look, until the gate decides."""
    found, differences = "undecided", {}
    for look in LOOKS:
        values = bench.values(f"rerun {block}", bench.packed, look, block, rerun=True)
        differences = gaps(values, base)
        found = verdict(differences, margins)
        if found != "undecided":
            break
    return found, differences


def table(base: Record, noise: Record, bench: Bench) -> str:
    """Return the figures as Markdown."""
    floor = gaps(noise.result.per_prompt, base)
    margins = {m: noise_margin(m, floor[m]) for m in METRICS}
    rng = np.random.default_rng(SEED)
    null = resampled(floor, margins, PROMPTS, rng)
    rows = [_row("re-run, other batch size (resampled)", PROMPTS, floor, null)]
    reruns = [rerun(bench, block, base, margins) for block in RERUN_BLOCKS]
    pooled = {m: np.concatenate([differences[m] for _, differences in reruns]) for m in METRICS}
    verdicts = [found for found, _ in reruns]
    rows.append(_row("re-run, twenty batch sizes (real)", PROMPTS, pooled, verdicts))
    ends = Counter(len(differences[METRICS[0]]) for _, differences in reruns)
    for name, fault in FAULTS.items():
        values = bench.values(name, bench.damaged(fault), 64, BLOCK, rerun=False)
        damage = gaps(values, base)
        rows.append(_row(f"{name} (resampled)", 64, damage, resampled(damage, margins, 64, rng)))
    head = "| runs | N at most | mean PSNR change dB | times | pass | fail [95 %] | undecided | suspicious |"
    lines = [f"Margins: {', '.join(f'{m} {margins[m]:.3g}' for m in METRICS)}.", "", head, "| --- " * 8 + "|"]
    ended = ", ".join(f"{count} with {look}" for look, count in sorted(ends.items()))
    spread = float(np.sqrt(np.mean(pooled["psnr"] ** 2)))
    after = f"Real re-runs ended {ended} prompts; an image's PSNR differs by {spread:.2g} dB (RMS)."
    return "\n".join([*lines, *rows, "", after])


def _row(name: str, n: int, found: Gaps, verdicts: list[str]) -> str:
    total = len(verdicts)
    share, lo, hi = wilson_interval(verdicts.count("fail"), total)
    mean = f"{found['psnr'].mean():+.3f}"
    others = [f"{verdicts.count(kind) / total:.4f}" for kind in ("undecided", "suspicious")]
    rate = f"{share:.4f} [{lo:.4f}, {hi:.4f}]"
    passed = f"{verdicts.count('pass') / total:.4f}"
    return "| " + " | ".join([name, str(n), mean, str(total), passed, rate, *others]) + " |"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
