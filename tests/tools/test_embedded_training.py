"""Training of the embedded models: text, labels, averages, and going on after an interruption."""

import math
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import train_embedded
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from embedded import parts
from embedded.captions import CHUNK, captioned_scenes, scene_labels, tokenized, training_scenes
from embedded.checkpoint import Batches, Progress
from embedded.comprehension import Comprehension, noun_ids
from embedded.run import SMOKE, Limit, Run, Settings
from embedded.training import Ema, Recipe, optimise, warmed_cosine
from harness.datasets.scenes.grammar import caption, vocabulary
from harness.datasets.scenes.prompts import Scenes
from harness.datasets.scenes.render import SceneBatch, batch_scenes
from harness.datasets.scenes.world import (
    BACKGROUNDS,
    COLOUR_NAMES,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
)
from harness.models import registry
from harness.models.locate import locate

CPU = torch.device("cpu")
TOKENIZERS: dict[str, Callable[[], Any]] = {"clip": parts.clip_tokenizer, "t5": parts.t5_tokenizer}


@cache
def tokenizer(kind: str) -> Any:
    return TOKENIZERS[kind]()


@cache
def captioned(n: int = 2000) -> tuple[list[Scene], list[str]]:
    rng = random.Random("test phrasing")
    drawn = training_scenes("test", n)
    return drawn, [caption(scene, rng) for scene in drawn]


