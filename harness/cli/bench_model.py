"""`harness bench model`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli.grid import split_counts, split_names
from harness.errors import UserError, unknown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.models.configs import DenoiserConfig
    from harness.truesize.quantize import Recipe
    from harness.truesize.request import BenchRequest

_LONGEST = 366 * 86400.0
"""Seconds of a time limit; timers of some systems take no more than 32 bits of them."""


def bench_model_command(
    model: Annotated[str, typer.Argument(help="A published model, as in `harness list models`.")],
    method: Annotated[
        str | None, typer.Option(help="Quantize it by this method.  [default: measure it in 16 bits only]")
    ] = None,
    bits: Annotated[str, typer.Option(help="Weight bits, or both as w4a4.")] = "w4a4",
    weights: Annotated[
        str, typer.Option(help="Only `random`: speed and size do not depend on values.")
    ] = "random",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="METHOD.KEY=VALUE", help="A setting of the method.")
    ] = None,
    policy: Annotated[str, typer.Option(help="Which layers: harness, or published.")] = "harness",
    calls: Annotated[int, typer.Option(help="Calibration calls, at spread timesteps.")] = 8,
    compile_: Annotated[bool, typer.Option("--compile", help="Time torch.compile too.")] = False,
    reference: Annotated[bool, typer.Option(help="Build and time the 16-bit model beside.")] = True,
    peers: Annotated[
        str, typer.Option(help="Libraries timed beside: all, none, or names by comma, in this order.")
    ] = "all",
    caps: Annotated[
        str, typer.Option(help="Sizes of cards in GiB for `fits in`, by comma, or none.")
    ] = "8,12,16,24",
    rounds: Annotated[int, typer.Option(help="Timed steps of each model.")] = 20,
    batch: Annotated[int | None, typer.Option(help="Samples of a step.  [default: one image's]")] = None,
    side: Annotated[int | None, typer.Option(help="Image side in pixels.  [default: the model's]")] = None,
    text_tokens: Annotated[int | None, typer.Option(help="Caption tokens.  [default: the model's]")] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Another denoiser config of this class.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of weights and inputs.")] = 0,
    work: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Finished blocks, to go on from.  [default: runs/true-size/...]"),
    ] = None,
    image: Annotated[
        bool, typer.Option("--image", help="Make one whole image, resident and off-loaded to the host.")
    ] = False,
    steps: Annotated[int | None, typer.Option(help="Its sampling steps.  [default: the model's]")] = None,
    time_limit: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="End after so long with what was measured until then.  [default: none]"
        ),
    ] = None,
    quantize_only: Annotated[bool, typer.Option("--quantize-only", help="Stop after quantizing.")] = False,
    json_: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Keep the result in this file, from the first stage on; others' keys stay.",
        ),
    ] = None,
) -> int:
    """Quantize and measure a model of true size with random weights."""
    started = time.monotonic()
    if weights != "random":
        raise UserError(f"--weights {weights}: only random weights; trained ones run through `harness run`")
    counts = (calls, rounds, batch, side, text_tokens, steps)
    if any(count is not None and count < 1 for count in counts):
        raise UserError("--calls, --rounds, --batch, --side, --text-tokens and --steps are at least 1")
    if time_limit is not None and not 0 < time_limit <= _LONGEST:
        raise UserError(f"--time-limit {time_limit:g} is no number of seconds above 0, of a year at most")
    recipe = _recipe(model, method, bits, tuple(set_ or ()), policy, config)
    from dataclasses import replace

    recipe = replace(recipe, calls=calls, side=side, text_tokens=text_tokens, seed=seed)
    request = _request(recipe, method is not None, device, work)
    names = tuple(peer.name for peer in _peers(peers))
    request = replace(
        request,
        batch=batch,
        compile=compile_,
        reference=reference,
        peers=names,
        caps=_caps(caps),
        rounds=rounds,
        image=image,
        steps=steps,
    )
    if quantize_only:
        if method is None:
            raise UserError("--quantize-only needs --method")
        request = replace(request, reference=False, peers=(), caps=(), quantize_only=True, image=False)
    return _run(request, json_, time_limit, started)


def _run(request: BenchRequest, json_file: Path | None, seconds: float | None, started: float) -> int:
    from harness.bench.keeping import KeptResult
    from harness.compat import quiet_imports
    from harness.truesize.bench import has_measured, run_bench
    from harness.truesize.limit import TimeLimit
    from harness.truesize.report import notes, table
    from harness.truesize.request import REFERENCE

    def say(line: str) -> None:
        print(f"[{time.monotonic() - started:.0f} s] {line}", file=sys.stderr, flush=True)

    kept = KeptResult(json_file, say)

    def keep(result: Mapping[str, Any]) -> None:
        kept.keep(_section(request, result), result, result["headline"])

    with quiet_imports():
        result = run_bench(request, say, keep, TimeLimit(seconds, started))
    print(table(result), *notes(result), sep="\n")
    for key, value in result["headline"].items():
        print(f"{key}: {value:.4g}")
    kept.settle()
    subject = request.name if request.quantized else REFERENCE
    failed = any(row["name"] == subject and _failed(row) for row in result["rows"])
    done = result["quantize"] is not None if request.quantize_only else has_measured(result)
    return 0 if done and not failed else 1


def _section(request: BenchRequest, result: Mapping[str, Any]) -> str:
    name = result["model"] if result["bits"] is None else f"{result['model']} {request.name}"
    return f"{'quantize' if request.quantize_only else 'model'} {name}"


def _failed(row: dict[str, Any]) -> bool:
    images = row.get("image", {}).values()
    return any(key.endswith("error") for key in row) or any("error" in seen for seen in images)


def _recipe(
    model: str, method: str | None, bits: str, settings: tuple[str, ...], policy: str, config: Path | None
) -> Recipe:
    from harness.bits import parse_bits
    from harness.methods import registry
    from harness.models import registry as models
    from harness.models.configs import denoiser_config
    from harness.truesize.quantize import Recipe

    card = models.get(model)
    shape = denoiser_config(model) if config is None else _read_config(config, denoiser_config(model))
    widths = parse_bits(bits, None if "a" in bits.lower() else 4)
    if len(widths) != 1:
        raise UserError(f"--bits {bits!r}: one width at a time")
    name = method or "ptq"
    spec = registry.get(name)
    overrides = {}
    for text in settings:
        path, equals, value = text.partition("=")
        of, dot, key = path.strip().partition(".")
        if not (equals and dot and key) or of != name or method is None:
            raise UserError(f"--set {text!r} is not {name}.KEY=VALUE of the method that runs")
        overrides[key.strip()] = value.strip()
    registry.configure(name, overrides)
    act = 16 if spec.weight_only else widths[0].act
    return Recipe(card, shape, name, widths[0].weight, act, policy, overrides)


def _read_config(path: Path, published: DenoiserConfig) -> DenoiserConfig:
    from harness.models.configs import DenoiserConfig
    from harness.truesize.build import build_empty

    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--config {path}: {error}") from error
    if not isinstance(given, dict):
        raise UserError(f"--config {path} holds no JSON object")
    named = given.get("_class_name", published.class_name)
    if named != published.class_name:
        raise UserError(f"--config {path} is of a {named}, the model's denoiser is a {published.class_name}")
    values = {key: value for key, value in given.items() if not key.startswith("_")}
    for key, value in values.items():
        usual = published.config.get(key)
        if not _same_kind(value, usual):
            raise UserError(f"--config {path}: {key} is {_kind(value)}, the published one {_kind(usual)}")
    config = DenoiserConfig(published.class_name, {**published.config, **values})
    try:
        build_empty(config)
    except UserError as error:
        raise UserError(f"--config {path}: {error}") from error
    return config


def _kind(value: Any) -> str:
    """Return JSON's name of a value's type."""
    if isinstance(value, bool):
        return "boolean"
    for types, name in (
        ((int, float), "number"),
        (str, "string"),
        ((list, tuple), "array"),
        (dict, "object"),
    ):
        if isinstance(value, types):
            return name
    return "null"


def _same_kind(value: Any, usual: Any) -> bool:
    """Whether a setting can stand for the published one: of its type, null, or one for each block."""
    if value is None or usual is None or _kind(value) == _kind(usual):
        return True
    single, several = (usual, value) if isinstance(value, (list, tuple)) else (value, usual)
    return isinstance(several, (list, tuple)) and {_kind(one) for one in several} == {_kind(single)}


def _request(recipe: Recipe, quantized: bool, device: str, work: Path | None) -> BenchRequest:
    import torch

    from harness.request import DEVICES
    from harness.truesize.request import BenchRequest

    if device not in DEVICES:
        raise unknown("device", device, DEVICES)
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: there is no GPU that torch can use")
    on_gpu = device != "cpu" and torch.cuda.is_available()
    # With its number: some of torch's calls refuse a device without one.
    where = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    dtype = torch.bfloat16
    digest = recipe.manifest(dtype)["digest"][:12]
    folder = work or Path("runs") / "true-size" / f"{recipe.card.name}-{recipe.method}-{digest}"
    return BenchRequest(recipe, quantized, folder, where, dtype)


def _peers(text: str) -> list[Any]:
    from harness.bench.peers import WHOLE_MODEL_PEERS

    if text in {"all", "none"}:
        return list(WHOLE_MODEL_PEERS) if text == "all" else []
    by_name = {peer.name: peer for peer in WHOLE_MODEL_PEERS}
    if not split_names(text):
        raise UserError(f"--peers {text!r} names no library; to time none: --peers none")
    for name in split_names(text):
        if name not in by_name:
            raise unknown("peer", name, by_name)
    return [by_name[name] for name in dict.fromkeys(split_names(text))]


def _caps(text: str) -> tuple[int, ...]:
    if text == "none":
        return ()
    return tuple(sorted(set(split_counts(text, "--caps", "sizes in GiB"))))
