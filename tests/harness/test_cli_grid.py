"""`run` and `plan` take the same grid, and neither a plan nor a dry run downloads anything."""

from __future__ import annotations

import inspect
import socket
from pathlib import Path
from typing import Any

import pytest

from harness import run as runner
from harness.cli import call
from harness.cli.grid import grid_request, takes_grid
from harness.cli.planning import plan_command
from harness.cli.running import run_command
from harness.request import Request

ASKED = [
    *("--models", "tiny-dit,tiny-unet", "--methods", "ptq", "--bits", "w4a6", "--act-bits", "6"),
    *("--dataset", "scenes", "--protocol", "scenes-default", "--prompts", "3", "--seed", "5", "--block", "4"),
    *("--device", "cpu", "--workers", "1", "--data-path", "a=b", "--data-path", "c=d"),
    *("--model-path", "m=n", "--offline", "--out", "somewhere", "--set", "ptq.range=minmax"),
]
WANTED = Request(
    models=("tiny-dit", "tiny-unet"),
    methods=("ptq",),
    bits="w4a6",
    act_bits=6,
    datasets=("scenes",),
    protocol="scenes-default",
    prompts=3,
    seed=5,
    block=4,
    device="cpu",
    workers=1,
    data_paths=("a=b", "c=d"),
    model_paths=("m=n",),
    offline=True,
    out=Path("somewhere"),
    settings=("ptq.range=minmax",),
)


class SeenError(Exception):
    pass


@pytest.mark.parametrize(
    ("command", "function"), [("plan", "forecast"), ("run", "run"), ("run --dry-run", "dry_run")]
)
def test_every_option_of_the_grid_reaches_the_request(
    command: str, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Request] = []

    def stop(request: Request, *_: Any) -> None:
        seen.append(request)
        raise SeenError

    monkeypatch.setattr(runner, function, stop)
    with pytest.raises(SeenError):
        call([*command.split(), *ASKED])
    assert seen == [WANTED]


def test_every_field_of_a_request_has_an_option() -> None:
    declared = set(inspect.signature(grid_request).parameters)
    renamed = {"datasets": "dataset", "data_paths": "data_path", "model_paths": "model_path"}
    renamed |= {"settings": "set_"}
    fields = {renamed.get(name, name) for name in Request.__dataclass_fields__}
    assert fields - declared == {"latency", "timeout"}
    assert declared < set(inspect.signature(run_command).parameters)
    assert declared < set(inspect.signature(plan_command).parameters)


def test_a_commands_own_options_follow_the_grids() -> None:
    def command(request: Request, extra: int = 3) -> int:
        return extra if request.prompts == 64 else 0

    taken = takes_grid(command)
    assert list(inspect.signature(taken).parameters)[-1] == "extra"
    assert taken(extra=7) == 7
    assert taken() == 3
    assert taken(prompts=2) == 0


@pytest.mark.parametrize("command", [["plan"], ["run", "--dry-run"]])
def test_a_model_that_is_not_there_is_named_and_not_downloaded(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was used")

    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    arguments = ["--models", "flux.1-schnell", "--methods", "ptq", "--bits", "4"]
    assert call([*command, *arguments, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("harness: missing files: flux.1-schnell: model_index.json, ")
    assert "--model-path flux.1-schnell=DIR" in said
    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.iterdir())
