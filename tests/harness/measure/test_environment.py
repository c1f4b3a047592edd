import getpass
import json
import platform
import socket
from importlib import metadata
from pathlib import Path

import pytest
import torch

from harness.measure.environment import cpu_model, environment, versions


def test_it_names_what_results_depend_on() -> None:
    found = environment()
    assert found["python"] == platform.python_version()
    assert found["versions"]["torch"] == metadata.version("torch")
    assert {"diffusers", "numpy", "lowbit-harness"} <= set(found["versions"])
    assert found["threads"] == torch.get_num_threads()
    assert found["cores"] >= 1
    assert (found["gpu"] is None) == (not torch.cuda.is_available())


def test_it_names_no_host_user_or_path() -> None:
    text = json.dumps(environment(), allow_nan=False)
    assert str(Path.home()) not in text
    assert str(Path.cwd()) not in text
    values = [v for v in _leaves(json.loads(text)) if isinstance(v, str)]
    assert socket.gethostname() not in values
    assert getpass.getuser() not in values


def _leaves(value: object) -> list[object]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    return [value]


def test_packages_that_are_not_installed_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name != "torch":
            raise metadata.PackageNotFoundError(name)
        return "1.2.3"

    monkeypatch.setattr(metadata, "version", version)
    assert versions() == {"torch": "1.2.3"}


def test_the_cpu_is_read_from_cpuinfo(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nmodel name\t: Fast CPU @ 3 GHz\nmodel name\t: Other\n", encoding="utf-8")
    assert cpu_model(file) == "Fast CPU @ 3 GHz"
    file.write_text("processor\t: 0\n", encoding="utf-8")
    assert cpu_model(file) is None


def test_without_cpuinfo_the_platform_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    assert cpu_model(tmp_path / "missing") == "arm"
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert cpu_model(tmp_path / "missing") is None
