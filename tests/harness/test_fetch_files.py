"""`harness fetch` against a local server: whole files, manifests, and answers that are not to be trusted."""

from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from harness import fetching
from harness.cli import call
from harness.datasets import sources
from harness.datasets.sources import DOWNLOADS, Download
from harness.errors import UserError
from harness.fetched import MANIFEST, held, manifest_of
from harness.fetching import fetch
from harness.files import write_json
from harness.protocols import names, settle

QDIFF = b"'0000': a dog\n0008: a cat\n"


def archive(entries: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in entries.items():
            packed.writestr(name, content)
    return file.getvalue()


class Server(ThreadingHTTPServer):
    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), Handler)

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        body = self.server.content.get(self.path.strip("/"))
        self.send_response(404 if body is None else 200)
        body = body or b""
        self.send_header("Content-Length", str(len(body) + (7 if "cut" in self.path else 0)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def wanted(server: Server) -> Callable[..., Download]:
    def make(name: str, content: bytes | None, **changed: str) -> Download:
        if content is not None:
            server.content[name] = content
        made = Download("qdiff", server.url(name), "qdiff.yaml", "a licence")
        return replace(made, **changed)

    return make


def quiet(_line: str) -> None:
    pass


def test_a_file_is_fetched_once_with_a_manifest(
    tmp_path: Path, server: Server, wanted: Callable[..., Download]
) -> None:
    download = wanted("q", QDIFF, sha256=hashlib.sha256(QDIFF).hexdigest())
    for _ in range(2):
        fetch([download], tmp_path, quiet)
    assert server.asked == ["/q"]
    assert (tmp_path / "qdiff.yaml").read_bytes() == QDIFF
    assert manifest_of(tmp_path).files == {
        "qdiff.yaml": {
            "dataset": "qdiff",
            "url": server.url("q"),
            "licence": "a licence",
            "bytes": len(QDIFF),
            "sha256": hashlib.sha256(QDIFF).hexdigest(),
        }
    }
    assert held("qdiff", tmp_path) == tmp_path / "qdiff.yaml"
    assert held("mjhq", tmp_path) is None
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [MANIFEST, "qdiff.yaml"]


def test_a_damaged_file_is_noticed_and_fetched_again(
    tmp_path: Path, server: Server, wanted: Callable[..., Download]
) -> None:
    download = wanted("q", QDIFF)
    fetch([download], tmp_path, quiet)
    (tmp_path / "qdiff.yaml").write_bytes(b"other")
    with pytest.raises(UserError, match="is not what was fetched"):
        held("qdiff", tmp_path)
    fetch([download], tmp_path, quiet)
    assert held("qdiff", tmp_path) is not None
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("name", "content", "changed", "message"),
    [
        ("none", None, {}, "cannot be had: 404"),
        ("cut", QDIFF, {}, f"was cut off after {len(QDIFF)} of {len(QDIFF) + 7} bytes"),
        ("other", b"something else", {"sha256": "0" * 64}, "holds another file than expected: sha256"),
        ("local", b"", {"url": "file:///etc/hostname"}, "is neither https nor http"),
        ("zip", b"no archive", {"member": "a"}, "the archive holds no sound a: File is not a zip"),
        ("lacks", archive({"b": b"x"}), {"member": "a"}, "the archive holds no sound a"),
        ("large", b"x" * 2000, {}, "is larger than 1000 bytes"),
        ("bomb", archive({"a": b"x" * 5000}), {"member": "a"}, "is larger than 1000 bytes"),
    ],
)
def test_what_is_refused_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wanted: Callable[..., Download],
    name: str,
    content: bytes | None,
    changed: dict[str, str],
    message: str,
) -> None:
    monkeypatch.setattr(fetching, "LARGEST", 1000)
    with pytest.raises(UserError, match=message):
        fetch([wanted(name, content, **changed)], tmp_path, quiet)
    assert list(tmp_path.iterdir()) == []


def test_names_in_an_archive_decide_nothing(tmp_path: Path, wanted: Callable[..., Download]) -> None:
    folder = tmp_path / "data"
    packed = archive({"../escaped": b"!", "/abs": b"!", "in/q.yaml": QDIFF})
    fetch([wanted("z", packed, member="in/q.yaml")], folder, quiet)
    fetch([wanted("y", packed, member="../escaped", file="inside")], folder, quiet)
    assert (folder / "qdiff.yaml").read_bytes() == QDIFF
    assert sorted(entry.name for entry in folder.iterdir()) == ["inside", MANIFEST, "qdiff.yaml"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]


def test_a_manifest_that_names_files_elsewhere_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / MANIFEST, {"files": {"../x": {"dataset": "qdiff", "sha256": ""}}})
    with pytest.raises(UserError, match="is damaged"):
        held("qdiff", tmp_path)
    (tmp_path / MANIFEST).write_text("{}")
    with pytest.raises(UserError, match="is damaged"):
        held("qdiff", tmp_path)


def test_a_run_finds_what_was_fetched(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    wanted: Callable[..., Download],
) -> None:
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    rows = b"caption\tfile_name\na dog\ta.jpg\n"
    served = {
        "qdiff": wanted("q", QDIFF),
        "coco-mlperf": wanted("m", rows, dataset="coco", file="captions_source.tsv"),
    }
    monkeypatch.setattr(sources, "DOWNLOADS", served)
    assert call(["fetch", "--protocol", "mlperf-sdxl", "--weights", "none"]) == 0
    assert f"manifest: {tmp_path / MANIFEST}" in capsys.readouterr().out
    common = ["run", "--offline", "--dry-run", "--models", "tiny-dit", "--methods", "nf4", "--bits", "4"]
    assert call([*common, "--protocol", "mlperf-sdxl", "--prompts", "1"]) == 0
    assert "1 prompts" in capsys.readouterr().out
    assert call(["fetch", "--protocol", "scenes-default"]) == 2
    assert "needs no download" in capsys.readouterr().err


def test_every_protocol_names_files_that_are_known() -> None:
    wanted = [name for protocol in names() for name in settle(protocol, None).base.fetches]
    assert set(wanted) == set(DOWNLOADS)
    assert all(entry.licence for entry in DOWNLOADS.values())
