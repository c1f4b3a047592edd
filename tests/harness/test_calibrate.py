from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pipelines
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from harness import calibrate, generate
from harness.calibrate import Calibration, InputStatistics, Reservoir, record_calibration, sample_sizes
from harness.methods.contract import CalibrationStream
from harness.models.load import load_pipeline
from harness.models.roles import targets

NAMES = ("tiny-unet", "tiny-dit")
PROMPTS = pipelines.prompts(5)
SEED = 11


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=NAMES)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Any, list[str]]:
    card = pipelines.tiny_card(request.param)
    folder = pipelines.save_tiny(card.name, tmp_path_factory.mktemp("models") / card.name)
    pipeline = load_pipeline(card, folder, "cpu", torch.float32)
    denoiser = getattr(pipeline, card.denoiser)
    return pipeline, card, [target.name for target in targets(card, denoiser, 4, 8)]


@pytest.fixture(scope="module")
def recorded(model: tuple[Any, Any, list[str]]) -> Calibration:
    pipeline, card, names = model
    return record_calibration(pipeline, card, names, PROMPTS, SEED)


@pytest.fixture(scope="module")
def everything(model: tuple[Any, Any, list[str]]) -> dict[str, list[torch.Tensor]]:
    """Every input of every target, kept whole: one tensor per sampling step."""
    pipeline, card, names = model
    denoiser = getattr(pipeline, card.denoiser)
    kept: dict[str, list[torch.Tensor]] = defaultdict(list)
    handles = [
        denoiser.get_submodule(name).register_forward_pre_hook(
            lambda _m, args, name=name: kept[name].append(args[0].clone())
        )
        for name in names
    ]
    generate.sample(pipeline, card, PROMPTS, SEED, "latent")
    for handle in handles:
        handle.remove()
    return kept


def rows_of(layer: nn.Module, inputs: list[torch.Tensor]) -> torch.Tensor:
    whole = torch.cat(inputs)
    return whole if isinstance(layer, nn.Conv2d) else whole.flatten(0, -2)


def test_statistics_equal_those_of_all_inputs_kept(
    model: tuple[Any, Any, list[str]], recorded: Calibration, everything: dict[str, list[torch.Tensor]]
) -> None:
    pipeline, card, names = model
    assert recorded.names == names
    assert recorded.steps == pipelines.STEPS
    for name in names:
        inputs = everything[name]
        rows = rows_of(getattr(pipeline, card.denoiser).get_submodule(name), inputs)
        expected = rows.abs().amax(dim=(0, 2, 3)) if rows.dim() == 4 else rows.abs().amax(dim=0)
        torch.testing.assert_close(recorded.absmax(name), expected, rtol=0, atol=0)
        ranges = torch.stack([torch.stack([x.min(), x.max()]) for x in inputs])
        torch.testing.assert_close(recorded.step_range(name), ranges, rtol=0, atol=0)


def test_samples_are_distinct_rows_of_the_inputs_in_order(
    model: tuple[Any, Any, list[str]], recorded: Calibration, everything: dict[str, list[torch.Tensor]]
) -> None:
    pipeline, card, names = model
    for name in names:
        layer = getattr(pipeline, card.denoiser).get_submodule(name)
        rows = rows_of(layer, everything[name])
        kept = recorded.samples(name)
        limit = calibrate.MAPS if isinstance(layer, nn.Conv2d) else calibrate.TOKEN_ROWS
        assert kept.shape == (min(limit, len(rows)), *rows.shape[1:])
        assert kept.dtype == torch.float32
        position = 0
        for row in kept:
            same = (rows[position:] == row).flatten(1).all(dim=1).nonzero()
            assert len(same), f"{name}: a sample that is no further row of the stream"
            position += int(same[0]) + 1


def test_layers_of_one_input_share_one_record(
    model: tuple[Any, Any, list[str]], recorded: Calibration
) -> None:
    q, k, v = [name for name in model[2] if ".attn1.to_" in name][:3]
    assert recorded.samples(q) is recorded.samples(k)
    assert recorded.samples(q) is recorded.samples(v)
    cross_q, cross_k, cross_v = [name for name in model[2] if ".attn2.to_" in name][:3]
    assert recorded.samples(cross_k) is recorded.samples(cross_v)
    assert recorded.samples(cross_q) is not recorded.samples(cross_k)


