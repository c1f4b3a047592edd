"""One whole image: text encoders, every sampling step, autoencoder; resident, or off-loaded in turns.

All networks are built from their configs with random weights, so the image shows noise; what is measured is
time and memory. Off-loading keeps every network in host memory and moves it to the device for its turn.
"""

from __future__ import annotations

import gc
import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from harness.kernels.ties import tie_siblings
from harness.models.card import ModelCard
from harness.truesize.inputs import denoiser_inputs

_CLIP_L: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "eos_token_id": 49407,
}
_CLIP_G: dict[str, Any] = {
    **_CLIP_L,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "projection_dim": 1280,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
}
_T5_XXL: dict[str, Any] = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
_GEMMA_2B: dict[str, Any] = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
}
_VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 1024,
}
_FLUX_VAE = {**_VAE, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
_DC_AE: dict[str, Any] = {
    "in_channels": 3,
    "latent_channels": 32,
    "attention_head_dim": 32,
    "encoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
    "decoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
    "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "decoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
    "decoder_layers_per_block": [3, 3, 3, 3, 3, 3],
    "encoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "decoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "upsample_block_type": "interpolate",
}

Encoder = tuple[str, str, Mapping[str, Any]]
"""Class and config class in transformers, and the config's values."""


@dataclass(frozen=True)
class Companions:
    """The networks beside a denoiser, and its scheduler.

    Attributes:
        encoders: of the caption.
        vae: class in diffusers and config.
        scheduler: class in diffusers and settings.
    """

    encoders: tuple[Encoder, ...]
    vae: tuple[str, Mapping[str, Any]]
    scheduler: tuple[str, Mapping[str, Any]]


_CLIP: Encoder = ("CLIPTextModel", "CLIPTextConfig", _CLIP_L)
_T5: Encoder = ("T5EncoderModel", "T5Config", _T5_XXL)
_KL = "AutoencoderKL"
_FLOW = "FlowMatchEulerDiscreteScheduler"
_SCALED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
_SDXL = Companions(
    (_CLIP, ("CLIPTextModelWithProjection", "CLIPTextConfig", _CLIP_G)),
    (_KL, {**_VAE, "scaling_factor": 0.13025}),
    ("EulerDiscreteScheduler", {**_SCALED, "timestep_spacing": "leading"}),
)
_SD = Companions((_CLIP,), (_KL, _VAE), ("PNDMScheduler", {**_SCALED, "skip_prk_steps": True}))
COMPANIONS: dict[str, Companions] = {
    "flux.1-dev": Companions(
        (_CLIP, _T5), (_KL, _FLUX_VAE), (_FLOW, {"shift": 3.0, "use_dynamic_shifting": True})
    ),
    "flux.1-schnell": Companions((_CLIP, _T5), (_KL, _FLUX_VAE), (_FLOW, {"shift": 1.0})),
    "pixart-sigma": Companions(
        (_T5,), (_KL, {**_VAE, "scaling_factor": 0.13025}), ("DPMSolverMultistepScheduler", {})
    ),
    "sana-1.6b": Companions(
        (("Gemma2Model", "Gemma2Config", _GEMMA_2B),),
        ("AutoencoderDC", _DC_AE),
        (
            "DPMSolverMultistepScheduler",
            {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
        ),
    ),
    "sdxl": _SDXL,
    "sdxl-turbo": _SDXL,
    "sd-1.4": _SD,
    "sd-1.5": _SD,
    "dit-xl-2": Companions((), (_KL, _VAE), ("DDIMScheduler", {})),
}
"""By the name of the model's card, at their true sizes."""


@dataclass(frozen=True)
class ImageSeen:
    """One image.

    Attributes:
        ms: from the caption to the pixels, moves between host and device included.
        stages_ms: of which captions, sampling, decoding.
        peak_bytes: most the allocator held; 0 on the CPU.
        steps: sampling steps.
        finite: whether all pixels are finite numbers.
    """

    ms: float
    stages_ms: dict[str, float]
    peak_bytes: int
    steps: int
    finite: bool


def make_image(
    denoiser: Any,
    companions: Companions,
    card: ModelCard,
    device: torch.device,
    dtype: torch.dtype,
    *,
    offload: bool,
    side: int | None = None,
    text_tokens: int | None = None,
    steps: int | None = None,
) -> ImageSeen:
    """Make one image after a warm-up of one step, and measure it.

    Args:
        denoiser: on the device; off-loading leaves it on the host.
        companions: networks beside it, built here at random.
        card: the model, with its steps and guidance.
        device: where the networks run.
        dtype: of their floating tensors.
        offload: keep each network on the host but for its turn.
        side: image side in pixels; the card's by default.
        text_tokens: caption length; the pipeline's by default.
        steps: sampling steps; the card's by default.
    """
    home = torch.device("cpu") if offload else device
    with torch.no_grad():
        encoders, vae = _networks(companions, device, home, dtype)
        if offload:
            _move(denoiser, home)
        run = _Run(denoiser, encoders, vae, companions, card, device, dtype, side, text_tokens, offload)
        run.image(1)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        return run.image(steps or card.sampling.steps)


@dataclass
class _Run:
    denoiser: Any
    encoders: list[nn.Module]
    vae: Any
    companions: Companions
    card: ModelCard
    device: torch.device
    dtype: torch.dtype
    side: int | None
    text_tokens: int | None
    offload: bool

    def image(self, steps: int) -> ImageSeen:
        stages: dict[str, float] = {}
        texts = self._timed(stages, "text", self._encode)
        latents = self._timed(stages, "sample", lambda: self._sample(texts, steps))
        pixels = self._timed(stages, "decode", lambda: self._decode(latents))
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0
        return ImageSeen(sum(stages.values()), stages, peak, steps, bool(torch.isfinite(pixels).all()))

    def _timed(self, stages: dict[str, float], name: str, work: Callable[[], Any]) -> Any:
        self._wait()
        started = time.perf_counter()
        result = work()
        self._wait()
        stages[name] = (time.perf_counter() - started) * 1e3
        return result

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _turn(self, network: nn.Module, work: Callable[[], Any]) -> Any:
        """Run `work` with `network` on the device."""
        if not self.offload:
            return work()
        _move(network, self.device)
        result = work()
        _move(network, torch.device("cpu"))
        return result

    def _inputs(self, batch: int) -> dict[str, Any]:
        shape: dict[str, Any] = {"batch": batch, "side": self.side, "text_tokens": self.text_tokens}
        return denoiser_inputs(self.card, self.denoiser.config, self.device, self.dtype, **shape)

    def _guided(self) -> bool:
        return self.card.family != "flux" and self.card.sampling.guidance > 1

    def _encode(self) -> dict[str, Tensor]:
        """Run the text encoders on random words; what fits goes to the denoiser."""
        inputs = self._inputs(2 if self._guided() else 1)
        found: list[Any] = []
        states: Any = inputs.get("encoder_hidden_states")
        words = torch.Generator(self.device).manual_seed(0)
        for encoder in self.encoders:
            config: Any = encoder.config
            clip = "CLIP" in type(encoder).__name__
            shape = (len(states), config.max_position_embeddings if clip else states.shape[1])
            ids = torch.randint(min(config.vocab_size, 1000), shape, device=self.device, generator=words)
            found.append(self._turn(encoder, partial(encoder, ids, output_hidden_states=True)))
        return _texts(self.card.family, found, inputs)

    def _sample(self, texts: dict[str, Tensor], steps: int) -> Tensor:
        latents: Tensor = self._turn(self.denoiser, lambda: self._steps(texts, steps))
        return latents

    def _steps(self, texts: dict[str, Tensor], steps: int) -> Tensor:
        inputs = {**self._inputs(2 if self._guided() else 1), **texts}
        key = "sample" if "sample" in inputs else "hidden_states"
        x: Tensor = inputs[key][:1]
        scheduler = _scheduler(self.companions, steps, x, self.device)
        timestep = inputs["timestep"]
        for t in scheduler.timesteps:
            seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            inputs[key] = torch.cat([seen, seen]) if self._guided() else seen
            inputs["timestep"] = (t / self.card.timestep_unit).to(timestep).expand_as(timestep)
            out = self.denoiser(**inputs)[0]
            if out.dim() == 4 and out.shape[1] == 2 * x.shape[1]:  # the other half is the spread
                out = out.chunk(2, dim=1)[0]
            if self._guided():
                plain, told = out.chunk(2)
                out = plain + self.card.sampling.guidance * (told - plain)
            x = scheduler.step(out, t, x)[0].to(self.dtype)
        return x

    def _decode(self, latents: Tensor) -> Tensor:
        if latents.dim() == 3:
            side = (self.side or self.card.sampling.height) // 16
            maps = latents.view(1, side, side, -1, 2, 2).permute(0, 3, 1, 4, 2, 5)
            latents = maps.reshape(1, -1, 2 * side, 2 * side)
        scaled = latents / float(self.vae.config.scaling_factor)
        pixels: Tensor = self._turn(self.vae, lambda: self.vae.decode(scaled)[0])
        return pixels


def _texts(family: str, found: list[Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    if family == "flux":
        return {"pooled_projections": found[0].pooler_output, "encoder_hidden_states": found[1][0]}
    if family == "sd-unet" and len(found) > 1:
        states = torch.cat([out.hidden_states[-2] for out in found], dim=-1)
        added = {**inputs["added_cond_kwargs"], "text_embeds": found[1].text_embeds}
        return {"encoder_hidden_states": states, "added_cond_kwargs": added}
    return {"encoder_hidden_states": found[0][0]} if found else {}


def _scheduler(companions: Companions, steps: int, x: Tensor, device: torch.device) -> Any:
    name, settings = companions.scheduler
    scheduler = getattr(importlib.import_module("diffusers"), name)(**settings)
    if not settings.get("use_dynamic_shifting"):
        scheduler.set_timesteps(steps, device=device)
        return scheduler
    # FLUX's shift: linear in the number of tokens, 0.5 at 256 and 1.15 at 4,096.
    mu = 0.5 + (1.15 - 0.5) * (x.shape[1] - 256) / (4096 - 256)
    scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)], device=device, mu=mu)
    return scheduler


def _networks(
    companions: Companions, device: torch.device, home: torch.device, dtype: torch.dtype
) -> tuple[list[nn.Module], Any]:
    """Build the encoders and the autoencoder on the device, one after the other, and put them home."""
    transformers, diffusers = (importlib.import_module(name) for name in ("transformers", "diffusers"))
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            encoders = [
                getattr(transformers, name)(getattr(transformers, config)(**values)).eval().to(home)
                for name, config, values in companions.encoders
            ]
            vae = getattr(diffusers, companions.vae[0])(**companions.vae[1]).eval().to(home)
    finally:
        torch.set_default_dtype(before)
    return encoders, vae


def _move(network: nn.Module, device: torch.device) -> None:
    network.to(device)
    tie_siblings(network)
