"""Save and load a quantized denoiser: `model.safetensors` and `layers.json` in one folder.

The safetensors file holds the packed buffers as they are, and every kept float parameter in float16 where
that is exact, else as it is; `layers.json` says which layer is packed how. What is loaded is checked before
anything of it is used, and the denoiser is touched only when all of it fits.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from harness.kernels.layers import PackedLayer, layer_from_spec
from harness.kernels.stored import Spec, spec_dict

TENSORS = "model.safetensors"
LAYERS = "layers.json"
SCHEMA = 2
"""Raised when stored bytes come to mean something else: with 2 codes of 3 bits became two planes."""
LARGEST_JSON = 64 * 2**20


def save_checkpoint(denoiser: nn.Module, folder: Path) -> None:
    """Write a quantized denoiser; the bytes written depend on nothing but its values.

    Args:
        denoiser: a module with packed layers in it.
        folder: made if it is missing; files of a former checkpoint are overwritten.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    packed = _packed_layers(denoiser)
    inside = tuple(f"{name}." for name in packed)
    tensors = {
        key: (value if key.startswith(inside) else _smallest_exact(value)).detach().cpu().contiguous().clone()
        for key, value in denoiser.state_dict().items()
    }
    try:
        save_file(tensors, folder / TENSORS)
    except SafetensorError as error:
        raise OSError(f"cannot write {TENSORS}: {error}") from error
    layers = {"schema": SCHEMA, "layers": {name: layer.spec() for name, layer in packed.items()}}
    (folder / LAYERS).write_text(json.dumps(layers, indent=1) + "\n", encoding="utf-8")


def load_checkpoint(denoiser: nn.Module, folder: Path) -> None:
    """Replace layers of a float denoiser by those of a checkpoint and load all values, strictly.

    The forward is bit-equal to that of the denoiser saved. On an error the denoiser is unchanged.

    Args:
        denoiser: the float denoiser the checkpoint was made from (architecture; its values are overwritten).
        folder: what `save_checkpoint` wrote.

    Raises:
        ValueError: a file is missing, damaged or not of this denoiser; the message says what is wrong.
    """
    modules = dict(denoiser.named_modules())
    packed: dict[str, PackedLayer] = {}
    for name, spec in _read_specs(folder / LAYERS).items():
        if not name or name not in modules:
            raise ValueError(f"the checkpoint packs {name!r}, which is no layer of this denoiser")
        try:
            packed[name] = layer_from_spec(modules[name], spec_dict(spec, "a layer"))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    replaced = tuple(f"{name}." for name in packed)
    kept = {key: value for key, value in denoiser.state_dict().items() if not key.startswith(replaced)}
    tensors = _read_tensors(folder / TENSORS)
    expected = {f"{name}.{key}": t for name, layer in packed.items() for key, t in layer.state_dict().items()}
    _check_tensors(tensors, kept, expected)
    for name, layer in packed.items():
        _load_layer(name, layer, tensors)
    with torch.no_grad():
        for key, value in kept.items():
            value.copy_(tensors[key])
    for name, layer in packed.items():
        parent, _, child = name.rpartition(".")
        layer.to(next((t.device for t in modules[name].parameters()), torch.device("cpu")))
        setattr(denoiser.get_submodule(parent), child, layer.train(modules[name].training))


def checkpoint_bytes(folder: Path) -> int:
    """Return the size of a checkpoint's files on disk."""
    return sum((folder / name).stat().st_size for name in (TENSORS, LAYERS))


def _packed_layers(denoiser: nn.Module) -> dict[str, PackedLayer]:
    return {name: m for name, m in denoiser.named_modules() if isinstance(m, PackedLayer)}


def _smallest_exact(value: Tensor) -> Tensor:
    """Return float32 values in float16 if none of them changes, anything else as it is."""
    if value.dtype != torch.float32:
        return value
    half = value.to(torch.float16)
    return half if torch.equal(half.to(torch.float32), value) else value


def _read_specs(path: Path) -> Spec:
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"{LAYERS} is larger than any list of layers")
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"cannot read {LAYERS}: {type(error).__name__}: {error}") from error
    content = spec_dict(content, LAYERS)
    if content.get("schema") != SCHEMA:
        raise ValueError(f"{LAYERS} has schema {content.get('schema')!r}, this version reads {SCHEMA}")
    return spec_dict(content.get("layers"), "layers")


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read {TENSORS}: {error}") from error


def _check_tensors(tensors: dict[str, Tensor], kept: dict[str, Tensor], packed: dict[str, Tensor]) -> None:
    """Raise ValueError unless names, shapes and dtypes are those expected."""
    wanted = {**kept, **packed}
    if tensors.keys() != wanted.keys():
        odd = sorted(tensors.keys() ^ wanted.keys())
        raise ValueError(f"{TENSORS} lacks or adds {len(odd)} tensors, among them {odd[0]!r}")
    for key, tensor in tensors.items():
        if tensor.shape != wanted[key].shape:
            raise ValueError(f"{key} has the shape {tuple(tensor.shape)}, not {tuple(wanted[key].shape)}")
        exact = {wanted[key].dtype}
        if key in kept and kept[key].dtype.is_floating_point:
            exact |= {torch.float16, torch.float32}
        if tensor.dtype not in exact:
            raise ValueError(f"{key} is {tensor.dtype}, expected {wanted[key].dtype}")


def _load_layer(name: str, layer: PackedLayer, tensors: dict[str, Tensor]) -> None:
    layer.load_state_dict({key: tensors[f"{name}.{key}"] for key in layer.state_dict()})
    try:
        layer.check()
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
