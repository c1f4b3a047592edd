"""The whole run on the toy world: what is done, what is reused, what a failure does."""

from __future__ import annotations

import json

import pytest

from harness.errors import UserError
from harness.run import OK, SOME_FAILED, DiskFullError


def test_every_stage_runs_and_leaves_what_the_design_says(toy):
    assert toy.run(methods=("fine", "statistics")) == OK
    assert toy.trace("calibrate") == ["calibrate toy-a"]
    assert len(toy.trace("quantize")) == 2
    assert len(toy.trace("generate")) == 3 * 3  # 40 prompts are three blocks of 16
    assert {line.split()[-1] for line in toy.trace("generate")} == {"16"}
    cell = toy.cell("fine")
    names = {path.relative_to(cell).as_posix() for path in cell.rglob("*") if path.is_file()}
    assert {"cell.json", "log.txt", "record.json", "measured.json", "checkpoint/digest.json"} <= names
    assert {f"blocks/{block:04d}/{image:02d}.png" for block in range(3) for image in range(16)} <= names
    assert not list(toy.out.rglob(".*.tmp"))
    record = json.loads((cell / "record.json").read_text())
    assert len(set(record["result"]["prompts"])) == 40
    assert record["result"] | {"metrics": 0, "per_prompt": 0, "prompts": 0} == {
        "state": "ok",
        "execution": "packed",
        "n": 40,
        "message": None,
        "effective_bits": 4.5,
        "weight_bytes": 100,
        "checkpoint_bytes": 32,
        "metrics": 0,
        "per_prompt": 0,
        "prompts": 0,
    }
    assert len(record["result"]["per_prompt"]["brightness"]) == 40
    assert record["result"]["metrics"]["gap"]["value"] > 0
    assert record["measured"]["quantize_s"] == 0.25
    assert record["measured"]["roads"] == {"to_q": "int8", "to_k": "int8", "norm.linear": "gemv"}
    assert "quantizing with fine" in (cell / "log.txt").read_text()
    reference = toy.result("reference")
    assert (reference["execution"], reference["effective_bits"], reference["weight_bytes"]) == (
        "reference",
        16.0,
        64,
    )
    assert "gap" not in reference["metrics"]


def test_the_reference_comes_first_and_measuring_comes_after_all_generating(toy):
    toy.run(models=("all",), methods=("all",), workers=2)
    lines = toy.trace()
    kinds = [line.split()[0] for line in lines]
    assert max(i for i, kind in enumerate(kinds) if kind in ("generate", "quantize")) < kinds.index("measure")
    assert max(i for i, kind in enumerate(kinds) if kind == "measure") < kinds.index("reduce")
    assert len(toy.trace("calibrate")) == 2
    assert kinds.index("quantize") > max(i for i, kind in enumerate(kinds) if kind == "calibrate")


def test_times_can_be_left_out_and_taken_later(toy):
    assert toy.run(methods=("fine",), latency=False) == OK
    assert toy.trace("measure") == []
    record = json.loads((toy.cell("fine") / "record.json").read_text())
    assert record["result"]["state"] == "ok"
    assert record["measured"]["step_ms"] is None
    toy.run(methods=("fine",), latency=False)
    assert toy.trace("reduce") == []
    toy.run(methods=("fine",))
    assert toy.trace("generate") == []
    assert len(toy.trace("measure")) == len(toy.trace("reduce")) == 2
    assert json.loads((toy.cell("fine") / "record.json").read_text())["measured"]["step_ms"] is not None


def test_a_second_run_does_nothing(toy):
    toy.run()
    before = toy.results()
    assert toy.run() == OK
    assert toy.trace() == []
    assert toy.results() == before
    assert "2 of 2 cells are stored" in toy.printed


def test_workers_and_order_do_not_change_results(toy, tmp_path):
    toy.run(models=("all",), methods=("statistics", "weighty"), bits="2,4", workers=1)
    alone = toy.results()
    toy.out = tmp_path / "other"
    toy.run(models=("toy-b", "toy-a"), methods=("weighty", "statistics"), bits="4,2", workers=4)
    assert toy.results() == alone
    assert len(alone) == 2 * (1 + 2 * 2)


