"""Verdicts on made-up records: what each difference is called, and what the reports say of it."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import numpy as np
import pytest

from harness.measure.latency import median_ratio
from harness.reports.gate import costs, render, sides, verdict
from harness.reports.gate.quality import compare_metric, noise_margin, paired_differences
from harness.reports.gate.verdict import Terms, exit_code, judge

TERMS = Terms({"psnr": "higher", "prompt_accuracy": "higher"}, costs=False)
BASE = np.random.default_rng(0).normal(30.0, 6.0, 256)


@pytest.fixture
def cell(record):
    def make(psnr=BASE, **changes):
        return record(
            "svdquant", per_prompt={"psnr": [None if v is None else float(v) for v in psnr]}, **changes
        )

    return make


def judged(new, base, noise=None, terms=TERMS):
    def side(one):
        return {} if one is None else {sides.name_of(one): one}

    return judge(side(new), side(base), side(noise), terms)[0]


def shifted(by, sd, seed=1):
    return BASE + by + np.random.default_rng(seed).normal(0.0, sd, 256)


@pytest.mark.parametrize(("by", "sd", "expected", "n"), [
    (-1.0, 0.3, "fail", 16), (1.0, 0.3, "suspicious", 16), (0.0, 0.02, "pass", 16), (0.0, 0.2, "pass", 64),
    (-0.35, 0.5, "fail", 64), (0.0, 3.0, "undecided", 256), (0.0, 0.0, "pass", 16), (-0.2, 0.0, "fail", 16),
])  # fmt: skip
def test_a_change_is_called_what_it_is_at_the_look_that_can_tell(cell, by, sd, expected, n):
    found = judged(cell(shifted(by, sd)), cell())
    assert found.verdict == expected
    assert found.comparisons[0].n == n
    assert exit_code([found]) == {"fail": 1, "pass": 0, "suspicious": 3, "undecided": 3}[expected]


def test_lower_is_better_turns_the_sign(record):
    good = record("ptq", per_prompt={"lpips_scene": [0.1] * 20})
    bad = record("ptq", per_prompt={"lpips_scene": [0.4] * 20})
    terms = Terms({"lpips_scene": "lower"}, costs=False)
    assert judged(bad, good, terms=terms).verdict == "fail"
    assert judged(good, bad, terms=terms).verdict == "suspicious"


def test_more_prompts_are_wanted_until_there_are_none_to_come(cell):
    wide = shifted(0.0, 3.0)
    wanted = [judged(cell(wide[:n]), cell()).wanted for n in (0, 10, 16, 40, 64, 256)]
    assert wanted == [16, 16, 64, 64, 256, None]
    assert judged(None, cell()).wanted == 16
    assert judged(cell(wide[:64]), cell(BASE[:64])).wanted is None


def test_a_decision_is_not_undone_by_later_prompts():
    early = np.r_[np.full(16, -1.0) + np.linspace(-0.1, 0.1, 16), np.full(240, 1.0)]
    assert compare_metric("psnr", early, 0.1, 0.05, 256).verdict == "fail"


def test_the_error_is_shared_among_all_comparisons(cell, record):
    # One comparison of a mean on the brink is called at 5 % over all looks, but not at 5 % / 40.
    new, base = cell(shifted(-0.22, 0.35, seed=3)[:16]), cell()
    alone = judged(new, base)
    names = {sides.name_of(base): base}
    for bits in range(100, 139):
        other = record("svdquant", wbits=bits, per_prompt={"psnr": [1.0, 2.0]})
        names[sides.name_of(other)] = other
    among = judge({sides.name_of(new): new}, names, {}, TERMS)[0]
    assert among.comparisons[0].hi > alone.comparisons[0].hi
    assert among.comparisons[0].n == alone.comparisons[0].n == 16


def test_margins_come_from_the_noise_floor_and_never_vanish(cell):
    noise = cell(shifted(0.0, 0.5, seed=4))
    floor = np.asarray(noise.result.per_prompt["psnr"]) - BASE
    found = judged(cell(shifted(-0.3, 0.1)), cell(), noise)
    assert found.comparisons[0].margin == pytest.approx(np.sqrt(np.mean(floor**2)))
    assert found.verdict == "pass"
    assert judged(cell(shifted(-0.3, 0.1)), cell()).verdict == "fail"
    assert noise_margin("psnr", np.zeros(9)) == noise_margin("psnr", None) == 0.1
    stated = Terms(TERMS.better, {"psnr": 0.01}, costs=False)
    assert judged(cell(shifted(-0.05, 0.01)), cell(), noise, stated).verdict == "fail"


def test_images_equal_to_the_reference_count_as_very_good_not_as_missing():
    assert paired_differences("psnr", "higher", [None, None, 40.0], [None, 40.0, None]).tolist() == [
        0,
        60,
        -60,
    ]
    assert paired_differences("ssim", "higher", [None, 0.5], [0.1, 0.25]).tolist() == [0.25]


def test_states_are_compared_too(cell):
    crashed = cell(state="crashed", message="it broke", n=0)
    found = judged(crashed, cell())
    assert (found.verdict, found.reason) == ("fail", "crashed: it broke")
    assert judged(cell(), crashed).verdict == "pass"
    assert judged(None, cell()).reason == "not in the run"
    without = judged(cell(), cell([None] * 0))
    assert (without.verdict, without.reason) == ("undecided", "the baseline has none of the metrics")


def test_memory_may_grow_by_one_percent_and_no_more(cell):
    terms = Terms(TERMS.better)
    base = cell(weight_bytes=1_000_000, checkpoint_bytes=1_000_000, peak_bytes=1_000_000)
    for grown in ("weight_bytes", "checkpoint_bytes", "peak_bytes"):
        same = {"weight_bytes": 1_000_000, "checkpoint_bytes": 1_000_000, "peak_bytes": 1_000_000}
        assert judged(cell(**{**same, grown: 1_010_000}), base, terms=terms).verdict == "pass"
        assert judged(cell(**{**same, grown: 1_010_001}), base, terms=terms).verdict == "fail"
    elsewhere = cell(weight_bytes=1_000_000, checkpoint_bytes=1_000_000, peak_bytes=9_000_000, device="cuda")
    assert judged(elsewhere, base, terms=terms).verdict == "pass"


def test_latency_fails_only_where_both_intervals_allow_it(cell):
    terms = Terms(TERMS.better)

    def timed(ratio, half):
        return cell(step_ratio=ratio, step_ratio_lo=ratio - half, step_ratio_hi=ratio + half)

    base = timed(2.0, 0.05)
    assert judged(timed(2.25, 0.05), base, terms=terms).verdict == "pass"
    assert judged(timed(2.4, 0.05), base, terms=terms).verdict == "fail"
    assert judged(timed(2.4, 0.2), base, terms=terms).verdict == "pass"
    assert costs.compare_latency(cell(), base) is None


def test_median_ratio_is_the_sign_tests_interval():
    found = median_ratio([float(k) for k in range(20)])
    assert found == type(found)(9.5, 5.0, 14.0)  # 6th and 15th of 20: 95.9 %
    assert median_ratio([1.0, 2.0, 3.0]) == type(found)(2.0, 1.0, 3.0)
    draws = np.random.default_rng(5).lognormal(0.0, 0.4, (2000, 20))
    inside = [(r := median_ratio(row.tolist())).lo <= 1.0 <= r.hi for row in draws]
    assert 0.945 <= np.mean(inside) <= 0.975


def benchmarks(path, times):
    entries = [
        {"fullname": name, "stats": {"median": t, "q1": t * 0.98, "q3": t * 1.02}}
        for name, t in times.items()
    ]
    path.write_text(json.dumps({"benchmarks": entries}))
    return costs.read_benchmarks(path)


def test_benchmarks_are_told_from_the_speed_of_the_machine(tmp_path):
    base = benchmarks(tmp_path / "a.json", {f"t{k}": 1e-3 * (k + 1) for k in range(7)})
    new = benchmarks(
        tmp_path / "b.json", {f"t{k}": 2e-3 * (k + 1) * (1.5 if k == 3 else 1) for k in range(7)}
    )
    found = costs.compare_benchmarks(new, base)
    assert [cost.name for cost in found if cost.fails] == ["t3"]
    assert exit_code([], found) == 1
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no results"):
        costs.read_benchmarks(tmp_path / "c.json")


def test_sides_are_read_from_folders_lists_and_lines(cell, record, save, tmp_path):
    records = [cell(log_tail="secret path"), record("reference", 16)]
    save(tmp_path / "run", records)
    from_run = sides.read_side(tmp_path / "run")
    sides.write_side(tmp_path / "base.jsonl", from_run)
    assert "secret" not in (tmp_path / "base.jsonl").read_text()
    (tmp_path / "base.json").write_text(json.dumps([r.to_json() for r in from_run]))
    for file in ("base.jsonl", "base.json"):
        found = sides.read_side(tmp_path / file)
        assert [r.result for r in found] == [r.result for r in from_run]
    for text in ("{}", "[1]", "nonsense", '["' + "x"):
        (tmp_path / "bad").write_text(text)
        with pytest.raises(ValueError, match="bad holds no records"):
            sides.read_side(tmp_path / "bad")
    with pytest.raises(ValueError, match="cannot read"):
        sides.read_side(tmp_path / "none")


def test_twins_are_refused_unless_told_apart(cell):
    old, new = cell(cell="a" * 16), cell(cell="b" * 16)
    with pytest.raises(ValueError, match="two cells called tiny-unet svdquant W4A8 on scenes"):
        sides.by_name([old, new], "the run")
    for order in ([old, new], [new, old]):
        assert sides.by_name(order, "the run", ["b" * 16])[sides.name_of(new)] is new


def test_figures_of_different_protocols_are_not_compared(cell):
    new, base = cell(protocol_hash="aaa"), cell(protocol_hash="bbb")
    with pytest.raises(ValueError, match="different protocols are not compared"):
        verdict.check_sides({sides.name_of(new): new}, {sides.name_of(base): base}, {})


def test_reports_name_the_worst_first_and_show_markup_as_text(cell):
    base, evil = cell(), "a|b<script>`x` & <i>\x00"
    found = judge(
        {n: r for r in (cell(shifted(-1, 0.3)), cell(model=evil)) if (n := sides.name_of(r))},
        {n: r for r in (cell(model=evil), base, cell(model="gone")) if (n := sides.name_of(r))},
        {}, TERMS,
    )  # fmt: skip
    grown = costs.compare_benchmarks(
        {"t": {"median": 2, "q1": 2, "q3": 2}}, {"t": {"median": 1, "q1": 1, "q3": 1}}
    )
    text = render.markdown(found, grown, 0.05)
    assert text.startswith("### Gate fails\n\nCells: 1 fail, 1 undecided, 1 pass.")
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert ["**fail**" in rows[0], "**undecided**" in rows[1], "**pass**" in rows[2]] == [True] * 3
    assert "<script>" not in text.replace("\\<", "")
    assert "benchmark: t: grew too much, 1 to 2 (growth +100.0 %, bound 10 %)" in text
    suite = ElementTree.fromstring(render.junit(found, grown)).find("testsuite")
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("4", "2", "1")
    assert [case.get("name")[:3] for case in suite] == ["a|b", "tin", "gon", "t"]
    assert suite.findall("testcase/failure")[0].get("message").startswith("psnr: fail at N = 16, change -")
