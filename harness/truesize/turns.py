"""Times of one denoising step of several models, in turns: eager and compiled, launched and as CUDA graph."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from harness.measure.gpu import gpu_state
from harness.measure.timing import Contestant, one_line, race
from harness.truesize.contestants import Entrant, free
from harness.truesize.inputs import denoiser_inputs
from harness.truesize.limit import OutOfTime, TimeLimit
from harness.truesize.memory import held_bytes
from harness.truesize.request import REFERENCE, BenchRequest
from harness.truesize.timing import against, compile_blocks

EAGER, COMPILED = "eager", "compiled"
EAGER_GRAPH, GRAPH = "eager_graph", "graph"
"""The eager and the compiled step replayed as one CUDA graph: time on the device, launches aside."""
BEST = "compiled_best"
"""The compiled step of each model launched or replayed, whichever was faster in the turns before."""
GRAPHS = frozenset({EAGER_GRAPH, GRAPH})
MODES = (EAGER, EAGER_GRAPH, COMPILED, GRAPH, BEST)
LEFT_OUT = "the time limit was reached"

Say = Callable[[str], None]
Step = Callable[[], object]


class Turns:
    """The models of one run on the device, and the turns they are timed in; results go into their rows."""

    def __init__(
        self,
        request: BenchRequest,
        found: Sequence[Entrant],
        rows: Mapping[str, dict[str, Any]],
        say: Say,
        limit: TimeLimit,
        keep: Callable[[], None],
    ) -> None:
        """Prepare.

        Args:
            request: what is measured.
            found: the models.
            rows: of the models by name, filled in.
            say: takes lines of progress.
            limit: of the run.
            keep: called whenever there is something new in the rows.
        """
        self.request, self.entrants, self.rows = request, found, rows
        self.say, self.limit, self.keep = say, limit, keep
        self.models: dict[str, Any] = {}
        self.call: dict[str, Any] = {}

    @property
    def modes(self) -> tuple[str, ...]:
        """The turns to be timed; CUDA graphs on a GPU only, and only there a faster way."""
        wanted = MODES if self.request.compile else (EAGER, EAGER_GRAPH)
        on_gpu = self.request.device.type == "cuda"
        return tuple(mode for mode in wanted if on_gpu or mode not in GRAPHS | {BEST})

    def build(self) -> None:
        """Build the models and the inputs of a step. One that fails is a row, the others go on."""
        request, recipe = self.request, self.request.recipe
        for one in self.entrants:
            row = self.rows[one.name]
            if one.build is None:
                row["error"] = "not installed"
                self.say(f"{one.name}: not installed")
                continue
            free()
            before, started = held_bytes(request.device), time.perf_counter()
            try:
                self.models[one.name] = one.build()
            except Exception as error:  # a library fails in ways of its own
                traceback.print_exc()
                row["error"] = one_line(error)
                self.say(f"{one.name} was not built: {row['error']}")
                continue
            free()
            row["weights_bytes"] = held_bytes(request.device) - before
            row["build_s"] = round(time.perf_counter() - started, 3)
            self.say(f"built {one.name}: {row['build_s']:.1f} s, {row['weights_bytes'] / 2**30:.2f} GiB")
        shape: dict[str, Any] = {
            "side": recipe.side,
            "text_tokens": recipe.text_tokens,
            "seed": recipe.seed,
            "batch": request.step_batch,
        }
        self.call = denoiser_inputs(recipe.card, recipe.config.config, request.device, request.dtype, **shape)

    def run(self, mode: str) -> None:
        """Time the models in one mode, compiling them first where it is `compiled`.

        Raises:
            OutOfTime: before anything was timed.
        """
        chosen = dict(self.models)
        if mode == COMPILED:
            chosen = {
                one.name: chosen[one.name] for one in self.entrants if one.compiled and one.name in chosen
            }
        elif mode in {GRAPH, BEST}:
            timed = {f"{COMPILED}_ms"} if mode == GRAPH else {f"{COMPILED}_ms", f"{GRAPH}_ms"}
            chosen = {name: model for name, model in chosen.items() if timed <= self.rows[name].keys()}
        with torch.no_grad():
            runs = self._first_steps(mode, chosen)
            if runs:
                self._race(mode, runs)

    def close(self) -> None:
        """Let the models go."""
        self.models.clear()
        self.call.clear()
        free()

    def _first_steps(self, mode: str, models: Mapping[str, Any]) -> dict[str, Step]:
        """Run each model once; return the steps of those that can. Leaves time to race what was compiled."""
        runs: dict[str, Step] = {}
        keep = self._race_seconds(models) if mode == COMPILED else 0.0
        for number, (name, model) in enumerate(models.items()):
            try:
                with self.limit.watch(keep):
                    step = self._first_step(mode, name, model)
                if step is not None:
                    runs[name] = step
            except OutOfTime:
                for late in list(models)[number:]:
                    self.rows[late][f"{mode}_left_out"] = LEFT_OUT
                    self.say(f"{_words(mode)} step of {late}: left out, {LEFT_OUT}")
                if not runs:
                    raise
                break
            self.keep()
        return runs

    def _first_step(self, mode: str, name: str, model: Any) -> Step | None:
        row, call, compiled_as = self.rows[name], self.call, ""

        def step() -> object:
            return model(**call)

        try:
            if mode == COMPILED:
                self.say(f"compiling {name}")
                compiled_as = compile_blocks(model)
            started = time.perf_counter()
            if mode == EAGER_GRAPH:
                run_without_waiting(step)
            else:
                step()
            if self.request.device.type == "cuda":
                torch.cuda.synchronize(self.request.device)
        except Exception as error:  # one that cannot run so is a row, the others go on
            traceback.print_exc()
            row[f"{mode}_error"] = one_line(error)
            self.say(f"{_words(mode)} step of {name}: {row[f'{mode}_error']}")
            return None
        if compiled_as:
            row["compiled_as"] = compiled_as
        row[f"{mode}_first_s"] = round(time.perf_counter() - started, 3)
        self.say(f"first {_words(mode)} step of {name}: {row[f'{mode}_first_s']:.1f} s")
        return step

    def _race_seconds(self, names: Mapping[str, Any]) -> float:
        """Estimate what the turns after compiling take, from the eager steps: others are hardly slower."""
        eager = [self.rows[name]["eager_ms"]["median"] for name in names if "eager_ms" in self.rows[name]]
        turns = len({COMPILED, GRAPH, BEST}.intersection(self.modes))
        return float(turns * (self.request.rounds + self.request.warm_up) * sum(eager) / 1e3)

    def _race(self, mode: str, runs: Mapping[str, Step]) -> None:
        request = self.request
        before = gpu_state(request.device)
        graphs = {name for name in runs if mode in GRAPHS or (mode == BEST and self._graph_is_faster(name))}
        racing = [Contestant(name, (step,), graph=name in graphs) for name, step in runs.items()]
        raced = race(racing, request.device, repetitions=request.rounds, warm_up=request.warm_up)
        after = gpu_state(request.device)
        times = {name: found.ms for name, found in raced.items() if found.ms}
        for name in raced.keys() - times.keys():
            self.rows[name][f"{mode}_error"] = raced[name].reason
            self.say(f"{_words(mode)} step of {name}: {raced[name].reason}")
        if not times:
            return
        reference = REFERENCE if REFERENCE in times else next(iter(times))
        for name, found in against(times, reference).items():
            self.rows[name][f"{mode}_ms"] = {**asdict(found), "over": reference, "values": times[name]}
            if mode == BEST:
                self.rows[name]["compiled_best_is"] = GRAPH if name in graphs else COMPILED
            self.rows[name][f"{mode}_clocks"] = {"before": asdict(before), "after": asdict(after)}
            speed = f"{found.speedup:.2f}× {reference}"
            self.say(f"{_words(mode)} step of {name}: {found.median:.1f} ms ({speed})")
        if request.name in times:
            for name, found in against(times, request.name).items():
                if name != request.name:
                    # Above 1: the quantized model is faster than this one.
                    ours = [1 / found.speedup, 1 / found.speedup_hi, 1 / found.speedup_lo]
                    self.rows[name][f"{mode}_ours_faster"] = ours

    def _graph_is_faster(self, name: str) -> bool:
        launched, graph = (self.rows[name][f"{mode}_ms"]["median"] for mode in (COMPILED, GRAPH))
        return bool(graph < launched)


def run_without_waiting(step: Step) -> None:
    """Run a step on a GPU, raising where it would wait for the device.

    Such a step cannot be captured, and a capture that fails half-way can leave the process unable to make
    another.

    Raises:
        RuntimeError: it waits.
    """
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _words(mode: str) -> str:
    return mode.replace("_", " ")
