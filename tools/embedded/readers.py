"""Stages `reader`, `vae` and `recogniser`: networks trained on rendered scenes, without captions."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from embedded import parts
from embedded.checkpoint import Batches
from embedded.run import Run
from embedded.training import Recipe, optimise
from harness.datasets.scenes.recogniser import NO_OBJECT, Recogniser, recogniser_loss
from harness.datasets.scenes.render import SceneBatch, random_batch, render
from harness.datasets.scenes.world import GRID, MAX_OBJECTS

M = TypeVar("M")


def image_pool(run: Run, n: int, generator: torch.Generator) -> tuple[Tensor, SceneBatch]:
    """Render N random scenes once: uint8 [N, 3, 64, 64] on the device. Rendering each batch costs more."""
    made = random_batch(n, generator, run.device)
    rendered = [(render(made.part(at, at + 8192)) * 255 + 0.5).to(torch.uint8) for at in range(0, n, 8192)]
    return torch.cat(rendered), made


def cell_targets(batch: SceneBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """What the recogniser must say of each cell: shape [N, 9] and the attributes [N, 9]."""
    n, device = len(batch), batch.shape.device
    rows = torch.arange(n, device=device)[:, None].expand(n, MAX_OBJECTS)
    present = batch.shape >= 0

    def spread(values: Tensor, empty: int) -> Tensor:
        grid = torch.full((n, GRID * GRID), empty, device=device)
        grid[rows[present], batch.cell[present]] = values[present]
        return grid

    attributes = {name: spread(getattr(batch, name), 0) for name in ("colour", "texture", "size")}
    return spread(batch.shape, NO_OBJECT), attributes


def soften(images: Tensor, generator: torch.Generator) -> Tensor:
    """Noise, blur and a shift of brightness, so that reading survives a decoder's artefacts."""
    n, device = images.shape[0], images.device

    def uniform() -> Tensor:
        return torch.rand(n, 1, 1, 1, generator=generator, device=device)

    blurred = F.avg_pool2d(images, 3, 1, 1, count_include_pad=False)
    images = torch.lerp(images, blurred, uniform() * 0.6)
    noise = torch.randn(images.shape, generator=generator, device=device)
    return (images + noise * 0.06 * uniform() + (uniform() - 0.5) * 0.06).clamp(0, 1)


def channels_last(model: M, device: torch.device) -> M:
    """Move a model to a device, in the memory layout that convolutions run fastest in there."""
    # The annotations of `Module.to` leave out `memory_format` next to a device.
    moved: Any = model
    moved.to(device, memory_format=torch.channels_last)
    return model


def load_recogniser(run: Run, name: str = "recogniser") -> Recogniser:
    """Load a trained recogniser, float32."""
    model = Recogniser()
    state = load_file(run.out / f"{name}.safetensors")
    model.load_state_dict({key: value.float() for key, value in state.items()})
    return channels_last(model, run.device)


def load_vae(run: Run) -> Any:
    """Load the trained VAE, float32."""
    return AutoencoderKL.from_pretrained(run.out / "vae", torch_dtype=torch.float32).to(run.device)


def save_half(module: nn.Module, path: Path) -> None:
    """Write a module's weights as fp16 safetensors."""
    save_file({name: value.half().contiguous().cpu() for name, value in module.state_dict().items()}, path)


def half_through_vae(run: Run) -> Callable[[Tensor], Tensor]:
    """Return a function that passes the first half of images [N, 3, 64, 64] in 0..1 through the VAE."""
    vae = channels_last(load_vae(run), run.device)
    through = run.maybe_compile(lambda images: vae.decode(vae.encode(images * 2 - 1).latent_dist.mean).sample)

    def pass_half(images: Tensor) -> Tensor:
        half = len(images) // 2
        with torch.no_grad():
            decoded = through(images[:half]).float() / 2 + 0.5
        return torch.cat([decoded.clamp(0, 1), images[half:]])

    return pass_half


