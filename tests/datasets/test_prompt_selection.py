"""Selection, seeds and noise against independent computations of the published rules."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.datasets import registry
from harness.datasets.classes import Classes
from harness.datasets.contract import Prompt
from harness.datasets.selection import calibration_of, order, rolling_hash, seeded, select
from harness.errors import UserError
from harness.noise import initial_latents, prompt_generators, prompt_seed

SHUFFLED = "shuffled by Random(0)"


def folded(name: str) -> int:
    """The rolling hash as one sum: the last of n characters counts once, the first 31^(n-1) times."""
    weights = (31**power for power in reversed(range(len(name))))
    return sum(ord(character) * weight for character, weight in zip(name, weights, strict=True)) % (10**9 + 7)


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({f"name-{index}": f"text {index}" for index in range(40)}))
    return path


@given(st.text(max_size=60))
def test_rolling_hash_is_the_polynomial(name: str) -> None:
    assert rolling_hash(name) == folded(name)


def test_rolling_hash_of_known_names() -> None:
    assert rolling_hash("") == 0
    assert rolling_hash("ab") == 31 * 97 + 98


@pytest.mark.parametrize("n", [1, 7, 40])
def test_shuffled_selection_is_the_published_rule(listed: Path, n: int) -> None:
    names = [f"name-{index}" for index in range(40)]
    random.Random(0).shuffle(names)
    chosen = seeded(select(registry.get("file"), n, SHUFFLED, listed), "rolling hash", 12345)
    assert sorted(prompt.id for prompt in chosen) == sorted(names[:n])
    assert [prompt.id for prompt in chosen] == names[:n]
    assert {prompt.id: prompt_seed(prompt, 7) for prompt in chosen} == {
        name: folded(name) for name in names[:n]
    }


@pytest.mark.parametrize("selection", ["nesting order", SHUFFLED])
def test_a_smaller_selection_is_the_head_of_a_larger_one(listed: Path, selection: str) -> None:
    found = registry.get("file")
    whole = select(found, 40, selection, listed)
    assert len({prompt.id for prompt in whole}) == 40
    for n in range(1, 40):
        assert select(found, n, selection, listed) == whole[:n]


def test_calibration_comes_from_the_other_end(listed: Path) -> None:
    found = registry.get("file")
    calibrated = {prompt.id for prompt in calibration_of(found, 10, SHUFFLED, listed)}
    assert len(calibrated) == 10
    assert calibrated.isdisjoint(prompt.id for prompt in select(found, 30, SHUFFLED, listed))
    assert len(calibrated & {prompt.id for prompt in select(found, 31, SHUFFLED, listed)}) == 1


def test_selection_refuses_more_than_there_is(listed: Path) -> None:
    for selection in ("nesting order", SHUFFLED):
        with pytest.raises(UserError, match="file has 40 prompts, not 41"):
            select(registry.get("file"), 41, selection, listed)
    with pytest.raises(UserError, match="did you mean nesting order"):
        order(registry.get("file"), "nesting ordr", listed)
    with pytest.raises(UserError, match="did you mean rolling hash"):
        seeded([], "roling hash", 0)


def test_seed_rules() -> None:
    prompts = [Prompt("a", "same"), Prompt("b", "same")]
    assert seeded(prompts, "sha256", 5) == prompts
    assert [prompt_seed(prompt, 5) for prompt in seeded(prompts, "shared", 5)] == [5, 5]
    assert [prompt_seed(p, 5) for p in seeded(prompts, "rolling hash", 5)] == [ord("a"), ord("b")]
    assert len({prompt_seed(prompt, 5) for prompt in prompts}) == 2
    assert Prompt("a", "same").identity() == ["a", "same"]
    assert Prompt("a", "same", seed=0).identity() == ["a", "same", 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_noise_is_what_a_pipeline_would_draw_itself(dtype: torch.dtype) -> None:
    prompts = seeded([Prompt("000000397133", "x"), Prompt("000000037777", "y")], "rolling hash", 0)
    ours = initial_latents(prompt_generators(prompts, 0), (4, 16, 16)).to(dtype)
    for prompt, latents in zip(prompts, ours, strict=True):
        generator = torch.Generator("cpu").manual_seed(folded(prompt.id))
        assert torch.equal(latents, torch.randn((1, 4, 16, 16), generator=generator, dtype=dtype)[0])


def test_classes_come_evenly() -> None:
    prompts = Classes().prompts(50_000)
    labels = [prompt.facts["class"] for prompt in prompts]
    assert len({prompt.id for prompt in prompts}) == 50_000
    assert all(labels[start : start + 1000] == list(range(1000)) for start in range(0, 50_000, 1000))
    with pytest.raises(UserError, match="classes has 50000 prompts, not 50001"):
        Classes().prompts(50_001)
    calibrated = [prompt.facts["class"] for prompt in Classes().calibration(8)]
    assert calibrated == [0, 125, 250, 375, 500, 625, 750, 875]


def test_unconditional_prompts_differ_by_their_noise_alone() -> None:
    found = registry.get("unconditional")
    prompts = [*found.prompts(5), *(found.calibration(5) or [])]
    assert {prompt.text for prompt in prompts} == {""}
    assert len({prompt_seed(prompt, 0) for prompt in prompts}) == 10
    with pytest.raises(UserError, match="unconditional has 1000000"):
        found.prompts(1_000_001)


REAL = Path(os.environ.get("HARNESS_PROMPTS", "no folder given"))


@pytest.mark.skipif(not REAL.is_dir(), reason="HARNESS_PROMPTS names no folder of the published files")
class TestPublishedFiles:
    """The real files, by code that shares nothing with the readers."""

    def test_coco_val2017(self) -> None:
        path = REAL / "coco_captions_val2017.json"
        data = json.loads(path.read_bytes())
        captions: dict[int, list[str]] = {}
        for annotation in data["annotations"]:
            captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
        number = {image["file_name"].removesuffix(".jpg"): image["id"] for image in data["images"]}
        assert (len(number), sum(map(len, captions.values()))) == (5000, 25_014)
        names = list(number)
        random.Random(0).shuffle(names)
        for n in (1024, 5000):
            wanted = {}
            for name in sorted(names[:n]):
                of_image = captions[number[name]]
                wanted[name] = (of_image[folded(name) % len(of_image)].strip(), folded(name))
            chosen = seeded(select(registry.get("coco"), n, SHUFFLED, path), "rolling hash", 12345)
            assert {prompt.id: (prompt.text, prompt.seed) for prompt in chosen} == wanted

    @pytest.mark.parametrize(
        ("name", "file", "count", "different"),
        [
            ("coco", "mlperf_captions_source.tsv", 5000, 4965),
            ("parti", "PartiPrompts.tsv", 1632, 1632),
            ("qdiff", "qdiff.yaml", 1024, 1023),
        ],
    )
    def test_counts(self, name: str, file: str, count: int, different: int) -> None:
        prompts = registry.get(name).prompts(count, REAL / file)
        assert registry.get(name).count(REAL / file) == count
        assert len({prompt.text for prompt in prompts}) == different
        assert len({prompt.id for prompt in prompts}) == count

    def test_parti_categories(self) -> None:
        prompts = registry.get("parti").prompts(1632, REAL / "PartiPrompts.tsv")
        slices = [prompt.slice for prompt in prompts]
        assert len(set(slices)) == 12
        assert (slices.count("Animals"), slices.count("Indoor Scenes")) == (314, 40)