# ---------------------------------------------------------------- tokenizers


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_each_word_of_a_caption_is_one_token(kind: str) -> None:
    _, texts = captioned()
    made = tokenizer(kind)
    for text in texts[:300]:
        words = text.replace(",", " ,").split()
        pieces = [piece.replace("</w>", "").replace("▁", "") for piece in made.tokenize(text)]
        assert pieces == words


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_check_tokenizer_accepts_the_grammar_and_nothing_less(kind: str, monkeypatch: Any) -> None:
    parts.check_tokenizer(tokenizer(kind))
    monkeypatch.setattr(parts, "vocabulary", lambda: (*vocabulary(), "rhododendron"))
    with pytest.raises(ValueError, match="not one token"):
        parts.check_tokenizer(tokenizer(kind))


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_captions_fit_and_come_back(kind: str) -> None:
    _, texts = captioned()
    made = tokenizer(kind)
    ids = made(texts).input_ids
    assert max(map(len, ids)) <= parts.TEXT_LENGTH == made.model_max_length
    back = [made.decode(row, skip_special_tokens=True).replace(" ,", ",").strip() for row in ids[:300]]
    assert back == texts[:300]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_tokenizing_in_parts_gives_what_the_tokenizer_gives_caption_by_caption(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedded.captions.CHUNK", 7)
    texts = ["", *captioned()[1][:15]]
    ids, mask = tokenized(tokenizer(kind), texts)
    assert ids.shape == mask.shape == (16, parts.TEXT_LENGTH)
    for row, kept, text in zip(ids, mask, texts, strict=True):
        alone = tokenizer(kind)(text).input_ids
        assert row[: len(alone)].tolist() == alone
        assert kept.tolist() == [i < len(alone) for i in range(parts.TEXT_LENGTH)]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_text_outside_the_grammar_still_encodes(kind: str) -> None:
    text = "two zebras; 47 hourglasses"
    made = tokenizer(kind)
    ids = made(text).input_ids
    assert made.unk_token_id not in ids[1:-1]
    assert made.decode(ids, skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")


# ---------------------------------------------------------------- what a text encoder must read


def labels_of(scene: Scene) -> list[list[int]]:
    """Attributes and stated relations, from the scene's facts alone."""
    facts = scene.facts()
    rows = [
        [SHAPES.index(s), COLOUR_NAMES.index(c), TEXTURES.index(t), SIZES.index(z), 0, 0, 0, 0]
        for s, c, t, z in facts["objects"]
    ]
    converse = {"left": "right", "right": "left", "above": "below", "below": "above"}
    for i, relation, j in facts["relations"]:
        rows[i][4 + RELATIONS.index(relation)] = 1
        rows[j][4 + RELATIONS.index(converse[relation])] = 1
    return rows


def test_labels_are_the_facts_of_the_scene() -> None:
    drawn, _ = captioned()
    labels = scene_labels(batch_scenes(drawn, "jitter"))
    assert labels.shape == (len(drawn), 3, 8)
    for scene, found in zip(drawn, labels.tolist(), strict=True):
        n = len(scene.objects)
        assert found[:n] == labels_of(scene)
        assert all(row[0] == len(SHAPES) and row[4:] == [0] * 4 for row in found[n:])


def test_slots_point_at_the_nouns_in_order_of_mention() -> None:
    drawn, texts = captioned()
    t5 = tokenizer("t5")
    ids = t5(texts, padding="max_length", return_tensors="pt").input_ids
    slots = Comprehension(False, noun_ids(t5)).slots(ids)
    for scene, row, places in zip(drawn, ids, slots, strict=True):
        words = [t5.decode([int(row[place])]).strip() for place in places[: len(scene.objects)]]
        assert words == [SHAPES[thing.shape] for thing in scene.objects]
        present = places[: len(scene.objects)].tolist()
        assert present == sorted(set(present))


def test_a_causal_encoder_is_read_behind_the_end() -> None:
    _, texts = captioned()
    clip = tokenizer("clip")
    ids = clip(texts, padding="max_length", return_tensors="pt").input_ids
    slots = Comprehension(True, noun_ids(clip)).slots(ids)
    lengths = torch.tensor([len(row) for row in clip(texts).input_ids])
    assert slots.shape == (len(texts), 3)
    assert bool((slots >= lengths[:, None]).all())
    assert slots[0].tolist() == [45, 46, 47]


@pytest.mark.parametrize("causal", [True, False])
def test_comprehension_of_a_blank_head_is_chance(causal: bool) -> None:
    drawn, texts = captioned(64)
    made = tokenizer("clip" if causal else "t5")
    ids = made(texts, padding="max_length", return_tensors="pt").input_ids
    head = Comprehension(causal, noun_ids(made))
    nn.init.zeros_(head.head.weight)
    nn.init.zeros_(head.head.bias)
    use = torch.arange(64) % 2 == 0
    states = torch.ones(64, parts.TEXT_LENGTH, parts.TEXT_WIDTH)
    states[~use] = math.nan
    loss = head(states, ids, scene_labels(batch_scenes(drawn, "jitter")), use)
    chance = math.log(11) + math.log(10) + math.log(3) + math.log(2) + 4 * math.log(2)
    assert loss.item() == pytest.approx(chance, rel=1e-5)


# ---------------------------------------------------------------- training split


def contents(batch: SceneBatch) -> list[tuple[frozenset[tuple[str, ...]], str]]:
    """Objects and background of each scene, by name."""
    found: list[tuple[frozenset[tuple[str, ...]], str]] = []
    for i in range(len(batch)):
        things: frozenset[tuple[str, ...]] = frozenset(
            (
                SHAPES[int(batch.shape[i, k])],
                COLOUR_NAMES[int(batch.colour[i, k])],
                TEXTURES[int(batch.texture[i, k])],
                SIZES[int(batch.size[i, k])],
            )
            for k in range(3)
            if batch.shape[i, k] >= 0
        )
        found.append((things, BACKGROUNDS[int(batch.background[i])]))
    return found


def test_training_never_sees_a_held_out_scene() -> None:
    texts, batch = captioned_scenes(CHUNK + 10)
    assert len(texts) == len(batch) == CHUNK + 10
    trained = contents(batch)
    asked = [
        (frozenset(tuple(thing) for thing in prompt.facts["objects"]), prompt.facts["background"])
        for prompt in Scenes().prompts(2000)
    ]
    # One object on one background leaves 4,800 possibilities: without a split dozens would be shared.
    assert sum(len(things) == 1 for things, _ in trained) > 500
    assert not set(trained) & set(asked)
    for text, (things, background) in zip(texts, trained, strict=True):
        assert background in text.split()
        assert all(f"{colour} {shape}" in text for shape, colour, _, _ in things)


# ---------------------------------------------------------------- optimisation


def test_ema_of_a_step_has_a_closed_form() -> None:
    layer = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(layer.weight, 3.0)
    ema = Ema([layer], decay=0.4)
    nn.init.constant_(layer.weight, 7.0)
    for _ in range(6):
        ema.update()
    # The warm-up (1 + n) / (10 + n) passes 0.4 at n = 5.
    kept = (2 / 11) * (3 / 12) * (4 / 13) * (5 / 14) * 0.4 * 0.4
    assert ema.shadow[0].item() == pytest.approx(7 + (3 - 7) * kept, rel=1e-12)
    ema.swap()
    assert layer.weight.item() == pytest.approx(7 - 4 * kept, rel=1e-12)
    ema.swap()
    assert layer.weight.item() == 7.0


def test_learning_rate_rises_then_falls() -> None:
    assert warmed_cosine(Progress(10_000, 0)) == 1 / 200
    assert warmed_cosine(Progress(10_000, 99)) == 0.5
    assert warmed_cosine(Progress(10_000, 5000)) == pytest.approx(0.501)
    assert warmed_cosine(Progress(10_000, 10_000)) == pytest.approx(0.001)


def test_batches_cover_an_epoch_and_go_on_from_a_state() -> None:
    batches = Batches(23, 4, 5, CPU)
    epochs = [torch.cat([next(batches) for _ in range(5)]) for _ in range(2)]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 20
        assert set(epoch.tolist()) <= set(range(23))
    assert epochs[0].tolist() != epochs[1].tolist()
    for taken in (3, 2):
        for _ in range(taken):
            next(batches)
        state = batches.get_state()
        wanted = [next(batches).tolist() for _ in range(12)]
        other = Batches(23, 4, 99, CPU)
        other.set_state(state)
        assert [next(other).tolist() for _ in range(12)] == wanted


class MachineGoneError(Exception):
    """The machine went away."""


class Toy:
    """A regression whose loss draws from every kind of stream and whose model has a buffer."""

    def __init__(self, seed: int, fail_at: int = -1) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))
        self.generator = torch.Generator().manual_seed(seed)
        self.order = Batches(30, 8, seed, CPU)
        self.inputs = torch.linspace(-1, 1, 120).view(30, 4)
        self.calls, self.fail_at = 0, fail_at

    def loss(self) -> Tensor:
        if self.calls == self.fail_at:
            raise MachineGoneError
        self.calls += 1
        inputs = self.inputs[next(self.order)]
        noise = 0.1 * torch.randn(inputs.shape, generator=self.generator)
        return F.mse_loss(self.model(inputs + noise), inputs.sum(1, keepdim=True))

    def train(self, run: Run, limit: Limit) -> dict[str, Any]:
        recipe = Recipe("toy", limit, 0.02, 0.9)
        return optimise(run, recipe, [self.model], self.loss, [self.generator, self.order])


