"""Train the embedded models from nothing: recogniser, VAE, latent UNet and DiT.

    python tools/train_embedded.py --out train-out                 # all stages, one GPU
    python tools/train_embedded.py --out train-out --stages vae    # one stage

A stage whose result lies in --out is skipped, so an interrupted training goes on with the next stage.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from harness.compat import ensure_torchvision

ensure_torchvision()

import embedded_parts as parts  # noqa: E402
from diffusers import AutoencoderKL, PixArtSigmaPipeline, StableDiffusionPipeline  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from harness.datasets.scenes import recogniser as reading  # noqa: E402
from harness.datasets.scenes.grammar import caption  # noqa: E402
from harness.datasets.scenes.prompts import Scenes  # noqa: E402
from harness.datasets.scenes.render import SceneBatch, batch_scenes, random_batch, render  # noqa: E402
from harness.datasets.scenes.world import (  # noqa: E402
    COLOURS,
    GRID,
    MAX_OBJECTS,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    scenes,
)

GUIDANCE, STEPS = 3.0, 10
CAPTION_DROP = 0.1
COMPREHENSION = 0.02
MIN_SNR = 5.0
"""Loss weight min(SNR, 5) / SNR (Hang et al. 2023): layout, which relations live in, is decided at high noise."""


class Limit(NamedTuple):
    """How long a stage may optimise: at most `steps`, and no longer than `seconds`.

    `settle` steps are let pass before, and as many used for, timing a step.
    """

    steps: int
    seconds: float
    settle: int = 100


@dataclass(frozen=True)
class Settings:
    """Sizes and lengths; everything that decides the result besides the code."""

    pool: int = 500_000
    reader_steps: int = 8000
    reader_seconds: int = 35
    recogniser_steps: int = 8000
    recogniser_seconds: int = 45
    recogniser_batch: int = 512
    vae_steps: int = 12_000
    vae_seconds: int = 180
    vae_batch: int = 256
    scenes: int = 700_000
    batch: int = 768
    text_steps: int = 800
    text_seconds: int = 40
    denoiser_steps: int = 40_000
    denoiser_seconds: int = 370
    reference: int = 20_480
    evaluated: int = 512

    def limit(self, stage: str) -> Limit:
        """Return the limit of a stage."""
        return Limit(getattr(self, f"{stage}_steps"), getattr(self, f"{stage}_seconds"))


SMOKE = Settings(64, 4, 60, 4, 60, 8, 4, 60, 4, 64, 8, 4, 60, 4, 60, 64, 4)


@dataclass(frozen=True)
class Run:
    """One invocation."""

    out: Path
    settings: Settings
    device: torch.device
    compile: bool
    start: Path | None = None

    @property
    def on_gpu(self) -> bool:
        """Whether training runs on a GPU."""
        return self.device.type == "cuda"

    def autocast(self) -> torch.autocast:
        """bfloat16 where a GPU runs it."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.on_gpu)

    def maybe_compile(self, function: Any) -> Any:
        """Compile on a GPU."""
        return torch.compile(function) if self.compile else function


class Ema:
    """Exponential moving average of the parameters, with a warm-up of its decay."""

    def __init__(self, modules: list[nn.Module], decay: float) -> None:
        self.live = [p for m in modules for p in m.parameters()]
        self.shadow = [p.detach().clone() for p in self.live]
        self.decay, self.count = decay, 0

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the live parameters."""
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        torch._foreach_lerp_(self.shadow, self.live, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange live and averaged values."""
        for live, shadow in zip(self.live, self.shadow, strict=True):
            keep = live.detach().clone()
            live.copy_(shadow)
            shadow.copy_(keep)


