import csv
import io
import json
import math
import re

import pytest
from rich.console import Console

from harness.reports.formats import FORMATS, render, render_terminal
from harness.reports.record import Metric

HOSTILE = "a|b & c_d <b>*x*</b> [red]no[/red] $y$ {z} \\end 100% #1 ~^ é 中\x1b[31m\n\u202eback"


def line_with(text, *parts):
    return next(line for line in text.splitlines() if all(part in line for part in parts))


@pytest.mark.parametrize("fmt", FORMATS)
def test_every_format_takes_nothing_one_failure_and_a_grid(fmt, record, grid):
    failed = record(
        state="crashed", metrics={}, effective_bits=None, weight_bytes=None, step_ms=None, peak_bytes=None
    )
    for records in ([], [failed], grid):
        assert render(records, fmt).endswith("\n")


def test_unknown_format_is_refused():
    with pytest.raises(ValueError, match="unknown format 'xml'; valid: table, markdown"):
        render([], "xml")


def test_table_line_shows_every_figure(record):
    metrics = {
        "psnr": Metric(27.504, 26.9, 28.11),
        "ssim": Metric(0.8591),
        "lpips_scene": Metric(0.0364),
        "fid": Metric(None, note="n/a: N < 256"),
        "kid": Metric(0.01131),
        "prompt_accuracy": Metric(0.96875, 0.894, 0.996),
    }
    changes = {"weight_bytes": 3 * 2**20, "peak_bytes": 40 * 2**20, "step_ms": 30.0, "step_ms_ref": 20.0}
    text = render([record("ptq", 4, metrics=metrics, quantize_s=4.71, **changes)], "table")
    assert re.split(r"\s{2,}", line_with(text, "W4A8")) == [
        "ptq", "W4A8", "4.03", "3.00", "27.50 [26.9, 28.1]", "0.859", "0.036", "n/a: N < 256", "0.0113",
        "0.969 [0.89, 1.00]", "40.0", "30.0 (1.50×)", "4.7", "ok",
    ]  # fmt: skip


def test_table_fits_160_and_keeps_what_matters_on_100(record, grid):
    wide = render(grid, "table")
    assert max(map(len, wide.splitlines())) <= 160
    assert "KID" in wide
    assert "Left out" not in wide
    narrow = io.StringIO()
    render_terminal(grid, Console(file=narrow, width=100))
    text = narrow.getvalue()
    assert max(map(len, text.splitlines())) <= 100
    line = line_with(text, "svdquant", "W4A8", "30.80")
    assert {"4.62", "30.80 [30.2, 31.4]", "ok"} <= set(re.split(r"\s{2,}", line.strip()))
    left_out = " ".join(text.split("Left out at this width: ")[1].split())
    assert "KID ↓" in left_out
    assert "PSNR" not in left_out


def test_one_table_per_model_reference_first(grid):
    lines = render(grid, "table").splitlines()
    titles = [index for index, line in enumerate(lines) if line in {"tiny-dit", "tiny-unet"}]
    assert [lines[index] for index in titles] == ["tiny-dit", "tiny-unet"]
    for index in titles:
        assert lines[index + 4].startswith("reference ")


def test_failed_cells_show_their_state_and_reason(record):
    cells = [record("reference", 16), record("ptq", 2, state="oom", message="out of\nmemory", metrics={})]
    for fmt in ("table", "markdown", "html"):
        text = render(cells, fmt)
        assert "ptq W2A8 on tiny-unet: oom: out of memory" in text
    assert re.search(r"\| \*\*oom\*\* *\|", render(cells, "markdown"))


def test_footnotes_name_protocol_counts_and_marks(record):
    cells = [
        record("reference", 16),
        record("mpqdmv2", 3),
        record("ptq", 3, execution="simulated", n=256, backend="triton"),
    ]
    text = " ".join(render(cells, "table").split())
    assert "N = 64, 256 prompts per cell; protocol main (3f9a1c2b7d); prompt set scenes; seed 0" in text
    assert "kernel backend reference, triton" in text
    assert "† reconstruction" in text
    assert "‡ simulated" in text
    assert "mpqdmv2†" in text
    assert "ptq‡" in text
    assert "95 % interval over the prompts" in text
    assert "2^20 bytes" in text
    assert "packed codes" in " ".join(render([record("ptq")], "table").split())


