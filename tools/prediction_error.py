"""Error of quantized denoisers on the reference's own trajectories, the quiet figure of docs/methods.md.

    python tools/prediction_error.py --methods ptq,nf4 --bits 2,3,4

Images are a loud measure of a method: a few prompts whose layout flips decide the mean. Here the quantized
denoiser is asked at the inputs that the 16-bit one met while sampling, and its guided prediction compared.
Printed per cell: 10 log10(|reference|^2 / |difference|^2) in dB, over all prompts and steps, and the
effective bits.
"""

from __future__ import annotations

import argparse
import copy
import math
from typing import Any

import torch
from torch import Tensor

from harness.calibrate import Calibration, record_calibration
from harness.datasets.contract import Prompt
from harness.datasets.registry import get as get_dataset
from harness.generate import sample
from harness.kernels.ledger import build_ledger
from harness.methods import registry as methods
from harness.methods.contract import QuantizeJob
from harness.models import registry as models
from harness.models.card import ModelCard
from harness.models.load import load_pipeline
from harness.models.locate import locate
from harness.models.roles import hidden_width, targets

CALIBRATION_PROMPTS, SEED = 16, 0


class Trajectories:
    """What the reference's denoiser was asked and answered while it sampled."""

    def __init__(self, pipeline: Any, card: ModelCard, prompts: list[Prompt]) -> None:
        self._scale = card.sampling.guidance
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any], Tensor]] = []
        denoiser = getattr(pipeline, card.denoiser)

        def keep(_module: Any, args: Any, kwargs: Any, output: Any) -> None:
            self._calls.append((args, kwargs, self._guided(output)))

        handle = denoiser.register_forward_hook(keep, with_kwargs=True)
        sample(pipeline, card, prompts, SEED + 1, "latent")
        handle.remove()

    def _guided(self, output: Any) -> Tensor:
        """Prediction with guidance: the batch holds the empty captions first, then the prompts."""
        plain, captioned = (output if isinstance(output, Tensor) else output[0]).double().chunk(2)
        return plain + self._scale * (captioned - plain)

    def decibels(self, denoiser: Any) -> float:
        """Signal to error of another denoiser's predictions, in dB."""
        error = signal = 0.0
        for args, kwargs, wanted in self._calls:
            error += float((self._guided(denoiser(*args, **kwargs)) - wanted).square().sum())
            signal += float(wanted.square().sum())
        return 10 * math.log10(signal / error)


def quantized(
    card: ModelCard, denoiser: Any, name: str, bits: int, stream: Calibration, settings: dict[str, str]
) -> tuple[Any, float]:
    """Return a quantized copy of a denoiser and its effective bits."""
    spec = methods.get(name)
    chosen = targets(card, denoiser, bits, 16 if spec.weight_only else 8)
    job = QuantizeJob(copy.deepcopy(denoiser), chosen, stream, hidden_width(denoiser), card.embedded, SEED)
    spec.quantize(job, methods.configure(name, settings))
    return job.denoiser, build_ledger(job.denoiser, chosen, job.notes).effective_bits


@torch.no_grad()
def main() -> None:
    """Print one line per model and width."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="tiny-dit,tiny-unet")
    parser.add_argument("--methods", default="ptq,nf4,svdquant,mpqdm,mpqdmv2")
    parser.add_argument("--bits", default="2,3,4")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--set", action="append", default=[], metavar="METHOD.KEY=VALUE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names, settings = options.methods.split(","), dict(pair.split("=") for pair in options.set)
    print("| | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    for model in options.models.split(","):
        card, scenes = models.get(model), get_dataset("scenes")
        pipeline = load_pipeline(card, locate(card, {}), "cpu", torch.float32)
        denoiser = getattr(pipeline, card.denoiser)
        trajectories = Trajectories(pipeline, card, scenes.prompts(options.prompts))
        layers = [target.name for target in targets(card, denoiser, 8, 8)]
        stream = record_calibration(pipeline, card, layers, scenes.calibration(CALIBRATION_PROMPTS), SEED)
        for bits in map(int, options.bits.split(",")):
            cells = []
            for name in names:
                mine = {k.partition(".")[2]: v for k, v in settings.items() if k.startswith(f"{name}.")}
                made, effective = quantized(card, denoiser, name, bits, stream, mine)
                cells.append(f"{trajectories.decibels(made):.2f} ({effective:.2f})")
            print(f"| {model} W{bits} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