def optimise(
    run: Run,
    name: str,
    modules: list[nn.Module],
    limit: Limit,
    rate: float,
    decay: float,
    loss: Callable[[], Tensor],
) -> dict[str, Any]:
    """AdamW with warm-up and cosine decay; leaves the averaged weights in `modules`.

    The number of steps is settled once compilation is over, from the time that some steps took; it is
    returned with the loss curve, so that the same training can be asked for again exactly.
    """
    parameters = [p for m in modules for p in m.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.01, fused=run.on_gpu)
    ema, losses, start, settled, steps = Ema(modules, decay), [], time.time(), 0.0, limit.steps
    for step in count():
        if step == limit.settle:
            settled = time.time()
        if step == 2 * limit.settle:
            left = limit.seconds - (time.time() - start)
            steps = min(steps, step + int(left / max((time.time() - settled) / limit.settle, 1e-6)))
        if step >= steps:
            break
        for group in optimiser.param_groups:
            group["lr"] = rate * min((step + 1) / 200, 0.5 * (1 + math.cos(math.pi * step / steps)) + 1e-3)
        with run.autocast():
            value = loss()
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        ema.update()
        if step % 50 == 0:
            losses.append(value.detach())
            if step % 500 == 0 or step == 300:
                print(f"{name} {step}/{steps} loss {value.item():.5f} {time.time() - start:.0f}s", flush=True)
    ema.swap()
    return {"steps": steps, "loss_every": 50, "loss": [round(v.item(), 5) for v in losses]}


def note(run: Run, stage: str, start: float, **figures: Any) -> None:
    """Write what a stage did."""
    figures = {"seconds": round(time.time() - start, 1), "device": device_name(run)} | figures
    (run.out / f"{stage}.json").write_text(json.dumps(figures))


def device_name(run: Run) -> str:
    """Name of the training device."""
    return torch.cuda.get_device_name(run.device) if run.on_gpu else "cpu"


def image_pool(run: Run, n: int, generator: torch.Generator) -> tuple[Tensor, SceneBatch]:
    """Render N random scenes once: uint8 [N, 3, 64, 64] on the device. Rendering each batch would cost more."""
    made = random_batch(n, generator, run.device)
    parts_ = [(render(made.part(at, at + 8192)) * 255 + 0.5).to(torch.uint8) for at in range(0, n, 8192)]
    return torch.cat(parts_), made


# ---------------------------------------------------------------- recogniser


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
    return spread(batch.shape, reading.NO_OBJECT), attributes


def soften(images: Tensor, generator: torch.Generator) -> Tensor:
    """Noise, blur and a shift of brightness, so that reading survives a decoder's artefacts."""
    n, device = images.shape[0], images.device

    def uniform() -> Tensor:
        return torch.rand(n, 1, 1, 1, generator=generator, device=device)

    blurred = torch.nn.functional.avg_pool2d(images, 3, 1, 1, count_include_pad=False)
    images = torch.lerp(images, blurred, uniform() * 0.6)
    noise = torch.randn(images.shape, generator=generator, device=device)
    return (images + noise * 0.06 * uniform() + (uniform() - 0.5) * 0.06).clamp(0, 1)


def load_recogniser(run: Run, name: str = "recogniser") -> reading.Recogniser:
    """Load a trained recogniser, float32."""
    model = reading.Recogniser()
    state = load_file(run.out / f"{name}.safetensors")
    model.load_state_dict({key: value.float() for key, value in state.items()})
    return model.to(run.device, memory_format=torch.channels_last)


