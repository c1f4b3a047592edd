"""NVFP4 against a search over all numbers of its formats."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from harness.kernels.activations import ActQuantizer
from harness.kernels.checkpoint import load_checkpoint, save_checkpoint
from harness.kernels.layers import PackedLinear
from harness.kernels.quantizers.nvfp4 import MAGNITUDES, decode_e2m1, encode_e2m1, quantize_nvfp4, round_e4m3
from harness.kernels.weights import Nvfp4Weight, weight_from_spec

E2M1 = np.array([s * m for s in (1, -1) for m in MAGNITUDES])
E4M3 = np.array(
    [m / 8 * 2.0**-6 for m in range(8)]
    + [(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8)]
)[:-1]


def nearest(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    return table[np.abs(values[..., None] - table).argmin(axis=-1)]


def matrix(rows: int = 9, cols: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, cols, generator=generator) * torch.logspace(-3, 1, rows)[:, None]


def test_e2m1_rounds_to_the_nearest_and_ties_to_even() -> None:
    x = torch.linspace(-7, 7, 20001, dtype=torch.float32)
    got = decode_e2m1(encode_e2m1(x)).double().numpy()
    np.testing.assert_array_equal(
        np.abs(got - x.double().numpy()), np.abs(nearest(x.double().numpy(), E2M1) - x.double().numpy())
    )
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    assert decode_e2m1(encode_e2m1(ties)).tolist() == [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]
    assert decode_e2m1(encode_e2m1(-ties)).tolist() == [0.0, -1.0, -1.0, -2.0, -2.0, -4.0, -4.0]
    assert decode_e2m1(encode_e2m1(torch.tensor([100.0, -100.0]))).tolist() == [6.0, -6.0]


def test_scales_are_e4m3_and_saturate() -> None:
    x = torch.cat([torch.logspace(-5, 2.6, 500), torch.tensor([0.0, 448.0, 1e6])])
    got = round_e4m3(x).double().numpy()
    exact = np.minimum(x.double().numpy(), 448)
    np.testing.assert_array_equal(np.abs(got - exact), np.abs(nearest(exact, E4M3) - exact))
    assert set(got.tolist()) <= set(E4M3.tolist())
    assert got[-1] == 448


def test_weights_have_two_levels_of_scales() -> None:
    w = matrix()
    codes = quantize_nvfp4(w)
    packed = Nvfp4Weight.pack(codes)
    tensor_scale = float(w.abs().max()) / 6 / 448
    assert float(codes.tensor_scale) == pytest.approx(tensor_scale, rel=1e-6)
    got = packed.dequantize().double().numpy()
    for row in range(9):
        for start in (0, 16, 32):
            group = w[row, start : start + 16].double().numpy()
            scale = nearest(np.array([np.abs(group).max() / 6 / tensor_scale]), E4M3)[0] * tensor_scale
            expected = nearest(group / scale, E2M1) * scale if scale else 0 * group
            np.testing.assert_allclose(got[row, start : start + 16], expected, rtol=1e-5, atol=1e-9)
    assert packed.bytes_by_part() == {"codes": 9 * 20, "scales": 9 * 3 + 4}


def test_zero_and_constant_matrices_survive() -> None:
    assert not Nvfp4Weight.pack(quantize_nvfp4(torch.zeros(2, 20))).dequantize().any()
    w = torch.full((2, 20), 0.3)
    w[1] = 0
    torch.testing.assert_close(Nvfp4Weight.pack(quantize_nvfp4(w)).dequantize(), w)
    with pytest.raises(ValueError, match="not finite"):
        quantize_nvfp4(torch.full((1, 4), float("nan")))


def test_activations_have_one_e4m3_scale_per_token_and_group() -> None:
    x = matrix(5, 48)
    act = ActQuantizer(4, "group", "dynamic", True, group=16, format="nvfp4")
    got = act(x).double().numpy()
    for token in range(5):
        for start in (0, 16, 32):
            group = x[token, start : start + 16].double().numpy()
            scale = float(round_e4m3(torch.tensor(np.abs(group).max() / 6)))
            expected = nearest(group / scale, E2M1) * scale if scale else 0 * group
            np.testing.assert_allclose(got[token, start : start + 16], expected, rtol=1e-5, atol=1e-7)
    assert ActQuantizer.from_spec(act.spec()).format == "nvfp4"
    old = {key: value for key, value in act.spec().items() if key != "format"}
    assert ActQuantizer.from_spec(old).format == "integer"


@pytest.mark.parametrize(
    "change", [{"bits": 8}, {"granularity": "token"}, {"symmetric": False}, {"group": 32}]
)
def test_activations_of_another_kind_are_refused(change: dict[str, object]) -> None:
    right = {"bits": 4, "granularity": "group", "mode": "dynamic", "symmetric": True, "group": 16}
    with pytest.raises(ValueError, match="no such activation format"):
        ActQuantizer(**{**right, **change}, format="nvfp4")


def test_a_layer_comes_back_from_its_checkpoint(tmp_path) -> None:
    linear = nn.Linear(40, 9)
    act = ActQuantizer(4, "group", "dynamic", True, group=16, format="nvfp4")
    packed = PackedLinear.like(linear, Nvfp4Weight.pack(quantize_nvfp4(matrix())), act=act)
    net, again = nn.ModuleDict({"l": packed}), nn.ModuleDict({"l": linear})
    save_checkpoint(net, tmp_path)
    load_checkpoint(again, tmp_path)
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again["l"](x), packed(x))
    empty = weight_from_spec(packed.weight.spec())
    empty.scale.fill_(0x7F)
    with pytest.raises(ValueError, match="not finite"):
        empty.check()
