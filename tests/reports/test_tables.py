import csv
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from harness.cli import call
from harness.reports import papers
from harness.reports.formats import render
from harness.reports.record import Metric, read_records
from harness.reports.tables import TABLE_FORMATS, build_table, load_spec, parse_spec, render_table
from harness.reports.tables.check import difference, replaced

COLUMNS = ["method", "bits", {"figure": "psnr", "interval": True}, "prompt_accuracy", "fid", "state"]
HOSTILE = 'a|b & c_d <b>*x*</b> $y$ {z} \\end 100% #1 ~^ "q" #panic() é\n\u202eback'


def spec(**changes):
    return parse_spec({"name": "grid", "caption": "A grid", "columns": COLUMNS} | changes)


def column(document, heading, sheet=0):
    headings = [item.heading for item in document.sheets[sheet].columns]
    return [line[headings.index(heading)] for line in document.sheets[sheet].entries]


def test_bits_bring_what_is_stored_with_them(grid):
    headings = [item.heading for item in build_table(spec(), grid).sheets[0].columns]
    assert headings[1:4] == ["W/A", "Eff. bits", "MiB"]


def test_caption_has_n_and_the_protocols_hash(grid):
    for sheet in build_table(spec(), grid).sheets:
        assert "N = 64 prompts" in sheet.caption
        assert "3f9a1c2b7d" in sheet.caption


def test_rows_of_different_protocols_refuse_to_share_a_column(record):
    mixed = [record("ptq"), record("nf4", protocol_hash="0123abcd00")]
    with pytest.raises(ValueError, match=r"'psnr'.*different protocols.*\(0123abcd00\), main \(3f9a1c2b7d\)"):
        build_table(spec(), mixed)
    # What is stored does not depend on the protocol.
    build_table(spec(columns=["method", "bits", "checkpoint_bytes"]), mixed)


def test_rows_of_different_protocols_may_stand_in_columns_of_their_own(record):
    mixed = [record("ptq"), record("ptq", protocol_hash="0123abcd00", dataset="mjhq")]
    columns = [{"figure": "psnr", "where": {"dataset": name}, "span": name} for name in ("scenes", "mjhq")]
    document = build_table(spec(columns=["method", *columns]), mixed)
    assert len(document.sheets[0].entries) == 1
    assert all(entry.text == "27.50" for entry in document.sheets[0].entries[0][1:])


def test_distribution_figures_of_different_n_refuse_to_share_a_column(record):
    cells = [record(name, n=n, metrics={"fid": Metric(3.0)}) for name, n in (("ptq", 256), ("nf4", 512))]
    with pytest.raises(ValueError, match=r"'fid': rows of different N \(256, 512\)"):
        build_table(spec(), cells)


def test_two_cells_for_one_entry_are_refused_and_told_apart(record):
    with pytest.raises(ValueError, match=r"'effective_bits'.*lay claim to one entry; they differ in wbits"):
        build_table(spec(rows=["method"]), [record("ptq", 2), record("ptq", 4)])
    with pytest.raises(ValueError, match=r"'psnr'.*they differ in dataset"):
        build_table(spec(), [record("ptq"), record("ptq", dataset="mjhq")])


