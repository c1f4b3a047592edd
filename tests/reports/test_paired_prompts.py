"""What is paired, is paired by the prompts themselves: in the gate, in tables, and in FID and KID."""

import dataclasses

import numpy as np
import pytest

from harness.reports.formats import render
from harness.reports.gate import render as gate_render
from harness.reports.gate import sides
from harness.reports.gate.verdict import Terms, check_sides, judge
from harness.reports.record import Metric, Result, same_prompts
from harness.reports.significance import Entrant, entrant, standings
from harness.reports.tables import build_table, parse_spec

TERMS = Terms({"psnr": "higher"}, costs=False)
PROMPTS = [f"{index:012x}" for index in range(64)]
OTHERS = [*PROMPTS[:40], *(f"f{index:011x}" for index in range(24))]


@pytest.fixture
def made(record):
    def make(method="ptq", prompts=(), **changes):
        found = record(method, per_prompt={"psnr": [20.0 + i % 7 for i in range(64)]}, **changes)
        return dataclasses.replace(found, result=dataclasses.replace(found.result, prompts=list(prompts)))

    return make


def test_prompts_are_compared_as_far_as_both_went():
    def result(prompts):
        return Result("ok", "packed", len(prompts), prompts=prompts)

    assert same_prompts(result(PROMPTS), result(PROMPTS[:16])) is True
    assert same_prompts(result(PROMPTS), result(OTHERS)) is False
    assert same_prompts(result(PROMPTS[:40]), result(OTHERS)) is True
    assert same_prompts(result(PROMPTS), result([])) is None


def test_the_gate_refuses_other_prompts_of_one_name(made):
    def side(prompts):
        one = made(prompts=prompts)
        return {sides.name_of(one): one}

    check_sides(side(PROMPTS), side(PROMPTS), side(PROMPTS))
    with pytest.raises(ValueError, match="the run was made from other prompts than the baseline"):
        check_sides(side(OTHERS), side(PROMPTS), {})
    with pytest.raises(ValueError, match="the noise floor was made from other prompts"):
        check_sides(side(PROMPTS), side(PROMPTS), side(OTHERS))


@pytest.mark.parametrize(("prompts", "told"), [(PROMPTS, False), ([], True)])
def test_the_summary_says_when_prompts_could_not_be_checked(made, prompts, told):
    new, base = made(prompts=PROMPTS), made(prompts=prompts)
    name = sides.name_of(base)
    found = judge({name: new}, {name: base}, {}, TERMS)
    assert ("paired by the prompt set's name" in gate_render.markdown(found, [], 0.05)) is told


def test_a_table_refuses_other_prompts_of_one_name(made):
    spec = parse_spec({"name": "grid", "caption": "A grid", "columns": ["method", "bits", "psnr"]})
    build_table(spec, [made("ptq", PROMPTS), made("nf4", PROMPTS), made("mpqdm")])
    with pytest.raises(ValueError, match=r"both name the prompt set 'scenes', but were made from different"):
        build_table(spec, [made("ptq", PROMPTS), made("nf4", OTHERS)])


def test_cells_of_other_prompts_are_not_told_apart():
    good, bad = [30.0 + i % 3 for i in range(64)], [20.0 + i % 5 for i in range(64)]
    for theirs, expected in ((PROMPTS, "best"), ([], "best"), (OTHERS, "none")):
        group = [Entrant(31.0, good, PROMPTS), Entrant(22.0, bad, theirs)]
        assert standings([group], "higher", "paired t")[0][0] == expected


def test_fid_is_bold_where_influences_tell_it_apart(record):
    rng = np.random.default_rng(0)
    shared = rng.normal(0.0, 3.0, 256)
    shared -= shared.mean()

    def cell(method, value, noise):
        moved = rng.normal(0.0, noise, 256)
        influence = shared + moved - moved.mean()
        return record(
            method, 2, n=256, metrics={"fid": Metric(value)}, per_prompt={"fid": (value + influence).tolist()}
        )

    columns = ["method", "bits", "fid", "recall"]
    spec = parse_spec({"name": "grid", "caption": "A grid", "columns": columns})

    def shown(*cells):
        document = build_table(spec, cells)
        place = [column.heading for column in document.sheets[0].columns].index("FID ↓")
        return [line[place] for line in document.sheets[0].entries], " ".join(document.notes)

    clear, notes = shown(cell("ptq", 5.0, 0.5), cell("mpqdm", 6.0, 0.5))
    assert [entry.strong for entry in clear] == [True, False]
    assert "a paired t-test of each prompt's influence for FID and KID" in notes
    assert "Never bold, because formed of all images at once: Recall." in notes
    close, _ = shown(cell("ptq", 5.0, 0.5), cell("mpqdm", 5.01, 0.5))
    assert [entry.mark for entry in close] == ["≈", "≈"]
    without = record("nf4", 2, n=256, metrics={"fid": Metric(9.0)})
    unknown, _ = shown(cell("ptq", 5.0, 0.5), cell("mpqdm", 6.0, 0.5), without)
    assert not any(entry.strong or entry.mark for entry in unknown)
    printed = render([cell("ptq", 5.0, 0.5), cell("mpqdm", 6.0, 0.5)], "markdown")
    assert "**5.00**" in printed
    assert "each prompt's influence" in printed


def test_an_entrant_without_the_figure_is_an_error(record):
    with pytest.raises(ValueError, match="has no fid"):
        entrant("fid", record("ptq").result)
