"""MJHQ-30K: 30,000 Midjourney prompts in ten categories, with Midjourney's images.

Source: https://huggingface.co/datasets/playgroundai/MJHQ-30K, `meta_data.json`: one object, image id to
{"category", "prompt"}; the image lies at `CATEGORY/ID.jpg` of `mjhq30k_imgs.zip`.
"""

from __future__ import annotations

from pathlib import Path

from harness.datasets.contract import Prompt
from harness.datasets.fileset import FileSet
from harness.datasets.reading import Place, clean_id, clean_text, line_of, parse_json, read_text, shown


def read(path: Path) -> list[Prompt]:
    """Read `meta_data.json`: the image's id is the prompt's, the category its slice."""
    text = read_text(path)
    found = parse_json(text, path)
    if not isinstance(found, dict):
        raise Place(path).refuse("is not an object of image ids, as MJHQ's meta_data.json is")
    prompts = []
    for key, value in found.items():
        place = Place(path, entry=f"entry {shown(key)}")
        if not isinstance(value, dict) or not {"category", "prompt"} <= value.keys():
            raise Place(path, line_of(text, key), place.entry).refuse("lacks `category` or `prompt`")
        category = clean_id(value["category"], place)
        name = clean_id(key, place)
        words = clean_text(value["prompt"], place)
        prompts.append(Prompt(name, words, slice=category, image=f"{category}/{name}.jpg"))
    return prompts


MJHQ = FileSet(
    name="mjhq",
    summary="MJHQ-30K (meta_data.json): 30,000 prompts in ten categories, with Midjourney's images",
    reader=read,
    file_names=("meta_data.json",),
    image_folders=("mjhq30k_imgs", "."),
)
