"""ImageReward at a reduced size with random weights: a 64-wide vision part and two text layers."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.compat import import_image_reward
from harness.errors import UserError

pytest.importorskip("transformers")
try:
    import_image_reward()
except ModuleNotFoundError:
    pytest.skip("image-reward is not installed", allow_module_level=True)

from harness.metrics.image_reward import image_reward
from harness.metrics.image_reward import load_image_reward as load
from harness.metrics.sources import find

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "circle", "square"]
CONFIG = {
    "architectures": ["BertModel"], "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 256,
    "layer_norm_eps": 1e-12, "max_position_embeddings": 64, "model_type": "bert", "num_attention_heads": 12,
    "num_hidden_layers": 2, "pad_token_id": 0, "add_type_embeddings": False, "vocab_size": 16,
    "encoder_width": 64, "add_cross_attention": True,
}  # fmt: skip


def load_image_reward(folder: Path) -> torch.nn.Module:
    found = find("image-reward", {"image-reward": folder})
    assert found is not None
    return load(found)


@pytest.fixture(autouse=True)
def small_vision(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_vit(*_args: object, **_kwargs: object) -> tuple[torch.nn.Module, int]:
        from ImageReward.models.BLIP.vit import VisionTransformer

        return VisionTransformer(img_size=224, patch_size=32, embed_dim=64, depth=2, num_heads=4), 64

    monkeypatch.setattr(sys.modules["ImageReward.models.BLIP.blip_pretrain"], "create_vit", create_vit)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reward")
    (path / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    (path / "med_config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    return path


def save_random_weights(folder: Path) -> None:
    """Save weights so large that scores respond to prompt and image; the stock ones are too small."""
    torch.save({}, folder / "ImageReward.pt")
    with pytest.raises(UserError, match=r"lacks \d+ weights"):
        load_image_reward(folder)
    package = import_image_reward()
    from harness.metrics.image_reward import local_tokenizer

    torch.manual_seed(0)
    with local_tokenizer(folder):
        model = package.ImageReward(med_config=str(folder / "med_config.json"), device="cpu")
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5 if name.startswith("mlp") else 0.2)
    torch.save(model.state_dict(), folder / "ImageReward.pt")


@pytest.mark.slow
def test_scores_respond_to_prompt_and_image_and_repeat_exactly(folder: Path) -> None:
    save_random_weights(folder)
    model = load_image_reward(folder)
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    images[1] //= 8
    texts = ["a red circle", "a blue square"]
    scores = image_reward(model, images, texts)
    assert np.isfinite(scores).all()
    assert len({*scores, *image_reward(model, images, texts[::-1])}) == 4
    assert scores.tolist() == image_reward(load_image_reward(folder), images, texts).tolist()
    # The formula of the paper's code, step by step.
    from PIL import Image

    with torch.inference_mode():
        tokens = model.blip.tokenizer(texts[0], padding="max_length", max_length=35, return_tensors="pt")
        seen = model.preprocess(Image.fromarray(images[0])).unsqueeze(0)
        raw = model.score_gard(tokens.input_ids, tokens.attention_mask, seen).item()
    assert scores[0] == pytest.approx(raw, rel=1e-5)


@pytest.mark.slow
def test_bad_folders_are_the_users_mistake(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no ImageReward.pt"):
        load_image_reward(tmp_path)
    for name in ("vocab.txt", "med_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    torch.save({"mlp.layers.0.weight": torch.zeros(2, 2)}, tmp_path / "ImageReward.pt")
    with pytest.raises(UserError, match="other shapes"):
        load_image_reward(tmp_path)


@pytest.mark.slow
def test_the_stock_tokenizer_is_put_back(folder: Path) -> None:
    blip = sys.modules["ImageReward.models.BLIP.blip_pretrain"]
    before = blip.init_tokenizer
    with pytest.raises(UserError):
        load_image_reward(folder.parent)
    assert blip.init_tokenizer is before
