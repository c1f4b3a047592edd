"""Denoisers on the meta device, and random weights for as much of them as is wanted at a time."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from harness.compat import ensure_torchvision, quiet_imports
from harness.errors import UserError
from harness.measure.timing import one_line
from harness.models.configs import DenoiserConfig
from harness.noise import hash_seed

STD = 0.02
"""Spread of the random weights: a linear layer 3,072 wide then changes the size of its inputs by 1.1."""


def denoiser_class(config: DenoiserConfig) -> Any:
    """Return the class in diffusers, whose import takes seconds; raises UserError when it has none."""
    ensure_torchvision()
    with quiet_imports():
        cls = getattr(importlib.import_module("diffusers"), config.class_name, None)
    if cls is None:
        raise UserError(f"the installed diffusers has no {config.class_name}")
    return cls


def build_empty(config: DenoiserConfig) -> Any:
    """Return the denoiser on the meta device, in eval mode, without gradients: no memory is taken.

    Raises:
        UserError: diffusers has no such class, or the class does not take the config.
    """
    cls = denoiser_class(config)
    try:
        with quiet_imports(), torch.device("meta"):
            denoiser = cls(**config.config)
    except Exception as error:  # the class checks little: a wrong value fails anywhere inside
        raise UserError(f"{config.class_name} cannot be built: {one_line(error)}") from error
    return denoiser.eval().requires_grad_(False)


def materialise(
    module: nn.Module,
    device: torch.device,
    dtype: torch.dtype,
    *,
    seed: int,
    prefix: str = "",
    skip: Iterable[str] = (),
) -> None:
    """Give every tensor of `module` that is on the meta device random values on `device`.

    Weights of two and more dimensions are normal with spread `STD`, gains of normalisations are one, biases
    zero. A tensor's values depend on its name and the seed alone, so a block can be made again.

    Args:
        module: whole denoiser or one block of it.
        device: where the values go.
        dtype: of the floating tensors.
        seed: of the values.
        prefix: path of `module` inside the denoiser, which belongs to the names.
        skip: paths below `module` that stay as they are.
    """
    left_out = tuple(f"{name}." for name in skip)
    for path, child in module.named_modules():
        if f"{path}.".startswith(left_out) and left_out:
            continue
        for name, tensor in [*child._parameters.items(), *child._buffers.items()]:
            if tensor is None or not tensor.is_meta:
                continue
            full = ".".join(part for part in (prefix, path, name) if part)
            kind = dtype if tensor.is_floating_point() else tensor.dtype
            made = _random(tensor.shape, name, device, kind, hash_seed("weights", full, seed))
            if name in child._parameters:
                child._parameters[name] = nn.Parameter(made, requires_grad=False)
            else:
                child._buffers[name] = made


def _random(shape: torch.Size, name: str, device: torch.device, dtype: torch.dtype, seed: int) -> Tensor:
    if not dtype.is_floating_point or (len(shape) < 2 and name != "weight"):
        return torch.zeros(shape, device=device, dtype=dtype)
    if len(shape) < 2:
        return torch.ones(shape, device=device, dtype=dtype)
    generator = torch.Generator(device).manual_seed(seed)
    return torch.empty(shape, device=device, dtype=dtype).normal_(0.0, STD, generator=generator)


def release(module: nn.Module) -> None:
    """Put every tensor of `module` back on the meta device, which frees its memory."""
    for child in module.modules():
        for name, parameter in child._parameters.items():
            if parameter is not None:
                child._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=False)
        for name, buffer in child._buffers.items():
            if buffer is not None:
                child._buffers[name] = buffer.to("meta")
