"""The trainer on a small denoiser: it learns, goes on exactly, stops early, and leaves packed layers."""

from __future__ import annotations

import copy
import csv

import pytest
import torch
from training_jobs import FakeTeacher, training_job

from harness.errors import CellError, UserError
from harness.kernels.activations import StepIndex, bind_step_index
from harness.kernels.layers import PackedLayer
from harness.methods import registry
from harness.methods.training import state as state_module
from harness.methods.training import trainer
from harness.methods.training.grids import LearnedActivation, UniformGrid
from harness.methods.training.trajectories import guided

SETTINGS = {
    "train_steps": "20",
    "train_prompts": "16",
    "train_evaluations": "4",
    "train_lora_rank": "2",
    "train_lora_lr": "0.1",
    "train_scale_lr": "0.01",
    "train_act_lr": "0.01",
}


def quantized(method="mpqdm", job=None, **settings):
    job = job or training_job()
    registry.get(method).quantize(job, registry.configure(method, settings))
    return job


def tensors(job):
    return dict(job.denoiser.state_dict())


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def held_out_error(job):
    """Guided squared error on other trajectories than any the job was trained on, step by step."""
    seen = FakeTeacher(training_job().denoiser, seed=99).record(6, 1 << 30, False)
    index = StepIndex()
    bind_step_index(job.denoiser, index)
    total = 0.0
    with torch.no_grad():
        for step, timestep in enumerate(seen.timesteps):
            index.value = step
            halves = [
                job.denoiser(
                    seen.samples[:, half, step], timestep.repeat(6), seen.conditions["caption"][:, half]
                )[0]
                for half in (0, 1)
            ]
            ours = halves[0] + 2.0 * (halves[1] - halves[0])
            u, c = seen.predictions[:, 0, step], seen.predictions[:, 1, step]
            total += float((ours - (u + 2.0 * (c - u))).square().sum())
    return total


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("mpqdm", {}),
        ("mpqdm", {"act": "per_step", "train_relation": "off"}),
        ("mpqdmv2", {"rank": "2"}),
    ],
)
def test_training_lowers_the_error_on_unseen_trajectories_and_leaves_packed_layers(method, settings):
    plain = {key: value for key, value in settings.items() if not key.startswith("train_")}
    before = quantized(method, **plain)
    gentle = {"train_steps": "40", "train_prompts": "48", "train_batch": "8", "train_lora_lr": "0.02"}
    after = quantized(method, **{**SETTINGS, "train_scale_lr": "0.003", **gentle, **settings})
    assert held_out_error(after) < 0.95 * held_out_error(before)
    for target in after.targets:
        layer = after.denoiser.get_submodule(target.name)
        untrained = before.denoiser.get_submodule(target.name)
        assert isinstance(layer, PackedLayer)
        assert layer.bytes_by_part() == untrained.bytes_by_part()
        assert layer.weight.mean_bits == untrained.weight.mean_bits
    assert set(tensors(after)) == set(tensors(before))


def test_training_is_deterministic_and_off_by_default():
    assert same(tensors(quantized(**SETTINGS)), tensors(quantized(**SETTINGS)))
    job = training_job()
    job.teacher = None
    assert "trained_steps" not in quantized(job=job).notes["up"]
    with pytest.raises(ValueError, match="no teacher"):
        quantized(job=training_job_without_teacher(), **SETTINGS)


def training_job_without_teacher():
    job = training_job()
    job.teacher = None
    return job


class KilledError(Exception):
    pass


def killed_at(monkeypatch, step):
    """Let the training die in the middle of a step, after the state of an earlier one was stored."""
    whole = trainer._Training._step

    def step_or_die(self):
        if self._progress.step == step:
            raise KilledError
        whole(self)

    monkeypatch.setattr(trainer._Training, "_step", step_or_die)


@pytest.mark.parametrize("relation", ["smoothed", "memory"])
def test_an_interrupted_training_goes_on_exactly(tmp_path, monkeypatch, relation, capsys):
    settings = {**SETTINGS, "train_relation": relation}
    whole = training_job()
    whole.workspace = tmp_path / "whole"
    quantized(job=whole, **settings)
    broken = training_job()
    broken.workspace = tmp_path / "broken"
    with monkeypatch.context() as patch:
        killed_at(patch, 13)
        with pytest.raises(KilledError):
            quantized(job=broken, **settings)
    again = training_job()
    again.workspace = broken.workspace
    quantized(job=again, **settings)
    assert "goes on at step 10" in capsys.readouterr().out
    assert same(tensors(again), tensors(whole))
    curves = [(folder / state_module.CURVE_FILE).read_text() for folder in (whole.workspace, again.workspace)]
    assert curves[0] == curves[1]
    rows = list(csv.DictReader(curves[0].splitlines()))
    assert [int(row["step"]) for row in rows] == [0, 5, 10, 15, 20]
    assert rows[0]["loss"] == ""
    assert float(rows[1]["relation"]) > 0


