import json
import math

import pytest

from harness.reports.record import Metric, Record, read_records


def test_record_survives_the_way_through_json(record):
    before = record("svdquant", 3, config={"rank": 4, "deep": [1, {"x": None}]}, message="ünï")
    after = Record.from_json(json.loads(json.dumps(before.to_json(), allow_nan=False)))
    assert after == before
    assert isinstance(after.result.metrics["psnr"], Metric)


def test_to_json_has_no_infinities(record):
    data = record(
        metrics={"psnr": Metric(math.inf, math.nan)}, per_prompt={"psnr": [1.0, -math.inf]}
    ).to_json()
    assert data["result"]["metrics"]["psnr"]["value"] is None
    assert data["result"]["metrics"]["psnr"]["lo"] is None
    assert data["result"]["per_prompt"] == {"psnr": [1.0, None]}


HOSTILE = {
    "schema of the future": (("schema",), 2, "schema version 2 is not 1"),
    "no schema number": (("schema",), None, "schema version None"),
    "unknown state": (("result", "state"), "fine", r"result\.state must be one of ok, oom"),
    "state of another type": (("result", "state"), ["ok"], r"result\.state must be one of"),
    "text for a number": (("result", "effective_bits"), "4.5", "effective_bits must be a finite number"),
    "truth for an integer": (("result", "n"), True, r"result\.n must be an integer"),
    "fraction for an integer": (("identity", "wbits"), 3.5, "wbits must be an integer"),
    "infinite figure": (("result", "metrics", "psnr", "value"), math.inf, "must be a finite number"),
    "beyond 64 bits": (("result", "weight_bytes"), 2**63, "beyond 64 bits"),
    "negative size": (("measured", "peak_bytes"), -1, "negative size: -1"),
    "list for an object": (("result", "metrics"), [], "metrics must be an object"),
    "object for a list": (("result", "per_prompt"), {"psnr": {}}, "must be a list"),
    "unknown field": (("identity", "colour"), "red", "unknown field 'colour'"),
    "null for text": (("identity", "model"), None, "model must be a string"),
    "number for a flag": (("identity", "reconstruction"), 1, "true or false"),
}


@pytest.mark.parametrize("case", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_fields_are_named_in_one_line(record, case):
    path, value, message = case
    data = record().to_json()
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=message) as error:
        Record.from_json(data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("data", [None, [], "record", 1, {}, {"schema": 1}])
def test_what_is_no_record_is_refused(data):
    with pytest.raises(ValueError, match="record"):
        Record.from_json(data) if data != {} else Record.from_json({"schema": 1, "result": {}})


def test_missing_field_is_named(record):
    data = record().to_json()
    del data["identity"]["seed"]
    with pytest.raises(ValueError, match=r"record\.identity lacks the field 'seed'"):
        Record.from_json(data)


def test_read_records_finds_finished_cells_only(tmp_path, grid, save):
    save(tmp_path, grid)
    (tmp_path / "cells" / "unfinished" / "blocks").mkdir(parents=True)
    found = read_records(tmp_path)
    assert len(found) == 32
    assert [item.identity.cell for item in found] == sorted(item.identity.cell for item in grid)


BROKEN = {
    "cut off": b'{"schema": 1, "ident',
    "empty": b"",
    "binary": b"\x80\x81\x82",
    "nan": b'{"schema": NaN}',
    "deep": b"[" * 100_000,
    "long number": b'{"schema": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_damaged_record_stops_reading_and_is_named(tmp_path, record, save, content):
    save(tmp_path, [record("ptq"), record("nf4")])
    path = tmp_path / "cells" / record("nf4").identity.cell / "record.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=str(path)) as error:
        read_records(tmp_path)
    assert "\n" not in str(error.value)


def test_record_in_the_wrong_folder_is_refused(tmp_path, record, save):
    save(tmp_path, [record("ptq")])
    (tmp_path / "cells" / record("ptq").identity.cell).rename(tmp_path / "cells" / "0000")
    with pytest.raises(ValueError, match="another cell"):
        read_records(tmp_path)


def test_link_out_of_the_run_is_refused(tmp_path, record, save):
    save(tmp_path / "other", [record("ptq")])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "cells").symlink_to(tmp_path / "other" / "cells")
    with pytest.raises(ValueError, match="outside the run"):
        read_records(tmp_path / "run")


def test_folder_that_is_no_run(tmp_path):
    with pytest.raises(ValueError, match="not a run folder"):
        read_records(tmp_path)


@pytest.mark.parametrize(
    "figures", [[1.0, float("inf")], [float("inf"), float("-inf")], [1.0, float("nan")], [1.0, "2"]]
)
def test_figures_of_prompts_are_finite_numbers_or_missing(record, figures):
    data = record().to_json()
    data["result"]["per_prompt"] = {"psnr": [1.5, None, 2]}
    assert Record.from_json(data).result.per_prompt == {"psnr": [1.5, None, 2]}
    data["result"]["per_prompt"] = {"psnr": figures}
    with pytest.raises(ValueError, match="must be a finite number"):
        Record.from_json(data)
