"""Stages `unet` and `dit`: text encoders and denoisers trained on cached latents."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import PixArtSigmaPipeline, StableDiffusionPipeline
from torch import Tensor, nn

from embedded import parts
from embedded.captions import captioned_scenes, scene_labels, tokenized
from embedded.checkpoint import Batches, Stream
from embedded.comprehension import Comprehension, noun_ids
from embedded.readers import channels_last, encode_all, load_vae
from embedded.run import Run
from embedded.training import Recipe, optimise

CAPTION_DROP = 0.1
COMPREHENSION = 0.02
MIN_SNR = 5.0
"""Loss weight min(SNR + 1, 5) / (SNR + 1) of the velocity, after Hang et al. 2023.

So an error of the image counts in full noise too, where the layout is decided.
"""


class Design(NamedTuple):
    """An untrained pipeline without its VAE."""

    tokenizer: Any
    denoiser: Any
    encoder: Any


class TrainingSet(NamedTuple):
    """What a denoiser is trained on, on the training device.

    Attributes:
        ids: int16 [N + 1, 48], captions; row 0 is the empty one, row i + 1 that of latent i.
        mask: bool [N + 1, 48], False at the padding.
        latents: float16 [N, 4, 16, 16], unscaled.
        labels: int64 [N, 3, 8], see `scene_labels`.
    """

    ids: Tensor
    mask: Tensor
    latents: Tensor
    labels: Tensor


def design(name: str) -> Design:
    """Return the untrained parts of `unet` or `dit`, always with the same weights."""
    torch.manual_seed(3)
    if name == "unet":
        clip = parts.clip_tokenizer()
        made = Design(clip, parts.unet(), parts.clip_text_encoder(clip))
    else:
        t5 = parts.t5_tokenizer()
        made = Design(t5, parts.dit(), parts.t5_text_encoder(t5))
    parts.check_tokenizer(made.tokenizer)
    return made


def trained_before(folder: Path, made: Design) -> Design:
    """Return the design with the weights of a saved pipeline."""
    part = "unet" if (folder / "unet").is_dir() else "transformer"
    denoiser = type(made.denoiser).from_pretrained(folder / part)
    encoder = type(made.encoder).from_pretrained(folder / "text_encoder")
    return made._replace(denoiser=denoiser, encoder=encoder)


def training_set(run: Run, tokenizer: Any, vae: Any) -> TrainingSet:
    """Caption, tokenize, render and encode the training scenes."""
    texts, scene_batch = captioned_scenes(run.settings.scenes)
    ids, mask = (part.to(run.device) for part in tokenized(tokenizer, ["", *texts]))
    return TrainingSet(ids, mask, encode_all(run, vae, scene_batch), scene_labels(scene_batch).to(run.device))


class Objective:
    """Losses of a text encoder and a denoiser; each call draws the next batch."""

    def __init__(self, run: Run, name: str, made: Design, data: TrainingSet, scale: float) -> None:
        self.name, self.data, self.scale, self.device = name, data, scale, run.device
        self.comprehend = Comprehension(name == "unet", noun_ids(made.tokenizer)).to(run.device)
        self.denoise, self.encode_text = run.maybe_compile(made.denoiser), run.maybe_compile(made.encoder)
        self.generator, n = run.generator(4), len(data.latents)
        self.order = Batches(n, min(run.settings.batch, n), 5, run.device)
        self.ramp = parts.cumulative_alphas().to(run.device)
        self.weight = (MIN_SNR * (1 - self.ramp)).clamp(max=1.0)

    def read_text(self, row: Tensor) -> Tensor:
        """Text states [N, 48, 128] of captions `row` [N]."""
        # Stable Diffusion hands its causal encoder no padding mask; PixArt masks the padding.
        extra = {} if self.name == "unet" else {"attention_mask": self.data.mask[row].long()}
        states: Tensor = self.encode_text(self.data.ids[row].long(), **extra).last_hidden_state
        return states

    def predict(self, noisy: Tensor, moment: Tensor, row: Tensor, states: Tensor) -> Tensor:
        """Velocity that the denoiser sees in `noisy` [N, 4, 16, 16] at timestep `moment` [N]."""
        if self.name == "unet":
            seen = self.denoise(noisy, moment, encoder_hidden_states=states, return_dict=False)
        else:
            seen = self.denoise(
                noisy, encoder_hidden_states=states, timestep=moment, return_dict=False,
                encoder_attention_mask=self.data.mask[row].float(),
                added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            )  # fmt: skip
        predicted: Tensor = seen[0]
        return predicted.float()

    def denoising_loss(self) -> Tensor:
        """Weighted velocity prediction, some captions dropped, and comprehension."""
        chosen, device = next(self.order), self.device
        clean = self.data.latents[chosen].float() * self.scale
        drop = torch.rand(len(chosen), generator=self.generator, device=device) < CAPTION_DROP
        row = torch.where(drop, 0, chosen + 1)
        moment = torch.randint(1000, (len(chosen),), generator=self.generator, device=device)
        noise = torch.randn(clean.shape, generator=self.generator, device=device)
        keep = self.ramp[moment][:, None, None, None]
        noisy = keep.sqrt() * clean + (1 - keep).sqrt() * noise
        velocity = keep.sqrt() * noise - (1 - keep).sqrt() * clean
        states = self.read_text(row)
        error = (self.predict(noisy, moment, row, states) - velocity).pow(2).mean((1, 2, 3))
        understood = self.reading(states, row, chosen, ~drop)
        return torch.mean(error * self.weight[moment]) + COMPREHENSION * understood

    def text_loss(self) -> Tensor:
        """Comprehension alone."""
        chosen = next(self.order)
        every = torch.ones(len(chosen), dtype=torch.bool, device=self.device)
        return self.reading(self.read_text(chosen + 1), chosen + 1, chosen, every)

    def reading(self, states: Tensor, row: Tensor, chosen: Tensor, use: Tensor) -> Tensor:
        """Loss of comprehension of captions `row` as the scenes `chosen`, where `use`; all [N]."""
        loss: Tensor = self.comprehend(states, self.data.ids[row].long(), self.data.labels[chosen], use)
        return loss


def train_denoiser(run: Run, name: str) -> None:
    """Train a pipeline by velocity prediction on cached latents and save it.

    The text encoder first learns to understand captions (`Comprehension`), then is trained along.
    """
    start, settings, rate = time.time(), run.settings, 1.2e-3
    made = design(name)
    vae = channels_last(load_vae(run), run.device)
    data = training_set(run, made.tokenizer, vae)
    print(f"{name}: data ready after {time.time() - start:.0f}s", flush=True)
    if run.start is not None:
        made, rate = trained_before(run.start / f"tiny-{name}", made), 0.7 * rate
    denoiser, encoder = made.denoiser.to(run.device).float(), made.encoder.to(run.device).float()
    if name == "unet":
        denoiser = channels_last(denoiser, run.device)
    made = made._replace(denoiser=denoiser.train(), encoder=encoder.train())
    objective = Objective(run, name, made, data, vae.config.scaling_factor)
    streams: list[Stream] = [objective.generator, objective.order]
    both = [encoder, objective.comprehend]

    text = Recipe(name, settings.limit("text"), 1e-3, 0.99, "text")
    optimise(run, text, both, objective.text_loss, streams)
    recipe = Recipe(name, settings.limit("denoiser"), rate, 0.9995)
    done = optimise(run, recipe, [denoiser, *both], objective.denoising_loss, streams)
    save_pipeline(run, name, made, vae)
    run.note_training(name, start, done)


def save_pipeline(run: Run, name: str, made: Design, vae: nn.Module) -> None:
    """Write a pipeline in diffusers format, fp16, without the VAE that both share."""
    pipeline: Any
    if name == "unet":
        pipeline = StableDiffusionPipeline(
            vae=vae, text_encoder=made.encoder, tokenizer=made.tokenizer, unet=made.denoiser,
            scheduler=parts.scheduler(), safety_checker=None, feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip
    else:
        pipeline = PixArtSigmaPipeline(
            tokenizer=made.tokenizer, text_encoder=made.encoder, vae=vae, transformer=made.denoiser,
            scheduler=parts.scheduler(),
        )  # fmt: skip
    folder = run.out / f"tiny-{name}"
    pipeline.to("cpu", torch.float16).save_pretrained(folder)
    for file in sorted((folder / "vae").iterdir()):
        file.unlink()
    (folder / "vae").rmdir()


def load_pipeline(run: Run, name: str) -> Any:
    """Load a trained pipeline with the shared VAE, float32."""
    kind: Any = StableDiffusionPipeline if name == "unet" else PixArtSigmaPipeline
    folder = run.out / f"tiny-{name}"
    pipeline = kind.from_pretrained(folder, vae=load_vae(run), torch_dtype=torch.float32).to(run.device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
