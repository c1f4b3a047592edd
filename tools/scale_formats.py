"""What group scales of two levels cost, layer by layer: the tables of docs/numerics.md.

    python tools/scale_formats.py
    python tools/scale_formats.py --run RUN

For every format of group scales and every layer of the models that a policy quantizes, signal to error,
10 log10(|float|^2 / |difference|^2): of the weight alone in groups of 64; of the recorded inputs in groups of
64 channels (linear layers); and of the output of the packed layer that `svdquant` makes. Inputs and outputs
are those of prompts the calibration has not seen. Printed per model: the mean over the layers with `float`
scales, and for the others what the mean layer and the worst one lose against it, in dB. With `--run`, the
PSNR of the images of a run of `svdquant:scales`, and what an image loses against that of the same prompt with
`float` scales: means with 95 % intervals.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.bits import parse_bits
from harness.calibrate import Calibration, record_calibration
from harness.datasets.registry import get as get_dataset
from harness.kernels.activations import ActQuantizer
from harness.kernels.quantizers.scales import SCALE_FORMATS
from harness.kernels.quantizers.uniform import dequantize_uniform, quantize_uniform
from harness.methods import registry as methods
from harness.methods.contract import LayerTarget, QuantizeJob
from harness.methods.layers import weight_matrix
from harness.models import registry as models
from harness.models.load import load_pipeline
from harness.models.locate import locate
from harness.models.roles import hidden_width, targets
from harness.reports.record import read_records
from harness.reports.statistics.comparisons import paired_t
from harness.reports.statistics.intervals import Interval, t_interval

PROMPTS, SEED, GROUP = 16, 0, 64

Losses = Callable[[str], dict[str, float]]
"""Signal to error of every layer, for a format."""


def decibels(wanted: Tensor, got: Tensor) -> float:
    """Signal to error in dB."""
    error = float((wanted - got).double().square().sum())
    return 10 * math.log10(float(wanted.double().square().sum()) / error)


class Model:
    """A denoiser, inputs to calibrate on, and inputs to judge by."""

    def __init__(self, name: str) -> None:
        self.card = models.get(name)
        scenes = get_dataset("scenes")
        pipeline = load_pipeline(self.card, locate(self.card, {}), "cpu", torch.float32)
        self.denoiser = getattr(pipeline, self.card.denoiser)
        names = [target.name for target in targets(self.card, self.denoiser, 4, 4)]
        self.seen, self.fresh = (
            record_calibration(pipeline, self.card, names, prompts, seed)
            for prompts, seed in ((scenes.calibration(PROMPTS), SEED), (scenes.prompts(PROMPTS), SEED + 1))
        )

    def targets(self, w_bits: int, a_bits: int) -> list[LayerTarget]:
        """Return the layers of fewer than 8 bits, which have groups."""
        chosen = targets(self.card, self.denoiser, w_bits, a_bits)
        return [target for target in chosen if target.w_bits < 8]

    def weights(self, bits: int, scales: Any) -> dict[str, float]:
        """Return the signal to error of the weights in groups, on svdquant's grid and range at this width."""
        config: Any = methods.configure("svdquant", {})
        grid, ranges, found = config.residual_grid(bits), config.residual_range(bits), {}
        for target in self.targets(bits, 4):
            matrix = weight_matrix(self.denoiser.get_submodule(target.name))
            codes = quantize_uniform(matrix, bits, grid=grid, group=GROUP, ranges=ranges, scale_format=scales)
            found[target.name] = decibels(matrix, dequantize_uniform(codes, bits, grid=grid, group=GROUP))
        return found

    def inputs(self, bits: int, scales: Any) -> dict[str, float]:
        """Return the signal to error of the inputs of linear layers in groups of their channels."""
        act = ActQuantizer(bits, "group", symmetric=True, group=GROUP, scale_format=scales)
        linear = [t.name for t in self.targets(4, bits) if t.kind == "linear"]
        return {name: decibels(self.fresh.samples(name), act(self.fresh.samples(name))) for name in linear}

    def outputs(self, w_bits: int, a_bits: int, scales: str) -> dict[str, float]:
        """Return the signal to error of the layers that svdquant makes, without their biases."""
        chosen = tuple(self.targets(w_bits, a_bits))
        job = QuantizeJob(
            copy.deepcopy(self.denoiser), chosen, self.seen, hidden_width(self.denoiser), self.card.embedded
        )
        methods.get("svdquant").quantize(job, methods.configure("svdquant", {"scales": scales}))
        return {t.name: self._output(t, job.denoiser, self.fresh) for t in chosen}

    def _output(self, target: LayerTarget, quantized: nn.Module, stream: Calibration) -> float:
        x = stream.samples(target.name)
        layer, packed = self.denoiser.get_submodule(target.name), quantized.get_submodule(target.name)
        silent = layer(torch.zeros_like(x[:1]))
        return decibels(layer(x) - silent, packed(x) - silent)


def interval(found: Interval) -> str:
    """Return a mean and its interval."""
    if found.value is None or found.lo is None or found.hi is None:
        raise SystemExit("too few images for an interval")
    return f"{found.value:.2f} [{found.lo:.2f}, {found.hi:.2f}]"


def images(run: Path) -> None:
    """Print PSNR and paired losses of a run of `svdquant:scales`."""
    cells: dict[tuple[str, int, int], dict[str, list[float | None]]] = {}
    for record in read_records(run):
        identity = record.identity
        if identity.method == "svdquant" and "psnr" in record.result.per_prompt:
            cell = cells.setdefault((identity.model, identity.wbits, identity.abits), {})
            cell[identity.config["scales"]] = record.result.per_prompt["psnr"]
    print("| | float | integer | e8m0 | integer loses | e8m0 loses |\n|---|---|---|---|---|---|")
    for (model, wbits, abits), found in sorted(cells.items()):
        if set(found) != set(SCALE_FORMATS):
            continue
        means = [interval(t_interval(found[scales])) for scales in SCALE_FORMATS]
        losses = [interval(paired_t(found["float"], found[scales])) for scales in SCALE_FORMATS[1:]]
        print(f"| {model} W{wbits}A{abits} | " + " | ".join([*means, *losses]) + " |")


def line(what: str, measure: Losses) -> str:
    """Return one row of the table."""
    plain = measure("float")
    cells = [f"{sum(plain.values()) / len(plain):.2f}"]
    for scales in SCALE_FORMATS[1:]:
        found = measure(scales)
        lost = [plain[name] - found[name] for name in plain]
        cells.append(f"{sum(lost) / len(lost):.2f} ({max(lost):.2f})")
    return f"| {what} | {len(plain)} | " + " | ".join(cells) + " |"


@torch.no_grad()
def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="tiny-dit,tiny-unet")
    parser.add_argument("--bits", default="w4a4,w4a8,w3a8,w2a8", help="of the outputs")
    parser.add_argument("--run", type=Path, help="print the image table of this run folder instead")
    options = parser.parse_args()
    if options.run:
        images(options.run)
        return
    torch.set_num_threads(1)
    print("| | layers | float | integer loses (worst) | e8m0 loses (worst) |\n|---|---|---|---|---|")
    for name in options.models.split(","):
        model = Model(name)
        for bits in (4, 3, 2):
            print(line(f"{name}, weights, {bits} bits", partial(model.weights, bits)), flush=True)
        print(line(f"{name}, inputs, 4 bits", partial(model.inputs, 4)), flush=True)
        for asked in parse_bits(options.bits):
            measure = partial(model.outputs, asked.weight, asked.act)
            print(line(f"{name}, outputs, {asked}", measure), flush=True)


if __name__ == "__main__":
    main()
