"""The converter of original LDM checkpoints, on state dicts of the published shapes and on small ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pipelines import diffusers

from harness.cli import call
from harness.errors import UserError
from harness.models import ldm_checkpoint
from harness.models.ldm_checkpoint import ARCHITECTURES, Architecture, convert, read_checkpoint
from harness.models.load import load_pipeline
from harness.models.registry import get

Shapes = dict[str, tuple[int, ...]]
SMALL_VQ = {"block_out_channels": (32, 64), "layers_per_block": 1, "num_vq_embeddings": 16}
SMALL = Architecture((32, 64), context=24, classes=11, layers=1, autoencoder=SMALL_VQ, sample=8)
SMALL_PLAIN = Architecture((32, 64), layers=1, autoencoder=SMALL_VQ, sample=8)


def plain(name: str, out: int, *rest: int) -> Shapes:
    return {f"{name}.weight": (out, *rest), f"{name}.bias": (out,)}


def norm(name: str, channels: int) -> Shapes:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def residual(name: str, inner: int, outer: int, time: int) -> Shapes:
    """One residual block as the original names it."""
    found = norm(f"{name}.in_layers.0", inner) | plain(f"{name}.in_layers.2", outer, inner, 3, 3)
    found |= plain(f"{name}.emb_layers.1", outer, time) | norm(f"{name}.out_layers.0", outer)
    found |= plain(f"{name}.out_layers.3", outer, outer, 3, 3)
    return found | (plain(f"{name}.skip_connection", outer, inner, 1, 1) if inner != outer else {})


def attention(name: str, width: int, context: int | None) -> Shapes:
    """A spatial transformer, or plain self-attention over positions."""
    if context is None:
        return norm(f"{name}.norm", width) | plain(f"{name}.qkv", 3 * width, width, 1) | plain(
            f"{name}.proj_out", width, width, 1
        )  # fmt: skip
    found = norm(f"{name}.norm", width)
    found |= plain(f"{name}.proj_in", width, width, 1, 1) | plain(f"{name}.proj_out", width, width, 1, 1)
    block = f"{name}.transformer_blocks.0"
    for which, read in (("attn1", width), ("attn2", context)):
        found |= {f"{block}.{which}.to_q.weight": (width, width)}
        found |= {f"{block}.{which}.to_{letter}.weight": (width, read) for letter in "kv"}
        found |= plain(f"{block}.{which}.to_out.0", width, width)
    found |= plain(f"{block}.ff.net.0.proj", 8 * width, width) | plain(f"{block}.ff.net.2", width, 4 * width)
    for i in (1, 2, 3):
        found |= norm(f"{block}.norm{i}", width)
    return found


def original_unet(channels: tuple[int, ...], layers: int, context: int | None) -> Shapes:
    """Names and shapes of the original UNet, built the way its constructor walks the resolutions."""
    first, time = channels[0], 4 * channels[0]
    found = plain("time_embed.0", time, first) | plain("time_embed.2", time, time)
    found |= plain("input_blocks.0.0", first, 3, 3, 3)
    stack, index, width = [first], 1, first
    for level, outer in enumerate(channels):
        for _ in range(layers):
            found |= residual(f"input_blocks.{index}.0", width, outer, time)
            found |= attention(f"input_blocks.{index}.1", outer, context) if level else {}
            stack, index, width = [*stack, outer], index + 1, outer
        if level < len(channels) - 1:
            found |= plain(f"input_blocks.{index}.0.op", width, width, 3, 3)
            stack, index = [*stack, width], index + 1
    found |= residual("middle_block.0", width, width, time) | attention("middle_block.1", width, context)
    found |= residual("middle_block.2", width, width, time)
    index = 0
    for level in reversed(range(len(channels))):
        for k in range(layers + 1):
            found |= residual(f"output_blocks.{index}.0", width + stack.pop(), channels[level], time)
            width = channels[level]
            found |= attention(f"output_blocks.{index}.1", width, context) if level else {}
            if level and k == layers:
                found |= plain(f"output_blocks.{index}.2.conv", width, width, 3, 3)
            index += 1
    return found | norm("out.0", width) | plain("out.2", 3, width, 3, 3)


def vq_residual(name: str, inner: int, outer: int) -> Shapes:
    found = norm(f"{name}.norm1", inner) | plain(f"{name}.conv1", outer, inner, 3, 3)
    found |= norm(f"{name}.norm2", outer) | plain(f"{name}.conv2", outer, outer, 3, 3)
    return found | (plain(f"{name}.nin_shortcut", outer, inner, 1, 1) if inner != outer else {})


def vq_middle(side: str, width: int) -> Shapes:
    found = vq_residual(f"{side}.mid.block_1", width, width) | norm(f"{side}.mid.attn_1.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        found |= plain(f"{side}.mid.attn_1.{part}", width, width, 1, 1)
    return found | vq_residual(f"{side}.mid.block_2", width, width)


def original_vq(channels: tuple[int, ...], layers: int, codes: int) -> Shapes:
    """Names and shapes of the original VQ autoencoder with three latent channels."""
    found = {"quantize.embedding.weight": (codes, 3)}
    found |= plain("quant_conv", 3, 3, 1, 1) | plain("post_quant_conv", 3, 3, 1, 1)
    found |= plain("encoder.conv_in", channels[0], 3, 3, 3) | vq_middle("encoder", channels[-1])
    found |= norm("encoder.norm_out", channels[-1]) | plain("encoder.conv_out", 3, channels[-1], 3, 3)
    width = channels[0]
    for level, outer in enumerate(channels):
        for k in range(layers):
            found |= vq_residual(f"encoder.down.{level}.block.{k}", width, outer)
            width = outer
        if level < len(channels) - 1:
            found |= plain(f"encoder.down.{level}.downsample.conv", width, width, 3, 3)
    found |= plain("decoder.conv_in", width, 3, 3, 3) | vq_middle("decoder", width)
    for level in reversed(range(len(channels))):
        for k in range(layers + 1):
            found |= vq_residual(f"decoder.up.{level}.block.{k}", width, channels[level])
            width = channels[level]
        if level:
            found |= plain(f"decoder.up.{level}.upsample.conv", width, width, 3, 3)
    return found | norm("decoder.norm_out", width) | plain("decoder.conv_out", 3, width, 3, 3)


def original(
    architecture: Architecture, device: str = "cpu", averaged: bool = False
) -> dict[str, torch.Tensor]:
    """A random checkpoint of an architecture, with a loss and counters that belong nowhere."""
    unet = original_unet(architecture.channels, architecture.layers, architecture.context)
    vq = {**ldm_checkpoint._VQ_F4, **architecture.autoencoder}
    codes = original_vq(vq["block_out_channels"], vq["layers_per_block"], vq["num_vq_embeddings"])
    shapes = {f"model.diffusion_model.{key}": shape for key, shape in unet.items()}
    shapes |= {f"first_stage_model.{key}": shape for key, shape in codes.items()}
    shapes |= {"first_stage_model.loss.discriminator.main.0.weight": (4, 3, 4, 4), "betas": (1000,)}
    if averaged:
        keys = [f"diffusion_model.{key}" for key in unet]
        shapes |= {f"model_ema.{key.replace('.', '')}": unet[key.partition(".")[2]] for key in keys}
    if architecture.context is not None:
        shapes["cond_stage_model.embedding.weight"] = (architecture.classes, architecture.context)
    generator = torch.Generator().manual_seed(0)
    if device == "meta":
        return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    return {key: 0.1 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}


@pytest.mark.parametrize(
    ("name", "parameters"), [("ldm-4-imagenet", 400_920_579), ("ldm-4-bedroom", 274_056_163)]
)
def test_a_checkpoint_of_the_published_shapes_finds_its_place(name: str, parameters: int) -> None:
    state = original(ARCHITECTURES[name], device="meta")
    unet = [value.numel() for key, value in state.items() if key.startswith("model.diffusion_model.")]
    assert sum(unet) == parameters
    pipeline = convert(state, ARCHITECTURES[name])
    assert sum(parameter.numel() for parameter in pipeline.unet.parameters()) == parameters
    assert pipeline.vae.config.scaling_factor == 1.0
    assert get(name).pipeline == type(pipeline).__name__


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_converted_weights_are_the_averaged_ones_and_run(tmp_path: Path) -> None:
    state = original(SMALL, averaged=True)
    pipeline = convert(state, SMALL)
    key = "diffusion_model.output_blocks.0.0.in_layers.2.weight"
    held = pipeline.unet.state_dict()["up_blocks.0.resnets.0.conv1.weight"]
    assert torch.equal(held, state[f"model_ema.{key.replace('.', '')}"])
    assert not torch.equal(held, state[f"model.{key}"])
    folder = tmp_path / "ldm"
    pipeline.save_pretrained(folder)
    loaded = load_pipeline(get("ldm-4-imagenet"), folder, "cpu", torch.float32)
    call_arguments: dict[str, Any] = {"class_labels": [3, 9], "num_inference_steps": 2, "output_type": "pt"}
    call_arguments["latents"] = torch.ones(2, 3, 8, 8)
    for part in ("unet", "vae", "class_embedder"):
        ours, theirs = (getattr(which, part).state_dict() for which in (pipeline, loaded))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    # Not bit for bit: where a weight lies in memory decides which loop multiplies it.
    torch.testing.assert_close(
        loaded(**call_arguments).images, pipeline(**call_arguments).images, rtol=1e-4, atol=1e-5
    )
    with pytest.raises(ValueError, match="classes are 0 to 9"):
        loaded(class_labels=[10])


def test_plain_attention_is_split_head_by_head() -> None:
    state = original(SMALL_PLAIN)
    pipeline = convert(state, SMALL_PLAIN)
    prefix, width, heads = "model.diffusion_model.middle_block.1.", 64, 2
    x = torch.randn(1, width, 4, 4, generator=torch.Generator().manual_seed(1))
    # The original: qkv of each head lie together, scores are scaled by the root of the head's width.
    part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    flat = torch.nn.functional.group_norm(x, 32, part["norm.weight"], part["norm.bias"], 1e-5).flatten(2)
    qkv = torch.nn.functional.conv1d(flat, part["qkv.weight"], part["qkv.bias"])
    q, k, v = qkv.reshape(heads, 3 * width // heads, 16).split(width // heads, dim=1)
    weights = torch.softmax(torch.einsum("hct,hcs->hts", q, k) / (width // heads) ** 0.5, dim=-1)
    mixed = torch.einsum("hts,hcs->hct", weights, v).reshape(1, width, 16)
    expected = x + torch.nn.functional.conv1d(mixed, part["proj_out.weight"], part["proj_out.bias"]).view_as(
        x
    )
    with torch.no_grad():
        found = pipeline.unet.mid_block.attentions[0](x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_decoders_resolutions_are_turned_round() -> None:
    state = original(SMALL)
    vae = convert(state, SMALL).vae
    for original_level, level in ((1, 0), (0, 1)):
        key = f"first_stage_model.decoder.up.{original_level}.block.0.conv1.weight"
        assert torch.equal(vae.decoder.up_blocks[level].resnets[0].conv1.weight, state[key])
    key = "first_stage_model.encoder.mid.attn_1.q.weight"
    assert torch.equal(vae.encoder.mid_block.attentions[0].to_q.weight, state[key][:, :, 0, 0])


def test_what_does_not_fit_is_named() -> None:
    state = original(SMALL)
    key = "model.diffusion_model.out.2.bias"
    with pytest.raises(UserError, match=r"lacks or adds 1 tensors of the unet, e\.g\. conv_out\.bias"):
        convert({k: v for k, v in state.items() if k != key}, SMALL)
    with pytest.raises(UserError, match=r"conv_out\.bias of the unet has the shape \(4,\), not \(3,\)"):
        convert({**state, key: torch.zeros(4)}, SMALL)
    with pytest.raises(UserError, match="has no place in the UNet"):
        convert({**state, "model.diffusion_model.extra.weight": torch.zeros(1)}, SMALL)


class Hostile:
    """A pickle of it runs a command when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def test_a_pickle_that_would_execute_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, mark = tmp_path / "model.ckpt", tmp_path / "executed"
    torch.save({"state_dict": {"model.diffusion_model.out.2.bias": Hostile(mark)}}, path)
    with pytest.raises(UserError, match="can be read safely"):
        read_checkpoint(path)
    assert call(["convert", "ldm-4-imagenet", str(path), str(tmp_path / "out")]) == 2
    assert not mark.exists()
    assert len(capsys.readouterr().err.splitlines()) == 1
    torch.save({"state_dict": {"other": torch.zeros(1)}}, path)
    with pytest.raises(UserError, match="holds no weights of a latent diffusion model"):
        read_checkpoint(path)


def test_the_command_line_converts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "ldm-4-bedroom", SMALL_PLAIN)
    path, out = tmp_path / "model.ckpt", tmp_path / "out"
    torch.save({"state_dict": original(SMALL_PLAIN), "global_step": 3}, path)
    assert call(["convert", "ldm-4-bedroom", str(path), str(out)]) == 0
    pipeline = load_pipeline(get("ldm-4-bedroom"), out, "cpu", torch.float32)
    assert isinstance(pipeline.unet, diffusers.UNet2DModel)
    assert call(["convert", "ldm-4-bedroom", str(path), str(out)]) == 2
    assert call(["convert", "ldm-4-bedrom", str(path), str(tmp_path / "b")]) == 2
