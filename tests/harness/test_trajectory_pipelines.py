"""Recorded trajectories of pipelines that order their batch, or call their denoiser, in their own way."""

from __future__ import annotations

import inspect

import pytest
import torch
from pipelines import prompts
from reduced import STEPS, reduced_card, save_reduced

from harness.datasets.contract import Prompt
from harness.generate import sample
from harness.kernels.layers import PackedLayer
from harness.methods import registry
from harness.methods.contract import QuantizeJob
from harness.methods.training.trajectories import guided
from harness.models.load import load_pipeline
from harness.models.roles import targets
from harness.noise import hash_seed
from harness.trajectory import PipelineTeacher

CLASSES = [Prompt(f"c{number}", str(number), {"class": number}) for number in (3, 7, 1, 9)]


def opened(name, tmp_path, **sampling):
    torch.set_num_threads(1)
    card = reduced_card(name)
    return card, load_pipeline(card, save_reduced(name, tmp_path / name), "cpu", torch.float32)


def seen_by_the_scheduler(pipeline, card, batch, monkeypatch):
    """The guided predictions that the pipeline hands its scheduler: an account of its own."""
    seen = []
    step = type(pipeline.scheduler).step

    def spy(self, model_output, timestep, *args, **kwargs):
        seen.append((float(timestep), model_output.clone()))
        return step(self, model_output, timestep, *args, **kwargs)

    with monkeypatch.context() as patch:
        spy.__signature__ = inspect.signature(step)  # pipelines look up which arguments a scheduler takes
        patch.setattr(type(pipeline.scheduler), "step", spy)
        sample(pipeline, card, batch, hash_seed("training", 1), "latent")
    return seen


def test_the_class_conditional_transformer_hands_over_its_prompts_first(tmp_path, monkeypatch):
    card, pipeline = opened("dit-xl-2", tmp_path)
    got = PipelineTeacher(pipeline, card, lambda n: CLASSES[:n], seed=1).record(4, 1 << 30, features=True)
    assert (got.count, got.halves, got.steps) == (4, 2, STEPS)
    labels = got.conditions["class_labels"]
    assert labels.tolist() == [[1000, 3], [1000, 7], [1000, 1], [1000, 9]]
    for step in range(STEPS):
        batch = got.batch(torch.arange(4), torch.full((4,), step), 1, torch.device("cpu"))
        with torch.no_grad():
            output = pipeline.transformer(**batch.arguments)[0]
        torch.testing.assert_close(output, batch.predictions, rtol=1e-4, atol=1e-5)
    first = seen_by_the_scheduler(pipeline, card, CLASSES[:1], monkeypatch)
    batch = got.batch(torch.tensor([0]), torch.tensor([0]), STEPS, torch.device("cpu"))
    ours = guided(batch.predictions, batch.layout, got.guidance, 4)
    theirs = torch.cat([prediction[:1, :4] for _, prediction in first])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_two_calls_at_one_noise_level_are_one_step(tmp_path, monkeypatch):
    card, pipeline = opened("sd-1.4", tmp_path)
    assert type(pipeline.scheduler).__name__ == "PNDMScheduler"
    got = PipelineTeacher(pipeline, card, prompts, seed=1).record(2, 1 << 30, features=True)
    seen = seen_by_the_scheduler(pipeline, card, prompts(1), monkeypatch)
    levels = list(dict.fromkeys(timestep for timestep, _ in seen))
    assert len(seen) == len(levels) + 1
    assert got.timesteps.tolist() == levels
    assert got.features.shape[2] == len(levels)
    batch = got.batch(torch.tensor([0]), torch.tensor([0]), len(levels), torch.device("cpu"))
    ours = guided(batch.predictions, batch.layout, got.guidance, 4)
    first_calls = [next(p for t, p in seen if t == level) for level in levels]
    torch.testing.assert_close(ours, torch.cat(first_calls), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["dit-xl-2", "sd-1.4"])
def test_such_a_pipeline_can_be_trained(name, tmp_path):
    card, pipeline = opened(name, tmp_path)
    denoiser = getattr(pipeline, card.denoiser)
    given = (lambda n: CLASSES[:n]) if name == "dit-xl-2" else prompts
    wanted = targets(card, denoiser, 4, 16)
    job = QuantizeJob(denoiser, wanted, None, 32, teacher=PipelineTeacher(pipeline, card, given, 1))
    settings = {"train_steps": "2", "train_prompts": "3", "train_evaluations": "1", "prescale": "never"}
    job.calibration = Ones(denoiser)
    registry.get("mpqdm").quantize(job, registry.configure("mpqdm", {**settings, "swap": "off"}))
    assert all(isinstance(denoiser.get_submodule(t.name), PackedLayer) for t in wanted)


class Ones:
    """Inputs of nothing but ones, for a method that must not depend on them here."""

    def __init__(self, denoiser):
        self._denoiser = denoiser

    def samples(self, name):
        layer = self._denoiser.get_submodule(name)
        conv = layer.weight.dim() == 4
        return torch.ones(2, layer.in_channels, 3, 3) if conv else torch.ones(4, layer.in_features)
