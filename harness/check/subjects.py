"""The denoisers a method is tried on: a UNet and a DiT of the real classes, tiny and random."""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from harness.calibrate import Calibration, InputStatistics
from harness.compat import ensure_torchvision, quiet_imports
from harness.kernels.activations import StepIndex, bind_step_index
from harness.methods.contract import LayerTarget
from harness.methods.training.trajectories import Trajectories
from harness.models.card import ModelCard
from harness.models.registry import get
from harness.models.roles import input_group, layer_roles, targets

STEPS = 4
BATCH = 2
TEXT_TOKENS, TEXT_WIDTH = 6, 32
LATENT = (4, 8, 8)
TIMESTEPS = (900, 600, 300, 50)
FEATURES = {"tiny-unet": "conv_out", "tiny-dit": "proj_out"}
"""The final projection of each."""
OUTLIERS, OUTLIER_SIZE = 0.004, 6.0


@dataclass(frozen=True)
class Subject:
    """One denoiser to try a method on.

    Attributes:
        name: what findings call it.
        card: the model whose roles and policy apply.
        denoiser: float32, in eval mode; never quantized itself, see `fresh`.
        call: runs a denoiser on its inputs at a step: float32 [batch, 4, 8, 8].
        calibration: statistics of the inputs of every layer the policy may quantize.
    """

    name: str
    card: ModelCard
    denoiser: nn.Module
    call: Callable[[nn.Module, int], Tensor]
    calibration: Calibration

    def fresh(self) -> nn.Module:
        """Return a float copy to quantize."""
        return copy.deepcopy(self.denoiser)

    def targets(self, w_bits: int, a_bits: int) -> tuple[LayerTarget, ...]:
        """Return the layers the policy hands to a method."""
        return targets(self.card, self.denoiser, w_bits, a_bits)

    def outputs(self, denoiser: nn.Module) -> Tensor:
        """Return what a denoiser predicts at every step: float32 [steps, batch, 4, 8, 8]."""
        index = StepIndex()
        bind_step_index(denoiser, index)
        found = []
        with torch.inference_mode():
            for step in range(STEPS):
                index.value = step
                found.append(self.call(denoiser, step).clone())
        return torch.stack(found)

    def damaged(self) -> Subject:
        """Return a copy with dead and constant channels.

        Of every target layer one output channel is all zero and one constant, one input channel has no
        weights, and in the calibration data one input channel is zero throughout. The first input of all is
        nothing but zeros.
        """
        denoiser = self.fresh()
        for target in self.targets(4, 8):
            weight = denoiser.get_submodule(target.name).get_parameter("weight").detach()
            weight[0] = 0
            weight[1] = 0.25
            weight[:, 2] = 0
        return replace(self, denoiser=denoiser, calibration=_deadened(self.calibration))


def subjects() -> list[Subject]:
    """Build both denoisers, always the same ones; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        return [_subject("tiny-unet", _unet(), _call_unet), _subject("tiny-dit", _dit(), _call_dit)]


def _diffusers() -> Any:
    ensure_torchvision()
    with quiet_imports():
        return importlib.import_module("diffusers")


def _unet() -> nn.Module:
    torch.manual_seed(0)
    unet: nn.Module = _diffusers().UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn", attention_head_dim=2, cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=8,
    )  # fmt: skip
    return unet


def _dit() -> nn.Module:
    torch.manual_seed(0)
    dit: nn.Module = _diffusers().PixArtTransformer2DModel(
        num_layers=2, num_attention_heads=4, attention_head_dim=16, in_channels=4, out_channels=4,
        patch_size=2, sample_size=8, cross_attention_dim=64, caption_channels=TEXT_WIDTH,
        norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6,
        use_additional_conditions=False, interpolation_scale=1,
    )  # fmt: skip
    return dit


def _noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _inputs(step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, text states and timesteps of a step."""
    times = torch.full((BATCH,), TIMESTEPS[step])
    return _noise(step, BATCH, *LATENT), _noise(100, BATCH, TEXT_TOKENS, TEXT_WIDTH), times


def _call_unet(denoiser: nn.Module, step: int) -> Tensor:
    latents, text, times = _inputs(step)
    prediction: Tensor = denoiser(latents, times, encoder_hidden_states=text).sample
    return prediction


def _call_dit(denoiser: nn.Module, step: int) -> Tensor:
    latents, text, times = _inputs(step)
    conditions = {"resolution": None, "aspect_ratio": None}
    prediction: Tensor = denoiser(
        latents, encoder_hidden_states=text, timestep=times, added_cond_kwargs=conditions
    ).sample
    return prediction


