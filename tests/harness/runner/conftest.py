from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from records import result_bytes
from rich.console import Console

import harness.run
from harness.request import Request


class Toy:
    """Runs requests on the toy world and reads back what it left."""

    def __init__(self, folder: Path):
        self.out = folder / "run"
        self.steer = folder
        self.trace_file = folder / "trace"
        self.printed = ""

    def request(self, **changes) -> Request:
        given = {"models": ("toy-a",), "methods": ("fine",), "bits": "4", "prompts": 40, "workers": 2}
        return Request(**{**given, "out": self.out, "timeout": 30.0, **changes})

    def run(self, **changes) -> int:
        self.trace_file.write_text("")
        console = Console(file=io.StringIO(), width=200)
        try:
            return harness.run.run(self.request(**changes), console)
        finally:
            self.printed = console.file.getvalue()

    def trace(self, *words: str) -> list[str]:
        lines = self.trace_file.read_text().splitlines()
        return [line for line in lines if line.split()[: len(words)] == list(words)]

    def cells(self) -> dict[tuple[str, str, str, int, int], Path]:
        found = {}
        for path in self.out.glob("cells/*/record.json"):
            identity = json.loads(path.read_text())["identity"]
            key = tuple(identity[name] for name in ("model", "method", "variant", "wbits", "abits"))
            found[key] = path.parent
        return found

    def cell(self, method: str, model: str = "toy-a") -> Path:
        (found,) = [path for key, path in self.cells().items() if key[:2] == (model, method)]
        return found

    def results(self) -> dict[tuple[str, str, str, int, int], str]:
        """The bytes of each result, by cell."""
        return {key: result_bytes(path) for key, path in self.cells().items()}

    def result(self, method: str) -> dict:
        return json.loads(self.results_of(method))["result"]

    def results_of(self, method: str) -> str:
        return result_bytes(self.cell(method))


@pytest.fixture
def toy(tmp_path, monkeypatch) -> Toy:
    made = Toy(tmp_path)
    monkeypatch.setattr(harness.run, "DEFAULT_WORLD", "toy_world:WORLD")
    monkeypatch.setattr(harness.run, "write_reports", lambda *args: None)
    monkeypatch.setenv("TOY", str(tmp_path))
    return made
