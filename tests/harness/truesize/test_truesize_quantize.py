"""Quantizing block by block: the same inputs as in the whole model, one block in floats, resumable."""

from __future__ import annotations

import gc
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from true_sizes import CPU, REDUCED, reduced_recipe

from harness.errors import UserError
from harness.kernels.layers import PackedLayer
from harness.methods import registry
from harness.methods.contract import QuantizeJob
from harness.models.configs import CONFIGS
from harness.models.roles import targets
from harness.truesize import quantize as module
from harness.truesize.build import build_empty, materialise, release
from harness.truesize.inputs import denoiser_inputs
from harness.truesize.quantize import Recipe, calibration_calls, load_true_size, quantize_true_size
from harness.truesize.walk import open_walk

BF16 = torch.bfloat16


def whole(recipe: Recipe) -> Any:
    denoiser = build_empty(recipe.config)
    materialise(denoiser, CPU, BF16, seed=recipe.seed)
    return denoiser


def step(recipe: Recipe, denoiser: Any) -> Tensor:
    inputs = denoiser_inputs(
        recipe.card, recipe.config.config, CPU, BF16, side=recipe.side, text_tokens=recipe.text_tokens
    )
    with torch.no_grad():
        result: Tensor = denoiser(**inputs)[0]
    return result


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("flux.1-dev", 11_901_408_320),
        ("flux.1-schnell", 11_891_178_560),
        ("pixart-sigma", 610_856_096),
        ("sana-1.6b", 1_604_462_752),
        ("sdxl", 2_567_463_684),
        ("sd-1.5", 859_520_964),
        ("dit-xl-2", 749_826_464),
    ],
)
def test_a_config_builds_the_published_number_of_parameters(name: str, parameters: int) -> None:
    denoiser = build_empty(CONFIGS[name])
    assert sum(parameter.numel() for parameter in denoiser.parameters()) == parameters
    assert all(parameter.is_meta for parameter in denoiser.parameters())


@pytest.mark.parametrize("name", REDUCED)
def test_recorded_inputs_are_those_of_the_whole_model(name: str) -> None:
    recipe = reduced_recipe(name)
    reference, calls = whole(recipe), calibration_calls(recipe, CPU, BF16)
    found = targets(recipe.card, reference, 4, 8)
    seen: dict[str, list[Tensor]] = {target.name: [] for target in found}

    def note(name: str) -> Any:
        return lambda _, args: seen[name].append(args[0].clone())

    for target in found:
        reference.get_submodule(target.name).register_forward_pre_hook(note(target.name))
    denoiser = build_empty(recipe.config)
    with torch.no_grad():
        for call in calls:
            reference(**call)
        walk = open_walk(denoiser, calls, CPU, BF16, recipe.seed)
        for block in walk.blocks:
            inside = [target for target in found if target.name.startswith(f"{block}.")]
            walk.enter(block)
            stream = walk.record(block, inside)
            for target in inside:
                assert stream is not None
                wanted = torch.cat([x if x.dim() == 4 else x.flatten(0, -2) for x in seen.pop(target.name)])
                assert torch.equal(stream.samples(target.name), wanted.float())
                peaks = wanted.transpose(0, 1).flatten(1).abs().amax(dim=1).float()
                assert torch.equal(stream.absmax(target.name), peaks)
                assert stream.steps == recipe.calls
                assert stream.step_range(target.name)[:, 1].max() == wanted.float().max()
            release(denoiser.get_submodule(block))
    assert not seen


@pytest.mark.parametrize("name", REDUCED)
def test_a_quantized_model_loads_as_it_was(name: str, tmp_path: Path) -> None:
    recipe = reduced_recipe(name)
    done = quantize_true_size(recipe, tmp_path, CPU, BF16)
    assert done.resumed == 0
    assert len(done.targets) == sum(isinstance(m, PackedLayer) for m in done.denoiser.modules())
    assert not any(tensor.is_meta for tensor in [*done.denoiser.parameters(), *done.denoiser.buffers()])
    after = step(recipe, done.denoiser)
    assert torch.equal(step(recipe, load_true_size(recipe, tmp_path, CPU, BF16)), after)
    difference = (after.float() - step(recipe, whole(recipe)).float()).norm() / after.float().norm()
    assert 0 < difference < 0.5