def train_recogniser(run: Run, name: str) -> None:
    """Stages `reader` and `recogniser`: cross-entropy on rendered scenes.

    `reader` sees rendered scenes only and guides the VAE; `recogniser` goes on from it, with half of each
    batch passed through the VAE, so that what a decoder does to an image is no surprise.
    """
    start, settings = time.time(), run.settings
    generator = torch.Generator(run.device).manual_seed(1)
    model = reading.Recogniser().to(run.device, memory_format=torch.channels_last)
    through: Callable[[Tensor], Tensor] | None = None
    if name == "recogniser":
        model = load_recogniser(run, "reader")
        vae = AutoencoderKL.from_pretrained(run.out / "vae").to(run.device, memory_format=torch.channels_last)
        through = run.maybe_compile(lambda images: vae.decode(vae.encode(images * 2 - 1).latent_dist.mean).sample)
    forward = run.maybe_compile(model)

    pool, drawn = image_pool(run, settings.pool, generator)
    shape, attributes = cell_targets(drawn)
    order = batches(settings.pool, settings.recogniser_batch, 6, run.device)

    def loss() -> Tensor:
        rows = next(order)
        images = pool[rows].float() / 255
        if through is not None:
            half = len(rows) // 2
            with torch.no_grad():
                decoded = through(images[:half]).float() / 2 + 0.5
            images = torch.cat([decoded.clamp(0, 1), images[half:]])
        output = forward(soften(images, generator))
        chosen = {name: value[rows] for name, value in attributes.items()}
        return reading.recogniser_loss(output, shape[rows], chosen, drawn.background[rows])

    rate = 2e-3 if name == "reader" else 1e-3
    done = optimise(run, name, [model], settings.limit(name), rate, 0.998, loss)
    save_half(model, run.out / f"{name}.safetensors")
    note(run, name, start, **done)


def save_half(module: nn.Module, path: Path) -> None:
    """Write a module's weights as fp16 safetensors."""
    save_file({name: value.half().contiguous().cpu() for name, value in module.state_dict().items()}, path)


# ---------------------------------------------------------------- VAE


def feature_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared distance of feature maps [N, C, h, w], each position's channels scaled to unit length."""
    a, b = (torch.nn.functional.normalize(x.float(), dim=1) for x in (a, b))
    return (a - b).pow(2).sum(1).mean()


def train_vae(run: Run) -> None:
    """Stage `vae`: L1 + 2 MSE + the reader's feature distance + a small KL term.

    The latent's deviation becomes the scaling factor.
    """
    start, settings = time.time(), run.settings
    generator = torch.Generator(run.device).manual_seed(2)
    vae = parts.autoencoder().to(run.device, memory_format=torch.channels_last)
    encode, decode = run.maybe_compile(vae._encode), run.maybe_compile(vae._decode)
    reader = load_recogniser(run, "reader").requires_grad_(False)
    read = run.maybe_compile(reader)

    pool, drawn = image_pool(run, settings.pool, generator)
    order = batches(settings.pool, settings.vae_batch, 7, run.device)

    def loss() -> Tensor:
        images = pool[next(order)].float() / 127.5 - 1
        mean, logvar = encode(images).chunk(2, dim=1)
        logvar = logvar.clamp(-20, 10)
        noise = torch.randn(mean.shape, generator=generator, device=run.device)
        decoded = decode(mean + noise * torch.exp(0.5 * logvar))
        decoded = decoded[0] if isinstance(decoded, tuple) else getattr(decoded, "sample", decoded)
        error = decoded.float() - images
        divergence = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        with torch.no_grad():
            wanted = read(images / 2 + 0.5).stages
        seen = read(decoded / 2 + 0.5).stages
        feature = sum((feature_distance(a, b) for a, b in zip(seen, wanted, strict=True)), torch.zeros(()))
        return error.abs().mean() + 2 * (error**2).mean() + 0.1 * feature + 2e-4 * divergence

    done = optimise(run, "vae", [vae], settings.limit("vae"), 1.5e-3, 0.998, loss)
    latents = encode_all(run, vae, drawn.part(0, 8192))
    vae.register_to_config(scaling_factor=round(1 / latents.float().std().item(), 4))
    vae.half().save_pretrained(run.out / "vae")
    note(run, "vae", start, scaling_factor=vae.config.scaling_factor, **done)


@torch.no_grad()
def encode_all(run: Run, vae: AutoencoderKL, batch: SceneBatch) -> Tensor:
    """Mean latents of rendered scenes, unscaled: float16 [N, 4, 16, 16]."""
    kept = []
    for at in range(0, len(batch), 8192):
        images = render(batch.part(at, at + 8192).to(run.device)) * 2 - 1
        with run.autocast():
            kept.append(vae.encode(images.to(memory_format=torch.channels_last)).latent_dist.mean.half())
    return torch.cat(kept)


