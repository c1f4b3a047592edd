"""The 1,024 captions that SVDQuant calibrates on.

Source: https://github.com/mit-han-lab/deepcompressor, `examples/diffusion/prompts/qdiff.yaml`: "0000" ...
"1023" to caption. Some keys are not quoted there, which a YAML parser may read as numbers. All of them are
captions of COCO val2017 (`harness leaks` counts what that means for an evaluation on COCO).
"""

from __future__ import annotations

from pathlib import Path

from harness.datasets.contract import Prompt
from harness.datasets.fileset import FileSet
from harness.datasets.reading import Place, clean_id, clean_text, yaml_pairs


def read(path: Path) -> list[Prompt]:
    """Read `qdiff.yaml`: its keys are the ids."""
    prompts = []
    for key, value, line in yaml_pairs(path):
        place = Place(path, line)
        if key is None:
            raise place.refuse("is a list; qdiff.yaml maps names to captions")
        prompts.append(Prompt(clean_id(key, place), clean_text(value, place)))
    return prompts


QDIFF = FileSet(
    name="qdiff",
    summary="the captions SVDQuant calibrates on (qdiff.yaml): 1,024 of COCO val2017",
    reader=read,
    file_names=("qdiff.yaml",),
)
