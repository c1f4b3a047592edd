from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pipelines
import pytest
import torch
from torch import nn

from harness import generate
from harness.errors import CellError
from harness.kernels.activations import ActQuantizer, StepIndex
from harness.models.load import load_pipeline
from harness.noise import prompt_generators

NAMES = ("tiny-unet", "tiny-dit")
PROMPTS = pipelines.prompts(6)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("models")
    return {name: pipelines.save_tiny(name, root / name) for name in NAMES}


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest, folders: dict[str, Any]) -> tuple[Any, Any]:
    card = pipelines.tiny_card(request.param)
    return load_pipeline(card, folders[request.param], "cpu", torch.float32), card


def denoiser_of(model: tuple[Any, Any]) -> Any:
    return getattr(model[0], model[1].denoiser)


def test_a_block_is_the_same_whatever_was_generated_before(model: tuple[Any, Any]) -> None:
    pipeline, card = model
    first, second = PROMPTS[:3], PROMPTS[3:]
    forwards = [generate.generate_block(pipeline, card, block, 5) for block in (first, second)]
    torch.manual_seed(999)
    np.random.seed(1)
    backwards = [generate.generate_block(pipeline, card, block, 5) for block in (second, first)][::-1]
    for a, b in zip(forwards, backwards, strict=True):
        assert a.dtype == np.uint8
        assert a.shape == (3, 32, 32, 3)
        np.testing.assert_array_equal(a, b)
    assert len({image.tobytes() for block in forwards for image in block}) == 6


def test_a_prompts_place_in_the_block_and_its_neighbours_do_not_matter(model: tuple[Any, Any]) -> None:
    pipeline, card = model
    images = generate.generate_block(pipeline, card, PROMPTS[:4], 0)
    turned = generate.generate_block(pipeline, card, [*PROMPTS[5:], *PROMPTS[2::-1]], 0)
    np.testing.assert_array_equal(images[:3], turned[3:0:-1])


def test_seed_prompt_text_and_guidance_change_the_image(
    model: tuple[Any, Any], folders: dict[str, Any]
) -> None:
    pipeline, card = model
    base = generate.generate_block(pipeline, card, PROMPTS[:1], 0)
    unguided = pipelines.tiny_card(card.name, guidance=1.0)
    others = [
        generate.generate_block(pipeline, card, PROMPTS[:1], 1),
        generate.generate_block(pipeline, card, PROMPTS[1:2], 0),
        generate.generate_block(pipeline, unguided, PROMPTS[:1], 0),
    ]
    assert all((base != other).any() for other in others)


def test_no_global_random_state_is_read_or_moved(model: tuple[Any, Any]) -> None:
    pipeline, card = model
    before = torch.get_rng_state(), np.random.get_state(legacy=False), random.getstate()
    generate.generate_block(pipeline, card, PROMPTS[:2], 0)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_equal(np.random.get_state(legacy=False), before[1])
    assert random.getstate() == before[2]


def test_a_stochastic_sampler_draws_from_the_prompts_generators(model: tuple[Any, Any]) -> None:
    pipeline, card = model
    pipeline.scheduler = pipelines.diffusers.EulerAncestralDiscreteScheduler.from_config(
        pipeline.scheduler.config
    )
    images = generate.generate_block(pipeline, card, PROMPTS[:3], 0)
    torch.manual_seed(4)
    np.testing.assert_array_equal(images, generate.generate_block(pipeline, card, PROMPTS[2::-1], 0)[::-1])


def test_images_are_those_of_a_plain_diffusers_call(model: tuple[Any, Any]) -> None:
    pipeline, card = model
    extra = {"max_sequence_length": pipelines.TEXT_LENGTH} if card.name == "tiny-dit" else {}
    plain = pipeline(
        [prompt.text for prompt in PROMPTS[:2]],
        num_inference_steps=pipelines.STEPS,
        guidance_scale=3.0,
        height=32,
        width=32,
        generator=prompt_generators(PROMPTS[:2], 7),
        output_type="pil",
        **card.sampling.call,
        **extra,
    ).images
    ours = generate.generate_block(pipeline, card, PROMPTS[:2], 7)
    np.testing.assert_array_equal(ours, np.stack([np.asarray(image) for image in plain]))