def test_ties_and_best_are_marked_and_explained(record):
    good, bad = [21.0, 25.0, 30.5, 22.0, 24.0] * 4, [20.0, 24.2, 29.0, 21.0, 23.1] * 4

    def cell(name, bits, values):
        mean = sum(values) / len(values)
        return record(name, bits, metrics={"psnr": Metric(mean)}, per_prompt={"psnr": values})

    document = build_table(
        spec(), [cell("ptq", 2, good), cell("nf4", 2, bad), cell("ptq", 4, good), cell("nf4", 4, good)]
    )
    shown = {(line[0].text, line[1].text): line[4] for line in document.sheets[0].entries}
    assert shown["ptq", "W2A8"].strong
    assert shown["ptq", "W4A8"].mark == shown["nf4", "W4A16"].mark == "≈"
    assert not any(entry.strong or entry.mark for entry in column(document, "FID ↓"))
    notes = " ".join(document.notes)
    assert "paired t-test" in notes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": ["psrn"]}, "unknown figure 'psrn'; did you mean psnr"),
        ({"where": {"modle": "x"}}, "unknown row column 'modle'; did you mean model"),
        ({"columns": []}, "has no columns"),
        ({"colums": 1}, "unknown field 'colums'"),
        ({"columns": [{"figure": 1}]}, "table.columns[0].figure must be a string"),
        ({"where": {"model": "none"}}, "no cell of the records belongs in it"),
    ],
)
def test_mistakes_in_a_description(record, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build_table(spec(**changes), [record("ptq")])


def test_yaml_builds_no_objects_and_names_its_file(tmp_path):
    path = tmp_path / "spec.yaml"
    for text in ("!!python/object/apply:os.system [id]", "a: [", "[1, 2]", "a: &a [1]\nb: *a"):
        path.write_text(text)
        with pytest.raises(ValueError, match=re.escape(str(path))):
            load_spec(path)


class Text(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = [], ""

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


def test_hostile_names_stay_text_in_every_format(record):
    cells = [record(HOSTILE, model=HOSTILE)]
    page = Text()
    page.feed(render_table(spec(), cells, "html"))
    assert "b" not in page.tags
    assert "<b>*x*</b>" in page.text
    typst = render_table(spec(), cells, "typst")
    outside = re.sub(r'"(?:[^"\\]|\\.)*"', "", typst)
    assert "#panic" not in outside
    assert "#panic" in typst
    rows = list(csv.reader(io.StringIO(render_table(spec(), cells, "csv"))))
    assert len(rows) == 2
    assert len(rows[0]) == len(rows[1])
    assert render_table(spec(), cells, "latex").isascii()


def test_csv_of_a_table_holds_exact_figures_in_the_unit_of_the_heading(record):
    cell = record("ptq", weight_bytes=3 * 2**19, metrics={"psnr": Metric(27.123456, 26.5, 28.5)})
    [line] = csv.DictReader(io.StringIO(render_table(spec(), [cell], "csv")))
    assert float(line["MiB"]) == 1.5
    assert float(line["PSNR ↑ (dB)"]) == 27.123456
    assert (float(line["PSNR ↑ (dB) lo"]), float(line["PSNR ↑ (dB) hi"])) == (26.5, 28.5)
    assert "3f9a1c2b7d" in line["table"]


@pytest.mark.parametrize("name", papers.NAMES)
@pytest.mark.parametrize("fmt", TABLE_FORMATS)
def test_every_paper_prints_in_every_format(name, fmt, grid):
    if name == "bits-sweep":
        assert render_table(papers.get(name), grid, fmt)
        return
    empty, filled = (render_table(papers.get(name), records, fmt) for records in ([], grid))
    assert "svdquant" in filled or "mpqdm" in filled
    assert len(filled) > len(empty)


def test_a_paper_row_takes_the_cell_that_it_means(record):
    changes = {"model": "flux.1-dev", "dataset": "mjhq"}
    metrics = {"fid": Metric(21.25), "psnr": Metric(19.5)}
    cells = [record("svdquant", 4, abits=4, metrics=metrics, **changes), record("ptq", 4, **changes)]
    document = build_table(papers.get("svdquant-table1"), cells)
    row = next(
        line
        for line in document.sheets[0].entries
        if (line[0].value, line[1].text, line[2].text) == ("FLUX.1-dev", "SVDQuant INT", "W4A4")
    )
    headings = [f"{item.span}: {item.heading}" for item in document.sheets[0].columns]
    shown = dict(zip(headings, (entry.text for entry in row), strict=True))
    assert shown["MJHQ published: FID ↓"] == "19.9"
    assert shown["MJHQ own: FID ↓"] == "21.25"
    assert shown["sDCI own: FID ↓"] == ""


def test_second_hand_and_derived_figures_are_marked():
    text = render_table(papers.get("mpqdm-lsun"), [], "markdown")
    assert "20.28 §" in text
    assert "33.09 ¶" in text
    assert "second-hand" in text
    assert "15.15 §" not in text


def test_records_survive_json_lines(tmp_path, grid):
    path = tmp_path / "records.jsonl"
    path.write_text(render(grid, "jsonl"))
    assert read_records(path) == sorted(grid, key=lambda record: record.identity.cell)
    path.write_text(path.read_text() + json.dumps(grid[0].to_json()) + "\n")
    with pytest.raises(ValueError, match="line 33: a second record"):
        read_records(path)


def test_a_document_keeps_what_is_around_its_table(tmp_path):
    path = tmp_path / "README.md"
    text = "# A\n<!-- table grid -->\nold\n<!-- end of table grid -->\nafter"
    new = replaced(path, "grid", text, "| a |\n")
    assert new == "# A\n<!-- table grid -->\n\n| a |\n\n<!-- end of table grid -->\nafter"
    assert difference(path, "grid", new, "| a |\n") == ""
    assert "-| a |" in difference(path, "grid", new, "| b |\n")
    assert replaced(path, "other", text, "| a |\n") == "| a |\n"
    with pytest.raises(ValueError, match="lacks the line"):
        replaced(path, "grid", "<!-- table grid -->\n", "x")


def test_check_fails_once_a_record_changes(tmp_path, capsys, grid):
    records, table = tmp_path / "records.jsonl", tmp_path / "table.tex"
    description = tmp_path / "spec.yaml"
    description.write_text(json.dumps({"name": "grid", "caption": "A grid", "columns": COLUMNS}))
    records.write_text(render(grid, "jsonl"))
    arguments = ["report", str(records), "--table", str(description)]
    assert call([*arguments, "-o", str(table)]) == 0
    assert table.read_text().startswith("% The preamble needs")
    assert call([*arguments, "--check", str(table)]) == 0
    table.write_text(table.read_text().replace("27.50", "28.50", 1))
    capsys.readouterr()
    assert call([*arguments, "--check", str(table)]) == 1
    assert "28.50" in capsys.readouterr().out
    assert call(["paper", "svdquant-tabel1"]) == 2
    assert "did you mean svdquant-table1" in capsys.readouterr().err


def test_printing_a_table_never_imports_torch(tmp_path, grid):
    records = tmp_path / "records.jsonl"
    records.write_text(render(grid, "jsonl"))
    code = (
        "import sys; from harness.cli import call\n"
        f"assert call(['report', {str(records)!r}, '--format', 'markdown']) == 0\n"
        f"assert call(['paper', 'svdquant-table1', {str(records)!r}]) == 0\n"
        "found = {'torch', 'diffusers', 'transformers', 'pandas'} & set(sys.modules); assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)