def test_more_prompts_reuse_every_full_block_and_equal_a_fresh_run(toy, tmp_path):
    toy.run(prompts=20)
    assert len(toy.trace("generate")) == 2 * 2
    toy.run(prompts=40)
    assert [line.split()[3] for line in toy.trace("generate")] == ["p32", "p32"]
    assert toy.trace("quantize") == []
    assert toy.trace("measure") == []
    extended = toy.results()
    toy.out = tmp_path / "fresh"
    toy.run(prompts=40)
    assert toy.results() == extended
    assert toy.result("fine")["n"] == 40


def test_a_partial_last_block_holds_what_a_larger_run_needs(toy):
    toy.run(prompts=5)
    assert toy.result("fine")["n"] == 5
    assert len(toy.result("fine")["per_prompt"]["brightness"]) == 5
    toy.run(prompts=16)
    assert toy.trace("generate") == []
    assert toy.result("fine")["n"] == 16


def test_fewer_prompts_count_fewer_images_and_remove_none(toy):
    toy.run(prompts=40)
    full = toy.results()
    toy.run(prompts=3)
    assert toy.result("fine")["n"] == 3
    assert toy.trace("generate") == []
    toy.run(prompts=40)
    assert (toy.trace("generate"), toy.results()) == ([], full)


def test_a_set_that_ends_inside_a_block_gives_a_smaller_last_batch(toy):
    assert toy.run(datasets=("few",), prompts=18) == OK
    assert sorted({line.split()[-1] for line in toy.trace("generate")}) == ["16", "4"]
    assert toy.result("fine")["n"] == 18


def test_more_methods_models_and_bits_extend_a_run(toy):
    toy.run()
    toy.run(models=("toy-a", "toy-b"), methods=("fine", "weighty"), bits="3,4")
    assert len(toy.trace("generate")) == 3 * (3 + 5)  # of toy-a all but the stored reference and fine W4
    assert len(toy.cells()) == 2 + 2 * 4


def test_a_weight_only_method_runs_once_per_width_at_a16(toy):
    toy.run(methods=("weighty",), bits="w4a4,w4a8,w3a8")
    assert sorted(key[3:] for key in toy.cells() if key[1] == "weighty") == [(3, 16), (4, 16)]


def test_settings_make_a_variant_of_their_own(toy):
    toy.run()
    toy.run(settings=("fine.group=128",))
    assert sorted(key[2] for key in toy.cells() if key[1] == "fine") == ["default", "group=128"]
    toy.run(settings=("fine.group=64",))
    assert toy.trace() == []


def test_a_named_set_runs_every_member_once_and_keeps_what_a_member_says(toy):
    toy.run(methods=("fine:sizes",), bits="4")
    assert sorted(key[2] for key in toy.cells() if key[1] == "fine") == ["default", "group=32"]
    toy.run(methods=("fine:sizes",), bits="4", settings=("fine.group=128",))
    variants = {key[2] for key in toy.cells() if key[1] == "fine"}
    assert variants == {"group=32", "default", "group=128"}


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("fine:size", r"unknown set of fine 'size'; did you mean sizes\?"),
        ("fin:sizes", "unknown method 'fin'"),
    ],
)
def test_an_unknown_set_is_the_users_mistake(toy, method, message):
    with pytest.raises(UserError, match=message):
        toy.run(methods=(method,))


def test_changed_metrics_reduce_again_without_generating(toy, monkeypatch):
    toy.run()
    before = toy.results()
    monkeypatch.setenv("TOY_JUDGE", "another judge")
    toy.run()
    assert (toy.trace("generate"), toy.trace("measure"), len(toy.trace("reduce"))) == ([], [], 2)
    assert toy.results() == before


FAILURES = {
    "raises": ("crashed", "ValueError: the method is wrong"),
    "exits": ("crashed", "SystemExit: 3"),
    "nans": ("nan", "the quantized weights of layer are not finite"),
    "hungry": ("oom", "MemoryError: cannot allocate"),
    "killed": ("crashed", "SIGKILL"),
    "crashes": ("crashed", "SIGSEGV"),
}


