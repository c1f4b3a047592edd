"""What the world consists of: attributes, scenes and the rule that holds captions out of training."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "heart", "moon", "hourglass")
COLOURS = {
    "red": (220, 40, 40),
    "orange": (245, 135, 25),
    "yellow": (250, 220, 50),
    "lime": (150, 225, 60),
    "green": (30, 140, 60),
    "cyan": (50, 200, 210),
    "blue": (45, 85, 225),
    "purple": (160, 70, 215),
    "pink": (245, 130, 190),
    "brown": (125, 75, 35),
}
TEXTURES = ("plain", "striped", "dotted")
SIZES = ("small", "large")
RELATIONS = ("left", "right", "above", "below")
BACKGROUNDS = ("black", "white", "gray", "navy", "cream", "checkered", "dusk", "misty")

GRID = 3
"""Objects stand on a GRID x GRID arrangement of cells, at most one in each, numbered row by row."""
MAX_OBJECTS = 3
IMAGE_SIZE = 64
HELD_OUT_ONE_IN = 16

COLOUR_NAMES = tuple(COLOURS)
_MASK = (1 << 32) - 1


@dataclass(frozen=True)
class SceneObject:
    """One object: indices into SHAPES, COLOUR_NAMES, TEXTURES and SIZES, and the cell it stands in."""

    shape: int
    colour: int
    texture: int
    size: int
    cell: int

    @property
    def attributes(self) -> tuple[int, int, int, int]:
        """(shape, colour, texture, size) indices."""
        return (self.shape, self.colour, self.texture, self.size)

    @property
    def code(self) -> int:
        """The attributes as one number in 0 ... 599."""
        return ((self.shape * len(COLOURS) + self.colour) * len(TEXTURES) + self.texture) * len(
            SIZES
        ) + self.size


@dataclass(frozen=True)
class Scene:
    """One to three objects and a background.

    Attributes:
        objects: one to MAX_OBJECTS objects, pairwise different in (shape, colour).
        relations: triples (i, relation, j), read "object i is RELATION object j"; indices into `objects`
            and RELATIONS.
        background: index into BACKGROUNDS.
    """

    objects: tuple[SceneObject, ...]
    relations: tuple[tuple[int, int, int], ...]
    background: int

    @property
    def held_out(self) -> bool:
        """Whether captions of this content are kept out of training (order and relations do not matter)."""
        return content_hash([o.code for o in self.objects], self.background) % HELD_OUT_ONE_IN == 0

    def facts(self) -> dict[str, Any]:
        """What an image of the scene must show, by name, as JSON types."""
        return {
            "objects": [
                [SHAPES[o.shape], COLOUR_NAMES[o.colour], TEXTURES[o.texture], SIZES[o.size]]
                for o in self.objects
            ],
            "relations": [[i, RELATIONS[r], j] for i, r, j in self.relations],
            "background": BACKGROUNDS[self.background],
        }


def _mix(x: int) -> int:
    """Scramble a 32-bit number (a multiply-xorshift finaliser: every input bit reaches every output bit)."""
    x &= _MASK
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def content_hash(codes: Sequence[int], background: int) -> int:
    """Hash the objects of a scene (in any order) and its background to 32 bits."""
    return _mix(sum(_mix(code + 1) for code in codes) + _mix(1000 + background))


def holds(relation: int, cell: int, other: int) -> bool:
    """Whether an object in `cell` is RELATIONS[relation] of one in `other`: same row or same column only."""
    row, column = divmod(cell, GRID)
    other_row, other_column = divmod(other, GRID)
    if RELATIONS[relation] == "left":
        return row == other_row and column < other_column
    if RELATIONS[relation] == "right":
        return row == other_row and column > other_column
    if RELATIONS[relation] == "above":
        return column == other_column and row < other_row
    return column == other_column and row > other_row


_CELLS = range(GRID * GRID)
_PAIRS = {r: [(a, b) for a in _CELLS for b in _CELLS if holds(r, a, b)] for r in range(len(RELATIONS))}
_TRIPLES = {
    (r, s): [(a, b, c) for a, b in _PAIRS[r] for c in _CELLS if c != a and holds(s, c, b)]
    for r in range(len(RELATIONS))
    for s in range(len(RELATIONS))
}


def _sample_cells(rng: random.Random, count: int) -> tuple[list[int], tuple[tuple[int, int, int], ...]]:
    """Draw the cells of `count` objects, and the relations a caption will state about them."""
    if count == 1:
        return [rng.randrange(GRID * GRID)], ()
    first = rng.randrange(len(RELATIONS))
    if count == 2:
        return list(rng.choice(_PAIRS[first])), ((0, first, 1),)
    second = rng.choice([s for s in range(len(RELATIONS)) if _TRIPLES[first, s]])
    return list(rng.choice(_TRIPLES[first, second])), ((0, first, 1), (2, second, 1))


def sample_scene(rng: random.Random) -> Scene:
    """Draw a scene: one object with probability 0.2, two with 0.4, three with 0.4."""
    count = rng.choices((1, 2, 3), weights=(1, 2, 2))[0]
    cells, relations = _sample_cells(rng, count)
    kinds = rng.sample(range(len(SHAPES) * len(COLOURS)), count)
    objects = tuple(
        SceneObject(
            kind // len(COLOURS),
            kind % len(COLOURS),
            rng.randrange(len(TEXTURES)),
            rng.randrange(len(SIZES)),
            cell,
        )
        for kind, cell in zip(kinds, cells, strict=True)
    )
    return Scene(objects, relations, rng.randrange(len(BACKGROUNDS)))


def scenes(seed: str, held_out: bool) -> Iterator[Scene]:
    """Yield scenes without end, all held out of training or all not, in an order fixed by `seed`."""
    rng = random.Random(seed)
    while True:
        scene = sample_scene(rng)
        if scene.held_out == held_out:
            yield scene