# ---------------------------------------------------------------- denoisers


def _captioned(job: tuple[str, int]) -> tuple[list[str], dict[str, np.ndarray]]:
    """Scenes of the training split and their captions, for one worker."""
    seed, count = job
    phrasing = random.Random(f"{seed} phrasing")
    drawn = [scene for scene, _ in zip(scenes(seed, held_out=False), range(count), strict=False)]
    columns = vars(batch_scenes(drawn, f"{seed} jitter"))
    return [caption(scene, phrasing) for scene in drawn], {
        name: value.numpy() for name, value in columns.items()
    }


def captioned_scenes(count: int) -> tuple[list[str], SceneBatch]:
    """Training captions and scenes, made by all cores; the same whatever their number."""
    jobs = [(f"train-{i}", min(4000, count - at)) for i, at in enumerate(range(0, count, 4000))]
    with multiprocessing.get_context("fork").Pool(initializer=torch.set_num_threads, initargs=(1,)) as pool:
        made = pool.map(_captioned, jobs, chunksize=1)
    texts = [text for part, _ in made for text in part]
    columns = {name: np.concatenate([columns[name] for _, columns in made]) for name in made[0][1]}
    return texts, SceneBatch(**{name: torch.from_numpy(value) for name, value in columns.items()})


class Comprehension(nn.Module):
    """Auxiliary head that reads the scene from three text states, one per object.

    Which object a caption places where depends on the order of mention and on the relation word together;
    a denoiser's loss alone finds that combination only after a long plateau. A text encoder that must say it
    in its states hands it to the denoiser. Used in training only.
    """

    def __init__(self, causal: bool, nouns: list[int]) -> None:
        super().__init__()
        self.causal, self.nouns = causal, nouns
        self.sizes = (len(SHAPES) + 1, len(COLOURS), len(TEXTURES), len(SIZES), len(RELATIONS))
        self.head = nn.Linear(parts.TEXT_WIDTH, sum(self.sizes))

    def slots(self, ids: Tensor) -> Tensor:
        """Positions [N, 3] of the states that stand for the objects.

        A causal encoder knows all of the caption only behind its end: the last three of the padding. Others
        use the objects' nouns, in order of mention.
        """
        if self.causal:
            last = torch.arange(ids.shape[1] - MAX_OBJECTS, ids.shape[1], device=ids.device)
            return last.expand(len(ids), -1)
        noun = torch.isin(ids, torch.tensor(self.nouns, device=ids.device))
        rank = torch.where(noun, noun.int().cumsum(1), 0)
        return torch.stack([(rank == k + 1).int().argmax(1) for k in range(MAX_OBJECTS)], 1)

    def forward(self, states: Tensor, ids: Tensor, labels: Tensor, use: Tensor) -> Tensor:
        """Loss of reading `labels` int64 [N, 3, 4 + 4] (attributes, then relations 0/1), where `use` [N]."""
        chosen = states.gather(1, self.slots(ids)[..., None].expand(-1, -1, states.shape[-1]))
        shape, colour, texture, size, relation = self.head(chosen).float().split(self.sizes, -1)
        present = (labels[..., 0] != len(SHAPES)) & use[:, None]
        counted = use[:, None].expand_as(present) if self.causal else present
        loss = torch.nn.functional.cross_entropy(shape[counted], labels[..., 0][counted])
        for index, logits in enumerate((colour, texture, size), 1):
            loss = loss + torch.nn.functional.cross_entropy(logits[present], labels[..., index][present])
        wanted = labels[..., 4:].float()
        return loss + 4 * torch.nn.functional.binary_cross_entropy_with_logits(relation[present], wanted[present])


