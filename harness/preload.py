"""What the fork server imports, so that a cell's process starts in milliseconds.

It must leave no threads behind (a forked process has only the thread that forked it) and no device context.
"""

from __future__ import annotations

import importlib
import os
import signal

# Ctrl-C reaches every process of the terminal; the runner is the one to act on it.
signal.signal(signal.SIGINT, signal.SIG_IGN)
# Its thread pool would not survive the fork; and the reduction must not depend on how many cores there are.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

MODULES = (
    "PIL.PngImagePlugin",
    "safetensors.torch",
    "harness.calibrate",
    "harness.cell",
    "harness.generate",
    "harness.kernels.checkpoint",
    "harness.kernels.ledger",
    "harness.measure.environment",
    "harness.measure.latency",
    "harness.measure.memory",
    "harness.methods.libraries",
    "harness.models.load",
    "harness.reduce",
)
CLASSES = {
    "diffusers": ("StableDiffusionPipeline", "PixArtSigmaPipeline", "DPMSolverMultistepScheduler"),
    "transformers": ("CLIPTextModel", "T5EncoderModel", "PreTrainedTokenizerFast"),
}


def preload() -> None:
    """Import everything a stage uses on the embedded models; other models import the rest themselves."""
    from harness.compat import ensure_torchvision, quiet_imports

    with quiet_imports():
        ensure_torchvision()
        for name in MODULES:
            importlib.import_module(name)
        for library, classes in CLASSES.items():
            for name in classes:
                getattr(importlib.import_module(library), name)
        from harness.methods import registry

        registry.load_plugins()
        # Made here it is inherited; made in a cell's process it would outlive that process's being killed.
        importlib.import_module("tqdm").tqdm.get_lock()


preload()
