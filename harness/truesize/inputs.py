"""Random inputs of one denoiser call at native resolution, per family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.models.card import ModelCard
from harness.noise import hash_seed

SCHEDULE = 1000
"""Training steps of every schedule here; FLUX's timestep is a share of them."""


@dataclass(frozen=True)
class Scene:
    """What a call is made of.

    Attributes:
        config: the denoiser's config.
        batch: samples of the call.
        side: of the image in pixels; images are square.
        text_tokens: length of the caption.
        moment: the timestep as a share of the schedule, 0 to 1.
        draw: returns normal values of a shape, in the model's dtype and on its device.
    """

    config: Mapping[str, Any]
    batch: int
    side: int
    text_tokens: int
    moment: float
    draw: Callable[..., Tensor]

    def whole(self, value: int) -> Tensor:
        """Return `value` for every sample: int64 [batch]."""
        return torch.full((self.batch,), value, device=self.draw(1).device)

    def map(self, factor: int) -> Tensor:
        """Return latents of an autoencoder that shrinks by `factor`: [batch, channels, side, side]."""
        side = self.side // factor
        return self.draw(self.batch, self.config["in_channels"], side, side)


def denoiser_inputs(
    card: ModelCard,
    config: Mapping[str, Any],
    device: torch.device,
    dtype: torch.dtype,
    *,
    batch: int = 1,
    side: int | None = None,
    text_tokens: int | None = None,
    seed: int = 0,
    moment: float = 0.5,
) -> dict[str, Any]:
    """Return the keyword arguments of one call of the denoiser.

    Args:
        card: the model; its family and native resolution decide on the shapes.
        config: of the denoiser.
        device: where the tensors go.
        dtype: of the floating tensors.
        batch: samples of the call.
        side: image side in pixels; the card's by default.
        text_tokens: caption length; the pipeline's by default.
        seed: of the values.
        moment: timestep, as a share of the schedule.
    """
    generator = torch.Generator(device).manual_seed(hash_seed("inputs", seed, round(moment * 1e6)))

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    tokens = text_tokens or int(card.sampling.call.get("max_sequence_length", _CAPTION[card.family]))
    scene = Scene(config, batch, side or card.sampling.height, tokens, moment, draw)
    return _FAMILIES[card.family](scene)


def default_batch(card: ModelCard) -> int:
    """Samples of one step of one image: two with classifier-free guidance, which FLUX has distilled."""
    return 2 if card.sampling.guidance > 1 and card.family != "flux" else 1


def _flux(s: Scene) -> dict[str, Any]:
    side = s.side // 16
    rows = torch.arange(side * side, device=s.draw(1).device)
    places = torch.stack([torch.zeros_like(rows), rows // side, rows % side], dim=1).float()
    moment = s.draw(s.batch).fill_(s.moment)
    return {
        "hidden_states": s.draw(s.batch, side * side, s.config["in_channels"]),
        "encoder_hidden_states": s.draw(s.batch, s.text_tokens, s.config["joint_attention_dim"]),
        "pooled_projections": s.draw(s.batch, s.config["pooled_projection_dim"]),
        "timestep": moment,
        "guidance": torch.full_like(moment, 3.5) if s.config.get("guidance_embeds") else None,
        "img_ids": places,
        "txt_ids": torch.zeros(s.text_tokens, 3, device=places.device),
    }


def _pixart(s: Scene) -> dict[str, Any]:
    return {
        "hidden_states": s.map(8),
        "encoder_hidden_states": s.draw(s.batch, s.text_tokens, s.config["caption_channels"]),
        "encoder_attention_mask": s.whole(1)[:, None].expand(-1, s.text_tokens).to(s.draw(1).dtype),
        "timestep": s.whole(int(s.moment * SCHEDULE)),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def _sana(s: Scene) -> dict[str, Any]:
    return {
        "hidden_states": s.map(32),
        "encoder_hidden_states": s.draw(s.batch, s.text_tokens, s.config["caption_channels"]),
        "encoder_attention_mask": s.whole(1)[:, None].expand(-1, s.text_tokens).to(s.draw(1).dtype),
        "timestep": s.whole(int(s.moment * SCHEDULE)),
    }


def _dit(s: Scene) -> dict[str, Any]:
    return {
        "hidden_states": s.map(8),
        "timestep": s.whole(int(s.moment * SCHEDULE)),
        "class_labels": s.whole(s.config["num_embeds_ada_norm"] // 2),
    }


def _unet(s: Scene) -> dict[str, Any]:
    call = {
        "sample": s.map(8),
        "timestep": s.whole(int(s.moment * SCHEDULE)),
        "encoder_hidden_states": s.draw(s.batch, s.text_tokens, s.config["cross_attention_dim"]),
    }
    if s.config.get("addition_embed_type") == "text_time":
        sizes = 6 * s.config["addition_time_embed_dim"]
        pooled = s.config["projection_class_embeddings_input_dim"] - sizes
        times = torch.tensor([[s.side, s.side, 0, 0, s.side, s.side]] * s.batch)
        added = {"text_embeds": s.draw(s.batch, pooled), "time_ids": times.to(call["sample"])}
        return {**call, "added_cond_kwargs": added}
    return call


_FAMILIES: dict[str, Callable[[Scene], dict[str, Any]]] = {
    "flux": _flux,
    "pixart": _pixart,
    "sana": _sana,
    "dit": _dit,
    "sd-unet": _unet,
}
_CAPTION = {"flux": 512, "pixart": 300, "sana": 300, "dit": 1, "sd-unet": 77}
"""Caption tokens where the card's call names no length."""
