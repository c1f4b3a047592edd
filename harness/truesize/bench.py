"""`harness bench model`: quantize a model of true size, look at its memory, time one denoising step.

A run is a series of stages. After each its result is handed on, to be kept: what ends a later stage, or the
process, leaves what was measured.
"""

from __future__ import annotations

import importlib
import subprocess
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from harness.measure.environment import environment
from harness.measure.timing import one_line
from harness.truesize.contestants import Entrant, entrants, free
from harness.truesize.headline import headline
from harness.truesize.image import COMPANIONS, make_image
from harness.truesize.limit import OutOfTime, TimeLimit
from harness.truesize.memory import MemoryRequest, MemorySeen, in_own_process, smallest_card
from harness.truesize.quantize import QuantizedModel, host_peak_bytes, quantize_true_size
from harness.truesize.request import REFERENCE, BenchRequest
from harness.truesize.turns import LEFT_OUT, Say, Turns

DONE, NOT_STARTED = "done", "not started"
CUT_SHORT = f"cut short: {LEFT_OUT}"

Keep = Callable[[Mapping[str, Any]], None]


def run_bench(
    request: BenchRequest, say: Say, keep: Keep = lambda _: None, limit: TimeLimit | None = None
) -> dict[str, Any]:
    """Do everything asked for and return the result as JSON types.

    Args:
        request: what is measured.
        say: takes lines of progress.
        keep: takes the result so far, after every stage and whenever a model has been run in another way. Its
            `stages` say how far it went: `done`, `not started`, or what ended it.
        limit: of the whole run. Stages that would start later are left out.

    Raises:
        UserError: the method, its settings or the folder do not go together.
    """
    run = _Run(request, say, keep, limit or TimeLimit(None))
    return run.every_stage()


def has_measured(result: Mapping[str, Any]) -> bool:
    """Whether a result holds sizes, times or an image of any model, or blocks that this run quantized."""
    quantize = result["quantize"]
    made = quantize is not None and quantize["resumed"] < quantize["blocks"]
    return made or any(_measured(row) for row in result["rows"])


def _measured(row: Mapping[str, Any]) -> bool:
    """Whether a row holds more than a name and errors."""
    if any(key in {"memory", "weights_bytes"} or key.endswith("_ms") for key in row):
        return True
    return any("error" not in seen for seen in row.get("image", {}).values())