def scene_labels(batch: SceneBatch) -> Tensor:
    """What `Comprehension` reads: int64 [N, 3, 8]; relations are those to the object a caption names."""
    row, column, there = batch.cell // GRID, batch.cell % GRID, batch.shape >= 0

    def relation(i: int, j: int) -> Tensor:
        same_row, same_column = row[:, i] == row[:, j], column[:, i] == column[:, j]
        stated = [
            same_row & (column[:, i] < column[:, j]), same_row & (column[:, i] > column[:, j]),
            same_column & (row[:, i] < row[:, j]), same_column & (row[:, i] > row[:, j]),
        ]  # fmt: skip
        return torch.stack(stated, 1) & (there[:, i] & there[:, j])[:, None]

    relations = torch.stack([relation(0, 1), relation(1, 0) | relation(1, 2), relation(2, 1)], 1).long()
    shape = torch.where(there, batch.shape, len(SHAPES))
    attributes = torch.stack([shape, batch.colour, batch.texture, batch.size], -1)
    return torch.cat([attributes, relations], -1)


def batches(n: int, size: int, seed: int, device: torch.device) -> Iterator[Tensor]:
    """Yield index batches, reshuffled each epoch."""
    generator = torch.Generator(device).manual_seed(seed)
    while True:
        order = torch.randperm(n, generator=generator, device=device)
        yield from order[: n - n % size].split(size)


def train_denoiser(run: Run, name: str) -> None:
    """Stages `unet` and `dit`: noise prediction on cached latents.

    The text encoder first learns to understand captions (`Comprehension`), then is trained along.
    """
    start, settings = time.time(), run.settings
    torch.manual_seed(3)
    if name == "unet":
        tokenizer, denoiser, rate = parts.clip_tokenizer(), parts.unet(), 1.2e-3
        encoder: nn.Module = parts.clip_text_encoder(tokenizer)
    else:
        tokenizer, denoiser, rate = parts.t5_tokenizer(), parts.dit(), 1.2e-3
        encoder = parts.t5_text_encoder(tokenizer)
    parts.check_tokenizer(tokenizer)
    texts, scene_batch = captioned_scenes(settings.scenes)
    padding = {"padding": "max_length", "truncation": True, "return_tensors": "np"}
    encoded = tokenizer(["", *texts], **padding)
    ids = torch.from_numpy(encoded.input_ids.astype(np.int16)).to(run.device)
    mask = torch.from_numpy(encoded.attention_mask.astype(np.bool_)).to(run.device)
    vae = AutoencoderKL.from_pretrained(run.out / "vae").to(run.device, memory_format=torch.channels_last)
    latents = encode_all(run, vae, scene_batch)
    print(f"{name}: data ready after {time.time() - start:.0f}s", flush=True)

    if run.start is not None:
        rate *= 0.7
        folder = run.start / f"tiny-{name}"
        denoiser = type(denoiser).from_pretrained(folder / ("unet" if name == "unet" else "transformer"))
        encoder = type(encoder).from_pretrained(folder / "text_encoder")
    denoiser, encoder = denoiser.to(run.device).float().train(), encoder.to(run.device).float().train()
    if name == "unet":
        denoiser = denoiser.to(memory_format=torch.channels_last)
    nouns = [tokenizer.convert_tokens_to_ids(tokenizer.tokenize(shape)[-1]) for shape in SHAPES]
    comprehend = Comprehension(name == "unet", nouns).to(run.device)
    labels = scene_labels(scene_batch).to(run.device)
    forward, encode_text = run.maybe_compile(denoiser), run.maybe_compile(encoder)
    generator = torch.Generator(run.device).manual_seed(4)
    order = batches(len(texts), min(settings.batch, len(texts)), 5, run.device)
    ramp = parts.scheduler().alphas_cumprod.to(run.device)
    weight = (MIN_SNR * (1 - ramp) / ramp).clamp(max=1.0)

    def read_text(row: Tensor) -> Tensor:
        # Stable Diffusion hands its causal encoder no padding mask; PixArt masks the padding.
        extra = {} if name == "unet" else {"attention_mask": mask[row].long()}
        return encode_text(ids[row].long(), **extra).last_hidden_state

    def loss() -> Tensor:
        chosen = next(order)
        clean = latents[chosen].float() * vae.config.scaling_factor
        drop = torch.rand(len(chosen), generator=generator, device=run.device) < CAPTION_DROP
        row = torch.where(drop, 0, chosen + 1)
        moment = (1000 * torch.rand(len(chosen), generator=generator, device=run.device) ** 0.75).long()
        noise = torch.randn(clean.shape, generator=generator, device=run.device)
        keep = ramp[moment][:, None, None, None]
        noisy = keep.sqrt() * clean + (1 - keep).sqrt() * noise
        states = read_text(row)
        if name == "unet":
            predicted = forward(noisy, moment, encoder_hidden_states=states, return_dict=False)[0]
        else:
            predicted = forward(
                noisy, encoder_hidden_states=states, timestep=moment, encoder_attention_mask=mask[row].float(),
                added_cond_kwargs={"resolution": None, "aspect_ratio": None}, return_dict=False,
            )[0]  # fmt: skip
        error = (predicted.float() - noise).pow(2).mean((1, 2, 3))
        understood = comprehend(states, ids[row].long(), labels[chosen], ~drop)
        return (error * weight[moment]).mean() + COMPREHENSION * understood

    def text_loss() -> Tensor:
        chosen = next(order)
        states = read_text(chosen + 1)
        every = torch.ones(len(chosen), dtype=torch.bool, device=run.device)
        return comprehend(states, ids[chosen + 1].long(), labels[chosen], every)

    optimise(run, f"{name} text", [encoder, comprehend], settings.limit("text"), 1e-3, 0.99, text_loss)
    done = optimise(run, name, [denoiser, encoder, comprehend], settings.limit("denoiser"), rate, 0.9995, loss)
    save_pipeline(run, name, denoiser, encoder, tokenizer, vae)
    note(
        run, name, start, **done, accuracy={str(g): accuracy(run, name, g) for g in (2.0, GUIDANCE, 4.0)}
    )


