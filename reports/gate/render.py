"""A gate's verdicts as Markdown for a pull request, and as JUnit XML for a CI server."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from xml.etree import ElementTree

from harness.reports.gate.costs import Cost
from harness.reports.gate.quality import Comparison
from harness.reports.gate.verdict import CellVerdict, exit_code

_WORDS = {0: "passes", 1: "fails", 3: "is undecided"}
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~])")


def markdown(verdicts: Sequence[CellVerdict], benchmarks: Sequence[Cost], alpha: float) -> str:
    """Return a summary: the verdict, a row per metric of each cell, worst first, and costs that grew."""
    counts = Counter(found.verdict for found in verdicts)
    tally = ", ".join(f"{counts[k]} {k}" for k in ("fail", "undecided", "suspicious", "pass") if counts[k])
    lines = [f"### Gate {_WORDS[exit_code(verdicts, benchmarks)]}", "", f"Cells: {tally or 'none'}.", ""]
    lines += [
        "| cell | verdict | metric | N | change [interval] | margin |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    order = {"fail": 0, "undecided": 1, "suspicious": 2, "pass": 3}
    for found in sorted(verdicts, key=lambda v: order[v.verdict]):
        lines += _rows(found)
    grown = [(str(found.name), cost) for found in verdicts for cost in found.costs if cost.fails]
    grown += [("benchmark", cost) for cost in benchmarks if cost.fails]
    if grown:
        lines += ["", "Grown beyond the bound:", ""]
        lines += [f"- {_escaped(where)}: {_escaped(_cost_line(cost))}" for where, cost in grown]
    if unknown := sum(not found.same_prompts for found in verdicts):
        lines += [
            "",
            f"Prompts of {unknown} cells were paired by the prompt set's name: a record keeps no digests of "
            "them. Make it anew to have them checked.",
        ]
    lines += [
        "",
        "Positive is better. Intervals hold over all looks at once; the chance that any of these "
        f"comparisons fails wrongly is at most {alpha:g}.",
    ]
    return "\n".join(lines) + "\n"


def junit(verdicts: Sequence[CellVerdict], benchmarks: Sequence[Cost] = ()) -> str:
    """Return a test case per cell and benchmark: `fail` is a failure, undecided and suspicious are errors."""
    cases = [(str(found.name), found.verdict, _detail(found), found.reason) for found in verdicts]
    for cost in benchmarks:
        cases.append((cost.name, "fail" if cost.fails else "pass", _cost_line(cost), None))
    suite = ElementTree.Element("testsuite", name="harness gate", tests=str(len(cases)), skipped="0")
    suite.set("failures", str(sum(verdict == "fail" for _, verdict, _, _ in cases)))
    suite.set("errors", str(sum(verdict in ("undecided", "suspicious") for _, verdict, _, _ in cases)))
    for name, verdict, detail, reason in cases:
        case = ElementTree.SubElement(suite, "testcase", classname="gate", name=_xml(name))
        if verdict != "pass":
            kind = "failure" if verdict == "fail" else "error"
            about = _xml(reason or detail.partition("\n")[0])
            ElementTree.SubElement(case, kind, type=verdict, message=about).text = _xml(detail)
        elif detail:
            ElementTree.SubElement(case, "system-out").text = _xml(detail)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _rows(found: CellVerdict) -> list[str]:
    cell = _escaped(str(found.name))
    if not found.comparisons:
        return [f"| {cell} | **{found.verdict}** | {_escaped(found.reason or '')} | | | |"]
    rows = []
    for index, item in enumerate(found.comparisons):
        head = f"{cell} | **{found.verdict}**" if index == 0 else " | "
        metric = f"{_escaped(item.metric)}: {item.verdict}"
        rows.append(f"| {head} | {metric} | {item.n} | {_interval(item)} | ±{item.margin:.3g} |")
    return rows


def _interval(item: Comparison) -> str:
    if item.mean is None:
        return f"needs {item.wanted} prompts" if item.wanted else "–"
    return f"{item.mean:+.3g} [{item.lo:+.3g}, {item.hi:+.3g}]"


def _detail(found: CellVerdict) -> str:
    lines = [] if found.reason is None else [found.reason]
    lines += [
        f"{item.metric}: {item.verdict} at N = {item.n}, change {_interval(item)}, margin ±{item.margin:.3g}"
        for item in found.comparisons
    ]
    return "\n".join(lines + [_cost_line(cost) for cost in found.costs])


def _cost_line(cost: Cost) -> str:
    word = "grew too much" if cost.fails else "ok"
    growth, bound = 100 * cost.growth, 100 * cost.bound
    return (
        f"{cost.name}: {word}, {cost.base:.6g} to {cost.new:.6g} (growth {growth:+.1f} %, bound {bound:g} %)"
    )


def _escaped(text: str) -> str:
    """Return text that Markdown shows as it is, in one table cell."""
    return _MARKUP.sub(r"\\\1", " ".join(text.split())).replace("&", "&amp;")


def _xml(text: str) -> str:
    """Leave out the characters that XML cannot hold."""
    return _NOT_XML.sub("\ufffd", text)
