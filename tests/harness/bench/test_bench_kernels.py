import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.bench import kernels, peers, report
from harness.bench.keeping import KeptResult
from harness.bench.kernels import OURS, Row, Settings, bench_layer, headline
from harness.bench.layers import input_quantizer, packed_linear, random_input, random_linear, road_of
from harness.bench.peers import Peer, float64_linear
from harness.bench.shapes import (
    FLUX,
    FLUX_ROWS,
    MODULATION,
    NumberFormat,
    Shape,
    parse_formats,
    parse_shapes,
)
from harness.cli import call
from harness.conformance.definition import layer_float64, relative_error
from harness.errors import UserError
from harness.kernels import coded, expansion
from harness.kernels.weights import UniformWeight
from harness.measure.floor import Ceilings

SMALL = Shape("small", 64, 48)
CEILINGS = Ceilings(1e10, 1e11)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def settings(**changes: Any) -> Settings:
    start = Settings(torch.device("cpu"), ("eager",), 3, "float", (), rotated=0)
    return replace(start, **changes)


def test_rows_hold_times_floors_and_both_errors() -> None:
    found = bench_layer(SMALL, 80, parse_formats("w4a4,w4a8"), settings(), CEILINGS)
    assert [(row.contestant, row.format) for row in found] == [
        ("bf16", "w16a16"),
        (OURS, "w4a4"),
        (OURS, "w4a8"),
    ]
    base, a4, _ = found
    assert base.ratio == 1.0
    assert base.error is not None
    assert 1e-4 < base.error < 4e-3
    for row in found[1:]:
        assert row.state == "ok"
        assert row.ms_lo <= row.ms <= row.ms_hi
        assert row.of_floor == pytest.approx(row.ms / row.floor_ms)
        assert row.ratio == pytest.approx(base.ms / row.ms)
        assert row.kernel_error < 4e-3 < row.error
        assert row.road == "reference"
    # codes, one scale a group and row, branch, smoothing, bias; input and output in 16 bits
    stored = 48 * 64 // 2 + 48 * 2 + 2 * 32 * (64 + 48) + 2 * 64 + 2 * 48
    assert a4.bytes == 2 * 80 * 64 + stored + 2 * 80 * 48
    assert a4.operations == 2 * 80 * 64 * 48 + 2 * 80 * 32 * (64 + 48)


def test_copies_are_many_enough_to_leave_the_cache() -> None:
    found = bench_layer(SMALL, 1, parse_formats("w4a16"), settings(rotated=20_000), CEILINGS)
    base, ours = found
    assert base.copies == math.ceil(20_000 / (2 * 48 * 64 + 2 * 48 + 2 * 64))
    assert ours.copies > base.copies


def test_a_peer_that_is_missing_or_fails_is_a_row_with_a_reason() -> None:
    def missing(_w: Any, _b: Any) -> Any:
        raise ModuleNotFoundError("No module named 'fast.gemm'", name="fast.gemm")

    def breaks(_w: Any, _b: Any) -> Any:
        def run(_x: Any) -> Any:
            raise RuntimeError("rows must\nexceed 16")

        return run

    two = (Peer("absent", missing, (4, 16), "fast"), Peer("picky", breaks, (8, 8)))
    found = bench_layer(SMALL, 2, (), settings(peers=two), CEILINGS)
    assert [(row.contestant, row.state, row.reason) for row in found[1:]] == [
        ("absent", "n/a", "fast is not installed"),
        ("picky", "n/a", "RuntimeError: rows must exceed 16"),
    ]
    assert found[0].state == "ok"
    assert "n/a: fast is not installed" in report.markdown(found)


@pytest.mark.parametrize(
    ("build", "most"), [(peers.scaled_mm, 0.05), (peers.scaled_mm_bare, 0.05), (peers.int_mm, 0.02)]
)
def test_peers_made_of_torch_compute_the_layer(build: Any, most: float) -> None:
    weight, bias = random_linear(SMALL, "cpu")
    x = random_input(32, SMALL.k, "cpu")
    found = build(weight, bias)(x)
    assert found.dtype == torch.bfloat16
    assert relative_error(found, float64_linear(x, weight, bias)) < most


