"""Checks of the metrics that read images through a network, at reduced size and with random weights.

Where our code drives a library's own network, the expected value is stored: a library that changed would
change both sides of a comparison made on the spot.
"""

from __future__ import annotations

import functools
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from harness.compat import ensure_torchvision, import_image_reward, quiet_imports
from harness.conformance.check import Check
from harness.conformance.inputs import pictures, seed_weights
from harness.metrics.sources import Found, find
from harness.metrics.weights import no_progress_bar

# Root mean square over two pictures of torch-fidelity 0.4.0's Inception-v3 with weights from NumPy; `clean`
# is `pool` after clean-fid's resizing.
_INCEPTION = {
    "pool": 0.3619323034522478,
    "spatial": 0.6440678921226409,
    "logits": 0.5030599170466413,
    "clean": 0.37006792269414746,
}
_TEXTS = ("a cat", "bad dog")


def _found(key: str, folder: Path) -> Found:
    found = find(key, {key: folder})
    if found is None:
        raise RuntimeError(f"{key} was just written")
    return found


@functools.cache
def _inception() -> dict[str, float]:
    """Root mean square of each feature, through our extractors."""
    import torch

    from harness.metrics.extractors.inception import POOL, Inception
    from harness.metrics.extractors.inception_clean import CleanInception

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "inception.pth"
        torch.save(inception_weights(), file)
        found = _found("inception", file)
        features = Inception(found)(pictures(2, 96))
        features["clean"] = CleanInception(found)(pictures(2, 96))[POOL]
    return {name: float(np.sqrt(np.mean(value.astype(np.float64) ** 2))) for name, value in features.items()}


def inception_weights() -> dict[str, Any]:
    """Return random weights for torch-fidelity's Inception-v3, the same on every machine."""
    import io

    import torch

    ensure_torchvision()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Stock

    class Empty(Stock):  # type: ignore[misc]
        """The network before it loads weights."""

        def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
            return None

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    state: dict[str, Any] = seed_weights(Empty("empty", ["2048"], nothing), math.sqrt(2)).state_dict()
    return state


def _of_inception(feature: str) -> tuple[float, float]:
    return _inception()[feature], _INCEPTION[feature]


