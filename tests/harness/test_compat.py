import subprocess
import sys
import textwrap

import pytest

from harness import compat


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_importing_compat_loads_no_library() -> None:
    done = run_python(
        """
        import sys, harness.compat
        print([m for m in ("torch", "torchvision", "diffusers", "transformers") if m in sys.modules])
        """
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_torchvision_imports_also_after_a_failed_import_and_builds_a_model() -> None:
    done = run_python(
        """
        from harness.compat import ensure_torchvision
        try:
            import torchvision
        except RuntimeError:
            pass
        assert ensure_torchvision() and ensure_torchvision()
        import torch, torchvision
        net = torchvision.models.squeezenet1_1(weights=None).eval()
        print(tuple(net(torch.zeros(1, 3, 64, 64)).shape))
        """
    )
    assert done.stdout.strip() == "(1, 1000)", done.stderr
    assert done.stderr == ""


def test_a_missing_torchvision_is_reported_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(compat.importlib.util, "find_spec", lambda name: None)
    assert compat.ensure_torchvision() is False


def test_another_torchvision_failure_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise RuntimeError("image.so: undefined symbol")

    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(compat.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(compat.importlib, "import_module", broken)
    with pytest.raises(RuntimeError, match="undefined symbol"):
        compat.ensure_torchvision()


def test_missing_image_reward_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ImageReward", raising=False)
    monkeypatch.setattr(compat.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="ImageReward"):
        compat.import_image_reward()


def test_quiet_imports_restores_log_levels() -> None:
    import logging

    logger = logging.getLogger("transformers")
    before = logger.level
    with compat.quiet_imports():
        assert logger.level == logging.ERROR
    assert logger.level == before
