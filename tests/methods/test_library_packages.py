"""Each library's method against that library's own layers; a library that is not installed is skipped."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import layer_jobs as jobs
import pytest
import torch
from torch import Tensor, nn

from harness.errors import CellError
from harness.kernels.checkpoint import TENSORS, load_checkpoint, save_checkpoint
from harness.kernels.ledger import build_ledger
from harness.kernels.quantizers.normal_float import quantize_normal_float
from harness.kernels.weights import NormalFloatWeight
from harness.methods.contract import QuantizeJob
from harness.methods.libraries.contract import installed_version, load_library
from harness.methods.libraries.gguf import format_of
from harness.methods.libraries.layer import LibraryWeight, restore
from harness.project import check_packed

CELLS = [
    ("bnb-nf4", 4, 16, {}, "bitsandbytes"),
    ("bnb-nf4", 4, 16, {"double_quant": "true"}, "bitsandbytes"),
    ("bnb-fp4", 4, 16, {"block": "128"}, "bitsandbytes"),
    ("bnb-int8", 8, 8, {}, "bitsandbytes"),
    ("torchao-int8", 8, 8, {}, "torchao"),
    ("torchao-int8", 8, 16, {}, "torchao"),
    ("torchao-fp8", 8, 16, {}, "torchao"),
    ("torchao-intx", 4, 16, {}, "torchao"),
    ("quanto", 8, 16, {}, "optimum-quanto"),
    ("quanto-fp8", 8, 16, {}, "optimum-quanto"),
    ("gguf", 4, 16, {}, "gguf"),
    ("gguf", 5, 16, {"grid": "affine"}, "gguf"),
    ("gguf", 8, 16, {}, "gguf"),
]
"""Method, weight bits, activation bits, settings, library. quanto's 4 bits would compile an extension."""


def need(distribution: str) -> None:
    if installed_version(distribution) is None:
        pytest.skip(f"{distribution} is not installed")


def quantized(method: str, bits: int, a_bits: int, **settings: str) -> QuantizeJob:
    return jobs.run(method, jobs.job(method, bits, a_bits=a_bits), **settings)


def weight_of(job: QuantizeJob, name: str) -> LibraryWeight:
    weight = job.denoiser.get_submodule(name).weight
    assert isinstance(weight, LibraryWeight)
    return weight


@pytest.mark.parametrize(("method", "bits", "a_bits", "settings", "library"), CELLS)
def test_layers_are_close_counted_and_come_back(
    method: str, bits: int, a_bits: int, settings: dict[str, str], library: str, tmp_path: Path
) -> None:
    need(library)
    x, job = jobs.inputs(), quantized(method, bits, a_bits, **settings)
    check_packed(job.denoiser, jobs.NAMES)
    errors = jobs.output_error(job, x, jobs.Net())
    assert max(errors.values()) < {4: 0.12, 5: 0.03, 8: 3e-3}[bits]  # 4 bits in blocks of 128, FP4: 0.09
    save_checkpoint(job.denoiser, tmp_path)
    ledger = build_ledger(job.denoiser, job.targets, job.notes)
    held = sum(t.numel() * t.element_size() for t in job.denoiser.state_dict().values())
    assert ledger.packed_bytes == held
    assert held < (tmp_path / TENSORS).stat().st_size
    assert ledger.rows[0].note["library"] == f"{library} {installed_version(library)}"
    again = jobs.Net(seed=1)
    load_checkpoint(again, tmp_path)
    restore(again)
    twin = copy.deepcopy(job.denoiser)
    with torch.inference_mode():
        for name in jobs.NAMES:
            y = job.denoiser.get_submodule(name)(x[name])
            assert torch.equal(again.get_submodule(name)(x[name]), y)
            assert torch.equal(twin.get_submodule(name)(x[name]), y)


def test_nf4_is_the_harnesss_own_nf4_where_blocks_cross_rows_too() -> None:
    need("bitsandbytes")
    job, net = quantized("bnb-nf4", 4, 16), jobs.Net()
    for name in jobs.NAMES:
        matrix = net.get_submodule(name).weight.detach().flatten(1)
        own = NormalFloatWeight.pack(quantize_normal_float(matrix, 4, block=64), 4, 64)
        weight = weight_of(job, name)
        assert torch.equal(weight.dequantize(), own.dequantize())
        assert weight.bytes_by_part() == own.bytes_by_part()


def plain_linear() -> tuple[nn.Linear, Tensor]:
    layer = copy.deepcopy(jobs.Net().q)
    layer.bias.data = layer.bias.detach().half().float()  # as packed layers hold it
    return layer, jobs.inputs()["q"][:32]


def output(method: str, bits: int, a_bits: int, x: Tensor) -> Tensor:
    job = quantized(method, bits, a_bits)
    with torch.no_grad():
        y: Tensor = job.denoiser.get_submodule("q")(x)
    return y


def test_bitsandbytes_own_layers_give_the_same() -> None:
    need("bitsandbytes")
    bnb: Any = load_library("bitsandbytes", "bitsandbytes")
    layer, x = plain_linear()
    four = bnb.nn.Linear4bit(64, 40, compress_statistics=False, quant_type="nf4")
    four.load_state_dict(layer.state_dict())
    four.support_avx512bf16_for_cpu = False  # that path multiplies in bfloat16
    eight = bnb.nn.Linear8bitLt(64, 40, has_fp16_weights=False, threshold=6.0)
    eight.load_state_dict(layer.state_dict())
    with torch.no_grad():
        assert torch.equal(four.to("cpu").eval()(x), output("bnb-nf4", 4, 16, x))
        assert float(x.abs().amax()) > 6  # so the outlier columns are tried
        assert torch.equal(eight.to("cpu").eval()(x), output("bnb-int8", 8, 8, x))


