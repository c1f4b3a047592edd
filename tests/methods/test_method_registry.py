"""Finding methods and reading their settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Literal

import pytest

from harness.errors import UserError
from harness.methods import registry
from harness.methods.contract import MethodConfig, MethodSpec, QuantizeJob


@dataclass(frozen=True)
class KnobsConfig(MethodConfig):
    """One field of every type a setting can have."""

    count: int = 1
    ratio: float = 0.5
    flag: bool = False
    label: str = "x"
    mode: Literal["fast", "slow"] = "fast"
    size: Literal[0, 64, 128] = 0
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError("count is at least 0")


def do_nothing(job: QuantizeJob, config: MethodConfig) -> None:
    """A method's function."""


def do_something_else(job: QuantizeJob, config: MethodConfig) -> None:
    """Another method's function."""


@pytest.fixture
def clean() -> Iterator[None]:
    registry.load_plugins()
    specs, failed = dict(registry._specs), dict(registry._broken)
    yield
    registry._specs.clear()
    registry._specs.update(specs)
    registry._broken.clear()
    registry._broken.update(failed)


@pytest.fixture
def knobs(clean: None) -> None:
    registry.register(MethodSpec(name="knobs", config=KnobsConfig, quantize=do_nothing, version=1))


def test_built_in_methods_come_first_in_the_order_of_the_tables() -> None:
    assert registry.names()[:5] == ["ptq", "nf4", "svdquant", "mpqdm", "mpqdmv2"]


@pytest.mark.usefixtures("clean")
def test_other_methods_follow_by_name() -> None:
    for name in ("zeta", "alpha"):
        registry.register(MethodSpec(name=name, config=KnobsConfig, quantize=do_nothing, version=1))
    others = registry.names()[len(registry.BUILT_IN) :]
    assert {"alpha", "zeta"} <= set(others)
    assert others == sorted(others)
    assert registry.names().index("alpha") > registry.names().index("mpqdmv2")


def test_traits_of_the_built_in_methods() -> None:
    assert registry.get("nf4").weight_only
    assert registry.get("nf4").act_bits == (16,)
    assert [n for n in registry.BUILT_IN if registry.get(n).reconstruction] == ["mpqdmv2"]
    assert [n for n in registry.BUILT_IN if not registry.get(n).in_all] == ["gptq", "hqq", "adaround"]
    for name in ("svdquant", "mpqdm", "mpqdmv2"):
        assert registry.get(name).needs_calibration
    for name in registry.BUILT_IN:
        assert {2, 3, 4} <= set(registry.get(name).weight_bits)


@pytest.mark.usefixtures("knobs")
def test_a_name_is_registered_once() -> None:
    registry.register(MethodSpec(name="knobs", config=KnobsConfig, quantize=do_nothing, version=2))
    with pytest.raises(ValueError, match="'knobs' is already registered"):
        registry.register(MethodSpec(name="knobs", config=KnobsConfig, quantize=do_something_else, version=1))
    assert registry.get("knobs").quantize is do_nothing


@pytest.mark.usefixtures("clean")
def test_a_config_must_be_a_method_config() -> None:
    with pytest.raises(TypeError, match="MethodConfig"):
        registry.register(MethodSpec(name="odd", config=dict, quantize=do_nothing, version=1))  # type: ignore[type-var]


def test_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown method 'svdquand'; did you mean svdquant\b"):
        registry.get("svdquand")
    with pytest.raises(UserError, match=r"valid: .*ptq"):
        registry.get("????")


@pytest.mark.usefixtures("clean")
def test_a_plugin_that_fails_to_import_is_remembered(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "half_way.py").write_text(
        "from harness.methods.contract import MethodConfig, method\n"
        "@method('half-way', MethodConfig, version=1)\n"
        "def quantize(job, config): ...\n"
        "raise OSError('no such device\\nsecond line')\n"
    )
    (tmp_path / "exits.py").write_text("raise SystemExit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = registry.names()
    registry._load(EntryPoint("half-way", "half_way", registry.GROUP))
    registry._load(EntryPoint("exits", "exits", registry.GROUP))
    assert registry.names() == before
    assert registry.broken()["half-way"] == "OSError: no such device"
    with pytest.raises(UserError, match=r"method 'half-way' could not be loaded: OSError: no such device$"):
        registry.get("half-way")
    with pytest.raises(UserError, match="SystemExit: 3"):
        registry.get("exits")
    assert registry.get("ptq").name == "ptq"


@pytest.mark.usefixtures("clean")
def test_a_plugin_cannot_take_a_name_that_is_taken(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "usurper.py").write_text(
        "from harness.methods.contract import MethodConfig, method\n"
        "@method('ptq', MethodConfig, version=9)\n"
        "def quantize(job, config): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    held = registry.get("ptq")
    registry._load(EntryPoint("usurper", "usurper", registry.GROUP))
    assert registry.get("ptq") is held
    assert "already registered" in registry.broken()["usurper"]


@pytest.mark.usefixtures("knobs")
def test_every_type_of_setting_is_read() -> None:
    config = registry.configure(
        "knobs",
        {
            "count": "7",
            "ratio": "1e-3",
            "flag": "TRUE",
            "label": "a b",
            "mode": "slow",
            "size": "64",
            "limit": "12",
        },
    )
    assert config == KnobsConfig(7, 1e-3, True, "a b", "slow", 64, 12)
    assert registry.configure("knobs", {"limit": "none"}) == KnobsConfig()
    assert registry.configure("knobs", {}) == KnobsConfig()


@pytest.mark.usefixtures("knobs")
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("cuont", "1", r"unknown setting of knobs 'cuont'; did you mean count\?"),
        ("count", "1.5", "knobs.count takes a whole number, not '1.5'"),
        ("count", "-1", "knobs: count is at least 0"),
        ("ratio", "nan", "knobs.ratio takes a finite number"),
        ("ratio", "inf", "knobs.ratio takes a finite number"),
        ("ratio", "x", "knobs.ratio takes a finite number"),
        ("flag", "maybe", "unknown value of knobs.flag: 'maybe'; valid: false, true"),
        ("mode", "fest", r"unknown value of knobs.mode: 'fest'; did you mean fast\?"),
        ("size", "63", "unknown value of knobs.size: '63'"),
        ("limit", "many", "knobs.limit takes a whole number"),
    ],
)
def test_wrong_settings_are_one_clear_line(key: str, value: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        registry.configure("knobs", {key: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "key", "value", "message"),
    [
        ("ptq", "range", "mimax", r"did you mean minmax\?"),
        ("ptq", "rnage", "mse", r"did you mean range\?"),
        ("ptq", "group", "32", "valid: 0, 128, 64"),
        ("ptq", "percentile", "20", "between 50 and 100"),
        ("nf4", "block", "1", "at least 2"),
        ("svdquant", "grid", "10", "odd number"),
        ("svdquant", "rank", "-4", "at least 0"),
        ("mpqdm", "alpha", "2", "between 0 and 1"),
        ("mpqdmv2", "damping", "0", "above 0"),
    ],
)
def test_wrong_settings_of_the_built_in_methods(method: str, key: str, value: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        registry.configure(method, {key: value})
