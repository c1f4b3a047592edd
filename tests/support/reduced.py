"""Random pipelines of every published class at reduced size, saved as diffusers folders."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pipelines
import torch
from pipelines import TEXT_LENGTH, TEXT_WIDTH, diffusers, transformers

from harness.models.card import ModelCard
from harness.models.registry import get

for _name in (
    "FluxPipeline",
    "PixArtSigmaPipeline",
    "SanaPipeline",
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "DiTPipeline",
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "PNDMScheduler",
):  # once, in whatever imports this: the processes of a run are forked from one that has
    getattr(diffusers, _name)
importlib.import_module("harness.models.latent_diffusion")

SIDE = 32
STEPS = 2
CALLS = {
    "flux.1-dev": {"max_sequence_length": TEXT_LENGTH},
    "pixart-sigma": {
        "max_sequence_length": TEXT_LENGTH,
        "use_resolution_binning": False,
        "clean_caption": False,
    },
    "sana-1.6b": {
        "max_sequence_length": TEXT_LENGTH,
        "use_resolution_binning": False,
        "clean_caption": False,
        "complex_human_instruction": None,
    },
}


def reduced_card(name: str) -> ModelCard:
    """The card of published model `name` with sampling for its reduced pipeline."""
    card = get(name)
    call = CALLS.get(name, card.sampling.call)
    return replace(card, sampling=replace(card.sampling, steps=STEPS, height=SIDE, width=SIDE, call=call))


def _clip_projection() -> tuple[Any, Any]:
    tokenizer, plain = pipelines._clip()
    plain.config.projection_dim = TEXT_WIDTH
    return tokenizer, transformers.CLIPTextModelWithProjection(plain.config)


def _gemma() -> tuple[Any, Any]:
    letters = "abcdefghijklmnopqrstuvwxyz "
    vocab = {token: i for i, token in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "▁", *letters])}
    tokenizer = transformers.GemmaTokenizer(vocab=vocab, merges=[])
    config = transformers.Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    return tokenizer, transformers.Gemma2Model(config)


def _flux_vae() -> Any:
    return diffusers.AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.1,
        scaling_factor=0.4,
    )


def flux_transformer() -> Any:
    """Two double and two single blocks of width 32, 4 latent channels, with guidance embedding."""
    return diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )


def _flux() -> Any:
    tokenizer, encoder = pipelines._clip()
    tokenizer_2, encoder_2 = pipelines._t5()
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=_flux_vae(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        text_encoder_2=encoder_2,
        tokenizer_2=tokenizer_2,
        transformer=flux_transformer(),
    )


def _pixart() -> Any:
    tokenizer, encoder = pipelines._t5()
    return diffusers.PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=pipelines._vae(),
        transformer=pipelines.tiny_dit(),
        scheduler=pipelines._scheduler(),
    )


def sana_transformer() -> Any:
    """Two blocks of linear attention, width 32."""
    return diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=TEXT_WIDTH,
        sample_size=8,
    )


def _sana() -> Any:
    tokenizer, encoder = _gemma()
    vae = diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 8, 16),
        decoder_block_out_channels=(8, 8, 16),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        scaling_factor=0.4,
    )
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return diffusers.SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=vae,
        transformer=sana_transformer(),
        scheduler=scheduler,
    )


def sdxl_unet() -> Any:
    """Two resolutions, transformers of one and two blocks, added text and size embedding."""
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        cross_attention_dim=2 * TEXT_WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=TEXT_WIDTH + 6 * 8,
        norm_num_groups=8,
    )


def _sdxl() -> Any:
    tokenizer, encoder = pipelines._clip()
    tokenizer_2, encoder_2 = _clip_projection()
    return diffusers.StableDiffusionXLPipeline(
        vae=pipelines._vae(),
        text_encoder=encoder,
        text_encoder_2=encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=sdxl_unet(),
        add_watermarker=False,
        scheduler=diffusers.EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
        ),
    )


def _stable_diffusion() -> Any:
    tokenizer, encoder = pipelines._clip()
    return diffusers.StableDiffusionPipeline(
        vae=pipelines._vae(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=pipelines.tiny_unet(),
        scheduler=diffusers.PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def dit_transformer() -> Any:
    """Two blocks of width 32 with the classes of ImageNet and a learned sigma."""
    return diffusers.DiTTransformer2DModel(
        sample_size=8,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )


def _dit() -> Any:
    return diffusers.DiTPipeline(
        transformer=dit_transformer(),
        vae=pipelines._vae(),
        scheduler=diffusers.DDIMScheduler(clip_sample=False, steps_offset=1),
        id2label={0: "tench"},
    )


def _vq() -> Any:
    return diffusers.VQModel(
        block_out_channels=(8, 8, 16),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=3,
        num_vq_embeddings=32,
        norm_num_groups=4,
        scaling_factor=1.0,
    )


def _ldm_scheduler() -> Any:
    return diffusers.DDIMScheduler(
        beta_start=0.0015,
        beta_end=0.0195,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def _ldm_imagenet() -> Any:
    from harness.models.latent_diffusion import ClassEmbedder, LatentDiffusionPipeline

    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        attention_head_dim=2,
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=8,
    )
    return LatentDiffusionPipeline(_vq(), unet, _ldm_scheduler(), ClassEmbedder(1001, TEXT_WIDTH))


def ldm_unet() -> Any:
    """The UNet without captions: self-attention in the place of transformer blocks."""
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
    )


def _ldm_bedroom() -> Any:
    from harness.models.latent_diffusion import LatentDiffusionPipeline

    return LatentDiffusionPipeline(_vq(), ldm_unet(), _ldm_scheduler())


BUILD: dict[str, Callable[[], Any]] = {
    "flux.1-dev": _flux,
    "pixart-sigma": _pixart,
    "sana-1.6b": _sana,
    "sdxl": _sdxl,
    "sd-1.4": _stable_diffusion,
    "dit-xl-2": _dit,
    "ldm-4-imagenet": _ldm_imagenet,
    "ldm-4-bedroom": _ldm_bedroom,
}


def save_reduced(name: str, folder: Path, seed: int = 0) -> Path:
    """Save a reduced random pipeline of published model `name` to `folder`.

    torch's global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BUILD[name]().save_pretrained(folder, safe_serialization=True)
    return folder