@pytest.mark.parametrize(("numbers", "most"), [((4, 4), 0.16), ((8, 8), 0.02), ((4, 16), 0.12)])
def test_a_packed_layer_is_near_the_layer_it_stands_for(numbers: tuple[int, int], most: float) -> None:
    shape = Shape("s", 256, 128)
    weight, bias = random_linear(shape, "cpu")
    x = random_input(64, shape.k, "cpu")
    layer = packed_linear(weight, bias, NumberFormat(*numbers))
    # Were the inputs not divided by what the weight was multiplied with, the error would be above 0.3.
    assert relative_error(layer(x), float64_linear(x, weight, bias)) < most
    assert (layer.branch is not None) is (numbers[1] <= 4)
    assert layer.branch is None or layer.branch.rank == 32
    assert (layer.act is None) is (numbers[1] == 16)


@pytest.mark.parametrize("scales", ["integer", "e8m0"])
def test_scale_formats_reach_weights_and_inputs(scales: Any) -> None:
    layer = packed_linear(*random_linear(SMALL, "cpu"), NumberFormat(4, 4), scales)
    assert isinstance(layer.weight, UniformWeight)
    assert layer.act is not None
    assert (layer.weight.scale_format, layer.act.scale_format) == (scales, scales)


def test_the_road_is_the_one_taken_else_the_one_to_be_taken() -> None:
    class Layer:
        road_taken = ""

        def road(self, x: torch.Tensor) -> str:
            return f"rows{x.shape[0]}"

    layer, x = Layer(), random_input(2, 4, "cpu")
    assert road_of(torch.nn.Identity(), x) == "reference"
    assert road_of(layer, x) == "rows2"
    layer.road_taken = "gemv"
    assert road_of(layer, x) == "gemv"


def test_the_float64_layer_is_exact_where_the_layer_is_trivial() -> None:
    weight, bias = random_linear(SMALL, "cpu")
    layer = packed_linear(weight, bias, NumberFormat(4, 16))
    x = random_input(3, SMALL.k, "cpu")
    by_hand = x.double() @ layer.weight.dequantize().double().T + layer.bias.double()
    assert torch.equal(layer_float64(layer, x), by_hand)
    assert input_quantizer(NumberFormat(4, 16)) is None


def row(shape: Shape, rows: int, fmt: str, launch: str, ratio: float, contestant: str = OURS) -> Row:
    return Row(shape.name, rows, shape.k, shape.n, contestant, fmt, launch, ms=1.0, ratio=ratio)


def test_headline_figures_need_every_layer_and_the_published_sizes() -> None:
    ratios = [1.1, 1.2, 1.3, 1.4, 1.5]
    flux = [row(s, FLUX_ROWS, "w4a4", "graph", r) for s, r in zip(FLUX, ratios, strict=True)]
    few = [row(MODULATION[0], 1, "w4a16", "graph", 3.5), row(MODULATION[0], 16, "w2a16", "graph", 3.25)]
    noise = [
        row(FLUX[0], FLUX_ROWS, "w4a8", "graph", 9.0),
        row(FLUX[0], FLUX_ROWS, "w8a8", "graph", 9.0, "torchao fp8 rowwise"),
        row(MODULATION[0], 1, "w4a16", "eager", 9.0),
        row(SMALL, 1, "w3a16", "graph", 9.0),
    ]
    found = headline([*flux, *few, *noise])
    assert found == {
        "w4a4_linear_geomean": pytest.approx(math.prod(ratios) ** 0.2),
        "w4a4_linear_min": 1.1,
        "gemv_w4_m1": 3.5,
        "gemv_w2_m16": 3.25,
    }
    assert "w4a4_linear_geomean" not in headline(flux[1:])
    assert "w4a4_linear_geomean" not in headline([replace(one, rows=64) for one in flux])


def test_a_file_keeps_what_others_wrote(tmp_path: Path) -> None:
    path = tmp_path / "new" / "h200.json"
    report.merge(path, "model", {"steps": 1}, {"flux_step_ms": 95.0, "commit": "a"})
    report.merge(path, "kernels", {"rows": []}, {"gemv_w4_m1": 3.5, "commit": "b"})
    report.merge(path, "kernels", {"rows": [1]}, {"gemv_w4_m1": float("nan")})
    held = json.loads(path.read_text())
    assert held == {
        "flux_step_ms": 95.0,
        "commit": "b",
        "gemv_w4_m1": None,
        "model": {"steps": 1},
        "kernels": {"rows": [1]},
    }


def test_half_a_surrogate_pair_stays_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text('{"other": "\\ud800 \\\\ → 😀", "\\udc80": 1}')
    others = json.loads(path.read_text())
    report.merge(path, "kernels", {"reason": "\udcff"}, {})
    assert report.read(path) == {**others, "kernels": {"reason": "\udcff"}}


