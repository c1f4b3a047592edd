"""sDCI: densely captioned photographs, the captions summarized to what CLIP reads.

Source: https://huggingface.co/datasets/mit-han-lab/svdquant-datasets, `sDCI.yaml`: one mapping of image name
(without extension) to caption; the images are in `sDCI.gz`.
"""

from __future__ import annotations

from pathlib import Path

from harness.datasets.contract import Prompt
from harness.datasets.fileset import FileSet
from harness.datasets.reading import Place, clean_id, clean_text, yaml_pairs


def read(path: Path) -> list[Prompt]:
    """Read `sDCI.yaml`: the image's name is the prompt's id."""
    prompts = []
    for key, value, line in yaml_pairs(path):
        place = Place(path, line)
        if key is None:
            raise place.refuse("is a list; sDCI.yaml maps image names to captions")
        name = clean_id(key, place)
        prompts.append(Prompt(name, clean_text(value, place), image=f"{name}.jpg"))
    return prompts


SDCI = FileSet(
    name="sdci",
    summary="summarized DCI (sDCI.yaml): photographs and their captions, cut to CLIP's 77 tokens",
    reader=read,
    file_names=("sDCI.yaml",),
    image_folders=("sDCI", "images", "."),
)
