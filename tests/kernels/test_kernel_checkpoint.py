"""Checkpoints and the ledger: bit-equal reload, one byte count in three places, hostile files refused."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from harness.kernels.activations import ActQuantizer, StepIndex, bind_step_index
from harness.kernels.branch import LowRankBranch
from harness.kernels.checkpoint import LAYERS, TENSORS, checkpoint_bytes, load_checkpoint, save_checkpoint
from harness.kernels.layers import PackedConv2d, PackedLinear
from harness.kernels.ledger import Ledger, build_ledger, reference_ledger
from harness.kernels.quantizers.normal_float import quantize_normal_float
from harness.kernels.quantizers.residual import fit_binary_planes
from harness.kernels.quantizers.uniform import quantize_uniform
from harness.kernels.weights import BinaryPlanesWeight, NormalFloatWeight, RowMixedWeight, UniformWeight


class Denoiser(nn.Module):
    """A convolution, two linears, a kept norm, a kept linear and a kept buffer."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.inlet = nn.Conv2d(3, 8, 3, padding=1)
        self.block = nn.ModuleDict({"up": nn.Linear(8, 20), "down": nn.Linear(20, 8, bias=False)})
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)
        self.positions: Tensor
        self.register_buffer("positions", torch.zeros(8))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for tensor in (*self.parameters(), self.positions):
                tensor.copy_(torch.randn(tensor.shape, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        h = self.inlet(x).flatten(2).transpose(1, 2) + self.positions
        h = h + self.block["down"](torch.relu(self.block["up"](self.norm(h))))
        return self.head(h)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Asked:
    name: str
    role: str
    w_bits: int
    a_bits: int


TARGETS = (
    Asked("inlet", "conv.in", 8, 8),
    Asked("block.up", "ffn.up", 3, 8),
    Asked("block.down", "ffn.down", 4, 16),
)


def quantized(seed: int = 0) -> Denoiser:
    model = Denoiser(seed)
    up, down = model.block["up"], model.block["down"]
    assert isinstance(up, nn.Linear)
    assert isinstance(down, nn.Linear)
    matrix = model.inlet.weight.flatten(1)
    model.inlet = PackedConv2d.like(  # type: ignore[assignment]
        model.inlet,
        UniformWeight.pack(quantize_uniform(matrix, 8), 8, "asymmetric"),
        act=ActQuantizer(8, "tensor", "per_step", range=torch.tensor([[-3.0, 3.0], [-2.0, 2.0]])),
        branch=LowRankBranch(torch.full((2, 27), 0.01), torch.full((8, 2), 0.02)),
    )
    odd = torch.arange(20) % 2
    mixed = RowMixedWeight(
        [
            UniformWeight.pack(quantize_uniform(up.weight[odd == 0], 3), 3, "asymmetric"),
            BinaryPlanesWeight.pack(fit_binary_planes(up.weight[odd == 1], 2)),
        ],
        odd,
    )
    smooth = torch.linspace(0.5, 2.0, 8)
    model.block["up"] = PackedLinear.like(up, mixed, act=ActQuantizer(8, "token"), smooth=smooth)
    nf4 = NormalFloatWeight.pack(quantize_normal_float(down.weight, 4), 4)
    model.block["down"] = PackedLinear.like(down, nf4)
    bind_step_index(model, StepIndex(1))
    return model.eval()


def x() -> Tensor:
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(9))


def test_reload_is_bit_equal(tmp_path: Path) -> None:
    model = quantized()
    save_checkpoint(model, tmp_path / "checkpoint")
    loaded = Denoiser(seed=1).eval()
    load_checkpoint(loaded, tmp_path / "checkpoint")
    bind_step_index(loaded, StepIndex(1))
    assert torch.equal(loaded(x()), model(x()))
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor)
        assert loaded.state_dict()[key].dtype == tensor.dtype
    assert not any(module.training for module in loaded.modules())


def test_saving_is_deterministic_and_repeatable(tmp_path: Path) -> None:
    save_checkpoint(quantized(), tmp_path / "a")
    loaded = Denoiser(seed=1).eval()
    load_checkpoint(loaded, tmp_path / "a")
    save_checkpoint(loaded, tmp_path / "b")
    for name in (TENSORS, LAYERS):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert checkpoint_bytes(tmp_path / "a") == sum(p.stat().st_size for p in (tmp_path / "a").iterdir())


def test_kept_parameters_take_16_bits_only_where_exact(tmp_path: Path) -> None:
    model = quantized()
    with torch.no_grad():
        model.norm.weight.copy_(model.norm.weight.half().float())
    save_checkpoint(model, tmp_path)
    stored = load_file(tmp_path / TENSORS)
    assert stored["norm.weight"].dtype == torch.float16
    assert stored["head.weight"].dtype == torch.float32
    assert stored["block.down.weight.absmax"].dtype == torch.float32
    assert torch.equal(stored["head.weight"], model.head.weight)


