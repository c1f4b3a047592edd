"""Output errors of quantized layers, on inputs that the method has not seen.

    python tools/layer_errors.py --methods svdquant:ablation --bits w4a4 --set svdquant.rank=32

Of every target layer the squared error of its output relative to the output itself, on inputs recorded while
the 16-bit model drew other prompts than those calibrated on. Printed per variant: the mean over the layers,
the same relative to the first variant, and on how many layers the variant is better than the one before it.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from harness.bits import parse_bits
from harness.calibrate import Calibration, record_calibration
from harness.datasets.registry import get as get_dataset
from harness.methods import registry as methods
from harness.methods.contract import LayerTarget, QuantizeJob
from harness.models import registry as models
from harness.models.card import ModelCard
from harness.models.load import load_pipeline
from harness.models.locate import locate
from harness.models.roles import hidden_width, targets
from harness.project import variant_of

PROMPTS, SEED = 16, 0


def relative_errors(
    reference: nn.Module, quantized: nn.Module, wanted: tuple[LayerTarget, ...], inputs: Calibration
) -> Tensor:
    """Return the squared output error of every layer over its squared output: float64 [layers]."""
    found = []
    for target in wanted:
        x = inputs.samples(target.name)
        exact = reference.get_submodule(target.name)(x).double()
        error = quantized.get_submodule(target.name)(x).double() - exact
        found.append(error.square().sum() / exact.square().sum())
    return torch.stack(found)


def members(text: str, settings: Mapping[str, str]) -> list[tuple[str, dict[str, str]]]:
    """Return the method and the settings of each variant of `NAME` or `NAME:SET`."""
    name, _, label = text.partition(":")
    own = {key.partition(".")[2]: value for key, value in settings.items() if key.startswith(f"{name}.")}
    sets: tuple[Mapping[str, str], ...] = methods.variants(name, label) if label else ({},)
    return [(name, {**own, **member}) for member in sets]


def title(name: str, settings: Mapping[str, str]) -> str:
    """Return a method and what differs from its defaults."""
    config, defaults = (asdict(methods.configure(name, given)) for given in (settings, {}))
    return f"{name} {variant_of({k: v for k, v in config.items() if v != defaults[k]})}"


def recorded(pipeline: Any, card: ModelCard, layers: list[str]) -> tuple[Calibration, Calibration]:
    """Return the inputs to calibrate on and those to judge by."""
    scenes = get_dataset("scenes")
    sets = (scenes.calibration(PROMPTS), scenes.prompts(PROMPTS))
    calibrated, judged = (record_calibration(pipeline, card, layers, list(s), SEED) for s in sets)
    return calibrated, judged


@torch.no_grad()
def main() -> None:
    """Print one line per model, width and variant."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="tiny-dit,tiny-unet")
    parser.add_argument("--methods", default="svdquant:ablation")
    parser.add_argument("--bits", default="w4a4")
    parser.add_argument("--set", action="append", default=[], metavar="METHOD.KEY=VALUE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = dict(pair.split("=", 1) for pair in options.set)
    variants = [member for text in options.methods.split(",") for member in members(text, settings)]
    print("| model | bits | variant | relative error | to the first | better layers |\n" + "|---" * 6 + "|")
    for model in options.models.split(","):
        card = models.get(model)
        pipeline = load_pipeline(card, locate(card, {}), "cpu", torch.float32)
        denoiser = getattr(pipeline, card.denoiser)
        stream, judged = recorded(pipeline, card, [t.name for t in targets(card, denoiser, 8, 8)])
        for bits in parse_bits(options.bits):
            errors: list[Tensor] = []
            wanted = targets(card, denoiser, bits.weight, bits.act)
            low = tuple(target for target in wanted if target.w_bits < 8)
            for name, own in variants:
                job = QuantizeJob(
                    copy.deepcopy(denoiser), wanted, stream, hidden_width(denoiser), card.embedded, SEED
                )
                methods.get(name).quantize(job, methods.configure(name, own))
                errors.append(relative_errors(denoiser, job.denoiser, low, judged))
                last = errors[-2] if len(errors) > 1 else errors[0]
                share = f"{int((errors[-1] < last).sum())}/{len(low)}" if len(errors) > 1 else "–"
                ratio = float(errors[-1].mean() / errors[0].mean())
                figures = f"{float(errors[-1].mean()):.5f} | {ratio:.3f} | {share}"
                print(f"| {model} | {bits} | {title(name, own)} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
