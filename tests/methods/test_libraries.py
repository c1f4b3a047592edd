"""The mechanism of library methods, with a library made up here: layers, ledger, checkpoints, cells."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import layer_jobs as jobs
import pytest
import torch
from torch import Tensor, nn

import harness.methods.libraries
from harness.bits import Bits
from harness.canonical import digest_json
from harness.errors import CellError
from harness.kernels.checkpoint import load_checkpoint, save_checkpoint
from harness.kernels.layers import PackedConv2d, PackedLinear
from harness.kernels.ledger import build_ledger
from harness.kernels.stored import Spec, nbytes, spec_int
from harness.kernels.weights import WEIGHTS
from harness.methods import registry
from harness.methods.contract import LayerTarget, MethodConfig, QuantizeJob
from harness.methods.libraries import contract
from harness.methods.libraries.contract import LibrarySpec, library_method, load_library
from harness.methods.libraries.layer import (
    LibraryLinear,
    LibraryWeight,
    replace_all,
    restore,
    stored_kind,
)
from harness.plan import make_plan
from harness.project import WORLD, check_packed
from harness.request import Request

PROVIDED = [
    *("bnb-fp4", "bnb-int8", "bnb-nf4", "gguf", "quanto", "quanto-fp8"),
    *("torchao-fp8", "torchao-int4", "torchao-int8", "torchao-intx"),
]
LIBRARIES = ("bitsandbytes", "torchao", "optimum-quanto", "gguf")


class ToyWeight(LibraryWeight):
    """Halves of the weight in int8 units of 1/64; the 'library' multiplies and then adds 1000."""

    kind = "toy"
    library = "torch"
    codes: Tensor

    def __init__(self, rows: int, cols: int) -> None:
        super().__init__(rows, cols)
        self.register_buffer("codes", torch.zeros(rows, cols, dtype=torch.int8))

    def build_operand(self) -> Any:
        return [self.codes]  # a list, to see which memory is used

    def dequantize(self) -> Tensor:
        return self.operand()[0].float() / 64

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return torch.nn.functional.linear(x, self.dequantize(), bias) + 1000

    def bytes_by_part(self) -> dict[str, int]:
        return {"codes": nbytes(self.codes)}

    @property
    def mean_bits(self) -> float:
        return 8.0

    def spec(self) -> Spec:
        return {"kind": self.kind, "rows": self.rows, "cols": self.cols}

    @classmethod
    def from_spec(cls, spec: Spec) -> ToyWeight:
        return cls(spec_int(spec, "rows", 1, 4096), spec_int(spec, "cols", 1, 4096))


@dataclass(frozen=True)
class ToyConfig(MethodConfig):
    pass


def encode(matrix: Tensor, target: LayerTarget) -> ToyWeight:
    weight = ToyWeight(*matrix.shape)
    weight.codes = (matrix * 64).round().clamp(-127, 127).to(torch.int8)
    return weight


def quantize(job: QuantizeJob, config: ToyConfig) -> None:
    replace_all(job, encode, remark="toy")


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(registry, "_specs", dict(registry._specs))
    monkeypatch.setitem(WEIGHTS, "toy", ToyWeight)
    library_method("toy", ToyConfig, version=1, libraries=("torch",), weight_bits=(8,))(quantize)
    return "toy"


def test_every_library_method_is_registered_and_out_of_all() -> None:
    specs = {name: registry.get(name) for name in PROVIDED}
    assert all(isinstance(spec, LibrarySpec) and not spec.in_all for spec in specs.values())
    assert {library for spec in specs.values() for library in spec.libraries} == set(LIBRARIES)
    assert not set(PROVIDED) & set(WORLD.method_names())
    assert {
        module.rpartition(".")[2] for module in (spec.quantize.__module__ for spec in specs.values())
    } == set(harness.methods.libraries.__all__)


def test_importing_the_methods_imports_no_library() -> None:
    code = (
        "import sys, json, harness.methods.libraries; "
        "print(json.dumps([m for m in ('bitsandbytes', 'torchao', 'optimum', 'gguf') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_the_entry_point_is_declared() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert 'libraries = "harness.methods.libraries"' in text


def test_layers_are_the_librarys_and_convolutions_decode(toy: str) -> None:
    x, net = jobs.inputs(), jobs.Net()
    floats = copy.deepcopy(net)
    job = jobs.run(toy, jobs.job(toy, 8, net=net, x=x, a_bits=16))
    check_packed(net, jobs.NAMES)
    wanted = (floats.q.weight.detach() * 64).round().clamp(-127, 127) / 64
    y = net.q(x["q"])
    bias = floats.q.bias.detach().half().float()
    torch.testing.assert_close(y, x["q"] @ wanted.T + bias + 1000)
    assert isinstance(net.conv, PackedConv2d)
    kernel = (floats.conv.weight.detach() * 64).round().clamp(-127, 127) / 64
    expected = torch.nn.functional.conv2d(
        x["conv"], kernel, floats.conv.bias.detach().half().float(), padding=1
    )
    torch.testing.assert_close(net.conv(x["conv"]), expected)
    assert job.notes["q"] == {"library": f"torch {torch.__version__}", "remark": "toy"}


def test_shapes_of_inputs_are_kept(toy: str) -> None:
    net = jobs.Net()
    jobs.run(toy, jobs.job(toy, 8, net=net, a_bits=16))
    assert net.q(torch.zeros(2, 3, 64)).shape == (2, 3, 40)
    assert net.q(torch.zeros(64)).shape == (40,)


def test_convolutions_round_their_inputs_as_with_every_other_method(toy: str) -> None:
    net = jobs.Net()
    jobs.run(toy, jobs.job(toy, 8, net=net, a_bits=8))
    assert isinstance(net.conv, PackedConv2d)
    assert net.conv.act is not None
    assert (net.conv.act.bits, net.conv.act.granularity) == (8, "tensor")
    assert isinstance(net.q, LibraryLinear)
    assert net.q.act is None


def test_the_ledger_counts_the_librarys_buffers(toy: str) -> None:
    net = jobs.Net()
    job = jobs.run(toy, jobs.job(toy, 8, net=net, a_bits=16))
    ledger = build_ledger(net, job.targets, job.notes)
    weights = sum(getattr(jobs.Net(), name).weight.numel() for name in jobs.NAMES)
    assert ledger.bytes_by_part["codes"] == weights
    assert ledger.effective_bits == 8.0
    assert ledger.kept_parameters == 0
    assert ledger.packed
    assert ledger.rows[0].note["library"] == f"torch {torch.__version__}"


def test_a_checkpoint_brings_the_librarys_layers_back(toy: str, tmp_path: Path) -> None:
    x, net = jobs.inputs(), jobs.Net()
    jobs.run(toy, jobs.job(toy, 8, net=net, x=x, a_bits=16))
    save_checkpoint(net, tmp_path)
    again = jobs.Net(seed=3).eval()
    load_checkpoint(again, tmp_path)
    assert type(again.q) is PackedLinear
    restore(again)
    assert type(again.q) is LibraryLinear
    assert not again.q.training
    for name in jobs.NAMES:
        assert torch.equal(net.get_submodule(name)(x[name]), again.get_submodule(name)(x[name]))


def test_restoring_leaves_the_harnesss_own_layers_alone() -> None:
    net = jobs.Net()
    jobs.run("ptq", jobs.job("ptq", 4, net=net))
    before = dict(net.named_modules())
    restore(net)
    assert all(module is before[name] for name, module in net.named_modules())


def test_the_operand_follows_the_buffers_and_is_not_copied(toy: str) -> None:
    weight = encode(torch.full((2, 3), 0.5), LayerTarget("l", "test", "linear", 8, 16, "l"))
    assert bool((weight.dequantize() == 0.5).all())
    assert weight.operand() is weight.operand()
    assert weight.operand()[0] is weight.codes
    twin = copy.deepcopy(weight)
    twin.codes.zero_()
    assert bool((twin.dequantize() == 0).all())
    assert bool((weight.dequantize() == 0.5).all())
    weight.codes = torch.ones(2, 3, dtype=torch.int8)
    assert bool((weight.dequantize() == 1 / 64).all())
    assert "_built" not in weight.state_dict()
    assert not list(weight.parameters())


def test_a_library_that_breaks_on_import_is_unsupported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "brokenlib.py").write_text("raise RuntimeError('built for another torch\\nsecond line')\n")
    info = tmp_path / "brokenlib-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: brokenlib\nVersion: 1.5\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        CellError, match=r"^brokenlib 1\.5 cannot be imported: built for another torch$"
    ) as caught:
        load_library("brokenlib", "brokenlib")
    assert caught.value.state == "unsupported"


def test_a_missing_library_is_unsupported() -> None:
    with pytest.raises(CellError, match=r"^nosuchlib is not installed \(pip install nosuchlib\)$") as caught:
        load_library("nosuchlib", "nosuchlib")
    assert caught.value.state == "unsupported"


def cells(methods: str, bits: str, **request: Any) -> dict[tuple[str, str], Any]:
    asked = Request(
        models=("tiny-dit",), methods=tuple(methods.split(",")), bits=bits, prompts=1, device="cpu", **request
    )
    return {(c.identity.method, str(c.bits)): c for c in make_plan(asked, WORLD).cells}


def test_plan_marks_what_a_library_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"bitsandbytes": "0.1", "torchao": "9.9", "gguf": None, "optimum-quanto": None}
    monkeypatch.setattr(contract, "installed_version", versions.get)
    found = cells("bnb-nf4,torchao-int4,gguf,torchao-int8", "w4a16,w8a8,w8a4")
    reasons = {name: cell.unsupported for name, cell in found.items()}
    assert reasons["bnb-nf4", "W4A16"] is None
    assert reasons["bnb-nf4", "W8A16"] == "bnb-nf4 declares weight bits 4, not 8"
    assert reasons["torchao-int4", "W4A16"] == "torchao-int4 runs on cuda, not on cpu"
    assert reasons["gguf", "W4A16"] == "gguf is not installed (pip install gguf)"
    assert reasons["torchao-int8", "W8A8"] is None
    assert reasons["torchao-int8", "W8A4"] == "torchao-int8 declares activation bits 8, 16, not 4"
    assert found["bnb-nf4", "W4A16"].identity.library == "bitsandbytes 0.1"
    assert found["reference", "W16A16"].identity.library == ""


def test_a_cells_key_depends_on_the_librarys_version_only_for_its_methods(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def keys(version: str) -> dict[str, str]:
        monkeypatch.setattr(contract, "installed_version", lambda _: version)
        return {name: cell.key for (name, _), cell in cells("ptq,bnb-nf4", "w4a16").items()}

    old, new = keys("1.0"), keys("1.1")
    assert old["bnb-nf4"] != new["bnb-nf4"]
    assert (old["ptq"], old["reference"]) == (new["ptq"], new["reference"])
    assert old["bnb-nf4"] == keys("1.0")["bnb-nf4"]


def test_methods_without_a_library_hash_what_they_hashed_before() -> None:
    cell = cells("ptq", "w4a16")["ptq", "W4A16"]
    assert "libraries" not in cell.hashed
    assert digest_json(cell.hashed)[:16] == cell.key
    assert cell.bits == Bits(4, 16)


def test_weights_refuse_specs_that_are_wrong() -> None:
    good = {"rows": 4, "cols": 64}
    wrong: dict[str, list[dict[str, Any]]] = {
        "bitsandbytes.4bit": [
            {**good, "form": "nf5", "block": 64, "nested": False},
            {**good, "form": "nf4", "block": 0, "nested": False},
            {**good, "form": "nf4", "block": 64, "nested": 1},
            {"rows": -1, "cols": 64, "form": "nf4", "block": 64, "nested": False},
        ],
        "bitsandbytes.int8": [{**good, "threshold": "6"}, {**good, "threshold": -1.0}],
        "torchao": [{**good, "form": "int9", "bits": 8, "group": 0, "dtype": "float32"}],
        "quanto": [{**good, "form": "qint3", "dtype": "float32"}, {**good, "form": "qint4", "dtype": "int8"}],
        "gguf": [{**good, "form": "Q4_K"}, {"rows": 4, "form": "Q4_0"}],
    }
    for kind, specs in wrong.items():
        for spec in specs:
            with pytest.raises(ValueError, match=r"must be"):
                WEIGHTS[kind].from_spec(spec)


def test_every_kind_of_weight_can_be_loaded_by_name() -> None:
    assert {"bitsandbytes.4bit", "bitsandbytes.int8", "torchao", "quanto", "gguf"} <= WEIGHTS.keys()
    assert stored_kind(ToyWeight) is ToyWeight
    assert WEIGHTS.pop("toy") is ToyWeight


def test_a_layer_without_bias_has_none(toy: str) -> None:
    net = nn.ModuleDict({"l": nn.Linear(8, 4, bias=False)})
    target = LayerTarget("l", "test", "linear", 8, 16, "l")
    replace_all(QuantizeJob(net, (target,), None, 8), encode)
    layer = net["l"]
    assert isinstance(layer, LibraryLinear)
    assert layer.bias is None
    assert bool((layer(torch.zeros(1, 8)) == 1000).all())