@pytest.mark.parametrize("text", ["[1]", "{", ""])
def test_a_file_that_is_no_result_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"other\.json"):
        report.merge(path, "kernels", {}, {})
    assert path.read_text() == text


def test_rows_come_back_from_the_file_as_they_were(tmp_path: Path) -> None:
    rows = [
        row(FLUX[0], 4, "w4a4", "graph", 1.25),
        replace(row(SMALL, 1, "w2a16", "eager", 0.5), state="n/a"),
    ]
    report.merge(tmp_path / "r.json", report.SECTION, {"rows": report.rows_json(rows)}, {})
    assert report.rows_of(report.read(tmp_path / "r.json")) == rows
    with pytest.raises(UserError, match="row 0 has an unknown field 'speed'"):
        report.rows_of({"kernels": {"rows": [{"speed": 1}]}})


def test_tables_go_between_the_markers_of_a_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result, doc = tmp_path / "r.json", tmp_path / "doc.md"
    rows = [row(FLUX[0], FLUX_ROWS, "w4a4", "graph", 1.25), row(MODULATION[0], 1, "w2a16", "graph", 4.5)]
    report.merge(result, report.SECTION, {"rows": report.rows_json(rows)}, {"gemv_w2_m1": 4.5})
    marked = "<!-- table bench {0} -->\n<!-- end of table bench {0} -->\n"
    doc.write_text("# Speed\n\n" + marked.format("gemv") + "\nbetween\n\n" + marked.format("figures"))
    assert call(["bench", "table", str(result), "-o", str(doc)]) == 0
    text = doc.read_text()
    assert text.startswith("# Speed\n")
    assert "modulation 3072 → 18432" in text
    assert "qkv" not in text
    assert "| gemv_w2_m1 | 4.5   |" in text
    assert call(["bench", "table", str(result), "--check", str(doc)]) == 0
    doc.write_text(text.replace("4.50", "5.50"))
    capsys.readouterr()
    assert call(["bench", "table", str(result), "--check", str(doc)]) == 1
    assert "5.50" in capsys.readouterr().out
    assert call(["bench", "table", str(result), "--table", "linear"]) == 0
    assert "qkv 3072 → 9216" in capsys.readouterr().out
    assert call(["bench", "table", str(result), "--table", "liner"]) == 2
    other = tmp_path / "other.md"
    other.write_text("nothing\n")
    assert call(["bench", "table", str(result), "-o", str(other)]) == 2
    assert other.read_text() == "nothing\n"


def test_names_of_shapes_and_formats() -> None:
    assert parse_shapes("flux,8x16") == (*FLUX, Shape("8x16", 8, 16))
    assert parse_formats("W4A4, w2a16") == (NumberFormat(4, 4), NumberFormat(2, 16))
    for parse, text in ((parse_shapes, "fluxx"), (parse_shapes, "0x4"), (parse_formats, "w9a4")):
        with pytest.raises(UserError, match="unknown"):
            parse(text)
    for parse in (parse_shapes, parse_formats):
        with pytest.raises(UserError, match="names no"):
            parse(" ,")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_without_a_gpu_it_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["bench", "kernels"]) == 2
    err = capsys.readouterr().err
    assert "needs a CUDA device" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--formats", "w4a1"], "--formats w4a1, --scales auto: activations cannot be quantized to 1 bits"),
        (["--formats", "w8a4", "--scales", "e8m0"], "--formats w8a4, --scales e8m0: "),
        (["--formats", "w4a4,w6a4", "--scales", "e8m0"], "--formats w6a4, --scales e8m0: "),
        (["--launch", ""], "--launch '' names none of eager"),
        (["--peers", ","], "--peers ',' names no library"),
    ],
)
def test_what_cannot_be_timed_is_one_line(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "bench_layer", lambda *_: pytest.fail("timed"))
    assert call(["bench", "kernels", *SMALL_RUN, *options]) == 2
    complaint = capsys.readouterr().err
    assert said in complaint
    assert complaint.count("\n") == 1


def test_every_default_format_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[str] = []

    def note(shape: Shape, rows: int, formats: list[NumberFormat], *_: Any) -> list[Row]:
        timed.extend(one.name for one in formats)
        return []

    monkeypatch.setattr(kernels, "bench_layer", note)
    small = ["--device", "cpu", "--shapes", "64x48", "--few-shapes", "64x48", "--few-rows", "1"]
    assert call(["bench", "kernels", *small, "--rows", "8"]) == 0
    assert timed == ["w4a4", "w4a8", "w3a8", "w2a8", "w4a16", "w3a16", "w2a16"]