def test_column_n_appears_only_where_counts_differ(record):
    assert "| N " not in render([record("ptq"), record("nf4")], "markdown")
    text = render([record("ptq"), record("nf4", n=256)], "markdown")
    assert re.search(r"\|\s+N \|", text)


def test_bold_marks_what_is_better_on_the_same_prompts_and_ties_are_marked(record):
    def cell(method, bits, shift):
        values = [20.0 + index % 7 + shift + 0.01 * (index % 3) * shift for index in range(30)]
        metrics = {"psnr": Metric(sum(values) / 30)}
        return record(method, bits, metrics=metrics, per_prompt={"psnr": values})

    # Prompts differ by several dB, the methods by 0.5: only paired can they be told apart.
    clear = [cell("ptq", 2, 0.0), cell("nf4", 2, 0.5)]
    noisy = record(
        "svdquant",
        4,
        metrics={"psnr": Metric(25.0)},
        per_prompt={"psnr": [20.0, 30.0] * 15},
    )
    text = render([*clear, cell("ptq", 4, 1.0), noisy], "markdown")
    assert re.findall(r"\*\*([\d.]+)\*\*", text) == [f"{clear[1].result.metrics['psnr'].value:.2f}"]
    assert "≈" in line_with(text, "ptq", "W4A8")
    assert "25.00 ≈" in line_with(text, "svdquant", "W4A8")
    assert "≈" not in line_with(text, "ptq", "W2A8")


def test_json_is_a_list_of_strict_rows(record):
    cells = [
        record("ptq", 3, metrics={"psnr": Metric(math.inf), "kid": Metric(math.nan)}),
        record("reference", 16),
    ]
    text = render(cells, "json")
    assert "NaN" not in text
    assert "Infinity" not in text
    rows = json.loads(text)
    assert [flat["method"] for flat in rows] == ["reference", "ptq"]
    assert rows[1]["psnr"] is None
    assert rows[1]["kid"] is None
    assert rows[1]["wbits"] == 3
    assert json.loads(render([], "json")) == []


def test_json_keeps_hostile_names_exactly(record):
    assert json.loads(render([record(model=HOSTILE + "\ud800")], "json"))[0]["model"] == HOSTILE + "\ud800"


def test_csv_reads_back_with_empty_for_missing(record):
    cell = record(
        "ptq", 3, model='x, "y"', variant="=cmd()", config={"range": "mse"}, metrics={"psnr": Metric(None)}
    )
    (flat,) = csv.DictReader(io.StringIO(render([cell], "csv")))
    assert flat["model"] == 'x, "y"'
    assert flat["variant"] == "'=cmd()"
    assert flat["psnr"] == ""
    assert flat["effective_bits"] == "3.03"
    assert json.loads(flat["config"]) == {"range": "mse"}
    assert flat["reconstruction"] == "false"


def test_csv_keeps_a_hostile_record_in_one_line(record):
    text = render([record(model=HOSTILE, message="a\r\nb")], "csv")
    assert len(text.splitlines()) == 2
    assert "\x1b" not in text


def test_markdown_escapes_names_and_keeps_its_columns(record):
    text = render([record(method=HOSTILE), record("nf4")], "markdown")
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1
    line = line_with(text, r"a\|b")
    assert r"a\|b \& c\_d \<b\>\*x\*\</b\> \[red\]no\[/red\] \$y\$ \{z\} \\end 100% \#1 \~^ é 中" in line
    assert r"\\x1b\[31m\\n\\u202eback" in line


def test_markdown_makes_no_links(record):
    text = render([record("https://evil.example", variant="www.evil.example @all")], "markdown")
    assert "https://" not in text
    assert "www." not in text.replace("www\\.", "")
    assert r"\@all" in text


def test_markdown_keeps_the_reason_of_missing_figures_readable(record):
    assert "| n/a: N < 256 |" in render([record()], "markdown")


