"""Captions of scenes in plain English, in several phrasings."""

from __future__ import annotations

import random

from harness.datasets.scenes.world import (
    BACKGROUNDS,
    COLOUR_NAMES,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    SceneObject,
)

_RELATION_PHRASES = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
_AFTER_NOUN = {"striped": "with stripes", "dotted": "with dots"}
_TEMPLATES = {
    1: (
        "{a} on a {background} background",
        "on a {background} background, {a}",
        "a {background} background with {a}",
        "there is {a} on a {background} background",
    ),
    2: (
        "{a} {r} {b} on a {background} background",
        "on a {background} background, {a} is {r} {b}",
        "a {background} background with {a} {r} {b}",
        "there is {a} {r} {b}, on a {background} background",
    ),
    3: (
        "{a} {r} {b} and {c} {s} the {b_short}, on a {background} background",
        "on a {background} background, {a} is {r} {b}, and {c} is {s} the {b_short}",
        "a {background} background with {a} {r} {b} and {c} {s} the {b_short}",
        "there is {a} {r} {b}, and {c} {s} the {b_short}, on a {background} background",
    ),
}


def _noun_phrase(thing: SceneObject, rng: random.Random) -> str:
    """`a small striped red star`, the texture before the colour, after the noun, or unsaid."""
    size, colour, shape = SIZES[thing.size], COLOUR_NAMES[thing.colour], SHAPES[thing.shape]
    texture = TEXTURES[thing.texture]
    spelled_short = rng.random() < 0.5
    if texture == "plain" and spelled_short:
        return f"a {size} {colour} {shape}"
    if texture in _AFTER_NOUN and spelled_short:
        return f"a {size} {colour} {shape} {_AFTER_NOUN[texture]}"
    return f"a {size} {texture} {colour} {shape}"


def caption(scene: Scene, rng: random.Random) -> str:
    """Put a scene into words; `rng` chooses among the phrasings."""
    parts = {name: _noun_phrase(thing, rng) for name, thing in zip("abc", scene.objects, strict=False)}
    for name, (_, relation, _) in zip("rs", scene.relations, strict=False):
        parts[name] = rng.choice(_RELATION_PHRASES[RELATIONS[relation]])
    if len(scene.objects) > 1:
        other = scene.objects[1]
        parts["b_short"] = f"{COLOUR_NAMES[other.colour]} {SHAPES[other.shape]}"
    template = rng.choice(_TEMPLATES[len(scene.objects)])
    return template.format(background=BACKGROUNDS[scene.background], **parts)


def vocabulary() -> tuple[str, ...]:
    """Every word (and the comma) a caption can contain, sorted: what the tokenizers are built from."""
    words = {"a", "the", "on", "with", "there", "is", "and", "background", ","}
    words.update(SHAPES, COLOUR_NAMES, TEXTURES, SIZES, BACKGROUNDS)
    for phrases in (*_RELATION_PHRASES.values(), tuple(_AFTER_NOUN.values())):
        words.update(word for phrase in phrases for word in phrase.split())
    return tuple(sorted(words))
