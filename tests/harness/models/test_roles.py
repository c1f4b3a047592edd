from __future__ import annotations

from collections import Counter
from itertools import groupby
from typing import Any

import pipelines
import pytest
import torch
from torch import nn

from harness.models import roles
from harness.models.registry import get

SD_15 = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2, "cross_attention_dim": 768,
    "attention_head_dim": 8, "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}  # fmt: skip
PIXART_SIGMA = {
    "sample_size": 128, "num_layers": 28, "attention_head_dim": 72, "num_attention_heads": 16,
    "in_channels": 4, "out_channels": 8, "patch_size": 2, "cross_attention_dim": 1152,
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False, "norm_eps": 1e-6, "caption_channels": 4096, "interpolation_scale": 2,
    "use_additional_conditions": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def stable_diffusion() -> Any:
    with torch.device("meta"):
        return pipelines.diffusers.UNet2DConditionModel(**SD_15)


@pytest.fixture(scope="module")
def pixart_sigma() -> Any:
    with torch.device("meta"):
        return pipelines.diffusers.PixArtTransformer2DModel(**PIXART_SIGMA)


def layers(denoiser: nn.Module) -> list[str]:
    return [name for name, module in denoiser.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def test_stable_diffusion_15_has_the_published_number_of_layers_of_each_role(
    stable_diffusion: nn.Module,
) -> None:
    found = roles.layer_roles("sd-unet", stable_diffusion)
    assert list(found) == layers(stable_diffusion)
    # 16 transformer blocks, 22 residual blocks (14 with a shortcut), 3 down- and 3 up-samplers.
    per_block = {f"{kind}.{part}": 16 for kind in ("attn", "cross") for part in ("q", "k", "v", "out")}
    assert Counter(found.values()) == Counter(
        per_block
        | {"ffn.up": 16, "ffn.down": 16, "proj.in": 16, "proj.out": 16}
        | {"conv.res": 44, "conv.skip": 14, "conv.sample": 6, "time": 2, "time.proj": 22}
        | {"conv.in": 1, "final": 1}
    )


def test_pixart_sigma_has_the_published_number_of_layers_of_each_role(pixart_sigma: nn.Module) -> None:
    found = roles.layer_roles("pixart", pixart_sigma)
    assert list(found) == layers(pixart_sigma)
    per_block = {f"{kind}.{part}": 28 for kind in ("attn", "cross") for part in ("q", "k", "v", "out")}
    assert Counter(found.values()) == Counter(
        per_block
        | {"ffn.up": 28, "ffn.down": 28, "embed": 1, "final": 1, "time": 2, "adaln": 1, "caption": 2}
    )


def test_self_and_cross_attention_are_told_apart_by_the_width_they_read(stable_diffusion: Any) -> None:
    for name, role in roles.layer_roles("sd-unet", stable_diffusion).items():
        if role in {"cross.k", "cross.v"}:
            assert stable_diffusion.get_submodule(name).in_features == 768
        if role in {"attn.k", "attn.v"}:
            assert stable_diffusion.get_submodule(name).in_features in {320, 640, 1280}
        if role == "ffn.up":  # GEGLU: eight times the width
            layer = stable_diffusion.get_submodule(name)
            assert layer.out_features == 8 * layer.in_features


def test_every_role_of_every_table_has_a_policy_and_every_policy_a_role() -> None:
    used = {role for table in roles._TABLES.values() for _, role in table}
    assert used == set(roles.POLICY)


def test_unmatched_layers_are_all_named_in_the_error() -> None:
    denoiser = pipelines.tiny_dit()
    denoiser.extra = nn.Linear(2, 2)
    denoiser.transformer_blocks[1].other = nn.Conv2d(1, 1, 1)
    with pytest.raises(ValueError, match=r"transformer_blocks\.1\.other \(no role\); extra \(no role\)"):
        roles.targets(get("tiny-dit"), denoiser, 4, 8)


def test_a_layer_of_two_roles_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    table = [*roles._TABLES["pixart"], (r"proj_.*", "adaln")]
    monkeypatch.setitem(roles._TABLES, "pixart", table)
    with pytest.raises(ValueError, match=r"proj_out \(final, adaln\)"):
        roles.layer_roles("pixart", pipelines.tiny_dit())
    with pytest.raises(ValueError, match="2 roles"):
        roles.role_of("pixart", "proj_out")


def test_patterns_match_whole_paths_only() -> None:
    for name in ("conv_in.extra", "x.conv_in", "mid_block.resnets.0.conv3", "mid_blocks.resnets.0.conv1"):
        with pytest.raises(ValueError, match="no role"):
            roles.role_of("sd-unet", name)


@pytest.mark.parametrize(
    ("role", "asked", "given"),
    [
        ("attn.q", (2, 8), (2, 8)),
        ("conv.res", (4, 4), (4, 4)),
        ("ffn.down", (3, 16), (3, 16)),
        ("conv.skip", (2, 4), (8, 16)),
        ("conv.skip", (2, 8), (8, 16)),
        ("conv.sample", (4, 16), (8, 16)),
        ("embed", (2, 8), (16, 16)),
        ("final", (8, 8), (16, 16)),
        ("time", (4, 8), (16, 16)),
        ("caption", (4, 8), (16, 16)),
        ("adaln", (4, 8), (16, 16)),
        ("attn.q", (16, 16), (16, 16)),
        ("conv.skip", (16, 8), (16, 16)),
    ],
)
def test_policy_rows(role: str, asked: tuple[int, int], given: tuple[int, int]) -> None:
    assert roles.layer_bits(role, *asked) == given


@pytest.mark.parametrize("name", ["tiny-unet", "tiny-dit"])
def test_targets_follow_the_policy_in_module_order(name: str) -> None:
    denoiser = {"tiny-unet": pipelines.tiny_unet, "tiny-dit": pipelines.tiny_dit}[name]()
    card = get(name)
    targets = roles.targets(card, denoiser, 3, 6)
    order = layers(denoiser)
    expected = [n for n in order if roles.POLICY[roles.role_of(card.family, n)] != "keep"]
    assert [target.name for target in targets] == expected
    for target in targets:
        layer = denoiser.get_submodule(target.name)
        assert target.kind == ("linear" if isinstance(layer, nn.Linear) else "conv2d")
        assert (target.w_bits, target.a_bits) == (
            (8, 16) if target.role in {"conv.skip", "conv.sample"} else (3, 6)
        )
    assert roles.targets(card, denoiser, 16, 16) == ()


def first_inputs(denoiser: nn.Module, names: list[str], call: dict[str, Any]) -> dict[str, int]:
    """Identity of the tensor each layer consumes, observed by running the denoiser."""
    seen: dict[str, torch.Tensor] = {}
    for name in names:
        denoiser.get_submodule(name).register_forward_pre_hook(
            lambda _m, args, name=name: seen.__setitem__(name, args[0])
        )
    denoiser(**call)
    return {name: id(tensor) for name, tensor in seen.items()}


def test_layers_of_one_input_group_consume_the_same_tensor_and_stand_together() -> None:
    caption = torch.randn(1, 5, pipelines.TEXT_WIDTH)
    latent = torch.randn(1, 4, 8, 8)
    conditions = {"resolution": None, "aspect_ratio": None}
    calls: list[tuple[str, nn.Module, dict[str, Any]]] = [
        (
            "tiny-unet",
            pipelines.tiny_unet(),
            {"sample": latent, "timestep": 3, "encoder_hidden_states": caption},
        ),
        (
            "tiny-dit",
            pipelines.tiny_dit(),
            {
                "hidden_states": latent,
                "timestep": torch.tensor([3]),
                "encoder_hidden_states": caption,
                "added_cond_kwargs": conditions,
            },
        ),
    ]
    for name, denoiser, call in calls:
        targets = roles.targets(get(name), denoiser, 4, 8)
        inputs = first_inputs(denoiser, [target.name for target in targets], call)
        runs = [(group, list(run)) for group, run in groupby(targets, key=lambda target: target.input_group)]
        assert len({group for group, _ in runs}) == len(runs)
        for _, run in runs:
            assert len({inputs[target.name] for target in run}) == 1
        by_role = Counter(tuple(target.role for target in run) for _, run in runs)
        blocks = sum(target.role == "attn.q" for target in targets)
        assert by_role["attn.q", "attn.k", "attn.v"] == blocks
        assert by_role["cross.k", "cross.v"] == blocks


def test_hidden_width(stable_diffusion: Any, pixart_sigma: nn.Module) -> None:
    assert roles.hidden_width(stable_diffusion) == 1280
    assert roles.hidden_width(pixart_sigma) == 1152
    assert roles.hidden_width(pipelines.tiny_dit()) == 32

    class Bare(nn.Module):
        config: dict[str, int] = {}  # noqa: RUF012

    with pytest.raises(TypeError, match="Bare names no hidden width"):
        roles.hidden_width(Bare())
