"""The small parts of the runner: bits, canonical JSON, protocols, fingerprints, files."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import files, protocols
from harness.bits import Bits, parse_bits
from harness.canonical import canonical_json, digest_json
from harness.errors import UserError
from harness.fingerprint import imported_modules, library_versions, source_digest
from harness.methods import contract
from harness.metrics.images import Files
from harness.store import Block, RunStore


def test_plain_bits_take_the_activation_bits():
    assert parse_bits("2,3,4") == (Bits(2, 8), Bits(3, 8), Bits(4, 8))
    assert parse_bits("4", 6) == (Bits(4, 6),)
    assert parse_bits(" 4 ,4,16") == (Bits(4, 8), Bits(16, 8))


def test_pairs_set_both_bits():
    assert parse_bits("w4a4,W3A6") == (Bits(4, 4), Bits(3, 6))
    assert str(Bits(3, 6)) == "W3A6"


@pytest.mark.parametrize(
    "text", ["0", "9", "15", "17", "-4", "x", "", "4,", "4.0", "w4", "w9a4", "w4a0", "٤", "999999999"]
)
def test_other_widths_are_the_users_mistake(text):
    with pytest.raises(UserError, match="bits"):
        parse_bits(text)


def test_activation_bits_are_given_once():
    with pytest.raises(UserError, match="--act-bits and 'w4a4'"):
        parse_bits("w4a4", 8)
    with pytest.raises(UserError, match="--act-bits 9"):
        parse_bits("4", 9)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_canonical_json_keeps_the_value_and_forgets_the_order(value):
    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(dict(reversed(value.items()))) == text
    assert "\n" not in text


def test_canonical_json_has_one_known_spelling():
    assert canonical_json({"b": [1, 2.5, None], "a": "é"}) == '{"a":"é","b":[1,2.5,null]}'
    # sha256 of the two bytes {}
    assert digest_json({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"x": float("nan")})


def test_the_seed_is_part_of_the_hash_and_nothing_cosmetic_is():
    default = protocols.settle("scenes-default", None)
    assert default.seed == 0
    assert default.hash == protocols.settle("scenes-default", 0).hash
    assert default.hash != protocols.settle("scenes-default", 1).hash
    assert default.hash != protocols.settle("scenes-pinned", None).hash
    assert not {"summary", "prompts", "n"} & set(default.to_json())


def test_a_fixed_seed_cannot_be_given():
    assert protocols.settle("scenes-pinned", None).seed == protocols.settle("scenes-pinned", None).base.seed
    with pytest.raises(UserError, match="fixes its seed"):
        protocols.settle("scenes-pinned", 3)
    with pytest.raises(UserError, match="did you mean scenes-pinned"):
        protocols.settle("scenes-pined", None)
    with pytest.raises(UserError, match="out of range"):
        protocols.settle("scenes-default", -1)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A plugin package: method -> helper (relative, inside a function) -> shared; unrelated stands alone."""
    folder = tmp_path / "finger_plugin"
    folder.mkdir()
    sources = {
        "__init__": "",
        "method": "import os\nfrom . import shared\ndef f():\n    from .helper import g\n",
        "helper": "import finger_plugin.deep as d\n",
        "deep": "x = 1\n",
        "shared": "",
        "unrelated": "",
    }
    for name, text in sources.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.startswith("finger_plugin")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("changed", "differs"),
    [("method", True), ("helper", True), ("deep", True), ("shared", True), ("unrelated", False)],
)
def test_the_fingerprint_follows_imports(package, changed, differs):
    before = source_digest(["finger_plugin.method"])
    (package / f"{changed}.py").write_text((package / f"{changed}.py").read_text() + "# changed\n")
    assert (source_digest(["finger_plugin.method"]) != before) is differs
    assert "finger_plugin.method" not in sys.modules, "the scan must not run a plugin"


def test_imports_are_found_wherever_they_stand(package):
    found = set(imported_modules("finger_plugin.method", package / "method.py"))
    assert found == {
        "os",
        "finger_plugin",
        "finger_plugin.shared",
        "finger_plugin.helper",
        "finger_plugin.helper.g",
    }


