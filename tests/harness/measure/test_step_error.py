"""Error by sampling step against factors put in by hand, on tiny random pipelines of the real classes."""

from __future__ import annotations

import copy

import pytest
import torch
from pipelines import STEPS, prompts, save_tiny, tiny_card
from torch import nn

from harness.generate import sample
from harness.kernels.activations import ActQuantizer
from harness.measure.step_error import step_errors
from harness.models.load import load_pipeline


@pytest.fixture(params=["tiny-dit", "tiny-unet"])
def opened(request, tmp_path):
    torch.set_num_threads(1)
    card = tiny_card(request.param)
    folder = save_tiny(request.param, tmp_path / "model")
    return card, load_pipeline(card, folder, "cpu", torch.float32)


class Scaled(nn.Module):
    """A denoiser that is off by another factor at each call."""

    def __init__(self, denoiser, factors):
        super().__init__()
        self.denoiser, self.factors = denoiser, iter(factors)

    def forward(self, *args, **kwargs):
        found = self.denoiser(*args, **kwargs)
        return ((found if isinstance(found, torch.Tensor) else found[0]) * next(self.factors),)


def test_each_steps_error_is_that_of_its_own_call(opened):
    card, pipeline = opened
    factors = [1.0, 1.1, *[0.5] * (STEPS - 2)]
    other = Scaled(copy.deepcopy(getattr(pipeline, card.denoiser)), factors)
    found = step_errors(pipeline, card, other, prompts(3), 0)
    assert found == pytest.approx([(factor - 1.0) ** 2 for factor in factors], rel=1e-4, abs=1e-12)
    assert found[0] == 0.0


def test_the_inputs_are_the_references_and_its_images_stay(opened):
    card, pipeline = opened
    before = sample(pipeline, card, prompts(2), 5, "latent")
    seen = []

    class Noting(nn.Module):
        def forward(self, sample=None, *args, **kwargs):
            given = kwargs.get("hidden_states", sample)
            seen.append(given.clone())
            return (torch.full_like(given, float("nan") if len(seen) == 2 else 0.0),)

    found = step_errors(pipeline, card, Noting(), prompts(2), 5)
    # A denoiser that says 0 loses all of the signal, and one that says nothing has no figure.
    assert found == [pytest.approx(1.0), None, *[pytest.approx(1.0)] * (STEPS - 2)]
    assert torch.equal(sample(pipeline, card, prompts(2), 5, "latent"), before)
    assert not torch.equal(seen[0], seen[-1])


def test_quantizers_of_the_other_denoiser_learn_the_step(opened):
    card, pipeline = opened
    steps = []

    class Stepped(nn.Module):
        def __init__(self, denoiser):
            super().__init__()
            self.denoiser = denoiser
            self.quantizer = ActQuantizer(8, "tensor", "per_step", range=torch.tensor([[-1.0, 1.0]] * STEPS))

        def forward(self, *args, **kwargs):
            steps.append(self.quantizer.step_index.value)
            return self.denoiser(*args, **kwargs)

    other = Stepped(copy.deepcopy(getattr(pipeline, card.denoiser)))
    assert step_errors(pipeline, card, other, prompts(1), 0) == [0.0] * STEPS
    assert steps == list(range(STEPS))