class _Run:
    """One run: its stages, and what they found so far."""

    def __init__(self, request: BenchRequest, say: Say, keep: Keep, limit: TimeLimit) -> None:
        self.request, self.say, self.limit, self._keep = request, say, limit, keep
        self.entrants = [] if request.quantize_only else entrants(request)
        self.rows: dict[str, dict[str, Any]] = {
            one.name: {"name": one.name, "bits": one.bits} for one in self.entrants
        }
        self.turns = Turns(request, self.entrants, self.rows, say, limit, self.keep)
        recipe = request.recipe
        self.stages = self._stages()
        self.result: dict[str, Any] = {
            "model": recipe.card.name,
            "weights": "random",
            "quality": "n/a: random weights",
            "bits": f"W{recipe.w_bits}A{recipe.a_bits}" if request.quantized else None,
            "batch": request.step_batch,
            "side": recipe.side or recipe.card.sampling.height,
            "recipe": recipe.manifest(request.dtype) if request.quantized else None,
            "environment": environment(),
            "stages": dict.fromkeys(self.stages, NOT_STARTED),
            "quantize": None,
            "rows": list(self.rows.values()),
        }

    def keep(self) -> None:
        """Hand on what there is; a run that has measured nothing must not replace one that has."""
        self.result["headline"] = headline(self.result, self.request)
        if has_measured(self.result):
            self._keep(self.result)

    def every_stage(self) -> dict[str, Any]:
        said = self.result["stages"]
        for name, stage in self.stages.items():
            if self.limit.over:
                said[name] = f"left out: {LEFT_OUT}"
                self.say(f"{name}: {said[name]}")
                continue
            try:
                with self.limit.watch():
                    stage()
                said[name] = DONE
            except OutOfTime:
                said[name] = CUT_SHORT
                self.say(f"{name}: {CUT_SHORT}")
            except BaseException as error:
                said[name] = f"failed: {one_line(error)}"
                self.keep()
                raise
            self.keep()
        self.turns.close()
        self.keep()
        return self.result

    def _stages(self) -> dict[str, Callable[[], None]]:
        request = self.request
        found: dict[str, Callable[[], None]] = {}
        if request.quantized:
            found["quantize"] = self._quantize
        if request.quantize_only:
            return found
        found |= {"memory": self._memory, "build": self.turns.build}
        found |= {mode: partial(self.turns.run, mode) for mode in self.turns.modes}
        return found | ({"image": self._images} if request.image else {})

    def _quantize(self) -> None:
        request, say = self.request, self.say
        say(f"quantizing {request.recipe.card.name} by {request.name} into {request.folder}")
        done: QuantizedModel = quantize_true_size(
            request.recipe, request.folder, request.device, request.dtype, say
        )
        self.result["quantize"] = {
            "seconds": done.seconds,
            "phases": done.phases,
            "blocks": done.blocks,
            "resumed": done.resumed,
            "layers": len(done.targets),
            "calls": request.recipe.calls,
            "device_peak_bytes": done.device_peak_bytes,
            "host_peak_bytes": done.host_peak_bytes,
        }
        spent = ", ".join(f"{name} {seconds:.1f}" for name, seconds in done.phases.items())
        say(f"quantized in {done.seconds:.1f} s ({spent} s)")
        del done
        free()

    def _memory(self) -> None:
        """Look at the quantized and the 16-bit model, each in processes of its own."""
        request = self.request
        recipe = replace(request.recipe, batch=1)
        dtype = str(request.dtype).removeprefix("torch.")
        plain = MemoryRequest(recipe, None, str(request.device), dtype, request.step_batch)
        wanted = {request.name: replace(plain, folder=request.folder)} if request.quantized else {}
        if request.reference:
            wanted[REFERENCE] = plain
        for name, one in wanted.items():
            try:
                self._look_at(name, one)
            except (RuntimeError, subprocess.TimeoutExpired) as error:  # what else can be measured goes on
                self.say(str(error))
                self.rows[name]["memory_error"] = str(error)
            self.keep()

    def _look_at(self, name: str, one: MemoryRequest) -> None:
        request, row = self.request, self.rows[name]
        seen = in_own_process(one)
        row["memory"] = asdict(seen)
        self.say(f"memory of {name}: {_memory_line(seen)}")
        tried = smallest_card(one, request.caps) if request.device.type == "cuda" else {}
        for size, card in tried.items():
            self.say(f"{name} in {size} GB: {'fits' if card.fits else f'out of memory ({card.stage})'}")
        row["fits_in_gb"] = next((size for size, card in tried.items() if card.fits), None)
        row["caps_tried"] = {str(size): asdict(card) for size, card in tried.items()}

    def _images(self) -> None:
        """Make one whole image with the quantized and the 16-bit model, resident and off-loaded."""
        self.turns.close()
        own = {self.request.name, REFERENCE}
        for one in self.entrants:
            if one.name not in own or one.build is None:
                continue
            found: dict[str, dict[str, Any]] = {}
            self.rows[one.name]["image"] = found
            for where in ("resident", "offload"):
                importlib.import_module("torch._dynamo").reset()  # or compiled code would keep former models
                free()
                try:
                    seen = found[where] = self._image(one, where == "offload")
                except Exception as error:  # a model whose image fails is a row, the others go on
                    traceback.print_exc()
                    found[where] = {"error": one_line(error)}
                    continue
                peak = seen["peak_bytes"] / 2**30
                self.say(f"image by {one.name}, {where}: {seen['ms']:.0f} ms, peak {peak:.2f} GiB")
                self.keep()

    def _image(self, one: Entrant, offload: bool) -> dict[str, Any]:
        request, recipe = self.request, self.request.recipe
        assert one.build is not None
        seen = make_image(
            one.build(),
            COMPANIONS[recipe.card.name],
            recipe.card,
            request.device,
            request.dtype,
            offload=offload,
            side=recipe.side,
            text_tokens=recipe.text_tokens,
            steps=request.steps,
        )
        return {**asdict(seen), "host_peak_bytes": host_peak_bytes()}


def _memory_line(seen: MemorySeen) -> str:
    parts = {
        "packed": seen.packed_bytes,
        "kept": seen.kept_bytes,
        "scratch": seen.scratch_bytes,
        "activations": seen.activation_bytes,
        "peak": seen.peak_bytes,
        "peak of loading": seen.load_peak_bytes,
    }
    return ", ".join(f"{name} {size / 2**30:.2f}" for name, size in parts.items()) + " GiB"