def test_what_is_imported_for_types_alone_is_not_followed(package):
    (package / "method.py").write_text(
        "import typing\nfrom typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n"
        "    from finger_plugin import helper\n"
        "else:\n    import os\nif typing.TYPE_CHECKING:\n    import json\n"
    )
    found = set(imported_modules("finger_plugin.method", package / "method.py"))
    assert found == {"typing", "typing.TYPE_CHECKING", "os"}
    before = source_digest(["finger_plugin.method"])
    (package / "helper.py").write_text("changed = True\n")
    assert source_digest(["finger_plugin.method"]) == before


def test_a_method_that_never_trains_does_not_depend_on_the_trainer():
    seen = set(imported_modules("harness.methods.contract", Path(contract.__file__)))
    assert not any(name.startswith("harness.methods.training") for name in seen)


def test_the_fingerprint_of_a_built_in_method_holds_the_kernels_it_uses():
    assert source_digest(["harness.methods.ptq"]) != source_digest(["harness.methods.ptq"], packages=())
    with pytest.raises(ModuleNotFoundError, match=r"harness\.methods\.nowhere"):
        source_digest(["harness.methods.nowhere"])
    assert set(library_versions()) == {"torch", "diffusers"}


def pictures(n: int = 3) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, 5, 7, 3)).astype(np.uint8)


def test_a_block_is_read_back_bit_for_bit(tmp_path):
    cell = RunStore(tmp_path).cell("key")
    features = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    cell.write_block(0, "owner", Block(pictures(), features, 1.5), "judge")
    block = cell.stored_block(0, "owner")
    (images,) = Files(block.images).runs(3)
    assert np.array_equal(images, pictures())
    assert np.array_equal(block.features, features)
    assert (block.seconds, block.judge) == (1.5, "judge")
    assert cell.stored_block(0, "another owner") is None
    assert cell.stored_block(1, "owner") is None


@pytest.mark.parametrize("byte", [0, 20, -1])
@pytest.mark.parametrize("name", ["00.png", "02.png", "features.safetensors", "digest.json"])
def test_any_flipped_byte_of_a_block_is_noticed(tmp_path, name, byte):
    cell = RunStore(tmp_path).cell("key")
    cell.write_block(0, "owner", Block(pictures(), np.zeros((3, 4), np.float32), 1.0), "judge")
    path = cell.block_folder(0) / name
    data = bytearray(path.read_bytes())
    data[byte] ^= 0x20
    path.write_bytes(data)
    assert cell.block_digest(0, "owner") is None or json.loads(path.read_bytes())
    if name != "digest.json":
        assert cell.stored_block(0, "owner") is None


def test_a_block_reached_by_a_link_is_not_believed(tmp_path):
    cell = RunStore(tmp_path / "run").cell("key")
    cell.write_block(0, "owner", Block(pictures(), None, 1.0), "judge")
    folder = cell.block_folder(0)
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert cell.stored_block(0, "owner") is None


def test_a_manifest_cannot_name_files_outside(tmp_path):
    folder = tmp_path / "block"
    folder.mkdir()
    (tmp_path / "secret").write_text("x")
    entry = {"../secret": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"}
    (folder / "digest.json").write_bytes(files.seal({"files": entry, "note": {}}))
    assert files.read_manifest(folder) is None


@pytest.mark.parametrize("key", ["..", "../other", "a/b", "", ".hidden", "/etc", "x" * 200, "a\0b"])
def test_keys_cannot_leave_the_run_folder(tmp_path, key):
    with pytest.raises(ValueError, match="not a name"):
        RunStore(tmp_path).cell(key)


def test_a_linked_cell_folder_is_refused(tmp_path):
    (tmp_path / "run" / "cells").mkdir(parents=True)
    (tmp_path / "run" / "cells" / "key").symlink_to(tmp_path)
    with pytest.raises(UserError, match="leads out"):
        RunStore(tmp_path / "run").cell("key")


def full_disk(*args):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("broken", ["fsync", "rename"])
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, broken):
    cell = RunStore(tmp_path).cell("key")
    cell.write_block(0, "owner", Block(pictures(), None, 1.0), "judge")
    cell.write_record({"a": 1}, "source")
    monkeypatch.setattr(os, broken, full_disk)
    with pytest.raises(OSError, match="No space left") as caught:
        cell.write_block(1, "owner", Block(pictures(), None, 1.0), "judge")
    assert files.is_disk_full(caught.value)
    if broken == "fsync":
        with pytest.raises(OSError, match="No space left"):
            cell.write_record({"a": 2}, "source")
    monkeypatch.undo()
    assert cell.stored_block(0, "owner") is not None
    assert cell.record() == {"a": 1}
    assert not list(tmp_path.rglob(".*.tmp"))