def test_recording_twice_gives_the_same_bits_and_another_seed_another_sample(
    model: tuple[Any, Any, list[str]], recorded: Calibration
) -> None:
    pipeline, card, names = model
    torch.manual_seed(123)
    again = record_calibration(pipeline, card, names, PROMPTS, SEED)
    other = record_calibration(pipeline, card, names, PROMPTS, SEED + 1)
    for name in names:
        assert torch.equal(again.samples(name), recorded.samples(name))
        assert torch.equal(again.absmax(name), recorded.absmax(name))
        assert torch.equal(again.step_range(name), recorded.step_range(name))
    assert not torch.equal(other.samples(names[0]), recorded.samples(names[0]))


def test_the_budget_bounds_the_samples(model: tuple[Any, Any, list[str]], recorded: Calibration) -> None:
    pipeline, card, names = model

    def held(calibration: Calibration) -> int:
        return sum(entry.samples.nbytes for entry in calibration._statistics.values())

    budget = held(recorded) // 4
    small = record_calibration(pipeline, card, names, PROMPTS, SEED, budget)
    assert budget / 2 < held(small) <= budget
    assert all(torch.equal(small.absmax(name), recorded.absmax(name)) for name in names)
    with pytest.raises(ValueError, match="do not hold one sample of each"):
        record_calibration(pipeline, card, names, PROMPTS, SEED, 100)


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=3),
        st.one_of(
            st.tuples(st.integers(1, 64)), st.tuples(st.integers(1, 64), st.integers(1, 9), st.integers(1, 9))
        ),
        min_size=1,
    ),
    st.integers(0, 10**6),
)
def test_sample_sizes_stay_within_any_budget(shapes: dict[str, tuple[int, ...]], spare: int) -> None:
    one_each = sum(4 * torch.Size(shape).numel() for shape in shapes.values())
    sizes = sample_sizes(shapes, one_each + spare)
    assert sum(4 * torch.Size(shapes[g]).numel() * n for g, n in sizes.items()) <= one_each + spare
    for group, n in sizes.items():
        assert 1 <= n <= (calibrate.TOKEN_ROWS if len(shapes[group]) == 1 else calibrate.MAPS)
    assert all(
        n == (calibrate.TOKEN_ROWS if len(shapes[g]) == 1 else calibrate.MAPS)
        for g, n in sample_sizes(shapes, 10**9).items()
    )