@pytest.mark.parametrize("harm", ["flip", "truncate", "other"])
def test_a_state_that_is_damaged_or_of_another_training_is_not_used(tmp_path, monkeypatch, harm, capsys):
    job = training_job()
    job.workspace = tmp_path
    with monkeypatch.context() as patch:
        killed_at(patch, 8)
        with pytest.raises(KilledError):
            quantized(job=job, **SETTINGS)
    path = tmp_path / state_module.STATE_FILE
    data = bytearray(path.read_bytes())
    settings = dict(SETTINGS)
    if harm == "flip":
        data[len(data) // 2] ^= 4
    if harm == "truncate":
        data = data[: len(data) // 2]
    if harm == "other":
        settings["train_lora_lr"] = "0.05"
    path.write_bytes(data)
    again = training_job()
    again.workspace = tmp_path
    quantized(job=again, **settings)
    assert "starts anew" in capsys.readouterr().out
    assert same(tensors(again), tensors(quantized(**settings)))


def test_training_stops_early_and_keeps_the_best_parameters(capsys):
    harmful = {**SETTINGS, "train_lora_lr": "50", "train_scale_lr": "5", "train_patience": "2"}
    after = quantized(**harmful)
    assert "ends at step 10; best 0" in capsys.readouterr().out
    before = quantized()
    assert held_out_error(after) == pytest.approx(held_out_error(before), rel=1e-6)


def test_the_relation_loss_alone_moves_the_student():
    """The released code detaches the student's features, so that its relation loss trains nothing."""
    moved = {}
    for relation in ("smoothed", "memory"):
        job = training_job()
        config = registry.configure("mpqdm", {**SETTINGS, "train_relation": relation})
        distiller = trainer.Distiller(job, config)
        quantized(job=job)
        student = trainer.Student(job, distiller._originals, 2)
        run = trainer._Training(job, student, distiller._teacher, config)
        batch = distiller._teacher.batch(torch.tensor([0, 1]), torch.tensor([0, 1]), 2, torch.device("cpu"))
        if run._queue is not None:
            features = trainer.as_pixels(batch.features)
            run._queue.enqueue(features, batch.steps, 64, torch.Generator().manual_seed(0))
        with torch.enable_grad(), run._prepared():
            _, features = run._predict(batch)
            run._relation_loss(features, batch, 144).backward()
        moved[relation] = {
            name: float(p.grad.abs().max()) for name, p in run._parameters.items() if p.grad is not None
        }
    for gradients in moved.values():
        for layer in ("conv", "up", "down"):
            assert gradients[f"{layer}/up"] > 0
            assert any(g > 0 for n, g in gradients.items() if n.startswith(layer) and n.endswith("scale"))


def test_checkpointing_changes_nothing(monkeypatch):
    """Recomputed layers see the same steps: their gradients are those of the plain backward pass."""
    from torch.utils.checkpoint import checkpoint

    def wrapped(job):
        denoiser = job.denoiser
        inner = type(denoiser).forward

        def forward(sample, timestep, caption, return_dict=False):
            if not denoiser.recompute:
                return inner(denoiser, sample, timestep, caption, return_dict)
            hidden = checkpoint(denoiser.conv, sample, use_reentrant=False)
            keep, denoiser.conv = denoiser.conv, torch.nn.Identity()
            try:
                return inner(denoiser, hidden, timestep, caption, return_dict)
            finally:
                denoiser.conv = keep

        denoiser.recompute = False
        denoiser.forward = forward
        denoiser.enable_gradient_checkpointing = lambda: setattr(denoiser, "recompute", True)
        denoiser.disable_gradient_checkpointing = lambda: setattr(denoiser, "recompute", False)
        return job

    settings = {**SETTINGS, "train_steps": "6", "act": "per_step"}
    plain = quantized(job=wrapped(training_job()), **settings)
    spared = quantized(job=wrapped(training_job()), **settings, train_checkpointing="true")
    assert same(tensors(plain), tensors(spared))


def test_guidance_combines_the_halves_of_each_trajectory_and_step():
    predictions = torch.randn(2 * 2 * 3, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    got = guided(predictions, (2, 2, 3), 3.0, 4)
    for trajectory in range(2):
        for step in range(3):
            u = predictions[trajectory * 6 + step, :4]
            c = predictions[trajectory * 6 + 3 + step, :4]
            torch.testing.assert_close(got[trajectory * 3 + step], -2 * u + 3 * c)


def test_the_learned_parameters_are_lora_scales_zero_points_and_stored_ranges():
    job = training_job()
    originals = {target.name: job.layer(target.name) for target in job.targets}
    quantized(job=job, act="per_step")
    student = trainer.Student(job, originals, 2)
    names = student.parameters(0.1, 0.1, 0.1)
    for layer in ("conv", "up", "down"):
        held = student.layers[layer]
        assert {f"{layer}/down", f"{layer}/up", f"{layer}/act.scale", f"{layer}/act.zero"} <= names.keys()
        assert isinstance(held.act, LearnedActivation)
        assert any(isinstance(grid, UniformGrid) for grid in held.grid.parts)
    assert not any("base" in name or "bias" in name for name in names)


def test_settings_out_of_range_are_refused():
    for key, value in (("train_steps", "-1"), ("train_window", "1"), ("train_lora_lr", "inf")):
        with pytest.raises(UserError, match=key):
            registry.configure("mpqdm", {key: value})
    registry.configure("mpqdm", {"train_window": "1", "train_relation": "off"})
    assert copy.copy(registry.configure("mpqdmv2", {})).train_relation == "memory"


@pytest.mark.parametrize("method", ["mpqdm", "mpqdmv2"])
def test_a_model_at_eight_bits_has_nothing_to_train_and_says_so(method):
    job = training_job(bits=8, a_bits=8)
    with pytest.raises(CellError, match="nothing to train") as refused:
        quantized(method, job=job, **SETTINGS)
    assert refused.value.state == "unsupported"
    quantized(method, job=job, train_steps="0")
