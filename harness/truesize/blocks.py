"""A quantized block as a safetensors file, so that an interrupted quantization goes on at the next block."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from harness.errors import UserError
from harness.kernels.layers import PackedLayer, layer_from_spec
from harness.kernels.stored import spec_dict
from harness.kernels.ties import tie_siblings

SCHEMA = "harness-block-2"


def block_file(folder: Path, block: str) -> Path:
    """Return where a block lies."""
    return folder / f"{block}.safetensors"


def save_block(denoiser: nn.Module, block: str, folder: Path, notes: Mapping[str, Mapping[str, Any]]) -> None:
    """Write a block with packed layers in it; the file appears when it is complete.

    Args:
        denoiser: the whole denoiser.
        block: path of the block.
        folder: exists.
        notes: the method's remarks by layer, kept beside.
    """
    module = denoiser.get_submodule(block)
    packed = {name: m.spec() for name, m in module.named_modules() if isinstance(m, PackedLayer)}
    inside = tuple(f"{block}.{name}" for name in packed)
    remarks = {name: dict(note) for name, note in notes.items() if name in inside}
    # One key: safetensors writes several in any order, and equal blocks are to be equal files.
    metadata = {SCHEMA: json.dumps({"layers": packed, "notes": remarks})}
    # A copy each: layers with one input share their smoothing vector, and a file holds no shared memory.
    tensors = {key: value.detach().to("cpu", copy=True) for key, value in module.state_dict().items()}
    path = block_file(folder, block)
    unfinished = path.with_suffix(".part")
    save_file(tensors, unfinished, metadata)
    os.replace(unfinished, path)


def load_block(
    denoiser: nn.Module, block: str, folder: Path, device: torch.device, dtype: torch.dtype
) -> dict[str, dict[str, Any]]:
    """Put a saved block in the place of the denoiser's, whose tensors may be on the meta device.

    Args:
        denoiser: the whole denoiser.
        block: path of the block.
        folder: where `save_block` wrote it.
        device: where its tensors go.
        dtype: of the floating tensors that are not packed.

    Returns:
        The method's remarks by layer.

    Raises:
        UserError: the file is missing, damaged or of another model.
    """
    path = block_file(folder, block)
    module = denoiser.get_submodule(block)
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        if device.type == "cpu":  # or they would be windows into the file
            tensors = {key: tensor.clone() for key, tensor in tensors.items()}
        if SCHEMA not in metadata:
            raise ValueError(f"not a quantized block of the format {SCHEMA}")
        about = spec_dict(json.loads(metadata[SCHEMA]), "metadata")
        specs, notes = spec_dict(about.get("layers"), "layers"), spec_dict(about.get("notes"), "notes")
        for name, spec in specs.items():
            _place(module, name, spec_dict(spec, name), tensors)
        _fill(module, tensors, tuple(f"{name}." for name in specs), device, dtype)
    except (OSError, SafetensorError, KeyError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"{path} is no usable block: {str(error).splitlines()[0]}") from error
    tie_siblings(module)
    return notes


def _place(module: nn.Module, name: str, spec: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Build one packed layer, load it and put it in the place of the float one."""
    stand_in = copy.copy(module.get_submodule(name))
    stand_in._parameters = dict(stand_in._parameters)
    bias = stand_in._parameters.get("bias")
    if bias is not None:
        # The bias of a layer on the meta device has no values to take over.
        stand_in._parameters["bias"] = nn.Parameter(torch.zeros(bias.shape), requires_grad=False)
    layer = layer_from_spec(stand_in, spec)
    empty = layer.state_dict()
    state = {key: tensors[f"{name}.{key}"] for key in empty}
    wrong = [key for key in empty if state[key].dtype != empty[key].dtype]
    if wrong:
        raise ValueError(f"{name}.{wrong[0]} is {state[wrong[0]].dtype}")
    layer.load_state_dict(state, assign=True)
    layer.check()
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, layer.eval())


def _fill(
    module: nn.Module,
    tensors: dict[str, Tensor],
    packed: tuple[str, ...],
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Load the tensors outside packed layers."""
    for path, child in module.named_modules():
        for name, held in [*child._parameters.items(), *child._buffers.items()]:
            full = f"{path}.{name}" if path else name
            if held is None or full.startswith(packed):
                continue
            value = tensors[full]
            value = value.to(device, dtype) if value.is_floating_point() else value.to(device)
            if name in child._parameters:
                child._parameters[name] = nn.Parameter(value, requires_grad=False)
            else:
                child._buffers[name] = value
