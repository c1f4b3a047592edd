"""Quantizing goes layer by layer: beyond the packed layers, what is held does not grow with their number."""

from __future__ import annotations

import layer_jobs as jobs
import pytest
import torch
from torch import nn

from harness.measure.memory import forward_peak_bytes
from harness.methods.contract import LayerTarget, QuantizeJob

WIDTH = 64
FEW, MANY = 2, 10


def peak(method: str, layers: int, **settings: str) -> tuple[int, int]:
    """Peak of the bytes held beyond the float model, counted from every allocation, and the packed bytes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, WIDTH, generator=generator)
    names = [f"l{i}" for i in range(layers)]
    stream = jobs.FakeStream(dict.fromkeys(names, x))
    # One model for the run that is not counted, and one for the run that is.
    models = [nn.ModuleDict({n: nn.Linear(WIDTH, 4 * WIDTH) for n in names}) for _ in range(2)]
    waiting = [model.requires_grad_(False) for model in models]

    def quantize() -> None:
        targets = tuple(LayerTarget(n, "ffn.up", "linear", 4, 8, n) for n in names)
        jobs.run(method, QuantizeJob(waiting.pop(), targets, stream, width=WIDTH, embedded=True), **settings)

    found = forward_peak_bytes(quantize, "cpu")
    return found, sum(sum(layer.bytes_by_part().values()) for layer in models[0].values())


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("svdquant", {"grid": "3", "iterations": "1", "rounding": "gptq"}),
        ("mpqdm", {"prescale": "never"}),
        ("mpqdmv2", {"iterations": "1"}),
        ("gptq", {}),
        ("hqq", {}),
        ("adaround", {"steps": "5"}),
    ],
)
def test_no_second_copy_of_the_model_is_held(method: str, settings: dict[str, str]) -> None:
    (few, few_packed), (many, many_packed) = (peak(method, layers, **settings) for layers in (FEW, MANY))
    grown, packed = many - few, many_packed - few_packed
    assert packed > 0
    # Frees of the float layers are not counted, as they were there before: the packed ones are what is left,
    # and what Python has not collected yet.
    assert grown <= 2 * packed
    assert grown < (MANY - FEW) * 4 * WIDTH * 4 * WIDTH / 2