def test_large_layers_are_refused_on_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["bench", "kernels", "--device", "cpu"]) == 2
    assert "too large for --device cpu" in capsys.readouterr().err
    assert call(["bench", "kernels", "--device", "cpu", "--scales", "integers"]) == 2
    assert "did you mean integer" in capsys.readouterr().err


def test_the_command_prints_tables_and_writes_json_and_plot(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    json_file, plot = tmp_path / "r.json", tmp_path / "r.png"
    sizes = ["--shapes", "64x48", "--rows", "80", "--few-shapes", "64x48", "--few-rows", "2"]
    files = ["--json", str(json_file), "--plot", str(plot), "--commit", "abc"]
    how = ["--device", "cpu", "--reps", "2", "--peers", "none", "--rotate-mb", "0"]
    assert call(["bench", "kernels", *sizes, *files, *how, "--formats", "w4a4,w4a16"]) == 0
    out = capsys.readouterr().out
    assert "## linear-eager" in out
    assert "## gemv-eager" in out
    held = report.read(json_file)
    assert held["commit"] == held["kernels"]["commit"] == "abc"
    assert {"driver", "gpu", "versions"} <= set(held)
    assert "gemv_w4_m2" not in held
    formats = {(found.rows, found.format) for found in report.rows_of(held)}
    assert formats == {(80, "w16a16"), (80, "w4a4"), (2, "w16a16"), (2, "w4a16")}
    assert plot.read_bytes().startswith(b"\x89PNG")


SMALL_RUN = [
    *("--shapes", "64x48,48x64", "--rows", "80", "--few-shapes", "none", "--formats", "w4a4,w4a8"),
    *("--device", "cpu", "--reps", "2", "--peers", "none", "--rotate-mb", "0", "--commit", "abc"),
]


def test_layers_that_were_timed_stay_in_the_file_when_a_later_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = kernels.bench_layer

    def breaks_later(shape: Shape, *rest: Any) -> list[Row]:
        if shape.k == 48:
            raise RuntimeError("no device")
        return timed(shape, *rest)

    path = tmp_path / "r.json"
    path.write_text('{"flux_step_ms": 1.5}')
    monkeypatch.setattr(kernels, "bench_layer", breaks_later)
    with pytest.raises(RuntimeError, match="no device"):
        call(["bench", "kernels", *SMALL_RUN, "--json", str(path)])
    held = report.read(path)
    assert held["flux_step_ms"] == 1.5
    assert set(held) == {"flux_step_ms", "kernels unfinished"}
    assert held["kernels unfinished"]["commit"] == "abc"
    assert held["kernels unfinished"]["stages"] == {
        "64x48 64 → 48, 80 rows": "done",
        "48x64 48 → 64, 80 rows": "failed: RuntimeError: no device",
    }
    assert {found.layer for found in report.rows_of(held)} == {"64x48"}
    before = path.read_text()
    monkeypatch.setattr(kernels, "bench_layer", lambda *_: breaks_later(Shape("s", 48, 1)))
    with pytest.raises(RuntimeError, match="no device"):
        call(["bench", "kernels", *SMALL_RUN, "--json", str(path)])
    assert path.read_text() == before  # nothing was measured: nothing is replaced


def test_figures_stamp_and_rows_are_of_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed, layers = kernels.bench_layer, iter((64, 48, 64))

    def until_the_third(shape: Shape, *rest: Any) -> list[Row]:
        if next(layers, None) is None:
            raise RuntimeError("gone")
        assert {key: report.read(path)[key] for key in earlier} == earlier
        return timed(shape, *rest)

    earlier = {
        **{"commit": "old", "gpu": {"name": "H"}, "driver": "1", "versions": {"torch": "1"}},
        **{"w4a4_linear_eager_min": 0.9, "w4a4_linear_geomean": 1.5, "gemv_w4_m1": 3.5, "flux_step_ms": 95.0},
        "kernels": {"rows": report.rows_json([row(SMALL, 1, "w4a16", "graph", 3.5)]), "commit": "old"},
    }
    path = tmp_path / "r.json"
    path.write_text(json.dumps(earlier))
    monkeypatch.setattr(kernels, "bench_layer", until_the_third)
    four = ["bench", "kernels", *SMALL_RUN, "--shapes", "64x48,48x64,64x64,32x32", "--json", str(path)]
    with pytest.raises(RuntimeError, match="gone"):
        call(four)
    held = report.read(path)
    assert held == {**earlier, "kernels unfinished": held["kernels unfinished"]}
    assert {found["layer"] for found in held["kernels unfinished"]["rows"]} == {"64x48", "48x64", "64x64"}
    assert [found.layer for found in report.rows_of(held)] == ["small"]
    monkeypatch.setattr(kernels, "bench_layer", timed)
    assert call(["bench", "kernels", *SMALL_RUN, "--json", str(path)]) == 0
    held = report.read(path)
    assert set(held) == {"commit", "gpu", "driver", "versions", "flux_step_ms", "kernels"}
    assert held["commit"] == held["kernels"]["commit"] == "abc"
    assert {found.layer for found in report.rows_of(held)} == {"64x48", "48x64"}


def test_every_headline_figure_is_known_as_one() -> None:
    eager = [row(s, FLUX_ROWS, "w4a4", launch, 1.5) for s in FLUX for launch in kernels.LAUNCHES]
    figures = headline([*eager, row(MODULATION[0], 16, "w2a16", "graph", 3.25)])
    assert len(figures) == 7
    assert all(kernels.is_headline(name) for name in figures)
    assert not any(kernels.is_headline(name) for name in ("commit", "flux_step_ms", "kernels"))


def test_a_file_that_is_no_result_is_refused_before_layers_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "bench_layer", lambda *_: pytest.fail("timed"))
    (tmp_path / "r.json").write_text("[]")
    assert call(["bench", "kernels", *SMALL_RUN, "--json", str(tmp_path / "r.json")]) == 2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("file.json/r.json", "Not a directory"),
        ("file.json/new/r.json", "Not a directory"),
        ("folder", "it is no plain file"),
        ("fifo", "it is no plain file"),
        ("n" * 300 + ".json", "File name too long"),
        ("n" * 250, "File name too long"),  # while it is written it has a longer name
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_layers_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    monkeypatch.setattr(kernels, "bench_layer", lambda *_: pytest.fail("timed"))
    (tmp_path / "file.json").write_text("{}")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    there = sorted(tmp_path.iterdir())
    assert call(["bench", "kernels", *SMALL_RUN, "--json", str(tmp_path / name)]) == 2
    assert capsys.readouterr().err.endswith(f"cannot write {tmp_path / name}: {said}\n")
    assert sorted(tmp_path.iterdir()) == there