def train_recogniser(run: Run, name: str) -> None:
    """Stages `reader` and `recogniser`: cross-entropy on rendered scenes.

    `reader` sees rendered scenes only and guides the VAE; `recogniser` goes on from it, with half of each
    batch passed through the VAE, so that what a decoder does to an image is no surprise.
    """
    start, settings, generator = time.time(), run.settings, run.generator(1)
    model = channels_last(Recogniser(), run.device)
    disturb: Callable[[Tensor], Tensor] = nn.Identity()
    if name == "recogniser":
        model, disturb = load_recogniser(run, "reader"), half_through_vae(run)
    forward = run.maybe_compile(model)
    pool, drawn = image_pool(run, settings.pool, generator)
    shape, attributes = cell_targets(drawn)
    order = Batches(settings.pool, settings.recogniser_batch, 6, run.device)

    def loss() -> Tensor:
        rows = next(order)
        output = forward(soften(disturb(pool[rows].float() / 255), generator))
        chosen = {name: value[rows] for name, value in attributes.items()}
        return recogniser_loss(output, shape[rows], chosen, drawn.background[rows])

    recipe = Recipe(name, settings.limit(name), 2e-3 if name == "reader" else 1e-3, 0.998)
    done = optimise(run, recipe, [model], loss, [generator, order])
    save_half(model, run.out / f"{name}.safetensors")
    run.note_training(name, start, done)


def feature_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared distance of feature maps [N, C, h, w], each position's channels scaled to unit length."""
    a, b = (F.normalize(x.float(), dim=1) for x in (a, b))
    return (a - b).pow(2).sum(1).mean()


class Reconstruction:
    """Loss of the VAE: L1 + 2 MSE + the reader's feature distance + a small KL term."""

    def __init__(self, run: Run, vae: Any, generator: torch.Generator) -> None:
        self.encode, self.decode = run.maybe_compile(vae._encode), run.maybe_compile(vae._decode)
        self.read = run.maybe_compile(load_recogniser(run, "reader").requires_grad_(False))
        self.generator = generator

    def __call__(self, images: Tensor) -> Tensor:
        """Return the loss of images [N, 3, 64, 64] in -1..1."""
        mean, logvar = self.encode(images).chunk(2, dim=1)
        logvar = logvar.clamp(-20, 10)
        noise = torch.randn(mean.shape, generator=self.generator, device=images.device)
        decoded = self.decode(mean + noise * torch.exp(0.5 * logvar))
        decoded = decoded[0] if isinstance(decoded, tuple) else getattr(decoded, "sample", decoded)
        error: Tensor = decoded.float() - images
        divergence: Tensor = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        with torch.no_grad():
            wanted = self.read(images / 2 + 0.5).stages
        seen = self.read(decoded / 2 + 0.5).stages
        feature = sum((feature_distance(a, b) for a, b in zip(seen, wanted, strict=True)), torch.zeros(()))
        return error.abs().mean() + 2 * (error**2).mean() + 0.1 * feature + 2e-4 * divergence


def train_vae(run: Run) -> None:
    """Stage `vae`; the latent's deviation becomes the scaling factor."""
    start, settings, generator = time.time(), run.settings, run.generator(2)
    vae: Any = channels_last(parts.autoencoder(), run.device)
    reconstruction = Reconstruction(run, vae, generator)
    pool, drawn = image_pool(run, settings.pool, generator)
    order = Batches(settings.pool, settings.vae_batch, 7, run.device)

    def loss() -> Tensor:
        return reconstruction(pool[next(order)].float() / 127.5 - 1)

    recipe = Recipe("vae", settings.limit("vae"), 1.5e-3, 0.998)
    done = optimise(run, recipe, [vae], loss, [generator, order])
    latents = encode_all(run, vae, drawn.part(0, 8192))
    vae.register_to_config(scaling_factor=round(1 / latents.float().std().item(), 4))
    vae.half().save_pretrained(run.out / "vae")
    run.note_training("vae", start, {"scaling_factor": vae.config.scaling_factor} | done)


@torch.no_grad()
def encode_all(run: Run, vae: Any, batch: SceneBatch) -> Tensor:
    """Mean latents of rendered scenes, unscaled: float16 [N, 4, 16, 16]."""
    kept = []
    for at in range(0, len(batch), 8192):
        images = render(batch.part(at, at + 8192).to(run.device)) * 2 - 1
        with run.autocast():
            kept.append(vae.encode(images.to(memory_format=torch.channels_last)).latent_dist.mean.half())
    return torch.cat(kept)
