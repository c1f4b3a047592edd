"""Puts trained models into the package and draws what docs/embedded.md shows of their training."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from harness.datasets.scenes.prompts import Scenes
from harness.datasets.scenes.render import batch_scenes, render
from harness.datasets.scenes.world import scenes
from harness.generate import generate_block
from harness.models import registry
from harness.models.load import load_pipeline
from harness.models.locate import locate

ROOT = Path(__file__).resolve().parents[2]
EMBEDDED = ROOT / "harness" / "models" / "embedded"
ASSETS = ROOT / "datasets" / "scenes" / "assets"
PICTURES = ROOT / "docs" / "images"
CURVES = ("reader", "vae", "recogniser", "unet", "dit")


def copy_models(trained: Path) -> None:
    """Replace the shipped folders and files by trained ones."""
    for name in ("tiny-unet", "tiny-dit", "vae"):
        shutil.rmtree(EMBEDDED / name, ignore_errors=True)
        shutil.copytree(trained / name, EMBEDDED / name)
    ASSETS.mkdir(parents=True, exist_ok=True)
    for name in ("recogniser", "reference"):
        shutil.copy(trained / f"{name}.safetensors", ASSETS / f"{name}.safetensors")


def write_sums() -> int:
    """Write SHA256SUMS (as `sha256sum -c` reads it, from the project's root); return the bytes covered."""
    files = [path for folder in (EMBEDDED, ASSETS) for path in folder.rglob("*") if path.is_file()]
    files = sorted(path for path in files if path.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(ROOT)}" for path in files]
    (EMBEDDED / "SHA256SUMS").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return sum(path.stat().st_size for path in files)


def draw_losses(trained: Path) -> None:
    """Loss curves of every stage."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(11, 2.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, stage in zip(figure.subplots(1, len(CURVES)), CURVES, strict=True):
        done: dict[str, Any] = json.loads((trained / f"{stage}.json").read_text())
        axes.plot(np.arange(len(done["loss"])) * done["loss_every"], done["loss"], linewidth=0.8)
        axes.set(title=f"{stage}, {done['seconds']:.0f} s", yscale="log", xlabel="step")
        axes.grid(alpha=0.3)
    figure.savefig(PICTURES / "embedded-loss.png", dpi=110)


def montage(images: np.ndarray, columns: int) -> np.ndarray:
    """Lay uint8 images [N, H, W, 3] out in rows, with a thin white gap."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
    n, height, width, _ = padded.shape
    rows = padded.reshape(n // columns, columns, height, width, 3)
    return np.asarray(rows.transpose(0, 2, 1, 3, 4).reshape(n // columns * height, columns * width, 3))


def draw_samples(count: int = 24, columns: int = 12) -> None:
    """Rendered scenes, and each model's images of the first held-out captions."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    prompts = Scenes().prompts(count)
    drawn = [scene for scene, _ in zip(scenes("scene", held_out=True), range(count), strict=False)]
    real = (render(batch_scenes(drawn, "sample")).permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    parts = [("rendered", real)]
    for name in registry.names():
        card = registry.get(name)
        if card.embedded:
            pipeline = load_pipeline(card, locate(card, {}), "cpu", torch.float32)
            parts.append((name, generate_block(pipeline, card, prompts, 0)))
    for name, images in parts:
        picture = Image.fromarray(montage(images, columns))
        picture = picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.NEAREST)
        picture.save(PICTURES / f"embedded-{name}.png", optimize=True)
