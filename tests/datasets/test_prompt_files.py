"""Readers of prompt files: every format, and what is refused in one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.datasets import registry
from harness.datasets.coco import images
from harness.datasets.contract import Prompt
from harness.datasets.fileset import FileSet
from harness.datasets.images import reference_images
from harness.errors import UserError


def read(name: str, path: Path) -> list[Prompt]:
    return registry.get(name).prompts(registry.get(name).count(path), path)


def write(folder: Path, name: str, content: str | bytes | Any) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, str | bytes):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def fileset(name: str) -> FileSet:
    found = registry.get(name)
    assert isinstance(found, FileSet)
    return found


def coco(images: list[tuple[int, str]], captions: list[tuple[int, str]]) -> dict[str, Any]:
    return {
        "info": {},
        "images": [{"id": number, "file_name": name} for number, name in images],
        "annotations": [
            {"image_id": number, "id": i, "caption": t} for i, (number, t) in enumerate(captions)
        ],
    }


MJHQ = {"a1f": {"category": "food", "prompt": " a pie "}, "b2e": {"category": "people", "prompt": "a cook"}}
ROWS = "id\timage_id\tcaption\theight\twidth\tfile_name\tcoco_url\n"


def test_mjhq(tmp_path: Path) -> None:
    prompts = read("mjhq", write(tmp_path, "meta_data.json", MJHQ))
    assert [(p.id, p.text, p.slice, p.image) for p in prompts] == [
        ("a1f", "a pie", "food", "food/a1f.jpg"),
        ("b2e", "a cook", "people", "people/b2e.jpg"),
    ]
    assert read("mjhq", tmp_path) == prompts


def test_sdci_and_qdiff_keep_their_keys_as_written(tmp_path: Path) -> None:
    text = "'0000': 'a b '\n0008: c\n0010: 12\n12: \"d\\ne\"\nsa_7: yes\n? x\n: >\n  folded\n  text\n"
    expected = [
        ("0000", "a b"),
        ("0008", "c"),
        ("0010", "12"),
        ("12", "d\ne"),
        ("sa_7", "yes"),
        ("x", "folded text"),
    ]
    path = write(tmp_path, "qdiff.yaml", text)
    assert [(p.id, p.text) for p in read("qdiff", path)] == expected
    prompts = read("sdci", path)
    assert [(p.id, p.text) for p in prompts] == expected
    assert prompts[0].image == "0000.jpg"


def test_parti_takes_quotation_marks_as_they_are(tmp_path: Path) -> None:
    text = 'Prompt\tCategory\tChallenge\tNote\n"A" sign\tArts\tBasic\t\n"open\tAnimals\tBasic\tnote "x"\n'
    prompts = read("parti", write(tmp_path, "PartiPrompts.tsv", text))
    assert [(p.id, p.text, p.slice) for p in prompts] == [
        ("0000", '"A" sign', "Arts"),
        ("0001", '"open', "Animals"),
    ]


def test_coco_chooses_by_the_hash_of_the_name_in_the_order_of_the_annotations(tmp_path: Path) -> None:
    names = {3: "000000000003.jpg", 1: "COCO_val2014_000000000001.jpg"}
    captions = [(1, "one\n"), (3, " first "), (1, "two"), (3, "second"), (3, "third"), (1, "inner\n end")]
    path = write(tmp_path, "captions_val2014.json", coco([(3, names[3]), (1, names[1])], captions))
    prompts = read("coco", path)
    assert [p.id for p in prompts] == ["000000000003", "COCO_val2014_000000000001"]
    # By hand, for the digits of the first name: every place but the last adds 48 * 31^k, the last 51.
    place = (sum(48 * 31**k for k in range(1, 12)) + 51) % 1_000_000_007 % 3
    assert prompts[0].text == ["first", "second", "third"][place]
    assert prompts[1].text in ("one", "two", "inner\n end")
    assert [p.image for p in prompts] == [f"val2017/{names[3]}", f"val2014/{names[1]}"]
    assert sum(len(image.captions) for image in images(path)) == 6


def test_coco_reads_karpathy_and_mlperf(tmp_path: Path) -> None:
    entries = [
        {"filename": f"COCO_val2014_{i:012d}.jpg", "split": split, "sentences": [{"raw": f"caption {i}"}]}
        for i, split in enumerate(["train", "test", "val", "test"])
    ]
    prompts = read("coco", write(tmp_path, "dataset_coco.json", {"images": entries, "dataset": "coco"}))
    assert [p.text for p in prompts] == ["caption 1", "caption 3"]
    rows = ROWS + '1\t9\t"says ""Hi"""\t4\t4\tCOCO_val2014_000000000009.jpg\tu\n2\t8\tplain\t4\t4\tb.jpg\tu\n'
    prompts = read("coco", write(tmp_path, "captions_source.tsv", rows))
    assert [(p.id, p.text) for p in prompts] == [
        ("COCO_val2014_000000000009", 'says "Hi"'),
        ("b", "plain"),
    ]
    with pytest.raises(UserError, match="give the one to use"):
        read("coco", tmp_path)