def test_failing_methods_are_typed_and_the_others_go_on(toy):
    assert toy.run(methods=("fine", *FAILURES)) == SOME_FAILED
    assert toy.result("fine")["state"] == "ok"
    for method, (state, message) in FAILURES.items():
        result = toy.result(method)
        assert result["state"] == state, method
        assert message in result["message"]
        assert "\n" not in result["message"]
        assert f"toy-a {method} W4A8: {state}" in toy.printed
        tail = json.loads((toy.cell(method) / "record.json").read_text())["measured"]["log_tail"]
        assert f"quantizing with {method}" in tail
    tail = json.loads((toy.cell("raises") / "record.json").read_text())["measured"]["log_tail"]
    assert "and says so at length" in tail


@pytest.mark.parametrize("model", ["toy-a", "toy-broken"])
def test_the_steps_of_failed_cells_are_not_waited_for(toy, model):
    methods = ("raises", "statistics", "narrow", "fine")
    assert toy.run(models=(model,), methods=methods, bits="3,4") == SOME_FAILED
    assert "0 of 9 cells are stored" in toy.printed
    shares = [int(line[1:4]) for line in toy.printed.splitlines() if line.startswith("[")]
    assert shares == sorted(shares)
    assert shares[-1] == 100


def test_failed_cells_are_retried_and_finished_ones_are_not(toy):
    toy.run(methods=("fine", "raises"))
    assert toy.run(methods=("fine", "raises")) == SOME_FAILED
    assert toy.trace("quantize") == ["quantize toy-a raises 4 8"]
    assert toy.trace("generate") == []


def test_a_cell_that_takes_too_long_is_a_timeout(toy):
    assert toy.run(methods=("slow", "fine"), timeout=4.0) == SOME_FAILED
    assert toy.result("slow")["state"] == "timeout"
    assert toy.result("fine")["state"] == "ok"


def test_an_undeclared_width_is_unsupported_and_costs_nothing(toy):
    assert toy.run(methods=("narrow",), bits="2,16") == SOME_FAILED
    found = {key[3]: json.loads(text)["result"] for key, text in toy.results().items() if key[1] == "narrow"}
    assert {width: result["state"] for width, result in found.items()} == {
        2: "unsupported",
        16: "unsupported",
    }
    assert "narrow declares weight bits 4, not 2" in found[2]["message"]
    assert toy.trace("quantize") == []


def test_a_failed_calibration_fails_only_those_that_need_it(toy):
    assert toy.run(models=("toy-broken",), methods=("fine", "statistics")) == SOME_FAILED
    result = json.loads((toy.cell("statistics", "toy-broken") / "record.json").read_text())["result"]
    assert (result["state"], result["message"]) == (
        "crashed",
        "calibration failed: RuntimeError: no statistics",
    )
    assert json.loads((toy.cell("fine", "toy-broken") / "record.json").read_text())["result"]["state"] == "ok"


def test_a_full_disk_ends_the_run_with_one_line_and_loses_nothing(toy):
    toy.run(prompts=16)
    before = toy.results()
    (toy.steer / "full").touch()
    with pytest.raises(DiskFullError, match="is full; everything finished is kept") as caught:
        toy.run(prompts=40)
    assert "\n" not in str(caught.value)
    assert not list(toy.out.rglob(".*.tmp"))
    assert toy.results() == before
    (toy.steer / "full").unlink()
    assert toy.run(prompts=16) == OK
    assert toy.trace() == []
    assert toy.run(prompts=40) == OK


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "extra", "manifest"])
def test_a_damaged_block_is_redone_alone(toy, damage):
    toy.run()
    before = toy.results()
    block = toy.cell("fine") / "blocks" / "0001"
    image = block / "03.png"
    if damage == "flip":
        data = bytearray(image.read_bytes())
        data[-20] ^= 1
        image.write_bytes(data)
    elif damage == "truncate":
        image.write_bytes(image.read_bytes()[:30])
    elif damage == "remove":
        image.unlink()
    elif damage == "extra":
        (block / "99.png").write_bytes(image.read_bytes())
    else:
        (block / "digest.json").write_text('{"files": {}, "note": {}}')
    assert toy.run() == OK
    assert [line.split()[3] for line in toy.trace("generate")] == ["p16"]
    assert toy.trace("quantize") == []
    assert toy.results() == before


