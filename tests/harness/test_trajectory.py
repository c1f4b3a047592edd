"""Recorded trajectories against the denoiser itself, on tiny random pipelines of the real classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pipelines import STEPS, prompts, save_tiny, tiny_card

from harness.generate import sample
from harness.models.load import load_pipeline
from harness.trajectory import PipelineTeacher

FINAL = {"tiny-dit": "proj_out", "tiny-unet": "conv_out"}


@pytest.fixture(params=["tiny-dit", "tiny-unet"])
def opened(request, tmp_path):
    torch.set_num_threads(1)
    card = tiny_card(request.param)
    folder: Path = save_tiny(request.param, tmp_path / "model")
    return card, load_pipeline(card, folder, "cpu", torch.float32)


def test_a_recorded_batch_reproduces_predictions_and_features(opened):
    card, pipeline = opened
    teacher = PipelineTeacher(pipeline, card, prompts, seed=1)
    got = teacher.record(5, 1 << 30, features=True)
    assert (got.count, got.halves, got.steps) == (5, 2, STEPS)
    assert torch.equal(got.samples[:, 0], got.samples[:, 1])
    assert not torch.equal(got.samples[0, 0, 0], got.samples[1, 0, 0])
    assert len(set(got.timesteps.tolist())) == STEPS
    batch = got.batch(torch.tensor([4, 1]), torch.tensor([0, 1]), 2, torch.device("cpu"))
    assert batch.steps.tolist() == [0, 1, 0, 1, 1, 2, 1, 2]
    denoiser = getattr(pipeline, card.denoiser)
    caught = []
    handle = denoiser.get_submodule(FINAL[card.name]).register_forward_pre_hook(
        lambda _m, a: caught.append(a[0])
    )
    with torch.no_grad():
        output = denoiser(**batch.arguments)[0]
    handle.remove()
    torch.testing.assert_close(output, batch.predictions, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(caught[0], batch.features, rtol=2e-3, atol=2e-3)


def test_trajectories_are_those_of_sampling_and_deterministic(opened):
    card, pipeline = opened
    record = PipelineTeacher(pipeline, card, prompts, seed=1).record
    first = record(3, 1 << 30, features=False)
    assert first.features is None
    assert first.digest() == record(3, 1 << 30, features=False).digest()
    assert (
        first.digest() != PipelineTeacher(pipeline, card, prompts, seed=2).record(3, 1 << 30, False).digest()
    )
    assert not any(t.is_inference() for t in (first.samples, first.predictions, *first.conditions.values()))
    guidance = card.sampling.guidance
    u, c = first.predictions[0, 0, 0], first.predictions[0, 1, 0]
    assert not torch.equal(u, c)
    assert first.guidance == guidance
    assert sample(pipeline, card, prompts(1), 1, "latent").shape[1:] == first.samples.shape[3:]


def test_the_byte_budget_bounds_what_is_recorded(opened):
    card, pipeline = opened
    teacher = PipelineTeacher(pipeline, card, prompts, seed=1)
    each = teacher.record(2, 1 << 30, features=True).nbytes() / 2
    budget = int(each * 3.5)
    got = teacher.record(8, budget, features=True)
    assert got.count == 3
    assert got.nbytes() <= budget
    with pytest.raises(ValueError, match="does not hold 2"):
        teacher.record(8, int(each * 1.5), features=True)