def write_clip(folder: Path) -> tuple[Any, Any]:
    """Write a small random CLIP of transformers into a folder.

    Returns:
        The model and its tokenizer.
    """
    ensure_torchvision()
    with quiet_imports():
        from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    letters = [chr(c) for c in range(ord("!"), ord("~") + 1)]
    words = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    last = len(words) - 1
    (folder / "vocab.json").write_text(
        json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8"
    )
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    common = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": last - 1, "eos_token_id": last, "pad_token_id": last}
    config = CLIPConfig(
        text_config={**common, **ends, "vocab_size": len(words), "max_position_embeddings": 24},
        vision_config={**common, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    with quiet_imports(), no_progress_bar():
        model = seed_weights(CLIPModel(config))
        model.save_pretrained(folder)
        tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    return model, tokenizer


@functools.cache
def _clip() -> dict[str, tuple[float, float]]:
    """CLIPScore and CLIP-IQA of two pictures: ours, and by transformers' own processor and forward."""
    import torch

    from harness.metrics.clip_iqa import ANCHORS, clip_iqa
    from harness.metrics.clip_score import clip_score
    from harness.metrics.extractors.clip import EMBEDDING, Clip

    images = pictures(2, 40)
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = write_clip(Path(folder))
        ours = Clip(_found("clip", Path(folder)))
        seen = ours(images)[EMBEDDING]
        score = float(clip_score(seen, ours.texts(_TEXTS)).sum())
        iqa = float(clip_iqa(seen, ours.texts(ANCHORS)).sum())
    pixels = _processed(images, 32)
    with torch.inference_mode():

        def cosines(texts: tuple[str, ...]) -> Any:
            tokens = tokenizer(list(texts), padding=True, return_tensors="pt")
            return model(**tokens, pixel_values=pixels).logits_per_image / model.logit_scale.exp()

        theirs = float(100 * cosines(_TEXTS).diagonal().clamp(min=0).sum())
        probabilities = (100 * cosines(ANCHORS)).softmax(dim=1)[:, 0]
    return {"clip_score": (score, theirs), "clip_iqa": (iqa, float(probabilities.sum()))}


def _processed(images: np.ndarray[Any, Any], side: int) -> Any:
    """Pixels by the image processor of transformers that uses Pillow."""
    import transformers
    from PIL import Image

    with quiet_imports():
        newest = getattr(transformers, "CLIPImageProcessorPil", None)
        processor = (newest or transformers.CLIPImageProcessor)(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )
    return processor([Image.fromarray(image) for image in images], return_tensors="pt")["pixel_values"]


def _dinov2() -> tuple[float, float]:
    """The class token of a small random DINOv2: ours, and by transformers' own processor and forward."""
    import torch

    from harness.metrics.extractors.dinov2 import TOKEN, DinoV2
    from harness.metrics.extractors.preprocessing import IMAGENET_MEAN, IMAGENET_STD

    ensure_torchvision()
    with quiet_imports():
        from transformers import Dinov2Config, Dinov2Model

        config = Dinov2Config(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=42, patch_size=14
        )
        model = seed_weights(Dinov2Model(config))
    images = pictures(2, 50)
    with tempfile.TemporaryDirectory() as folder:
        with no_progress_bar():
            model.save_pretrained(folder)
        token = DinoV2(_found("dinov2", Path(folder)), side=28)(images)[TOKEN]
    from harness.metrics.extractors.preprocessing import CLIP_MEAN, CLIP_STD

    # The processors differ in their constants alone.
    pixels = _processed(images, 28) * _column(CLIP_STD) + _column(CLIP_MEAN)
    with torch.inference_mode():
        theirs = model(pixel_values=(pixels - _column(IMAGENET_MEAN)) / _column(IMAGENET_STD)).pooler_output
    probe = np.cos(np.arange(32))
    return float((token @ probe).sum()), float((theirs.numpy() @ probe).sum())


def _column(values: tuple[float, ...]) -> Any:
    import torch

    return torch.tensor(values).view(1, 3, 1, 1)


def _image_reward() -> tuple[float, float]:
    """ImageReward with a 64-wide vision part: our scores, and the package's own forward."""
    import torch
    from PIL import Image

    from harness.metrics.image_reward import image_reward, load_image_reward

    package = import_image_reward()
    images, texts = pictures(2, 64), ["a red circle", "a blue square"]
    with tempfile.TemporaryDirectory() as name, small_vision():
        folder = Path(name)
        write_reward(folder, package)
        model: Any = load_image_reward(_found("image-reward", folder))
    found = image_reward(model, images, texts)
    expected = []
    with torch.inference_mode():
        for text, image in zip(texts, images, strict=True):
            tokens = model.blip.tokenizer(
                text, padding="max_length", truncation=True, max_length=35, return_tensors="pt"
            )
            seen = model.preprocess(Image.fromarray(image)).unsqueeze(0)
            expected.append(model.score_gard(tokens.input_ids, tokens.attention_mask, seen).item())
    return float(found @ [1.0, -2.0]), float(np.dot(expected, [1.0, -2.0]))


def write_reward(folder: Path, package: Any) -> None:
    """Write the files of a small random ImageReward into a folder; call inside `small_vision`."""
    import torch

    from harness.metrics.image_reward import local_tokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "circle", "square"]
    config = {
        "architectures": ["BertModel"], "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 256,
        "layer_norm_eps": 1e-12, "max_position_embeddings": 64, "model_type": "bert",
        "num_attention_heads": 12, "num_hidden_layers": 2, "pad_token_id": 0, "add_type_embeddings": False,
        "vocab_size": 16, "encoder_width": 64, "add_cross_attention": True,
    }  # fmt: skip
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    (folder / "med_config.json").write_text(json.dumps(config), encoding="utf-8")
    with quiet_imports(), local_tokenizer(folder):
        model = package.ImageReward(med_config=str(folder / "med_config.json"), device="cpu")
    torch.save(seed_weights(model).state_dict(), folder / "ImageReward.pt")


@contextmanager
def small_vision() -> Iterator[None]:
    """Let image-reward build a vision part of two layers, where its own has 300 million weights."""
    blip: Any = sys.modules["ImageReward.models.BLIP.blip_pretrain"]
    vit: Any = sys.modules["ImageReward.models.BLIP.vit"]
    stock = blip.create_vit

    def create(*_args: object, **_kwargs: object) -> tuple[Any, int]:
        return vit.VisionTransformer(img_size=224, patch_size=32, embed_dim=64, depth=2, num_heads=4), 64

    blip.create_vit = create
    try:
        yield
    finally:
        blip.create_vit = stock


_STORED = "torch-fidelity 0.4.0 (stored)"

CHECKS = (
    Check("fid", f"Inception's pool features, {_STORED}", functools.partial(_of_inception, "pool")),
    Check(
        "fid_clean",
        f"Inception's features after resizing, {_STORED}",
        functools.partial(_of_inception, "clean"),
    ),
    Check("sfid", f"Inception's spatial features, {_STORED}", functools.partial(_of_inception, "spatial")),
    Check("inception_score", f"Inception's logits, {_STORED}", functools.partial(_of_inception, "logits")),
    Check("fd_dinov2", "transformers, small random DINOv2", _dinov2),
    Check("clip_score", "transformers, small random CLIP", lambda: _clip()["clip_score"]),
    Check("clip_iqa", "transformers, small random CLIP", lambda: _clip()["clip_iqa"]),
    Check("image_reward", "the package's forward, small random network", _image_reward),
)