def save_pipeline(
    run: Run, name: str, denoiser: nn.Module, encoder: nn.Module, tokenizer: Any, vae: Any
) -> None:
    """Write a pipeline in diffusers format, fp16, without the VAE that both share."""
    scheduler = parts.scheduler()
    pipeline: Any
    if name == "unet":
        pipeline = StableDiffusionPipeline(
            vae=vae, text_encoder=encoder, tokenizer=tokenizer, unet=denoiser, scheduler=scheduler,
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
    else:
        pipeline = PixArtSigmaPipeline(
            tokenizer=tokenizer, text_encoder=encoder, vae=vae, transformer=denoiser, scheduler=scheduler
        )
    folder = run.out / f"tiny-{name}"
    pipeline.to("cpu", torch.float16).save_pretrained(folder)
    for file in sorted((folder / "vae").iterdir()):
        file.unlink()
    (folder / "vae").rmdir()


def load_pipeline(run: Run, name: str) -> Any:
    """Load a trained pipeline with the shared VAE, float32."""
    cls = StableDiffusionPipeline if name == "unet" else PixArtSigmaPipeline
    vae = AutoencoderKL.from_pretrained(run.out / "vae", torch_dtype=torch.float32)
    pipeline = cls.from_pretrained(run.out / f"tiny-{name}", vae=vae, torch_dtype=torch.float32).to(
        run.device
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def accuracy(run: Run, name: str, guidance: float = GUIDANCE) -> dict[str, float]:
    """Prompt accuracy on held-out captions at the default sampling, part by part."""
    recogniser = load_recogniser(run)
    pipeline, prompts = load_pipeline(run, name), Scenes().prompts(run.settings.evaluated)
    extra = {
        "use_resolution_binning": False,
        "clean_caption": False,
        "max_sequence_length": parts.TEXT_LENGTH,
    }
    verdicts = []
    for at in range(0, len(prompts), 128):
        part = prompts[at : at + 128]
        images = pipeline(
            [prompt.text for prompt in part], num_inference_steps=STEPS, guidance_scale=guidance, height=64, width=64,
            generator=[torch.Generator().manual_seed(at + i) for i in range(len(part))], output_type="pt",
            **(extra if name == "dit" else {}),
        ).images  # fmt: skip
        seen = recogniser(images.float())
        verdicts += [reading.examine(seen, i, prompt.facts) for i, prompt in enumerate(part)]
    n = len(verdicts)
    figures = {
        "right": sum(v.right for v in verdicts) / n,
        "objects": sum(v.objects for v in verdicts) / n,
        "relations_given_objects": sum(v.relations for v in verdicts)
        / max(sum(v.objects for v in verdicts), 1),
        "background": sum(v.background for v in verdicts) / n,
    }
    for count in range(1, MAX_OBJECTS + 1):
        chosen = [v.right for v, p in zip(verdicts, prompts, strict=True) if len(p.facts["objects"]) == count]
        figures[f"right_with_{count}"] = sum(chosen) / max(len(chosen), 1)
    print(name, guidance, figures, flush=True)
    return figures


# ---------------------------------------------------------------- figures


@torch.no_grad()
def measure_readers(run: Run) -> dict[str, float]:
    """Recogniser accuracy on rendered held-out scenes, and the VAE's PSNR and readability on them."""
    recogniser = load_recogniser(run)
    vae = AutoencoderKL.from_pretrained(run.out / "vae", torch_dtype=torch.float32).to(run.device)
    drawn = [
        scene for scene, _ in zip(scenes("check", True), range(4 * run.settings.evaluated), strict=False)
    ]
    batch, psnr, read, reread = batch_scenes(drawn, "check jitter"), [], [], []
    for at in range(0, len(drawn), 256):
        images = render(batch.part(at, at + 256).to(run.device))
        decoded = vae.decode(vae.encode(images * 2 - 1).latent_dist.mean).sample.clamp(-1, 1) / 2 + 0.5
        psnr += (-10 * torch.log10(((decoded - images) ** 2).mean((1, 2, 3)))).tolist()
        for images_seen, kept in ((images, read), (decoded, reread)):
            seen = recogniser(images_seen)
            part = drawn[at : at + 256]
            kept += [reading.examine(seen, i, scene.facts()).right for i, scene in enumerate(part)]
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
    """Stage `reference`: features of rendered held-out scenes, and each one's distance to its third neighbour."""
    start = time.time()
    recogniser = load_recogniser(run)
    count = run.settings.reference
    drawn = [scene for scene, _ in zip(scenes("reference", True), range(count), strict=False)]
    batch = batch_scenes(drawn, "reference jitter")
    features = torch.cat(
        [recogniser(render(batch.part(at, at + 512).to(run.device))).features for at in range(0, count, 512)]
    ).half()
    radii = reading.neighbour_radii(features.float())
    state = {"features": features.cpu(), "radii": radii.cpu()}
    save_file(state, run.out / "reference.safetensors")
    note(run, "reference", start, **measure_readers(run))


STAGES: dict[str, Callable[[Run], None]] = {
    "reader": lambda run: train_recogniser(run, "reader"),
    "vae": train_vae,
    "recogniser": lambda run: train_recogniser(run, "recogniser"),
    "reference": write_reference,
    "unet": lambda run: train_denoiser(run, "unet"),
    "dit": lambda run: train_denoiser(run, "dit"),
}


def main() -> None:
    """Run the stages asked for, skipping finished ones."""
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
    options = parser.parse_args()
    changes = {key: int(value) for key, value in (pair.split("=") for pair in options.set)}
    settings = Settings(**(vars(SMOKE if options.smoke else Settings()) | changes))
    device = torch.device(options.device)
    run = Run(options.out, settings, device, device.type == "cuda", options.start)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    for stage in options.stages.split(","):
        if (options.out / f"{stage}.json").exists():
            print(f"{stage}: done before")
            continue
        begun = time.time()
        STAGES[stage](run)
        print(f"{stage}: {time.time() - begun:.0f}s", flush=True)


if __name__ == "__main__":
    main()