def test_packed_bytes_equal_the_ledger_equal_the_file(tmp_path: Path) -> None:
    model = quantized()
    save_checkpoint(model, tmp_path)
    ledger = build_ledger(model, TARGETS)
    # The file read by its format, without the library: 8 bytes of length, a JSON header with offsets.
    raw = (tmp_path / TENSORS).read_bytes()
    header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    for row in ledger.rows:
        inside = [v for k, v in header.items() if k.startswith(f"{row.name}.")]
        in_file = sum(v["data_offsets"][1] - v["data_offsets"][0] for v in inside)
        module = model.get_submodule(row.name)
        in_memory = sum(t.numel() * t.element_size() for t in module.buffers())
        assert sum(row.bytes.values()) == in_file == in_memory
    assert ledger.packed_bytes == sum(sum(row.bytes.values()) for row in ledger.rows)


def test_ledger_by_hand() -> None:
    ledger = build_ledger(quantized(), TARGETS, {"block.up": {"split": 0.5}})
    rows = {row.name: row for row in ledger.rows}
    assert list(rows) == ["inlet", "block.up", "block.down"]
    inlet = {"codes": 216, "scales": 16, "zeros": 8, "branch": 140, "act": 8, "bias": 16}
    # Rows of 8 weights: 3 bits are 3 bytes, two planes 2 bytes.
    up = {"codes": 50, "scales": 20 + 40, "zeros": 10, "index": 20, "smooth": 16, "bias": 40}
    down = {"codes": 80, "scales": 12, "codebooks": 64}
    assert (rows["inlet"].bytes, rows["block.up"].bytes, rows["block.down"].bytes) == (inlet, up, down)
    assert (rows["inlet"].shape, rows["inlet"].kind, rows["inlet"].role) == (
        (8, 3, 3, 3),
        "conv2d",
        "conv.in",
    )
    assert (rows["block.up"].mean_bits, rows["block.up"].w_bits, rows["block.up"].a_bits) == (2.5, 3, 8)
    assert rows["block.up"].note == {"split": 0.5}
    kept = 8 + 8 + 5 * 8 + 5  # the norm and the head; the buffer is no parameter
    assert ledger.kept_parameters == kept
    stored = sum(inlet.values()) + sum(up.values()) + sum(down.values())
    assert ledger.packed_bytes == stored
    assert ledger.weight_bytes == stored + 2 * kept
    assert ledger.weights == 216 + 160 + 160
    assert ledger.effective_bits == pytest.approx((stored - 16 - 40) * 8 / (216 + 160 + 160))
    assert ledger.mean_bits == pytest.approx((216 * 8 + 160 * 2.5 + 160 * 4) / 536)
    assert ledger.packed


def test_ledger_survives_json() -> None:
    ledger = build_ledger(quantized(), TARGETS, {"inlet": {"why": ["kept", 8]}})
    assert Ledger.from_json(json.loads(json.dumps(ledger.to_json()))) == ledger
    with pytest.raises(ValueError, match="not a ledger"):
        Ledger.from_json({"rows": [{"name": "x"}], "kept_parameters": 1})


def test_a_target_left_in_floats_counts_16_bits() -> None:
    ledger = build_ledger(Denoiser(0), TARGETS)
    assert not ledger.packed
    assert ledger.effective_bits == 16.0
    assert ledger.weight_bytes == reference_ledger(Denoiser(0)).weight_bytes
    assert reference_ledger(Denoiser(0)).effective_bits == 16.0
    assert reference_ledger(Denoiser(0)).weight_bytes == 2 * sum(p.numel() for p in Denoiser(0).parameters())


