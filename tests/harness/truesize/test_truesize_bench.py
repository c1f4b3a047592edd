"""`harness bench model` on reduced models: sizes, times, caps, one image, the command line."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from true_sizes import CPU, REDUCED, SIDE, TEXT, reduced_recipe

from harness.bench.report import merge
from harness.cli import call
from harness.errors import UserError
from harness.kernels.layers import PackedLayer
from harness.measure.timing import Times
from harness.truesize import image, memory, timing, turns
from harness.truesize.build import build_empty, materialise
from harness.truesize.limit import TimeLimit
from harness.truesize.memory import MemoryRequest, MemorySeen
from harness.truesize.quantize import even_smoothing, load_true_size, quantize_true_size
from harness.truesize.request import BenchRequest

BF16 = torch.bfloat16


def test_the_command_quantizes_measures_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.truesize.bench.in_own_process", memory.look)
    config, out = tmp_path / "config.json", tmp_path / "out.json"
    config.write_text(json.dumps({**REDUCED["pixart-sigma"], "_class_name": "PixArtTransformer2DModel"}))
    out.write_text('{"other": 1}')
    options = ["--method", "ptq", "--bits", "w4a8", "--config", str(config), "--side", "64", "--calls", "2"]
    options += [
        "--text-tokens",
        str(TEXT),
        "--rounds",
        "3",
        "--work",
        str(tmp_path / "work"),
        "--device",
        "cpu",
    ]
    assert call(["bench", "model", "pixart-sigma", *options, "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "n/a: random weights" in printed
    held = json.loads(out.read_text())
    result = held["model pixart-sigma ptq W4A8"]
    assert held["other"] == 1
    assert not any(key.startswith("flux") for key in held)
    rows = {row["name"]: row for row in result["rows"]}
    recipe = reduced_recipe("pixart-sigma")
    denoiser = build_empty(recipe.config)
    everything = sum(2 * p.numel() for p in [*denoiser.parameters(), *denoiser.buffers()])
    assert rows["bf16"]["memory"]["packed_bytes"] == 0
    assert rows["bf16"]["memory"]["kept_bytes"] == everything
    ours = rows["ptq W4A8"]["memory"]
    assert 0 < ours["packed_bytes"] + ours["kept_bytes"] < everything
    assert ours["peak_bytes"] == ours["packed_bytes"] + ours["kept_bytes"] + ours["activation_bytes"]
    assert len(rows["ptq W4A8"]["eager_ms"]["values"]) == 3
    assert rows["torchao fp8 rowwise"]["error"] == "not installed"
    assert result["quantize"]["resumed"] == 0
    assert result["quantize"]["blocks"] == 2
    assert result["batch"] == 2
    assert result["stages"] == dict.fromkeys(("quantize", "memory", "build", "eager"), "done")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["flux"], "did you mean flux.1-dev"),
        (["tiny-dit"], "unknown model with a config"),
        (["sdxl", "--weights", "trained"], "only random weights"),
        (["sdxl", "--method", "svdqant"], "did you mean svdquant"),
        (["sdxl", "--method", "ptq", "--set", "nf4.block=2"], "not ptq.KEY=VALUE"),
        (["sdxl", "--method", "ptq", "--bits", "w4a4,w3a3"], "one width at a time"),
        (["sdxl", "--peers", "torcha"], "unknown peer"),
        (["sdxl", "--peers", ","], "names no library"),
        (["sdxl", "--caps", "8,x"], "no list of sizes"),
        (["sdxl", "--quantize-only"], "needs --method"),
        (["sdxl", "--calls", "0"], "at least 1"),
        (["sdxl", "--batch", "0"], "at least 1"),
        (["sdxl", "--side", "0"], "at least 1"),
        (["sdxl", "--text-tokens", "0"], "at least 1"),
        (["sdxl", "--steps", "0"], "at least 1"),
        (["sdxl", "--time-limit", "1e308"], "--time-limit 1e+308 is no number of seconds above 0, of a year"),
        (["sdxl", "--time-limit", "nan"], "--time-limit nan is no number of seconds above 0"),
        (["sdxl", "--time-limit", "0"], "--time-limit 0 is no number of seconds above 0"),
    ],
)
def test_mistakes_are_one_line(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["bench", "model", *options]) == 2
    complaint = capsys.readouterr().err
    assert said in complaint
    assert complaint.count("\n") == 1


def test_speed_ups_are_formed_by_round() -> None:
    times = {"slow": [101.0, 102, 103, 104, 105, 106], "fast": [51.0, 52, 53, 54, 55, 56]}
    found = timing.against(times, "slow")
    assert found["slow"].speedup == 1
    assert found["fast"].median == 53.5
    ratios = sorted(a / b for a, b in zip(times["slow"], times["fast"], strict=True))
    assert found["fast"].speedup == pytest.approx((ratios[2] + ratios[3]) / 2)
    assert (found["fast"].speedup_lo, found["fast"].speedup_hi) == (ratios[0], ratios[-1])


def test_models_are_raced_and_one_that_fails_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    raced: list[tuple[list[str], int, int]] = []

    def race(entrants: Any, device: Any, *, repetitions: int, warm_up: int) -> dict[str, Times]:
        raced.append(([one.name for one in entrants], repetitions, warm_up))
        return {"ptq W4A8": Times((10.0, 10.0)), "bf16": Times((15.0, 15.0)), "late": Times((), "boom")}

    def refuses(**_: Any) -> None:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(turns, "race", race)
    request = BenchRequest(reduced_recipe("dit-xl-2"), True, Path(), CPU, BF16, rounds=2, warm_up=4)
    models = {"ptq W4A8": dict, "bf16": dict, "late": dict, "first": refuses}
    rows: dict[str, dict[str, Any]] = {name: {"name": name} for name in models}
    timed = turns.Turns(request, (), rows, lambda _: None, TimeLimit(None), lambda: None)
    timed.models.update(models)
    timed.run("eager")
    assert raced == [(["ptq W4A8", "bf16", "late"], 2, 4)]
    ours, reference, late, first = rows.values()
    assert (ours["eager_ms"]["median"], ours["eager_ms"]["speedup"]) == (10.0, 1.5)
    assert reference["eager_ours_faster"] == [1.5] * 3
    assert (late["eager_error"], first["eager_error"]) == ("boom", "RuntimeError: no kernel")


def test_cards_are_tried_from_the_smallest_until_one_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        memory, "in_own_process", lambda request: MemorySeen(request.cap_bytes >= 11 * 2**30, "step")
    )
    request = MemoryRequest(reduced_recipe("dit-xl-2"), None, "cpu", "bfloat16", 1)
    assert [(s, c.fits) for s, c in memory.smallest_card(request, (8, 12, 16, 24)).items()] == [
        (8, False),
        (12, True),
    ]


def test_a_model_looked_at_in_its_own_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = reduced_recipe("dit-xl-2")
    quantize_true_size(recipe, tmp_path, CPU, BF16)
    request = MemoryRequest(recipe, tmp_path, "cpu", "bfloat16", 1)
    assert memory.from_json(json.loads(json.dumps(memory.to_json(request)))) == request
    seen = memory.in_own_process(request)
    assert seen.fits
    assert (seen.packed_bytes, seen.kept_bytes) == memory.weight_bytes(
        load_true_size(recipe, tmp_path, CPU, BF16)
    )
    assert seen.activation_bytes > 0
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nUserError: no usable block\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RuntimeError, match="measuring memory failed: UserError: no usable block"):
        memory.in_own_process(request)


def test_tied_tensors_count_once_and_blocks_are_made_alike(tmp_path: Path) -> None:
    recipe = reduced_recipe("flux.1-dev", "svdquant", a_bits=4, settings={"grid": "1", "iterations": "0"})
    denoiser = quantize_true_size(recipe, tmp_path, CPU, BF16).denoiser
    first, second = (block.attn for block in denoiser.single_transformer_blocks)
    assert first.to_q.smooth is None
    packed, kept = memory.weight_bytes(denoiser)
    second.to_q.smooth = torch.full((64,), 2.0, dtype=torch.float16)
    even_smoothing(denoiser)
    assert torch.equal(first.to_q.smooth, torch.ones(64, dtype=torch.float16))
    assert first.to_k.smooth is None
    assert memory.weight_bytes(denoiser) == (packed + 2 * 128, kept)
    first.to_k.smooth = first.to_q.smooth
    assert memory.weight_bytes(denoiser) == (packed + 2 * 128, kept)
    total = sum(t.numel() * t.element_size() for t in {id(t): t for t in _tensors(denoiser)}.values())
    assert sum(memory.weight_bytes(denoiser)) == total


def _tensors(module: torch.nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def test_an_image_is_sampled_with_guidance_and_decoded() -> None:
    for name in ("flux.1-dev", "dit-xl-2"):
        recipe = reduced_recipe(name)
        denoiser = build_empty(recipe.config)
        materialise(denoiser, CPU, BF16, seed=0)
        calls: list[tuple[int, ...]] = []
        denoiser.register_forward_hook(lambda *_, c=calls: c.append(tuple(_[2][0].shape)))
        published = image.COMPANIONS[name]
        small = {"block_out_channels": [8] * 4, "norm_num_groups": 4, "layers_per_block": 1}
        tiny = {"hidden_size": 32, "projection_dim": 32, "intermediate_size": 32, "num_hidden_layers": 1}
        clip = {**image._CLIP_L, **tiny, "num_attention_heads": 2, "max_position_embeddings": 8}
        t5 = {**image._T5_XXL, "d_model": 32, "d_ff": 32, "d_kv": 8, "num_layers": 1, "num_heads": 2}
        encoders = (
            ("CLIPTextModel", "CLIPTextConfig", clip),
            ("T5EncoderModel", "T5Config", t5),
        )[: len(published.encoders)]
        vae = (published.vae[0], {**published.vae[1], **small})
        seen = image.make_image(
            denoiser,
            image.Companions(encoders, vae, published.scheduler),
            recipe.card,
            CPU,
            BF16,
            offload=True,
            side=SIDE.get(name, 64),
            text_tokens=TEXT,
            steps=3,
        )
        assert len(calls) == 1 + 3
        assert calls[0][0] == (1 if name == "flux.1-dev" else 2)
        assert seen.finite
        assert set(seen.stages_ms) == {"text", "sample", "decode"}
        assert seen.ms == pytest.approx(sum(seen.stages_ms.values()))


def test_a_file_that_is_no_object_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("[]")
    with pytest.raises(UserError, match="holds no JSON object"):
        merge(path, "model", {"headline": {}}, {})


def test_packed_layers_are_there_to_be_counted(tmp_path: Path) -> None:
    denoiser = quantize_true_size(reduced_recipe("dit-xl-2"), tmp_path, CPU, BF16).denoiser
    layers = [m for m in denoiser.modules() if isinstance(m, PackedLayer)]
    assert memory.weight_bytes(denoiser)[0] == sum(sum(m.bytes_by_part().values()) for m in layers)