LIMIT = Limit(60, 1e6, settle=2)


def make_run(folder: Path, settings: Settings = SMOKE) -> Run:
    folder.mkdir(exist_ok=True)
    return Run(folder, settings, CPU, False, checkpoint_seconds=0.0)


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return all(torch.equal(left[name], right[name]) for name in left)


def test_an_interrupted_training_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = Toy(1)
    figures = whole.train(make_run(tmp_path / "whole"), LIMIT)
    assert whole.calls == figures["steps"] == 60

    run = make_run(tmp_path / "cut")
    with pytest.raises(MachineGoneError):
        Toy(1, fail_at=41).train(run, LIMIT)
    resumed = Toy(2)
    assert not same(resumed.model, whole.model)
    assert resumed.train(run, LIMIT) == figures
    assert resumed.calls == 60 - 41
    assert same(resumed.model, whole.model)

    # Interrupted after the optimisation but before its weights were saved: nothing is trained again.
    finished = Toy(3)
    finished.train(run, LIMIT)
    assert finished.calls == 0
    assert same(finished.model, whole.model)


def test_a_checkpoint_made_with_other_settings_is_not_used(tmp_path: Path) -> None:
    Toy(1).train(make_run(tmp_path), LIMIT)
    toy = Toy(1)
    toy.train(make_run(tmp_path, Settings()), LIMIT)
    assert toy.calls == 60


def test_training_stops_when_its_time_is_over(tmp_path: Path) -> None:
    toy = Toy(1)
    assert toy.train(make_run(tmp_path), Limit(60, 0.0, settle=5))["steps"] == toy.calls == 10


# ---------------------------------------------------------------- stages


def test_weights_are_noted_before_they_are_measured(tmp_path: Path, monkeypatch: Any) -> None:
    run, trained = make_run(tmp_path), []

    def train(run: Run) -> None:
        trained.append(run)
        run.checkpoint_path("unet").write_bytes(b"state")
        run.checkpoint_path("unet", "text").write_bytes(b"state")
        run.note("unet", {"seconds": 5.0, "steps": 4})

    def vanish(run: Run) -> dict[str, Any]:
        raise MachineGoneError

    stage = train_embedded.Stage(train, vanish, "accuracy")
    monkeypatch.setitem(train_embedded.STAGES, "unet", stage)
    with pytest.raises(MachineGoneError):
        train_embedded.run_stage(run, "unet")
    assert run.noted("unet") == {"seconds": 5.0, "steps": 4}
    assert [path.name for path in tmp_path.iterdir()] == ["unet.json"]

    monkeypatch.setitem(train_embedded.STAGES, "unet", stage._replace(measure=lambda run: {"accuracy": 0.9}))
    train_embedded.run_stage(run, "unet")
    monkeypatch.setitem(train_embedded.STAGES, "unet", stage)
    train_embedded.run_stage(run, "unet")
    noted = run.noted("unet")
    assert noted is not None
    assert (noted["accuracy"], noted["steps"]) == (0.9, 4)
    assert len(trained) == 1


# ---------------------------------------------------------------- what ships


@pytest.mark.parametrize(
    ("model", "part", "build"),
    [("tiny-unet", "unet", parts.unet), ("tiny-dit", "transformer", parts.dit)],
)
def test_shipped_denoisers_have_the_trained_architecture(model: str, part: str, build: Any) -> None:
    card = registry.get(model)
    file = Path(locate(card, {})) / part / "diffusion_pytorch_model.safetensors"
    with safe_open(file, "pt") as weights:
        shipped = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    assert shipped == {name: tuple(value.shape) for name, value in build().state_dict().items()}