def test_batches_join_into_one_record(
    model: tuple[Any, Any, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, card, names = model
    name = names[0]
    alone = [record_calibration(pipeline, card, [name], [prompt], SEED) for prompt in PROMPTS[:3]]
    monkeypatch.setattr(calibrate, "BATCH", 1)
    together = record_calibration(pipeline, card, [name], PROMPTS[:3], SEED)
    assert torch.equal(together.absmax(name), torch.stack([a.absmax(name) for a in alone]).amax(0))
    ranges = torch.stack([a.step_range(name) for a in alone])
    expected = torch.stack([ranges[..., 0].amin(0), ranges[..., 1].amax(0)], dim=1)
    assert torch.equal(together.step_range(name), expected)


def test_recording_leaves_no_hooks_and_no_inference_tensors(
    model: tuple[Any, Any, list[str]], recorded: Calibration
) -> None:
    pipeline, card, names = model
    denoiser = getattr(pipeline, card.denoiser)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in denoiser.modules())
    for name in names:
        for tensor in (recorded.absmax(name), recorded.step_range(name), recorded.samples(name)):
            assert not tensor.is_inference()


def test_a_calibration_is_what_methods_are_handed(recorded: Calibration) -> None:
    stream: CalibrationStream = recorded
    assert stream.steps == pipelines.STEPS
    with pytest.raises(KeyError, match="no calibration was recorded for 'x'"):
        stream.absmax("x")


def test_bad_requests_are_refused(model: tuple[Any, Any, list[str]]) -> None:
    pipeline, card, names = model
    with pytest.raises(ValueError, match="at least one prompt"):
        record_calibration(pipeline, card, names, [], SEED)
    with pytest.raises(ValueError, match="not a Linear or Conv2d of the denoiser: nothing"):
        record_calibration(pipeline, card, [*names, "nothing"], PROMPTS, SEED)


def test_save_and_load_give_the_same_bits(recorded: Calibration, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    recorded.save(path)
    loaded = Calibration.load(path)
    assert loaded.names == recorded.names
    assert loaded.steps == recorded.steps
    for name in recorded.names:
        assert torch.equal(loaded.absmax(name), recorded.absmax(name))
        assert torch.equal(loaded.step_range(name), recorded.step_range(name))
        assert torch.equal(loaded.samples(name), recorded.samples(name))


def small_file(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    statistics = InputStatistics(torch.ones(3), torch.tensor([[-1.0, 1.0], [-2.0, 2.0]]), torch.ones(4, 3))
    Calibration(2, {"g": statistics}, {"a": "g", "b": "g"}).save(path)
    with safe_open(path, framework="pt") as file:
        return load_file(path), file.metadata()


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({}, {"format": "other"}),
        ({}, {"steps": "3"}),
        ({}, {"steps": "x"}),
        ({}, {"groups": "["}),
        ({}, {"groups": "[]"}),
        ({}, {"groups": "{}"}),
        ({}, {"groups": '{"a": ["g"]}'}),
        ({}, {"groups": '{"a": "g", "b": "h"}'}),
        ({"extra": torch.ones(1)}, {}),
        ({"g/absmax": torch.ones(2)}, {}),
        ({"g/absmax": -torch.ones(3)}, {}),
        ({"g/absmax": torch.ones(3).half()}, {}),
        ({"g/samples": torch.full((4, 3), float("nan"))}, {}),
        ({"g/samples": torch.ones(3)}, {}),
        ({"g/samples": torch.ones(0, 3)}, {}),
        ({"g/step_range": torch.tensor([[1.0, -1.0], [0.0, 0.0]])}, {}),
        ({"g/step_range": torch.ones(3, 2)}, {}),
    ],
)
def test_a_forged_file_is_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]
) -> None:
    path = tmp_path / "c.safetensors"
    good_tensors, good_metadata = small_file(path)
    Calibration.load(path)
    save_file(good_tensors | tensors, path, good_metadata | metadata)
    with pytest.raises(ValueError, match="calibration"):
        Calibration.load(path)


def test_a_missing_or_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    with pytest.raises(ValueError, match="no usable calibration"):
        Calibration.load(path)
    small_file(path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match="no usable calibration"):
        Calibration.load(path)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(1, 30), st.integers(0, 2**31))
def test_a_reservoir_keeps_distinct_rows_in_order_whatever_the_chunks(
    chunks: list[int], size: int, seed: int
) -> None:
    total = sum(chunks)
    stream = torch.arange(total, dtype=torch.float32).reshape(-1, 1)
    chunked, whole = Reservoir(size, seed), Reservoir(size, seed)
    for chunk in torch.split_with_sizes(stream, chunks):
        chunked.add(chunk)
    whole.add(stream)
    kept = chunked.rows().reshape(-1).tolist()
    assert len(kept) == min(size, total)
    assert kept == sorted(set(kept))
    assert kept == whole.rows().reshape(-1).tolist()


def test_a_reservoir_is_uniform_over_the_stream() -> None:
    counts = torch.zeros(40)
    for seed in range(2000):
        reservoir = Reservoir(4, seed)
        for chunk in torch.split_with_sizes(torch.arange(40.0), [25, 5, 10]):
            reservoir.add(chunk)
        counts[reservoir.rows().long()] += 1
    # Each of 40 places is kept with probability 1/10: mean 200, standard deviation 13.4.
    assert (counts - 200).abs().max() < 4.5 * 13.4
    thirds = torch.stack([counts[:25].mean(), counts[25:30].mean(), counts[30:].mean()])
    assert (thirds - 200).abs().max() < 20


def test_an_empty_reservoir_says_so() -> None:
    with pytest.raises(ValueError, match="nothing was offered"):
        Reservoir(3, 0).rows()