def test_torchaos_own_layers_give_the_same() -> None:
    need("torchao")
    module: Any = load_library("torchao", "torchao.quantization")
    configs = {
        ("torchao-int8", 16): module.Int8WeightOnlyConfig(),
        ("torchao-int8", 8): module.Int8DynamicActivationInt8WeightConfig(),
        ("torchao-fp8", 16): module.Float8WeightOnlyConfig(),
    }
    for (method, a_bits), config in configs.items():
        layer, x = plain_linear()
        module.quantize_(layer, config)
        with torch.no_grad():
            assert torch.equal(layer(x), output(method, 8, a_bits, x))


def test_torchao_without_a_gpu_is_unsupported() -> None:
    need("torchao")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(CellError, match=r"^torchao .* on cpu: ") as caught:
        quantized("torchao-fp8", 8, 8)
    assert caught.value.state == "unsupported"


def test_torchaos_integers_take_a_byte_each_and_the_ledger_says_so() -> None:
    need("torchao")
    job = quantized("torchao-intx", 3, 16)
    ledger = build_ledger(job.denoiser, job.targets, job.notes)
    assert ledger.mean_bits == 8.0
    assert ledger.effective_bits > 8
    codes = weight_of(job, "q").get_buffer("qdata")
    assert (int(codes.min()), int(codes.max())) == (-4, 3)


def test_quantos_own_layers_give_the_same() -> None:
    need("optimum-quanto")
    quanto: Any = load_library("optimum-quanto", "optimum.quanto")
    for method, kind in (("quanto", quanto.qint8), ("quanto-fp8", quanto.qfloat8)):
        layer, x = plain_linear()
        theirs = quanto.QLinear.from_module(layer, weights=kind)
        theirs.freeze()
        with torch.no_grad():
            assert torch.equal(theirs(x), output(method, 8, 16, x))


def test_gguf_blocks_decode_as_the_package_itself_decodes_them() -> None:
    need("gguf")
    gguf: Any = load_library("gguf", "gguf")
    for bits, grid, form in ((4, "symmetric", "Q4_0"), (4, "affine", "Q4_1"), (8, "symmetric", "Q8_0")):
        job = quantized("gguf", bits, 16, grid=grid)
        for name in jobs.NAMES:
            weight = weight_of(job, name)
            blocks = weight.get_buffer("packed").numpy()
            kind = gguf.GGMLQuantizationType[form]
            theirs = torch.from_numpy(gguf.quants.dequantize(blocks, kind))[:, : weight.cols]
            # diffusers multiplies scale and code in float16, the package in float32.
            assert float((weight.dequantize() - theirs).abs().amax()) < 2**-10 * float(theirs.abs().amax())


def test_diffusers_own_gguf_layer_gives_the_same() -> None:
    need("gguf")
    gguf: Any = load_library("gguf", "gguf")
    utils: Any = load_library("diffusers", "diffusers.quantizers.gguf.utils")
    layer, x = plain_linear()
    blocks = gguf.quants.quantize(layer.weight.detach().numpy(), gguf.GGMLQuantizationType.Q4_0)
    theirs = utils.GGUFLinear(64, 40, bias=True, compute_dtype=torch.float32)
    theirs.weight = utils.GGUFParameter(torch.from_numpy(blocks), quant_type=gguf.GGMLQuantizationType.Q4_0)
    theirs.bias = layer.bias
    with torch.no_grad():
        assert torch.equal(theirs(x), output("gguf", 4, 16, x))


def test_gguf_counts_the_zeros_that_fill_a_row() -> None:
    need("gguf")
    weight = weight_of(quantized("gguf", 4, 16), "point")  # 16 inputs, in a block of 32
    assert weight.bytes_by_part() == {"codes": 30 * 16, "scales": 30 * 2}


def test_gguf_formats_have_their_usual_names() -> None:
    names = {(bits, grid): format_of(bits, grid) for bits in (4, 5, 8) for grid in ("symmetric", "affine")}
    assert list(names.values()) == ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q8_0"]


def test_what_the_policy_keeps_at_8_bits_has_8_bits() -> None:
    need("bitsandbytes")
    job = jobs.job("bnb-nf4", 8)
    jobs.run("bnb-nf4", job)
    assert {weight_of(job, name).mean_bits for name in jobs.NAMES} == {8.0}
    assert weight_of(job, "q").bytes_by_part() == {"codes": 40 * 64, "scales": 40 * 4}


@pytest.mark.slow
def test_quanto_at_4_and_2_bits() -> None:
    need("optimum-quanto")
    for bits, error in ((4, 0.06), (2, 0.8)):
        job = quantized("quanto", bits, 16)
        assert max(jobs.output_error(job, jobs.inputs(), jobs.Net()).values()) < error
        weight = weight_of(job, "down")  # 96 inputs: below quanto's group
        assert weight.bytes_by_part()["codes"] == 40 * 96 * bits // 8