def test_rounding_is_to_the_nearest_byte_with_halves_to_even() -> None:
    values = torch.tensor(
        [0.0, 1.0, 0.5 / 255, 1.5 / 255, 2.5 / 255, 100.49 / 255, 100.51 / 255, 127.5 / 255]
    )
    image = values.reshape(1, 1, 1, 8).expand(1, 3, 1, 8)
    expected = [int(np.rint(np.float32(value) * np.float32(255))) for value in values.numpy()]
    assert expected[:4] == [0, 255, 0, 2]
    got = generate.to_bytes(image)
    assert got.shape == (1, 1, 8, 3)
    assert got[0, 0, :, 2].tolist() == expected


def test_the_caption_length_of_a_transformer_is_its_tokenizers(folders: dict[str, Any]) -> None:
    card = pipelines.tiny_card("tiny-dit")
    pipeline = load_pipeline(card, folders["tiny-dit"], "cpu", torch.float32)
    lengths = []
    pipeline.transformer.register_forward_pre_hook(
        lambda _m, _a, kwargs: lengths.append(kwargs["encoder_hidden_states"].shape[1]), with_kwargs=True
    )
    generate.generate_block(pipeline, card, PROMPTS[:1], 0)
    assert set(lengths) == {pipelines.TEXT_LENGTH}
    short = pipelines.tiny_card("tiny-dit", call={**card.sampling.call, "max_sequence_length": 12})
    lengths.clear()
    generate.generate_block(pipeline, short, PROMPTS[:1], 0)
    assert set(lengths) == {12}


def levels(steps: int) -> torch.Tensor:
    """Timesteps of a sampler."""
    made = pipelines.diffusers.DPMSolverMultistepScheduler()
    made.set_timesteps(steps)
    return made.timesteps.double()


def test_the_step_is_looked_up_in_the_schedule() -> None:
    made = levels(7)
    for i, timestep in enumerate(made):
        assert generate.step_of(made, timestep) == i
        assert generate.step_of(made, timestep.expand(4)) == i
        assert generate.step_of(made, int(timestep)) == i


def test_a_timestep_outside_the_schedule_or_ambiguous_is_refused() -> None:
    made = levels(7)
    with pytest.raises(RuntimeError, match="occurs 0 times"):
        generate.step_of(made, int(made[2]) + 1)
    with pytest.raises(RuntimeError, match="several timesteps"):
        generate.step_of(made, made[:2])
    with pytest.raises(RuntimeError, match="occurs 2 times"):
        generate.step_of(torch.tensor([9.0, 9.0, 1.0]).double(), torch.tensor(9))


def test_the_step_index_follows_the_timestep_and_not_the_number_of_calls(model: tuple[Any, Any]) -> None:
    pipeline, card = model
    denoiser = denoiser_of(model)
    index = StepIndex()
    seen: list[int | None] = []
    inner = next(module for module in denoiser.modules() if isinstance(module, nn.Linear))
    inner.register_forward_pre_hook(lambda _m, _a: seen.append(index.value))
    step = pipeline.scheduler.step

    def skipping(output: Any, timestep: Any, latents: Any, **kwargs: Any) -> Any:
        denoiser(**again)  # one more call at the same timestep
        return step(output, timestep, latents, **kwargs)

    again: dict[str, Any] = {}
    names = ("sample", "timestep") if card.denoiser == "unet" else ("hidden_states", "timestep")

    def remember(_module: Any, args: Any, kwargs: Any) -> None:
        again.clear()
        again.update(dict(zip(names, args, strict=False)) | kwargs)

    denoiser.register_forward_pre_hook(remember, with_kwargs=True)
    pipeline.scheduler.step = skipping
    try:
        generate.sample(pipeline, card, PROMPTS[:1], 0, "latent", index)
    finally:
        pipeline.scheduler.step = step
    assert seen == [0, 0, 1, 1, 2, 2]
    assert index.value is None


