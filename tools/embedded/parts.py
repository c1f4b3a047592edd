"""Architectures and tokenizers of the embedded pipelines, untrained."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    PixArtTransformer2DModel,
    UNet2DConditionModel,
)
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from harness.datasets.scenes.grammar import vocabulary

TEXT_WIDTH = 128
TEXT_LENGTH = 48
LATENT_SIZE = 16


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges that build each word left to right from its prefixes, in order of priority."""
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        merged, *rest = (*word[:-1], f"{word[-1]}</w>")
        for part in rest:
            merges[merged, part] = None
            merged += part
    return list(merges)


def _pieces(word: str, merges: list[tuple[str, str]]) -> list[str]:
    """Apply byte-pair merges to a word."""
    rank = {pair: index for index, pair in enumerate(merges)}
    pieces = [*word[:-1], f"{word[-1]}</w>"]
    while pairs := [pair for pair in pairwise(pieces) if pair in rank]:
        at = list(pairwise(pieces)).index(min(pairs, key=rank.__getitem__))
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
    return pieces


def clip_tokenizer() -> CLIPTokenizer:
    """Byte-pair tokenizer in which every word of the grammar is one token and any other text still encodes.

    A pair that starts one word may stand inside another and break it up (`st` in `misty`), so broken words
    move to the front of the priority until none is left.
    """
    words = sorted(vocabulary(), key=len, reverse=True)
    while broken := [word for word in words if len(_pieces(word, _merges(words))) > 1]:
        words.remove(broken[0])
        words.insert(0, broken[0])
    letters = "abcdefghijklmnopqrstuvwxyz0123456789,.:;!?'\"()-"
    # The tokenizer takes pairs; its annotation says otherwise.
    merges: Any = _merges(words)
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    tokens += [a + b for a, b in merges]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(dict.fromkeys(tokens))},
        merges=merges,
        model_max_length=TEXT_LENGTH,
    )


def t5_tokenizer() -> T5Tokenizer:
    """Unigram tokenizer in which every word of the grammar is one piece; other text falls to letters."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.:;!?'\"()-"
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -6.0), (",", -1.0)]
    pieces += [(f"▁{word}", -1.0) for word in vocabulary() if word != ","]
    pieces += [(letter, -12.0) for letter in letters]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=TEXT_LENGTH)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError unless each word of the grammar is one known token, distinct from every other."""
    known = tokenizer.get_vocab()
    tokens = [[piece for piece in tokenizer.tokenize(word) if piece != "▁"] for word in vocabulary()]
    if any(len(pieces) != 1 or pieces[0] not in known for pieces in tokens):
        raise ValueError(f"not one token: {[pieces for pieces in tokens if len(pieces) != 1]}")
    if len({pieces[0] for pieces in tokens}) != len(tokens):
        raise ValueError("two words share a token")


def clip_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Three causal layers of width 128."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=TEXT_WIDTH, intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=TEXT_LENGTH,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, projection_dim=TEXT_WIDTH,
    )  # fmt: skip
    return CLIPTextModel(config)


def t5_text_encoder(tokenizer: T5Tokenizer) -> T5EncoderModel:
    """Three bidirectional layers of width 128.

    With T5's default initialisation (nearly flat relative positions) the encoder stays a bag of words for
    long: objects come out right and relations at chance. Spread-out positions make word order visible from
    the start: swapping two nouns then turns their vectors by 60 degrees instead of 2.
    """
    # A known option that the annotations leave out.
    untied: dict[str, Any] = {"tie_word_embeddings": False}
    config = T5Config(
        vocab_size=len(tokenizer), d_model=TEXT_WIDTH, d_kv=32, d_ff=4 * TEXT_WIDTH, num_layers=3,
        num_heads=4, relative_attention_num_buckets=32, relative_attention_max_distance=TEXT_LENGTH,
        dropout_rate=0.0, feed_forward_proj="gated-gelu", pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id, **untied,
    )  # fmt: skip
    encoder = T5EncoderModel(config)
    nn.init.normal_(encoder.get_input_embeddings().weight, std=0.5)
    for name, parameter in encoder.named_parameters():
        if "relative_attention_bias" in name:
            nn.init.normal_(parameter, std=2.5)
    return encoder


def autoencoder() -> AutoencoderKL:
    """64x64x3 to 16x16x4 and back."""
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, sample_size=64, block_out_channels=(32, 64, 96),
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1, norm_num_groups=8, mid_block_add_attention=False,
    )  # fmt: skip


def unet() -> UNet2DConditionModel:
    """Latent UNet with two resolutions, cross-attention at both."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE, in_channels=4, out_channels=4, block_out_channels=(72, 144),
        down_block_types=("CrossAttnDownBlock2D",) * 2, mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D",) * 2, layers_per_block=1, attention_head_dim=(2, 4),
        cross_attention_dim=TEXT_WIDTH, norm_num_groups=8,
    )  # fmt: skip


def dit() -> PixArtTransformer2DModel:
    """Eight blocks of width 192 over 64 tokens."""
    return PixArtTransformer2DModel(
        num_layers=8, num_attention_heads=6, attention_head_dim=32, in_channels=4, out_channels=4,
        patch_size=2, sample_size=LATENT_SIZE, cross_attention_dim=192, caption_channels=TEXT_WIDTH,
        norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6,
        use_additional_conditions=False, attention_bias=True, activation_fn="gelu-approximate",
        interpolation_scale=1,
    )  # fmt: skip


def scheduler() -> DPMSolverMultistepScheduler:
    """Noise schedule of both models (training and sampling).

    The last timestep holds no signal and sampling begins at it (Lin et al. 2024): with the usual schedule the
    models took a layout out of what was left of the signal, which is not there when sampling, and placed
    objects at random. Without signal the noise tells nothing, so the models predict the velocity.
    """
    return DPMSolverMultistepScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing",
        algorithm_type="dpmsolver++", solver_order=2,
    )  # fmt: skip


def cumulative_alphas() -> torch.Tensor:
    """Return the share of the signal's variance left at each of the 1000 timesteps, float32 [1000]."""
    made: Any = scheduler()
    ramp: torch.Tensor = made.alphas_cumprod
    return ramp