def test_sealed_json_notices_an_edit(tmp_path):
    path = tmp_path / "x.json"
    files.write_json(path, {"a": 1})
    assert files.read_json(path) == {"a": 1}
    path.write_text(path.read_text().replace("1", "2", 1))
    assert files.read_json(path) is None
    with pytest.raises(ValueError, match="sha256"):
        files.write_json(path, {"sha256": "x"})


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"\xff", b'{"a": NaN, "sha256": "x"}', b"[" * 100_000]
)
def test_anything_else_reads_as_missing(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    assert files.read_json(path) is None


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="is not a run folder"):
        RunStore(tmp_path).claim({"name": "p", "seed": 0}, "hash")
    with pytest.raises(UserError, match=r"no run\.json"):
        RunStore(tmp_path).header()
    with pytest.raises(UserError, match="is not a run folder"):
        RunStore(tmp_path / "thesis.tex").claim({"name": "p", "seed": 0}, "hash")


def test_a_damaged_run_file_is_one_line(tmp_path):
    store = RunStore(tmp_path / "run")
    store.claim({"name": "p", "seed": 0}, "hash")
    store.claim({"name": "p", "seed": 0}, "hash")
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(UserError, match="is damaged"):
        store.claim({"name": "p", "seed": 0}, "hash")


def test_sweeping_follows_no_link_out_of_the_folder(tmp_path):
    mine = tmp_path / "mine"
    (mine / "blocks").mkdir(parents=True)
    kept = [mine / ".draft.tmp", mine / "blocks" / ".draft.tmp"]
    store = RunStore(tmp_path / "run")
    own = store.root / "cells" / "key" / ".record.json.7.tmp"
    own.parent.mkdir(parents=True)
    for path in (*kept, own):
        path.touch()
    (store.root / "cells" / "other").symlink_to(mine)
    (own.parent / "blocks").symlink_to(mine / "blocks")
    (store.root / "calibration").symlink_to(mine)
    store.sweep()
    assert not own.exists()
    assert all(path.exists() for path in kept)


def test_blocks_reached_by_a_link_are_not_believed_and_not_written_to(tmp_path):
    cell = RunStore(tmp_path / "run").cell("key")
    cell.write_block(0, "owner", Block(pictures(), None, 1.0), "judge")
    (cell.folder / "blocks").rename(tmp_path / "elsewhere")
    (cell.folder / "blocks").symlink_to(tmp_path / "elsewhere")
    assert cell.stored_block(0, "owner") is None
    assert cell.block_digest(0, "owner") is None
    cell.write_block(1, "owner", Block(pictures(), None, 1.0), "judge")
    assert cell.stored_block(1, "owner") is not None
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["0000"]


def test_a_folder_in_the_place_of_a_file_is_replaced(tmp_path):
    cell = RunStore(tmp_path).cell("key")
    (cell.folder / "record.json" / "deep").mkdir(parents=True)
    cell.write_record({"a": 1}, "source")
    assert cell.record() == {"a": 1}


def test_a_run_killed_at_its_first_file_can_be_started_again(tmp_path):
    (tmp_path / ".run.json.123.tmp").touch()
    (tmp_path / ".lock").touch()
    store = RunStore(tmp_path)
    assert not store.check({"name": "p", "seed": 0}, "hash")
    store.claim({"name": "p", "seed": 0}, "hash")
    assert store.check({"name": "p", "seed": 0}, "hash")


@pytest.mark.parametrize("target", ["folder", "link"])
def test_a_lock_that_is_no_plain_file_is_one_line(tmp_path, target):
    if target == "folder":
        (tmp_path / ".lock").mkdir()
    else:
        (tmp_path / ".lock").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match="cannot write to"), RunStore(tmp_path).lock():
        pass
    assert not (tmp_path / "mine").exists()