def test_per_step_quantizers_of_the_denoiser_get_the_step(model: tuple[Any, Any]) -> None:
    pipeline, card = model
    denoiser = denoiser_of(model)
    name = next(n for n, m in denoiser.named_modules() if n.endswith("attn1.to_out.0"))
    linear = denoiser.get_submodule(name)
    quantizer = ActQuantizer(8, "tensor", "per_step", range=torch.tensor([[-4.0, 4.0]] * pipelines.STEPS))
    outside = torch.zeros(1, 2, linear.in_features)
    with pytest.raises(RuntimeError):
        quantizer(outside)
    parent = denoiser.get_submodule(name.rpartition(".")[0])
    parent[0] = nn.Sequential(quantizer, linear)
    generate.generate_block(pipeline, card, PROMPTS[:1], 0)
    with pytest.raises(RuntimeError):
        quantizer(outside)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_prediction_is_a_typed_failure_at_its_step(model: tuple[Any, Any], value: float) -> None:
    pipeline, card = model
    denoiser = denoiser_of(model)
    calls: list[int] = []

    def poison(_module: nn.Module, _args: Any, output: Any) -> Any:
        calls.append(1)
        return (output[0] * value,) if len(calls) == 2 else output

    denoiser.register_forward_hook(poison)
    with pytest.raises(CellError, match="prediction at step 1") as caught:
        generate.generate_block(pipeline, card, PROMPTS[:1], 0)
    assert caught.value.state == "nan"
    denoiser._forward_hooks.clear()
    generate.generate_block(pipeline, card, PROMPTS[:1], 0)


def test_a_non_finite_picture_is_found_before_it_is_clamped(model: tuple[Any, Any]) -> None:
    pipeline, card = model
    with torch.no_grad():
        pipeline.vae.decoder.conv_out.bias.fill_(float("inf"))
    with pytest.raises(CellError, match="decoded image") as caught:
        generate.generate_block(pipeline, card, PROMPTS[:1], 0)
    assert caught.value.state == "nan"


def test_hooks_are_gone_afterwards_even_after_a_failure(model: tuple[Any, Any]) -> None:
    pipeline, card = model
    denoiser = denoiser_of(model)
    generate.generate_block(pipeline, card, PROMPTS[:1], 0)
    generate.denoiser_call(pipeline, card, PROMPTS[:1], 0)
    step = pipeline.scheduler.step
    pipeline.scheduler.step = None
    with pytest.raises(TypeError):
        generate.generate_block(pipeline, card, PROMPTS[:1], 0)
    pipeline.scheduler.step = step
    for network in (denoiser, pipeline.vae.decoder):
        assert not network._forward_hooks
        assert not network._forward_pre_hooks


def test_denoiser_call_runs_one_forward_on_the_pipelines_first_inputs(model: tuple[Any, Any]) -> None:
    pipeline, card = model
    denoiser = denoiser_of(model)
    batches: list[torch.Tensor] = []
    outputs: list[torch.Tensor] = []

    def watch(_module: Any, args: Any, kwargs: Any, output: Any) -> None:
        batches.append(args[0] if args else kwargs["hidden_states"])
        outputs.append(output[0])

    denoiser.register_forward_hook(watch, with_kwargs=True)
    generate.sample(pipeline, card, PROMPTS[:2], 3, "latent")
    steps = len(outputs)
    call = generate.denoiser_call(pipeline, card, PROMPTS[:2], 3)
    assert len(outputs) == steps == pipelines.STEPS
    call()
    call()
    assert len(outputs) == steps + 2
    assert batches[-1].shape[0] == 4  # two prompts, with and without caption
    assert torch.equal(batches[-1], batches[0])
    assert torch.equal(outputs[-1], outputs[0])
    assert torch.equal(outputs[-2], outputs[0])


def test_a_half_precision_model_starts_from_the_same_noise(folders: dict[str, Any]) -> None:
    card = pipelines.tiny_card("tiny-dit")
    starts = {}
    for dtype in (torch.float32, torch.bfloat16):
        pipeline = load_pipeline(card, folders["tiny-dit"], "cpu", dtype)
        seen: list[torch.Tensor] = []
        pipeline.transformer.register_forward_pre_hook(lambda _m, args, seen=seen: seen.append(args[0]))
        generate.generate_block(pipeline, card, PROMPTS[:1], 0)
        starts[dtype] = seen[0]
    assert torch.equal(starts[torch.float32].bfloat16(), starts[torch.bfloat16])
