"""The stages of `harness bench model`: what is kept when one fails, is killed, or time is up."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from true_sizes import CPU, REDUCED, TEXT, reduced_recipe

from harness.cli import call
from harness.errors import UserError
from harness.measure.timing import Contestant, Times
from harness.models.configs import CONFIGS, DenoiserConfig
from harness.truesize import bench, contestants, limit, memory, turns
from harness.truesize.contestants import Entrant
from harness.truesize.headline import headline
from harness.truesize.limit import OutOfTime, TimeLimit
from harness.truesize.report import COLUMNS, notes, table
from harness.truesize.request import BenchRequest

BF16 = torch.bfloat16
REQUEST = BenchRequest(reduced_recipe("dit-xl-2"), True, Path(), CPU, BF16, rounds=2, peers=())
FOREVER = 3600.0


def command(tmp_path: Path, *more: str) -> list[str]:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(REDUCED["dit-xl-2"]))
    numbers = {"--side": 64, "--text-tokens": TEXT, "--rounds": 2, "--calls": 2}
    options = {
        "--config": config,
        "--peers": "none",
        "--device": "cpu",
        "--work": tmp_path / "work",
        **numbers,
    }
    given = [str(word) for option in options.items() for word in option]
    return ["bench", "model", "dit-xl-2", *given, "--json", str(tmp_path / "out.json"), *more]


def kept(tmp_path: Path, section: str) -> dict[str, Any]:
    held: dict[str, Any] = json.loads((tmp_path / "out.json").read_text())[section]
    return held


def test_a_stage_that_fails_leaves_what_the_earlier_ones_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("no clock")

    monkeypatch.setattr(bench, "in_own_process", memory.look)
    monkeypatch.setattr(turns, "race", breaks)
    (tmp_path / "out.json").write_text('{"other": 1}')
    with pytest.raises(ZeroDivisionError):
        call(command(tmp_path, "--method", "ptq", "--bits", "w4a8"))
    result = kept(tmp_path, "model dit-xl-2 ptq W4A8")
    done = dict.fromkeys(("quantize", "memory", "build"), "done")
    assert result["stages"] == done | {"eager": "failed: ZeroDivisionError: no clock"}
    assert result["quantize"]["blocks"] == 2
    ours, reference = result["rows"]
    assert ours["memory"]["packed_bytes"] > reference["memory"]["packed_bytes"] == 0
    assert "eager_ms" not in ours
    assert json.loads((tmp_path / "out.json").read_text())["other"] == 1


def test_a_process_that_is_killed_leaves_what_the_earlier_stages_found(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from harness.cli import main\n"
        "from harness.truesize import bench, memory, turns\n"
        "bench.in_own_process = memory.look\n"
        "turns.race = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.argv = ['harness', *sys.argv[1:]]\n"
        "main()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, *command(tmp_path)], capture_output=True, timeout=120, check=False
    )
    assert ended.returncode == -signal.SIGKILL
    result = kept(tmp_path, "model dit-xl-2")
    assert result["stages"] == {"memory": "done", "build": "done", "eager": "not started"}
    (reference,) = result["rows"]
    assert reference["memory"]["kept_bytes"] > 0
    assert reference["eager_first_s"] > 0
    assert [path.name for path in tmp_path.iterdir() if "out.json" in path.name] == ["out.json"]


def test_a_run_that_measured_nothing_replaces_nothing(tmp_path: Path) -> None:
    earlier = '{"model dit-xl-2 ptq W4A8": {"rows": []}}'
    (tmp_path / "out.json").write_text(earlier)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "quantization.json").write_text('{"digest": "another"}')
    assert call(command(tmp_path, "--method", "ptq", "--bits", "w4a8")) == 2
    assert (tmp_path / "out.json").read_text() == earlier


def finished(resumed: int) -> Callable[..., Any]:
    counts = {"seconds": 1, "blocks": 2, "resumed": resumed}
    return lambda *_: type("Done", (), {**counts, **QUANTIZED})


def test_errors_and_blocks_from_disk_are_no_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no device")

    absent = Entrant("peer", "", None)
    broken = [Entrant(name, "", breaks) for name in ("ptq W4A8", "bf16")]
    monkeypatch.setattr(bench, "in_own_process", breaks)
    monkeypatch.setattr(bench, "make_image", breaks)
    monkeypatch.setattr(bench, "entrants", lambda _: [*broken, absent])
    handed: list[Any] = []
    request = replace(REQUEST, folder=tmp_path, image=True)
    for resumed, kept_something in ((2, False), (1, True)):
        monkeypatch.setattr(bench, "quantize_true_size", finished(resumed))
        result = bench.run_bench(request, lambda _: None, handed.append)
        ours, _, peer = result["rows"]
        assert (ours["memory_error"], peer["error"]) == ("no device", "not installed")
        assert set(ours["image"]["resident"]) == {"error"}
        assert bool(handed) is kept_something


def test_a_command_fails_with_its_model_and_where_nothing_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {"name": "bf16", "bits": "W16A16"}
    result: dict[str, Any] = {"model": "m", "bits": None, "side": 1, "batch": 1, "quality": "", "stages": {}}
    result |= {"quantize": None, "headline": {}, "environment": {"gpu": None, "versions": {}}}
    for rows, code in (
        ([named], 1),
        ([{**named, "eager_error": "boom", "weights_bytes": 1}], 1),
        ([{**named, "weights_bytes": 1, "image": {"offload": {"error": "boom"}}}], 1),
        ([{**named, "weights_bytes": 1}, {"name": "peer", "bits": "", "error": "not installed"}], 0),
    ):
        monkeypatch.setattr(bench, "run_bench", lambda *_, rows=rows: {**result, "rows": rows})
        assert call(command(tmp_path)) == code
    counts = dict.fromkeys(
        ("blocks", "resumed", "seconds", "layers", "host_peak_bytes", "device_peak_bytes"), 2
    )
    made = {**counts, "phases": {}}
    only = ("--quantize-only", "--method", "ptq", "--bits", "w4a8")
    for quantize, code in ((None, 1), (made, 0)):
        found = {**result, "rows": [], "quantize": quantize}
        monkeypatch.setattr(bench, "run_bench", lambda *_, found=found: found)
        assert call(command(tmp_path, *only)) == code


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"num_layers": "two"}', "num_layers is string, the published one number"),
        ('{"num_layers": true}', "num_layers is boolean, the published one number"),
        ('{"num_layers": 1.5}', "cannot be built: TypeError"),
        ('{"num_attention_heads": -4}', "cannot be built"),
        ('{"num_attention_heads": null}', "cannot be built"),
        ('{"activation_fn": "none such"}', "cannot be built: "),
        ('{"blocks": 2}', "unexpected keyword argument 'blocks'"),
        ("[" * 100_000, "config.json: "),
    ],
)
def test_a_config_its_class_does_not_take_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    options = command(tmp_path)
    (tmp_path / "config.json").write_text(text)
    assert call(options) == 2
    complaint = capsys.readouterr().err
    assert said in complaint
    assert "config.json" in complaint
    assert complaint.count("\n") == 1


@pytest.mark.parametrize(
    "found", [{"memory": {}}, {"weights_bytes": 0}, {"eager_ms": {}}, {"image": {"resident": {"ms": 1.0}}}]
)
def test_sizes_times_and_images_are_measurements(found: dict[str, Any]) -> None:
    row = {"name": "bf16", "bits": "W16A16", "eager_error": "boom"}
    assert bench.has_measured({"quantize": None, "rows": [row, {**row, **found}]})
    assert not bench.has_measured({"quantize": None, "rows": [row]})


def test_a_file_that_cannot_be_added_to_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "run_bench", lambda *_: pytest.fail("measured"))
    (tmp_path / "out.json").write_text("[]")
    assert call(command(tmp_path)) == 2
    assert "holds no JSON object" in capsys.readouterr().err


def test_what_could_not_be_kept_is_printed_and_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise UserError("cannot write out.json: No space left on device")

    monkeypatch.setattr(bench, "in_own_process", memory.look)
    monkeypatch.setattr("harness.bench.keeping.merge", full)
    assert call(command(tmp_path)) == 2
    out, said = capsys.readouterr()
    assert "| bf16 | W16A16 |" in out
    assert "No space left on device" in said


def test_the_limit_ends_what_does_not_look_at_a_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit, "AGAIN", 0.05)
    handler, swallowed = signal.getsignal(signal.SIGALRM), []

    def compiler() -> None:
        try:
            time.sleep(FOREVER)
        except OutOfTime as error:
            swallowed.append(error)  # as a callback of a library would: it comes again
        time.sleep(FOREVER)

    with pytest.raises(OutOfTime), TimeLimit(0.2).watch():
        compiler()
    assert len(swallowed) == 1
    assert signal.getsignal(signal.SIGALRM) is handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_an_alarm_while_the_limit_is_set_comes_before_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    handler, really = signal.getsignal(signal.SIGALRM), signal.setitimer

    def set_late(which: int, seconds: float, again: float = 0.0) -> None:
        really(which, seconds, again)
        if seconds:
            signal.raise_signal(signal.SIGALRM)

    monkeypatch.setattr(signal, "setitimer", set_late)
    with pytest.raises(OutOfTime), TimeLimit(FOREVER).watch():
        pytest.fail("the block began")
    assert signal.getsignal(signal.SIGALRM) is handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_an_alarm_when_the_block_has_ended_is_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    handler, really = signal.getsignal(signal.SIGALRM), signal.setitimer
    seen: list[str] = []

    def alarm_at_exit(frame: FrameType, event: str, _: Any) -> None:
        installed = signal.getsignal(signal.SIGALRM)
        if event == "call" and frame.f_code.co_name == "__exit__" and callable(installed):
            seen.append("its first instruction")
            installed(signal.SIGALRM, frame)

    def alarm_when_set(which: int, seconds: float, again: float = 0.0) -> None:
        if not seconds:
            seen.append("setting the timer")
            signal.raise_signal(signal.SIGALRM)
        really(which, seconds, again)

    monkeypatch.setattr(signal, "setitimer", alarm_when_set)
    with TimeLimit(FOREVER).watch():
        sys.setprofile(alarm_at_exit)
    sys.setprofile(None)
    assert seen == ["its first instruction", "setting the timer"]
    assert signal.getsignal(signal.SIGALRM) is handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_watched_part_leaves_time_to_the_whole() -> None:
    whole = TimeLimit(FOREVER)
    with whole.watch():
        with pytest.raises(OutOfTime), whole.watch(keep=FOREVER - 0.05):
            time.sleep(FOREVER)
        left, again = signal.getitimer(signal.ITIMER_REAL)
        assert 0 < left <= FOREVER
        assert again == limit.AGAIN
        with pytest.raises(OutOfTime), whole.watch(keep=2 * FOREVER):
            pytest.fail("it began with too little left")
    assert TimeLimit(1, started=time.monotonic() - 2).over
    assert not TimeLimit(None).over


def test_outside_of_the_main_thread_the_limit_holds_between_parts() -> None:
    seen: list[str] = []

    def work() -> None:
        short = TimeLimit(FOREVER)
        with short.watch():
            short._end = time.monotonic()
            seen.append("ended by itself")
        try:
            with short.watch():
                seen.append("began late")
        except OutOfTime:
            seen.append("left out")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == ["ended by itself", "left out"]


def timed(
    request: BenchRequest, models: dict[str, Callable[..., object]], time_limit: TimeLimit
) -> tuple[turns.Turns, dict[str, dict[str, Any]], list[str]]:
    rows: dict[str, dict[str, Any]] = {name: {"name": name, "bits": ""} for name in models}
    said: list[str] = []
    entered = [Entrant(name, "", None, name != "bitsandbytes NF4") for name in models]
    made = turns.Turns(request, entered, rows, said.append, time_limit, lambda: None)
    made.models.update(models)
    return made, rows, said


def a_race(raced: list[tuple[str, ...]]) -> Callable[..., dict[str, Times]]:
    def race(racing: list[Contestant], *_: Any, **__: Any) -> dict[str, Times]:
        raced.append(tuple(one.name for one in racing))
        return {one.name: Times((8.0, 8.0)) for one in racing}

    return race


def test_a_first_compiled_step_that_does_not_end_leaves_the_others_to_be_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raced: list[tuple[str, ...]] = []
    monkeypatch.setattr(turns, "race", a_race(raced))
    monkeypatch.setattr(turns, "compile_blocks", lambda model: "blocks")
    kept: list[float] = []

    class Noted(TimeLimit):
        def watch(self, keep: float = 0.0) -> AbstractContextManager[None]:
            kept.append(keep)
            return super().watch(keep)

    def compiles_until_the_alarm() -> None:
        signal.raise_signal(signal.SIGALRM)
        time.sleep(FOREVER)

    models = {"ptq W4A8": dict, "bf16": compiles_until_the_alarm, "third": dict, "bitsandbytes NF4": dict}
    made, rows, said = timed(replace(REQUEST, compile=True), models, Noted(FOREVER))
    for row in rows.values():
        row["eager_ms"] = {"median": 100.0}
    made.run("compiled")
    assert kept == [pytest.approx((2 + 3) * 3 * 0.1)] * 2  # time to race three models, five steps each
    assert raced == [("ptq W4A8",)]
    assert rows["ptq W4A8"]["compiled_ms"]["median"] == 8
    for late in ("bf16", "third"):
        assert rows[late]["compiled_left_out"] == "the time limit was reached"
        assert "compiled_ms" not in rows[late]
    assert not any(key.startswith("compiled") for key in rows["bitsandbytes NF4"])
    assert "compiling bf16" in said
    assert "compiling third" not in said
    assert [name for name, row in rows.items() if "compiled_as" in row] == ["ptq W4A8"]
    assert not any(key.endswith("error") for row in rows.values() for key in row)


def test_a_command_without_time_says_so_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(command(tmp_path, "--time-limit", "1e-6")) == 1
    out, said = capsys.readouterr()
    assert "Stages that were not finished: memory left out: the time limit was reached; build left out" in out
    assert "eager: left out: the time limit was reached" in said
    assert not (tmp_path / "out.json").exists()


def test_stages_that_would_begin_too_late_are_left_out_and_say_so(tmp_path: Path) -> None:
    handed: list[Any] = []
    request = replace(REQUEST, folder=tmp_path)
    result = bench.run_bench(request, lambda _: None, handed.append, TimeLimit(0))
    left_out = "left out: the time limit was reached"
    assert result["stages"] == dict.fromkeys(("quantize", "memory", "build", "eager"), left_out)
    assert handed == []
    assert list(tmp_path.iterdir()) == []
    assert f"memory {left_out}" in notes(result)[1]


def test_a_stage_is_cut_short_cleanly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[dict[str, Any]] = []
    within = TimeLimit(FOREVER)

    def until_the_alarm(_: Any) -> None:
        within._end = time.monotonic()
        signal.raise_signal(signal.SIGALRM)

    monkeypatch.setattr(bench, "quantize_true_size", finished(0))
    monkeypatch.setattr(bench, "in_own_process", until_the_alarm)
    result = bench.run_bench(
        replace(REQUEST, folder=tmp_path), lambda _: None, lambda r: handed.append(dict(r["stages"])), within
    )
    assert list(result["stages"].values()) == [
        "done",
        "cut short: the time limit was reached",
        *["left out: the time limit was reached"] * 2,
    ]
    assert handed[0] == {"quantize": "done", **dict.fromkeys(("memory", "build", "eager"), "not started")}
    assert handed[-1] == result["stages"]
    assert result["quantize"]["seconds"] == 1


QUANTIZED = {"phases": {"method": 1.0}, "targets": (), "device_peak_bytes": 0, "host_peak_bytes": 1}


def test_graphs_are_replayed_on_a_gpu_alone() -> None:
    def modes(device: str, compiled: bool) -> tuple[str, ...]:
        request = replace(REQUEST, device=torch.device(device), compile=compiled)
        return turns.Turns(request, (), {}, lambda _: None, TimeLimit(None), lambda: None).modes

    assert modes("cpu", False) == ("eager",)
    assert modes("cpu", True) == ("eager", "compiled")
    assert modes("cuda", False) == ("eager", "eager_graph")
    assert modes("cuda", True) == ("eager", "eager_graph", "compiled", "graph", "compiled_best")
    assert modes("cpu", True) == ("eager", "compiled")


def test_a_step_that_waits_for_the_device_is_a_row_and_is_not_captured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mode = {"now": 0}
    raced: list[tuple[str, ...]] = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: mode["now"])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda to: mode.update(now=to))
    race = a_race(raced)

    def graphs_only(racing: list[Contestant], *_: Any, **__: Any) -> dict[str, Times]:
        assert all(one.graph for one in racing)
        assert mode["now"] == 0
        return race(racing)

    def waits() -> None:
        if mode["now"] == "error":
            raise RuntimeError("called a synchronizing CUDA operation")

    monkeypatch.setattr(turns, "race", graphs_only)
    made, rows, _ = timed(
        REQUEST, {"ptq W4A8": dict, "bitsandbytes NF4": waits, "bf16": dict}, TimeLimit(None)
    )
    made.run("eager_graph")
    assert raced == [("ptq W4A8", "bf16")]
    assert rows["bf16"]["eager_graph_ms"]["median"] == 8
    error = rows["bitsandbytes NF4"]["eager_graph_error"]
    assert error == "RuntimeError: called a synchronizing CUDA operation"
    result = {"rows": list(rows.values()), "quality": "", "stages": {}, "quantize": None}
    column = COLUMNS.index("step ms, eager graph")
    cells = [line.split(" | ")[column].strip("| ") for line in table(result).splitlines()[2:]]
    assert cells == ["8.0 [8.0, 8.0]", "failed", "8.0 [8.0, 8.0]"]
    around = {"model": "m", "side": 1, "batch": 1}
    assert f"bitsandbytes NF4: eager graph error: {error}" in notes({**result, **around})


def test_models_are_built_in_the_order_asked_for_with_a_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.bench import peers
    from harness.cli.bench_model import _peers

    asked = tuple(peer.name for peer in _peers("bitsandbytes NF4, torchao fp8 rowwise, bitsandbytes NF4"))
    assert asked == ("bitsandbytes NF4", "torchao fp8 rowwise")
    one = replace(peers.BASELINE, name="bitsandbytes NF4", whole=lambda model: None, compiled=False)
    two = replace(peers.BASELINE, name="torchao fp8 rowwise", whole=lambda model: model.no_such_thing)
    monkeypatch.setattr(contestants, "WHOLE_MODEL_PEERS", (two, one))
    request = replace(REQUEST, quantized=False, peers=asked)
    found = contestants.entrants(request)
    assert [(each.name, each.compiled) for each in found] == [
        ("bf16", True),
        ("bitsandbytes NF4", False),
        ("torchao fp8 rowwise", True),
    ]
    rows: dict[str, dict[str, Any]] = {each.name: {} for each in found}
    said: list[str] = []
    made = turns.Turns(request, found, rows, said.append, TimeLimit(None), lambda: None)
    made.build()
    assert list(made.models) == ["bf16", "bitsandbytes NF4"]
    assert [line.partition(":")[0] for line in said] == [
        "built bf16",
        "built bitsandbytes NF4",
        "torchao fp8 rowwise was not built",
    ]
    made.close()
    assert not made.models


def test_each_model_runs_its_compiled_step_the_way_that_was_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    raced: dict[str, bool] = {}

    def race(racing: list[Contestant], *_: Any, **__: Any) -> dict[str, Times]:
        raced.update({one.name: one.graph for one in racing})
        return {one.name: Times((8.0, 8.0)) for one in racing}

    monkeypatch.setattr(turns, "race", race)
    made, rows, _ = timed(
        replace(REQUEST, compile=True), dict.fromkeys(("a", "b", "c", "d"), dict), TimeLimit(None)
    )
    rows["a"] |= {"compiled_ms": {"median": 9.0}, "graph_ms": {"median": 7.0}}
    rows["b"] |= {"compiled_ms": {"median": 7.0}, "graph_ms": {"median": 9.0}}
    rows["c"] |= {"compiled_ms": {"median": 7.0}, "graph_error": "cannot be captured"}
    made.run("compiled_best")
    assert raced == {"a": True, "b": False}  # one has no choice, one was not compiled
    assert (rows["a"]["compiled_best_is"], rows["b"]["compiled_best_is"]) == ("graph", "compiled")
    assert rows["a"]["compiled_best_ms"]["median"] == 8


def test_the_headline_holds_what_has_been_measured_so_far() -> None:
    published = CONFIGS["flux.1-dev"]
    recipe = replace(
        reduced_recipe("flux.1-dev", "svdquant", a_bits=4),
        config=DenoiserConfig(published.class_name, dict(published.config)),
        side=None,
        text_tokens=None,
    )
    request = replace(REQUEST, recipe=recipe, compile=True)
    ours: dict[str, Any] = {"name": "svdquant W4A4", "eager_ms": {"median": 245.0}}
    result = {"rows": [ours, {"name": "bf16", "eager_ours_faster": [0.5, 0.4, 0.6]}], "quantize": None}
    assert headline(result, request) == {"flux_step_eager_ms": 245.0, "flux_step_vs_bf16_eager": 0.5}
    assert headline(result, replace(request, compile=False))["flux_step_ms"] == 245.0
    ours |= {
        "eager_graph_ms": {"median": 120.0},
        "compiled_ms": {"median": 110.0},
        "graph_ms": {"median": 90.0},
    }
    found = headline(result, request)
    assert (found["flux_step_eager_graph_ms"], found["flux_step_graph_ms"]) == (120.0, 90.0)
    assert found["flux_step_ms"] == found["flux_step_launched_ms"] == 110.0
    ours["compiled_best_ms"] = {"median": 91.0}
    result["rows"][1] |= {"compiled_ours_faster": [1.1, 1.0, 1.2]}
    assert (
        headline(result, request)["flux_step_vs_bf16_compiled"] == 1.1
    )  # both as they were timed side by side
    result["rows"][1] |= {
        "compiled_best_ms": {"median": 118.0},
        "compiled_best_ours_faster": [1.3, 1.2, 1.4],
    }
    found = headline(result, request)
    assert (found["flux_step_ms"], found["flux_step_launched_ms"]) == (91.0, 110.0)
    assert (found["flux_step_vs_bf16_compiled"], found["flux_step_vs_bf16_launched"]) == (1.3, 1.1)
    assert headline(result, replace(request, recipe=replace(recipe, side=512))) == {}