def test_a_damaged_checkpoint_is_redone_and_blocks_of_the_same_weights_are_kept(toy):
    toy.run()
    before = toy.results()
    (toy.cell("fine") / "checkpoint" / "model.safetensors").write_bytes(b"damaged")
    assert toy.run() == OK
    assert toy.trace("quantize") == ["quantize toy-a fine 4 8"]
    assert toy.trace("generate") == []
    assert toy.results() == before


@pytest.mark.parametrize("content", ["{", '{"schema": 1}', "[]", ""])
def test_a_damaged_record_is_formed_again(toy, content):
    toy.run()
    before = toy.results()
    (toy.cell("fine") / "record.json").write_text(content)
    assert toy.run() == OK
    assert toy.trace("generate") == []
    assert toy.results() == before


def test_an_edited_record_is_formed_again(toy):
    toy.run()
    before = toy.results()
    path = toy.cell("fine") / "record.json"
    path.write_text(path.read_text().replace('"effective_bits": 4.5', '"effective_bits": 1.5'))
    assert toy.results() != before
    toy.run()
    assert toy.results() == before


def test_a_calibration_is_recorded_once(toy):
    toy.run(methods=("statistics",), bits="4")
    toy.run(methods=("statistics",), bits="2,3,4")
    assert (len(toy.trace("quantize")), toy.trace("calibrate")) == (2, [])


def test_a_damaged_calibration_is_recorded_again_when_it_is_needed(toy):
    toy.run(methods=("statistics",))
    before = toy.results()
    (calibration,) = toy.out.glob("calibration/*.safetensors")
    calibration.write_bytes(b"damaged")
    toy.run(methods=("statistics",))
    assert toy.trace() == []  # nothing waits for it
    (toy.cell("statistics") / "checkpoint" / "model.safetensors").unlink()
    toy.run(methods=("statistics",))
    assert len(toy.trace("calibrate")) == 1
    assert toy.results() == before


def test_lost_times_are_measured_again(toy):
    toy.run()
    (toy.cell("fine") / "measured.json").unlink()
    toy.run()
    assert (toy.trace("measure"), toy.trace("generate")) == (["measure toy-a"], [])


def test_another_protocol_or_seed_is_refused(toy):
    toy.run()
    before = toy.results()
    with pytest.raises(UserError, match=r"seed 0 .* seed 7 .*another --out"):
        toy.run(seed=7)
    with pytest.raises(UserError, match=r"scenes-default .*scenes-pinned"):
        toy.run(protocol="scenes-pinned")
    assert toy.results() == before


def test_two_runs_cannot_share_a_folder(toy):
    from harness.store import RunStore

    toy.run()
    with RunStore(toy.out).lock(), pytest.raises(UserError, match="another run is writing"):
        toy.run()


def test_leftovers_of_a_killed_writer_are_swept(toy):
    toy.run()
    leftover = toy.cell("fine") / "blocks" / ".0007.123.tmp"
    leftover.mkdir()
    (leftover / "00.png").write_bytes(b"half")
    toy.run()
    assert not leftover.exists()


def test_references_alone_can_be_run(toy):
    assert toy.run(methods=("reference",)) == OK
    assert [key[1] for key in toy.cells()] == ["reference"]


def test_the_first_lines_say_what_will_run(toy):
    toy.run(methods=("fine", "weighty"), bits="2,3")
    first, second = toy.printed.splitlines()[:2]
    assert first == "5 cells: models toy-a; methods fine, weighty; bits W2A8, W3A8; 40 prompts"
    assert "scenes-default" in second
    assert str(toy.out) in second