def test_a_file_is_tried_and_left_as_it_is(tmp_path: Path) -> None:
    earlier, later = tmp_path / "r.json", tmp_path / "new" / "r.json"
    earlier.write_text('{"other": 1}')
    for path in (earlier, later):
        KeptResult(path, lambda _: None).settle()
    assert earlier.read_text() == '{"other": 1}'
    assert sorted(tmp_path.iterdir()) == [tmp_path / "new", earlier]
    assert list(later.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("capability", "bits", "scales"),
    [
        ((8, 0), (4, 4), "integer"),
        ((8, 9), (4, 4), "e8m0"),
        ((9, 0), (2, 4), "e8m0"),
        ((9, 0), (4, 8), "integer"),
        ((9, 0), (8, 4), "integer"),
    ],
)
def test_scales_are_those_whose_kernels_a_card_has(
    capability: tuple[int, int], bits: tuple[int, int], scales: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert kernels.fastest_scales(NumberFormat(*bits), torch.device("cuda", 0)) == scales
    # Whichever is chosen, the layer runs on a product of codes: none of these formats is expanded to bf16.
    layer = packed_linear(*random_linear(Shape("s", 128, 64), "cpu"), NumberFormat(*bits), scales)
    assert expansion.units_weight(layer.weight, coded.code_type(layer.act)) is not None


def test_the_scales_of_a_row_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def named(*options: str) -> set[tuple[str, str]]:
        path = tmp_path / "r.json"
        assert call(["bench", "kernels", *SMALL_RUN, "--shapes", "64x48", *options, "--json", str(path)]) == 0
        held = report.read(path)
        assert held["kernels"]["settings"]["scales"] == (options[1] if options else "auto")
        return {(row.format, row.scales) for row in report.rows_of(held)}

    assert named() == {("w16a16", ""), ("w4a4", "integer"), ("w4a8", "integer")}
    assert "w4a4 integer" in capsys.readouterr().out
    assert named("--scales", "e8m0") == {("w16a16", ""), ("w4a4", "e8m0"), ("w4a8", "e8m0")}
    assert "w4a4 e8m0" in capsys.readouterr().out