def live_bytes() -> int:
    """Bytes of all tensors there are, storage that several share counted once."""
    tensors = [x for x in gc.get_objects() if type(x) in {Tensor, nn.Parameter} and not x.is_meta]
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())


def test_one_block_is_in_floats_and_memory_grows_by_packed_blocks_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = registry.get("ptq")
    in_floats: list[int] = []
    held: list[int] = []

    def spied(job: QuantizeJob, config: Any) -> None:
        linear = [(n, m) for n, m in job.denoiser.named_modules() if isinstance(m, nn.Linear)]
        real = {n for n, m in linear if "transformer_blocks" in n and not m.weight.is_meta}
        in_floats.append(len({".".join(name.split(".")[:2]) for name in real}))
        held.append(live_bytes())
        spec.quantize(job, config)

    monkeypatch.setattr(module.registry, "get", lambda _: replace(spec, quantize=spied))
    wide = {"num_layers": 1, "num_single_layers": 5, "num_attention_heads": 8}
    recipe = reduced_recipe("flux.1-dev", shape=wide, calls=1)
    done = quantize_true_size(recipe, tmp_path, CPU, BF16)
    assert in_floats == [1] * 6
    single = [m for m in done.denoiser.single_transformer_blocks[0].modules() if isinstance(m, PackedLayer)]
    packed = sum(sum(layer.bytes_by_part().values()) for layer in single)
    floats = sum(2 * layer.weight.rows * layer.weight.cols for layer in single)
    assert floats > 3 * packed
    # From one single block to the next: another packed block, and no further 16-bit one.
    growth = [after - before for before, after in pairwise(held[1:])]
    assert all(packed <= more < packed + 0.05 * floats for more in growth), (growth, packed, floats)


def test_an_interrupted_quantization_goes_on_at_the_next_block(tmp_path: Path) -> None:
    recipe = reduced_recipe("flux.1-dev", "svdquant", a_bits=4, settings={"grid": "3", "iterations": "1"})
    quantize_true_size(recipe, tmp_path / "whole", CPU, BF16)

    def interrupt(line: str) -> None:
        if line.startswith("block 2/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_true_size(recipe, tmp_path / "parts", CPU, BF16, interrupt)
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) == 2
    again = quantize_true_size(recipe, tmp_path / "parts", CPU, BF16)
    assert (again.resumed, again.blocks) == (2, 4)
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "parts" / path.name).read_bytes() == path.read_bytes(), path.name
    attention = again.denoiser.single_transformer_blocks[0].attn
    assert attention.to_q.smooth is attention.to_k.smooth is attention.to_v.smooth


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    quantize_true_size(reduced_recipe("dit-xl-2"), tmp_path, CPU, BF16)
    for other in (reduced_recipe("dit-xl-2", seed=1), reduced_recipe("dit-xl-2", w_bits=3)):
        with pytest.raises(UserError, match="other settings"):
            quantize_true_size(other, tmp_path, CPU, BF16)
    with pytest.raises(UserError, match="quantizes to"):
        quantize_true_size(reduced_recipe("dit-xl-2", w_bits=16), tmp_path / "b", CPU, BF16)


@pytest.mark.parametrize("harm", ["missing", "truncated", "other"])
def test_a_damaged_block_is_one_clear_line(tmp_path: Path, harm: str) -> None:
    recipe = reduced_recipe("dit-xl-2")
    quantize_true_size(recipe, tmp_path, CPU, BF16)
    path = tmp_path / "transformer_blocks.1.safetensors"
    if harm == "missing":
        path.unlink()
    elif harm == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        manifest = json.loads((tmp_path / module.MANIFEST).read_text())
        assert manifest["model"] == "dit-xl-2"
        quantize_true_size(reduced_recipe("pixart-sigma"), tmp_path / "other", CPU, BF16)
        path.write_bytes((tmp_path / "other" / path.name).read_bytes())
    with pytest.raises(UserError, match=r"transformer_blocks\.1\.safetensors is no usable block"):
        load_true_size(recipe, tmp_path, CPU, BF16)
