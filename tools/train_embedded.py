"""Train the embedded models from nothing: recogniser, VAE, latent UNet and DiT.

    python tools/train_embedded.py --out train-out                 # all stages, one GPU
    python tools/train_embedded.py --out train-out --stages vae    # one stage

A stage whose result lies in --out is skipped, and an interrupted stage goes on from its last checkpoint: the
same command continues an interrupted training.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from embedded.denoisers import train_denoiser
from embedded.figures import measure_denoiser, measure_readers, write_reference
from embedded.readers import train_recogniser, train_vae
from embedded.run import SMOKE, Run, Settings


class Stage(NamedTuple):
    """What trains and saves a stage's weights, and what measures them afterwards.

    `measured` is one of the figures that `measure` returns.
    """

    train: Callable[[Run], None]
    measure: Callable[[Run], dict[str, Any]] | None = None
    measured: str = ""


STAGES = {
    "reader": Stage(partial(train_recogniser, name="reader")),
    "vae": Stage(train_vae),
    "recogniser": Stage(partial(train_recogniser, name="recogniser")),
    "reference": Stage(write_reference, measure_readers, "recogniser_rendered"),
    "unet": Stage(partial(train_denoiser, name="unet"), partial(measure_denoiser, name="unet"), "accuracy"),
    "dit": Stage(partial(train_denoiser, name="dit"), partial(measure_denoiser, name="dit"), "accuracy"),
}


def run_stage(run: Run, name: str) -> None:
    """Train a stage unless its weights are there, and measure them unless that is noted.

    The weights and their note are on disk before anything is measured.
    """
    stage, begun = STAGES[name], time.time()
    figures = run.noted(name)
    if figures is not None and (stage.measure is None or stage.measured in figures):
        print(f"{name}: done before")
        return
    if figures is None:
        stage.train(run)
    run.drop_checkpoints(name)
    figures = run.noted(name) or {}
    if stage.measure is not None and stage.measured not in figures:
        measuring = time.time()
        figures |= stage.measure(run)
        run.note(name, figures | {"seconds": round(figures["seconds"] + time.time() - measuring, 1)})
    print(f"{name}: {time.time() - begun:.0f}s", flush=True)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--start", type=Path, help="folder of pipelines to go on from instead of nothing")
    parser.add_argument("--smoke", action="store_true", help="a few steps of everything, to try the script")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=NUMBER", help="override a setting"
    )
    return parser.parse_args()


def main() -> None:
    """Run the stages asked for, skipping finished ones."""
    options = parse()
    changes = {key: int(value) for key, value in (pair.split("=") for pair in options.set)}
    settings = Settings(**(vars(SMOKE if options.smoke else Settings()) | changes))
    device = torch.device(options.device)
    run = Run(options.out, settings, device, device.type == "cuda", options.start)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    for name in options.stages.split(","):
        run_stage(run, name)


if __name__ == "__main__":
    main()
