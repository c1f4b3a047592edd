"""Sampled input rows against torch's own convolution and linear layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harness.kernels.activations import ActQuantizer
from harness.methods.objective import LayerSample, row_errors


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 5, 3, padding=1, bias=False),
        nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(3, 5, (3, 1), padding=(2, 0), dilation=(2, 1), bias=False),
        nn.Conv2d(3, 5, 1, bias=False),
    ],
)
def test_patches_give_the_convolutions_own_output(conv: nn.Conv2d) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 7, 6)
    sample = LayerSample(conv, x, 10_000)
    with torch.no_grad():
        expected = conv(x).permute(0, 2, 3, 1).flatten(0, 2)
        torch.testing.assert_close(sample.target, expected, rtol=1e-4, atol=1e-5)
        unfolded = torch.nn.functional.unfold(x, conv.kernel_size, conv.dilation, conv.padding, conv.stride)  # type: ignore[arg-type]
    torch.testing.assert_close(sample.plain, unfolded.transpose(1, 2).flatten(0, 1))


def test_quantized_rows_are_what_the_packed_layer_multiplies() -> None:
    torch.manual_seed(0)
    conv, x = nn.Conv2d(3, 5, 3, padding=1), torch.randn(2, 3, 6, 6)
    smooth = torch.tensor([0.5, 1.0, 4.0]).half()
    act = ActQuantizer(4, "tensor", "dynamic", False)
    rows = LayerSample(conv, x, 10_000).rows(smooth, act)
    quantized = act(x / smooth.float().view(1, 3, 1, 1))
    expected = torch.nn.functional.unfold(quantized, 3, padding=1).transpose(1, 2).flatten(0, 1)
    assert torch.equal(rows, expected)


def test_samples_are_limited_distinct_and_reproducible() -> None:
    linear, x = nn.Linear(4, 2), torch.arange(400.0).view(100, 4)
    first, second = (LayerSample(linear, x, 30).plain for _ in range(2))
    assert first.shape == (30, 4)
    assert len(first[:, 0].unique()) == 30
    assert torch.equal(first, second)


def test_row_errors_are_summed_squares() -> None:
    torch.manual_seed(0)
    x, w, y = torch.randn(9, 4), torch.randn(3, 4), torch.randn(9, 3)
    expected = [(float(((x @ w[r] - y[:, r]) ** 2).sum())) for r in range(3)]
    assert row_errors(y, x, w).tolist() == pytest.approx(expected, rel=1e-5)


def test_wrong_samples_are_refused() -> None:
    for samples in (torch.zeros(5, 3), torch.zeros(0, 4), torch.zeros(5, 4, 2, 2)):
        with pytest.raises(ValueError, match="do not fit"):
            LayerSample(nn.Linear(4, 2), samples, 10)
    with pytest.raises(TypeError, match="groups"):
        LayerSample(nn.Conv2d(4, 4, 3, groups=2), torch.zeros(1, 4, 5, 5), 10)
    with pytest.raises(TypeError, match="padding"):
        LayerSample(nn.Conv2d(4, 4, 3, padding="same"), torch.zeros(1, 4, 5, 5), 10)