def edit_layers(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = json.loads((folder / LAYERS).read_text())
        change(content)
        (folder / LAYERS).write_text(json.dumps(content))

    return apply


def edit_tensors(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / TENSORS)
        change(tensors)
        save_file(tensors, folder / TENSORS)

    return apply


def rename(name: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content["layers"][name] = content["layers"].pop("block.down")

    return change


def put(key: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.__setitem__(key, tensor)


def layer(change: dict[str, Any], name: str = "block.down") -> Callable[[dict[str, Any]], None]:
    return lambda content: content["layers"][name].update(change)


def weight(change: dict[str, Any], name: str = "block.down") -> Callable[[dict[str, Any]], None]:
    return lambda content: content["layers"][name]["weight"].update(change)


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no tensors": (lambda f: (f / TENSORS).unlink(), "cannot read model.safetensors"),
    "truncated": (lambda f: (f / TENSORS).write_bytes((f / TENSORS).read_bytes()[:-7]), "cannot read model"),
    "truncated header": (lambda f: (f / TENSORS).write_bytes(b"\x40"), "cannot read model.safetensors"),
    "huge header": (lambda f: (f / TENSORS).write_bytes(b"\xff" * 64), "cannot read model.safetensors"),
    "a pickle": (lambda f: torch.save({"head.bias": torch.zeros(5)}, f / TENSORS), "cannot read model"),
    "no layers": (lambda f: (f / LAYERS).unlink(), "cannot read layers.json"),
    "no JSON": (lambda f: (f / LAYERS).write_text("{"), "cannot read layers.json"),
    "not UTF-8": (lambda f: (f / LAYERS).write_bytes(b"\xff\xfe\xff"), "cannot read layers.json"),
    "deep JSON": (lambda f: (f / LAYERS).write_text("[" * 200_000), "layers.json"),
    "a list": (lambda f: (f / LAYERS).write_text("[]"), "must be an object"),
    "another schema": (edit_layers(lambda c: c.update(schema=99)), "schema 99"),
    "before planes": (edit_layers(lambda c: c.update(schema=1)), "schema 1, this version reads 2"),
    "layers a list": (edit_layers(lambda c: c.update(layers=[])), "must be an object"),
    "a layer a number": (edit_layers(lambda c: c["layers"].update({"block.down": 3})), "must be an object"),
    "unknown name": (edit_layers(rename("block.sideways")), "no layer of this denoiser"),
    "path-like name": (edit_layers(rename("../../etc/passwd")), "no layer of this denoiser"),
    "the root": (edit_layers(rename("")), "no layer of this denoiser"),
    "dunder": (edit_layers(rename("block.__class__")), "no layer of this denoiser"),
    "not a layer": (edit_layers(rename("norm")), "packed linear for a LayerNorm"),
    "other layer": (edit_layers(rename("head")), "not 5 x 8"),
    "unknown kind": (edit_layers(layer({"kind": "lstm"})), "unknown layer kind 'lstm'"),
    "kind a list": (edit_layers(layer({"kind": []})), "unknown layer kind"),
    "wrong kind": (edit_layers(layer({"kind": "conv2d"})), "packed conv2d for a Linear"),
    "unknown weight": (edit_layers(weight({"kind": "magic"})), "kind must be one of"),
    "weight a string": (edit_layers(layer({"weight": "x"})), "must be an object"),
    "huge rows": (edit_layers(weight({"rows": 2**40})), "not 8 x 20"),
    "huge block": (edit_layers(weight({"block": 2**60})), "block must be"),
    "other bits": (edit_layers(weight({"bits": 3})), "shape"),
    "other group": (edit_layers(weight({"group": 9}, "inlet")), "shape"),
    "invented bias": (edit_layers(layer({"bias": True})), "having a bias"),
    "huge branch": (edit_layers(layer({"branch": 10**9})), "branch must be"),
    "invented branch": (edit_layers(layer({"branch": 2})), "lacks or adds"),
    "act a list": (edit_layers(layer({"act": [8]})), "must be an object"),
    "geometry": (edit_layers(lambda c: c["layers"]["inlet"]["geometry"].update(stride=[2, 2])), "geometry"),
    "conv per token": (
        edit_layers(lambda c: c["layers"]["inlet"].update(act=ActQuantizer(8).spec())),
        "one range per tensor",
    ),
    "extra tensor": (edit_tensors(put("extra", torch.zeros(1))), "lacks or adds 1 tensors"),
    "missing tensor": (edit_tensors(lambda t: t.pop("head.bias")), "lacks or adds 1 tensors"),
    "kept shape": (edit_tensors(put("head.weight", torch.zeros(8, 5))), "shape"),
    "kept dtype": (edit_tensors(put("head.weight", torch.zeros(5, 8, dtype=torch.int64))), "int64"),
    "packed dtype": (edit_tensors(put("inlet.weight.scale", torch.zeros(8, 1))), "float32"),
    "packed shape": (edit_tensors(put("block.down.weight.absmax", torch.zeros(4))), "shape"),
    "row owners": (
        edit_tensors(put("block.up.weight.row_part", torch.full((20,), 9, dtype=torch.uint8))),
        "row_part gives",
    ),
    "zero smoothing": (edit_tensors(put("block.up.smooth", torch.zeros(8, dtype=torch.float16))), "positive"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_checkpoints_are_refused_and_change_nothing(name: str, tmp_path: Path) -> None:
    spoil, message = HOSTILE[name]
    save_checkpoint(quantized(), tmp_path)
    spoil(tmp_path)
    model = Denoiser(seed=1)
    before, types = model(x()), [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=message):
        load_checkpoint(model, tmp_path)
    assert [type(module) for module in model.modules()] == types
    assert torch.equal(model(x()), before)


def test_an_unwritable_folder_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / TENSORS).mkdir()
    with pytest.raises(OSError, match="safetensors"):
        save_checkpoint(quantized(), tmp_path / "checkpoint")
