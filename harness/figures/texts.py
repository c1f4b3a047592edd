"""Figures of an image by itself or with its prompt: CLIPScore, CLIP-IQA, ImageReward."""

from __future__ import annotations

from itertools import islice

from harness.figures.base import CellData, Figure, absent, mean
from harness.metrics.clip_iqa import ANCHORS, clip_iqa
from harness.metrics.clip_score import clip_score
from harness.metrics.extractors import BATCH
from harness.metrics.extractors.clip import EMBEDDING, Clip
from harness.metrics.image_reward import image_reward, load_image_reward
from harness.metrics.sources import missing_note
from harness.metrics.weights import check_published


def clip_figures(data: CellData) -> dict[str, Figure]:
    """CLIPScore and CLIP-IQA, of one pass through CLIP."""
    found = data.find("clip")
    if found is None:
        return dict.fromkeys(("clip_score", "clip_iqa"), absent(missing_note("clip")))
    note = check_published(found)
    images = data.store.features(Clip, Clip.version, found, data.pictures)[EMBEDDING]
    model = Clip(found, data.device)
    texts = model.texts([prompt.text for prompt in data.prompts])
    return {
        "clip_score": mean(clip_score(images, texts), note),
        "clip_iqa": mean(clip_iqa(images, model.texts(ANCHORS)), note, most=1.0),
    }


def reward_figures(data: CellData) -> dict[str, Figure]:
    """ImageReward."""
    found = data.find("image-reward")
    if found is None:
        return {"image_reward": absent(missing_note("image-reward"))}
    note = check_published(found)
    try:
        model = load_image_reward(found, data.device)
    except ModuleNotFoundError:
        return {
            "image_reward": absent("n/a: image-reward is not installed: pip install lowbit-harness[reward]")
        }
    texts = iter([prompt.text for prompt in data.prompts])
    runs = data.pictures.runs(BATCH)
    scores = [score for run in runs for score in image_reward(model, run, list(islice(texts, len(run))))]
    return {"image_reward": mean(scores, note)}