FORMATS = {
    "a.txt": "\ufefffirst\r\n\r\n  second  \n",
    "a.csv": 'prompt,note\nfirst,"x\ny"\n\nsecond,z\n',
    "a.tsv": "note\tprompt\nx\tfirst\ny\tsecond\n",
    "a.json": ["first", {"prompt": " second"}],
    "a.jsonl": '"first"\n\n{"prompt": "second"}\n',
    "a.yaml": "- first\n- second\n",
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_of_the_users(tmp_path: Path, name: str) -> None:
    prompts = read("file", write(tmp_path, name, FORMATS[name]))
    assert [(p.id, p.text) for p in prompts] == [("0000", "first"), ("0001", "second")]


def test_ids_and_categories_of_the_users(tmp_path: Path) -> None:
    expected = [("x", "one", "k"), ("7", "two", "")]
    table = write(tmp_path, "a.csv", "id,prompt,category\nx,one,k\n7,two,\n")
    objects = write(
        tmp_path, "a.json", [{"id": "x", "prompt": "one", "category": "k"}, {"id": 7, "prompt": "two"}]
    )
    for path in (table, objects):
        assert [(p.id, p.text, p.slice) for p in read("file", path)] == expected
    assert [p.id for p in read("file", write(tmp_path, "b.json", {"x": "one", "7": "two"}))] == ["x", "7"]


TROUBLE = "!!python/object/apply:os.system ['touch executed']"
REFUSED: dict[str, tuple[str, str, Any, str]] = {
    "no utf-8": (
        "file",
        "a.txt",
        "ok\nfine\ncaf\xe9\n".encode("latin-1"),
        "a.txt: line 3: not UTF-8 (byte 0xE9)",
    ),
    "utf-16": ("file", "a.txt", "text".encode("utf-16"), "a.txt: line 1: not UTF-8"),
    "huge prompt": (
        "file",
        "a.txt",
        f"ok\n{'x' * 100_000}\n",
        "line 2: the prompt has 100000 characters, more",
    ),
    "huge field": ("file", "a.csv", f"prompt\n{'x' * 200_000}\n", "line 2: damaged or truncated table"),
    "control": ("file", "a.txt", "ok\na\x00b\n", "line 2: the prompt holds the control character U+0000"),
    "surrogate": ("file", "a.json", '["\\ud800"]', "entry 0: the prompt holds the control character U+D800"),
    "empty file": ("file", "a.txt", "\n \n", "a.txt holds no prompt"),
    "empty table": ("file", "a.csv", "", "a.csv: is empty"),
    "empty prompt": ("file", "a.csv", "prompt,id\nx,1\n ,2\n", "line 3: the prompt is empty"),
    "number": ("file", "a.json", ["a", 3], "entry 1: the prompt is no text: 3"),
    "extension": ("file", "a.pkl", b"\x80\x04K\x01.", "the extension must be one of .txt, .csv"),
    "no column": (
        "file",
        "a.csv",
        "text,id\nx,1\n",
        "line 1: no column 'prompt' in the header ('text', 'id')",
    ),
    "cut row": (
        "file",
        "a.tsv",
        "id\tprompt\n1\tx\n2",
        "line 3: 1 columns instead of 2; is the file truncated?",
    ),
    "cut quote": ("file", "a.csv", 'prompt,id\n"x,1\n', "line 2: damaged or truncated table"),
    "cut json": ("file", "a.json", '["a",\n "b', "line 2: column 2: damaged or truncated JSON"),
    "cut jsonl": ("file", "a.jsonl", '"a"\n\n{"prompt": "b"', "line 3: column 15: damaged or truncated JSON"),
    "nan": ("file", "a.json", "[NaN]", "NaN is not JSON"),
    "deep json": ("file", "a.json", "[" * 100_000, "nested too deeply"),
    "twice json": ("file", "a.json", '{"a": "x", "a": "y"}', "key 'a': is there twice"),
    "twice id": (
        "file",
        "a.csv",
        "id,prompt\nx,1\ny,2\nx,3\n",
        "line 4: the id 'x' is there already (line 2)",
    ),
    "twice yaml": ("qdiff", "a.yaml", "x: 1\n'x': 2\n", "line 2: the id 'x' is there already (line 1)"),
    "traversal": ("file", "a.json", {"../../x": "y"}, "the id '../../x' is not 1 to 128 letters"),
    "long id": ("file", "a.json", {"x" * 129: "y"}, "is not 1 to 128 letters"),
    "yaml tag": ("file", "a.yaml", f"a: b\nc: {TROUBLE}\n", "line 2: the tag 'tag:yaml.org,2002:python"),
    "yaml scalar tag": (
        "file",
        "a.yaml",
        "a: !!python/name:os.system x\n",
        "the tag 'tag:yaml.org,2002:python",
    ),
    "yaml nested": ("sdci", "a.yaml", "a: b\nc:\n  d: e\n", "line 3: a name or prompt is a list"),
    "yaml cut": ("sdci", "a.yaml", 'a: b\nc: "d\n', "damaged or truncated YAML"),
    "yaml scalar": ("sdci", "a.yaml", "just text\n", "neither a mapping of names to prompts nor a list"),
    "yaml list": ("sdci", "a.yaml", "- a\n", "line 1: is a list; sDCI.yaml maps"),
    "yaml reference": (
        "file",
        "a.yaml",
        "a: &x b\nc: *x\n",
        "line 2: a name or prompt is a list, a mapping or a",
    ),
    "yaml documents": ("file", "a.yaml", "a: b\n---\nc: d\n", "line 2: a second YAML document begins here"),
    "yaml empty": ("file", "a.yaml", "# nothing\n", "a.yaml: is empty"),
    "deep yaml": ("file", "a.yaml", "[" * 50_000, "line 1: a name or prompt is a list"),
    "mjhq list": ("mjhq", "m.json", [], "is not an object of image ids"),
    "mjhq entry": (
        "mjhq",
        "m.json",
        '{\n"a": {"prompt": "x"}}',
        "line 2: entry 'a': lacks `category` or `prompt`",
    ),
    "mjhq category": (
        "mjhq",
        "m.json",
        {"a": {"prompt": "x", "category": "../b"}},
        "the id '../b' is not 1 to",
    ),
    "coco other": ("coco", "c.json", {"a": 1}, "neither COCO captions nor Karpathy's split"),
    "coco path": ("coco", "c.json", coco([(1, "../x.jpg")], [(1, "a")]), "the file name '../x.jpg' is not"),
    "coco orphan": (
        "coco",
        "c.json",
        coco([], [(1, "a")]),
        "annotations[0]: is of image 1, which the file does",
    ),
    "coco mute": ("coco", "c.json", coco([(1, "a.jpg")], []), "images[0]: the image a has no caption"),
    "coco twice": (
        "coco",
        "c.json",
        coco([(1, "a.jpg"), (2, "a.jpg")], [(1, "x"), (2, "y")]),
        "is there already",
    ),
    "coco number": (
        "coco",
        "c.json",
        {"images": [{"id": "1"}], "annotations": []},
        "images[0]: lacks `id` (int)",
    ),
    "mlperf cut": ("coco", "c.tsv", f"{ROWS}1\t2\tx\t3", "line 2: 4 columns instead of 7"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line_that_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    name, file, content, message = REFUSED[case]
    path = write(tmp_path, file, content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        read(name, path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert [entry.name for entry in tmp_path.iterdir()] == [file], "nothing is executed or written"


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read("mjhq", tmp_path / "nothing.json")
    with pytest.raises(UserError, match=r"holds no meta_data.json"):
        read("mjhq", tmp_path)
    with pytest.raises(UserError, match="is a folder: give the file in it"):
        read("file", tmp_path)
    with pytest.raises(UserError, match="give --data-path mjhq=PATH"):
        registry.get("mjhq").count()


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "one\n")
    assert registry.get("file").count(path) == 1
    write(tmp_path, "a.txt", "one\ntwo\n")
    assert registry.get("file").count(path) == 2


def test_reference_images_are_found_beside_the_file(tmp_path: Path) -> None:
    write(tmp_path, "meta_data.json", MJHQ)
    first = write(tmp_path, "mjhq30k_imgs/food/a1f.jpg", b"1")
    prompts = read("mjhq", tmp_path)
    with pytest.raises(UserError, match=r"1 of 2 reference images of mjhq .* the first is people/b2e.jpg"):
        reference_images(prompts, fileset("mjhq"), tmp_path)
    second = write(tmp_path, "people/b2e.jpg", b"2")
    assert reference_images(prompts, fileset("mjhq"), tmp_path / "meta_data.json") == [first, second]
    with pytest.raises(UserError, match="parti has no reference images"):
        reference_images([Prompt("a", "b")], fileset("parti"), tmp_path)


def test_a_link_out_of_the_image_folder_is_refused(tmp_path: Path) -> None:
    secret = write(tmp_path, "secret.jpg", b"!")
    folder = tmp_path / "set"
    write(folder, "sDCI.yaml", "a: text\n")
    (folder / "sDCI").mkdir()
    (folder / "sDCI/a.jpg").symlink_to(secret)
    with pytest.raises(UserError, match="leads out of its folder"):
        reference_images(read("sdci", folder), fileset("sdci"), folder)
