"""What the trained models can do, and the statistics of rendered scenes that ship with the recogniser."""

from __future__ import annotations

import time
from itertools import islice
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from embedded import parts
from embedded.denoisers import load_pipeline
from embedded.readers import load_recogniser, load_vae
from embedded.run import Run
from harness.datasets.contract import Prompt
from harness.datasets.scenes.prompts import Scenes
from harness.datasets.scenes.recogniser import Verdict, examine, neighbour_radii
from harness.datasets.scenes.render import batch_scenes, render
from harness.datasets.scenes.world import MAX_OBJECTS, scenes

GUIDANCES, STEPS = (2.0, 3.0, 4.0), 10


def sample(pipeline: Any, name: str, prompts: list[Prompt], seed: int, guidance: float) -> Tensor:
    """Generate one image of each prompt, float32 [N, 3, 64, 64] in 0..1; image i from seed + i."""
    extra: dict[str, Any] = {}
    if name == "dit":
        extra = {
            "use_resolution_binning": False,
            "clean_caption": False,
            "max_sequence_length": parts.TEXT_LENGTH,
        }
    images: Tensor = pipeline(
        [prompt.text for prompt in prompts],
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        height=64,
        width=64,
        generator=[torch.Generator().manual_seed(seed + i) for i in range(len(prompts))],
        output_type="pt",
        **extra,
    ).images
    return images.float()


def shares(verdicts: list[Verdict], prompts: list[Prompt]) -> dict[str, float]:
    """Shares of right images, part by part and by the number of objects."""
    n = len(verdicts)
    objects = sum(v.objects for v in verdicts)
    figures = {
        "right": sum(v.right for v in verdicts) / n,
        "objects": objects / n,
        "relations_given_objects": sum(v.relations for v in verdicts) / max(objects, 1),
        "background": sum(v.background for v in verdicts) / n,
    }
    for number in range(1, MAX_OBJECTS + 1):
        chosen = [
            v.right for v, p in zip(verdicts, prompts, strict=True) if len(p.facts["objects"]) == number
        ]
        figures[f"right_with_{number}"] = sum(chosen) / max(len(chosen), 1)
    return figures


@torch.no_grad()
def accuracy(run: Run, name: str, guidance: float) -> dict[str, float]:
    """Prompt accuracy on held-out captions at the default number of steps, part by part."""
    recogniser, pipeline = load_recogniser(run), load_pipeline(run, name)
    prompts = Scenes().prompts(run.settings.evaluated)
    verdicts = []
    for at in range(0, len(prompts), 128):
        part = prompts[at : at + 128]
        seen = recogniser(sample(pipeline, name, part, at, guidance))
        verdicts += [examine(seen, i, prompt.facts) for i, prompt in enumerate(part)]
    figures = shares(verdicts, prompts)
    print(name, guidance, figures, flush=True)
    return figures


def measure_denoiser(run: Run, name: str) -> dict[str, Any]:
    """Prompt accuracy at several guidance scales."""
    return {"accuracy": {str(guidance): accuracy(run, name, guidance) for guidance in GUIDANCES}}


@torch.no_grad()
def measure_readers(run: Run) -> dict[str, Any]:
    """Recogniser accuracy on rendered held-out scenes, and the VAE's PSNR and readability on them."""
    recogniser, vae = load_recogniser(run), load_vae(run)
    drawn = list(islice(scenes("check", held_out=True), 4 * run.settings.evaluated))
    batch = batch_scenes(drawn, "check jitter")
    psnr: list[float] = []
    read: list[bool] = []
    reread: list[bool] = []
    for at in range(0, len(drawn), 256):
        images = render(batch.part(at, at + 256).to(run.device))
        decoded = vae.decode(vae.encode(images * 2 - 1).latent_dist.mean).sample.clamp(-1, 1) / 2 + 0.5
        psnr += (-10 * torch.log10(((decoded - images) ** 2).mean((1, 2, 3)))).tolist()
        for images_seen, kept in ((images, read), (decoded, reread)):
            seen, part = recogniser(images_seen), drawn[at : at + 256]
            kept += [examine(seen, i, scene.facts()).right for i, scene in enumerate(part)]
    figures = {
        "recogniser_rendered": float(np.mean(read)),
        "recogniser_reconstructed": float(np.mean(reread)),
        "vae_psnr_db": float(np.mean(psnr)),
        "scenes": len(drawn),
    }
    print(figures, flush=True)
    return figures


@torch.no_grad()
def write_reference(run: Run) -> None:
    """Stage `reference`: features of rendered held-out scenes and distances to the third neighbour."""
    start = time.time()
    recogniser = load_recogniser(run)
    count = run.settings.reference
    batch = batch_scenes(list(islice(scenes("reference", held_out=True), count)), "reference jitter")
    features = torch.cat(
        [recogniser(render(batch.part(at, at + 512).to(run.device))).features for at in range(0, count, 512)]
    ).half()
    radii = neighbour_radii(features.float())
    state = {"features": features.cpu(), "radii": radii.cpu()}
    save_file(state, run.out / "reference.safetensors")
    run.note_training("reference", start, {})
