"""PartiPrompts: 1,632 prompts in twelve categories.

Source: https://github.com/google-research/parti, `PartiPrompts.tsv`: a header, then Prompt, Category,
Challenge and Note by tabs. Quotation marks are part of the prompts, not of the format.
"""

from __future__ import annotations

from pathlib import Path

from harness.datasets.contract import Prompt
from harness.datasets.fileset import FileSet
from harness.datasets.reading import Place, clean_text, table_rows


def read(path: Path) -> list[Prompt]:
    """Read `PartiPrompts.tsv`: ids count the rows from `0000`, the category is the slice."""
    prompts = []
    for index, (line, row) in enumerate(table_rows(path, "\t", ("Prompt", "Category"), quoted=False)):
        place = Place(path, line)
        category = row["Category"].strip()
        if not category:
            raise place.refuse("the category is empty")
        prompts.append(Prompt(f"{index:04d}", clean_text(row["Prompt"], place), slice=category))
    return prompts


PARTI = FileSet(
    name="parti",
    summary="PartiPrompts (PartiPrompts.tsv): 1,632 prompts in twelve categories",
    reader=read,
    file_names=("PartiPrompts.tsv",),
)
