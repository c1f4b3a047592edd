"""Scenes, captions and the prompt set, against an independent reading of the English."""

from __future__ import annotations

import random
import re
from itertools import islice, pairwise

import pytest

from harness.datasets.registry import get, names
from harness.datasets.scenes.grammar import caption, vocabulary
from harness.datasets.scenes.world import (
    BACKGROUNDS,
    COLOUR_NAMES,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    SceneObject,
    content_hash,
    holds,
    scenes,
)
from harness.errors import UserError

WORDS = {
    "left": "left",
    "right": "right",
    "above": "above",
    "over": "above",
    "below": "below",
    "under": "below",
}
NOUN = re.compile(
    r"a (small|large) (?:(plain|striped|dotted) )?(\w+) "
    rf"({'|'.join(SHAPES)})(?: with (stripes|dots)\b)?"
)


def understand(text: str) -> dict[str, object]:
    """Read a caption back with regular expressions that share nothing with the grammar's templates."""
    objects, spans = [], []
    for found in NOUN.finditer(text):
        size, before, colour, shape, after = found.groups()
        texture = before or {"stripes": "striped", "dots": "dotted", None: "plain"}[after]
        objects.append([shape, colour, texture, size])
        spans.append(found.span())
    words = []
    for (_, end), (start, _) in pairwise(spans):
        words.append(re.findall(r"\b(left|right|above|over|below|under)\b", text[end:start]))
    relations: list[list[object]] = []
    if len(objects) > 1:
        relations.append([0, WORDS[words[0][0]], 1])
    if len(objects) == 3:
        (tail,) = re.findall(r"\b(left|right|above|over|below|under)\b", text[spans[2][1] :])
        colour, shape = re.search(
            r"the (\w+) (\w+)", text[spans[2][1] :].replace("the left of ", "").replace("the right of ", "")
        ).groups()  # type: ignore[union-attr]
        assert [shape, colour] == objects[1][:2]
        relations.append([2, WORDS[tail], 1])
    (background,) = re.findall(rf"\b({'|'.join(BACKGROUNDS)}) background", text)
    return {"objects": objects, "relations": relations, "background": background}


def test_a_caption_says_exactly_the_facts() -> None:
    rng = random.Random(1)
    for scene in islice(scenes("facts", held_out=False), 600):
        text = caption(scene, rng)
        assert understand(text) == scene.facts(), text


def test_every_word_of_a_caption_is_in_the_vocabulary_and_every_word_of_it_is_used() -> None:
    rng, seen = random.Random(2), set()
    for scene in islice(scenes("words", held_out=False), 1500):
        seen.update(caption(scene, rng).replace(",", " ,").split())
    assert seen == set(vocabulary())


def test_stated_relations_hold_and_no_cell_is_used_twice() -> None:
    for scene in islice(scenes("relations", held_out=True), 400):
        cells = [thing.cell for thing in scene.objects]
        assert len(set(cells)) == len(cells)
        kinds = {(thing.shape, thing.colour) for thing in scene.objects}
        assert len(kinds) == len(cells)
        for i, relation, j in scene.relations:
            assert holds(relation, cells[i], cells[j])


@pytest.mark.parametrize("relation", range(len(RELATIONS)))
def test_relations_are_those_of_positions_on_the_grid(relation: int) -> None:
    step = {"left": (0, -1), "right": (0, 1), "above": (-1, 0), "below": (1, 0)}[RELATIONS[relation]]
    for cell in range(9):
        for other in range(9):
            dy, dx = cell // 3 - other // 3, cell % 3 - other % 3
            expected = (dy, dx) in [(step[0] * k, step[1] * k) for k in (1, 2)]
            assert holds(relation, cell, other) == expected


def test_the_world_is_as_rich_as_promised() -> None:
    assert len(SHAPES) >= 10
    assert len(COLOUR_NAMES) >= 10
    assert (len(TEXTURES), len(SIZES)) == (3, 2)
    assert len(RELATIONS) >= 4
    assert len(BACKGROUNDS) >= 8
    counts = [len(scene.objects) for scene in islice(scenes("counts", held_out=False), 3000)]
    shares = [counts.count(k) / 3000 for k in (1, 2, 3)]
    assert shares == pytest.approx([0.2, 0.4, 0.4], abs=0.03)


def test_content_is_held_out_whatever_the_order_and_relations() -> None:
    codes = [17, 301, 555]
    assert content_hash(codes, 3) == content_hash([555, 17, 301], 3)
    assert content_hash(codes, 3) != content_hash(codes, 4)
    things = (SceneObject(1, 2, 0, 1, 0), SceneObject(3, 4, 2, 0, 1))
    moved = tuple(SceneObject(*thing.attributes, cell) for thing, cell in zip(things, (8, 5), strict=True))
    assert Scene(things, ((0, 0, 1),), 2).held_out == Scene(moved[::-1], ((0, 3, 1),), 2).held_out


def test_about_one_scene_in_sixteen_is_held_out() -> None:
    rng = random.Random(3)
    draws = [
        content_hash([rng.randrange(600) for _ in range(rng.randint(1, 3))], rng.randrange(8))
        for _ in range(8000)
    ]
    assert sum(value % 16 == 0 for value in draws) / 8000 == pytest.approx(1 / 16, abs=0.01)


def test_prompts_nest_and_are_disjoint_from_calibration() -> None:
    prompts = get("scenes").prompts(120)
    assert get("scenes").prompts(50) == prompts[:50]
    assert len({prompt.text for prompt in prompts}) == len({prompt.id for prompt in prompts}) == 120
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", prompt.id) for prompt in prompts)

    def content(facts: dict[str, list[list[str]]]) -> tuple[object, ...]:
        return (tuple(sorted(map(tuple, facts["objects"]))), facts["background"])

    calibration = get("scenes").calibration(120)
    assert not {content(p.facts) for p in prompts} & {content(p.facts) for p in calibration}


def test_more_prompts_than_there_are_is_refused_at_once() -> None:
    with pytest.raises(UserError, match="scenes has 50000 prompts, not 100000000"):
        get("scenes").prompts(100_000_000)


def test_an_unknown_set_is_answered_with_the_nearest() -> None:
    assert "scenes" in names()
    with pytest.raises(UserError, match="did you mean scenes"):
        get("scene")
