"""Training on a device that is not the host's memory: nothing mixes devices, and nothing changes."""

from __future__ import annotations

import copy

import pytest
import torch
from second_device import AwayTensor, second_device
from test_second_device import AwayStream
from training_jobs import FakeTeacher, training_job

from harness.methods import registry

SETTINGS = {"train_steps": "3", "train_prompts": "8", "train_evaluations": "2", "train_lora_rank": "2"}


def trained(method, job, **settings):
    registry.get(method).quantize(job, registry.configure(method, {**SETTINGS, **settings}))
    return job.denoiser


@pytest.mark.parametrize(
    ("method", "settings"),
    [("mpqdm", {"act": "per_step"}), ("mpqdm", {}), ("mpqdmv2", {"rank": "2"})],
)
def test_training_gives_the_same_layers_on_a_second_device(method, settings):
    here = trained(method, training_job(), **settings).state_dict()
    with second_device() as device:
        job = training_job()
        job.teacher = FakeTeacher(copy.deepcopy(job.denoiser))
        with torch.no_grad():
            job.denoiser.to(device)
        job.calibration = AwayStream({n: job.calibration.samples(n) for n in ("conv", "up", "down")}, device)
        there = trained(method, job, **settings).state_dict()
        assert all(isinstance(tensor, AwayTensor) for tensor in there.values())
        assert there.keys() == here.keys()
        for name, tensor in here.items():
            torch.testing.assert_close(there[name].cpu(), tensor, rtol=1e-3, atol=1e-5)