class SubjectTeacher:
    """Hands a method what the unquantized denoiser does on its inputs, without guidance: a `Teacher`."""

    def __init__(self, subject: Subject) -> None:
        """Remember the denoiser, which is never quantized."""
        self._subject = subject

    def record(self, count: int, budget_bytes: int, features: bool) -> Trajectories:
        """Return the first `count` of the `BATCH` inputs there are, at every step; the budget holds them."""
        subject, layer = self._subject, FEATURES[self._subject.name]
        caught: list[Tensor] = []
        handle = subject.denoiser.get_submodule(layer).register_forward_pre_hook(
            lambda _, args: caught.append(args[0].half())
        )
        try:
            with torch.no_grad():
                predictions = [subject.call(subject.denoiser, step) for step in range(STEPS)]
        finally:
            handle.remove()

        def stacked(values: Sequence[Tensor]) -> Tensor:
            return torch.stack(list(values), dim=1)[:count, None]

        nothing = {"added_cond_kwargs/resolution": None, "added_cond_kwargs/aspect_ratio": None}
        return Trajectories(
            sample_name=next(iter(inspect.signature(subject.denoiser.forward).parameters)),
            timesteps=torch.tensor(TIMESTEPS),
            guidance=1.0,
            samples=stacked([_inputs(step)[0] for step in range(STEPS)]),
            predictions=stacked(predictions),
            features=stacked(caught) if features else None,
            feature_layer=layer,
            conditions={"encoder_hidden_states": _inputs(0)[1][:count, None]},
            constants={"return_dict": False, **(nothing if subject.name == "tiny-dit" else {})},
        )


def _subject(name: str, denoiser: nn.Module, call: Callable[[nn.Module, int], Tensor]) -> Subject:
    card = get(name)
    denoiser.eval().requires_grad_(False)
    names = [target.name for target in targets(card, denoiser, 8, 8)]
    generator = torch.Generator().manual_seed(1)
    for layer in names:  # heavy tails, as trained weights have
        weight = denoiser.get_submodule(layer).get_parameter("weight").detach()
        weight[torch.rand(weight.shape, generator=generator) < OUTLIERS] *= OUTLIER_SIZE
    return Subject(name, card, denoiser, call, _calibrate(card, denoiser, call, names))


def _calibrate(
    card: ModelCard, denoiser: nn.Module, call: Callable[[nn.Module, int], Tensor], names: Sequence[str]
) -> Calibration:
    """Keep every input of the named layers: at this size there is no need to sample."""
    roles = layer_roles(card.family, denoiser)
    groups = {name: input_group(name, roles[name]) for name in names}
    first = {group: name for name, group in reversed(groups.items())}
    seen: dict[str, list[Tensor]] = {group: [] for group in first}
    handles = [
        denoiser.get_submodule(name).register_forward_pre_hook(
            lambda _, args, kept=seen[group]: kept.append(args[0].detach().float().clone())
        )
        for group, name in first.items()
    ]
    try:
        with torch.no_grad():
            for step in range(STEPS):
                call(denoiser, step)
    finally:
        for handle in handles:
            handle.remove()
    return Calibration(STEPS, {group: _statistics(inputs) for group, inputs in seen.items()}, groups)


def _statistics(inputs: list[Tensor]) -> InputStatistics:
    """Statistics of one input tensor from its values at each step, [batch, tokens, channels] or maps."""
    rows = [x if x.dim() == 4 else x.reshape(-1, x.shape[-1]) for x in inputs]
    samples = torch.cat(rows)
    absmax = samples.transpose(0, 1).flatten(1).abs().amax(dim=1)
    return InputStatistics(absmax, torch.tensor([[float(x.min()), float(x.max())] for x in rows]), samples)


def _deadened(calibration: Calibration) -> Calibration:
    """Return a copy in which channel 3 of every input, and the whole of the first input, is zero."""
    groups = {name: name for name in calibration.names}
    statistics = {}
    for position, name in enumerate(calibration.names):
        absmax, samples = calibration.absmax(name).clone(), calibration.samples(name).clone()
        dead = slice(None) if position == 0 else 3
        absmax[dead] = 0
        samples[:, dead] = 0
        ranges = calibration.step_range(name) * (0.0 if position == 0 else 1.0)
        statistics[name] = InputStatistics(absmax, ranges, samples)
    return Calibration(calibration.steps, statistics, groups)