def test_terminal_reads_no_markup_and_passes_no_escapes(record):
    out = io.StringIO()
    render_terminal([record(method=HOSTILE[:60])], Console(file=out, width=200, force_terminal=True))
    assert "[red]no[/re" in "".join(re.findall(r"^(.{1,32}?)(?:  |$)", out.getvalue(), re.MULTILINE))
    plain = render([record(model=HOSTILE)], "table")
    assert "\x1b" not in plain
    assert "\u202e" not in plain
    assert r"\x1b[31m\n\u202eback" in plain


def test_terminal_without_unicode_gets_ascii(record):
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    render_terminal([record("mpqdmv2", 3, variant="中")], Console(file=out, width=160))
    out.flush()
    text = raw.getvalue().decode("ascii")
    assert r"mpqdmv2 (\u4e2d)+" in text
    assert "x)" in line_with(text, "W3A8")


LATEX_SPECIAL = re.compile(r"(?<!\\)[&%$#_{}~^]")


def test_latex_is_balanced_ascii_with_equal_columns(record, grid):
    text = render([*grid, record(method=HOSTILE, model=HOSTILE)], "latex")
    assert text.isascii()
    # What stands between the tables is for compiling the file by itself.
    tables = re.findall(r"\\begin\{table\*\}.*?\\end\{table\*\}", text, re.DOTALL)
    code = "\n".join(line for table in tables for line in table.splitlines())
    assert re.findall(r"(?<!\\)%", code) == ["%"] * 3  # one per \resizebox{...}{%
    stack = []
    for kind, name in re.findall(r"\\(begin|end)\{([a-z*]+)\}", code):
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert stack == []
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", code):
        depth += 1 if brace == "{" else -1
        assert depth >= 0
    assert depth == 0
    assert len(re.findall(r"(?<!\\)\$", code)) % 2 == 0
    alignment = re.search(r"\\begin\{tabular\}\{@\{\}([lr]+)@\{\}\}", code).group(1)
    for line in code.splitlines():
        if line.endswith(r" \\") and "multicolumn" not in line:
            assert len(re.findall(r"(?<!\\)&", line)) == len(alignment) - 1
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert code.count(rule) >= 3


def test_latex_escapes_each_special_character(record):
    text = render([record(method='&%$#_{}~^\\<>|"é中--')], "latex")
    expected = (
        r"\&\%\$\#\_\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}$<$$>$$|$\textquotedbl{}\'{e}"
        r"\texttt{U+4E2D}-{}- & W4A8"
    )
    assert expected in text


def test_latex_names_its_packages(record):
    head = render([record()], "latex").split("\\begin")[0]
    for package in ("booktabs", "graphicx"):
        assert re.search(rf"^%\s+\\usepackage{{{package}}}$", head, re.MULTILINE)


def test_rows_of_one_name_are_told_apart_by_their_keys(record):
    old = record("ptq", 4, cell="0123456789abcdef")
    new = record("ptq", 4, cell="fedcba9876543210", weight_bytes=2)
    lines = render([old, new, record("nf4", 4)], "table").splitlines()
    assert sum(line.startswith("ptq [01234567]") for line in lines) == 1
    assert sum(line.startswith("ptq [fedcba98]") for line in lines) == 1
    assert sum(line.startswith("nf4 ") for line in lines) == 1
    assert any(line.startswith("[key]:") for line in lines)
    alone = render([old, record("ptq", 3)], "table")
    assert "[key]" not in alone
    assert "[0123" not in alone


def test_the_reference_is_not_compared_with_itself(record):
    note = Metric(None, note="n/a: no reference")
    line = render([record("reference", 16, metrics={"psnr": note, "ssim": note})], "table")
    assert "no reference" not in line
    orphan = render([record("ptq", 4, metrics={"psnr": note})], "table")
    assert "n/a: no reference" in orphan


def test_failed_cells_do_not_count_as_another_number_of_prompts(record):
    failed = record("ptq", 2, state="crashed", n=0, message="it broke")
    text = render([record("ptq", 4), failed], "table")
    assert "N = 64 prompts" in text
    heading = next(line for line in text.splitlines() if line.startswith("Method"))
    assert " N " not in heading
    assert "N = 0 prompts" in render([failed], "table")
