"""CLIP (Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.compat import ensure_torchvision, quiet_imports
from harness.errors import UserError
from harness.metrics.extractors import BATCH, Arrays
from harness.metrics.extractors.preprocessing import CLIP_MEAN, CLIP_STD, centre_crop, normalise
from harness.metrics.sources import Found
from harness.metrics.weights import load_pretrained

EMBEDDING = "embedding"


class Clip:
    """Unit-length embeddings of images (`embedding`) and of texts, by transformers."""

    version = 1

    def __init__(self, found: Found, device: str = "cpu") -> None:
        """Build both towers; raises UserError when a file is malformed."""
        ensure_torchvision()
        with quiet_imports():
            from transformers import CLIPConfig, CLIPModel

        weights = found.path("model.safetensors", "pytorch_model.bin")
        model = load_pretrained(CLIPModel, CLIPConfig, found.path("config.json"), weights)
        self._model, self._device, self._found = model.to(device), device, found

    def __call__(self, images: NDArray[np.uint8]) -> Arrays:
        """Return the embeddings of uint8 [n, height, width, 3] images, cropped to the centre square."""
        import torch

        side = self._model.config.vision_config.image_size
        pixels = normalise(centre_crop(images, side), CLIP_MEAN, CLIP_STD).to(self._device)
        # The towers one by one: what get_image_features returns depends on the version of transformers.
        with torch.inference_mode():
            pooled = self._model.vision_model(pixel_values=pixels).pooler_output
            return {EMBEDDING: _unit(self._model.visual_projection(pooled))}

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the embeddings of texts, float32 [n, d]; a text is cut at the encoder's length."""
        import torch

        tokenizer = self._tokenizer()
        length = self._model.config.text_config.max_position_embeddings
        parts = []
        for start in range(0, len(texts), BATCH):
            # Padded to the full length, so that a text's embedding does not depend on its neighbours.
            tokens = tokenizer(
                list(texts[start : start + BATCH]),
                padding="max_length", max_length=length, truncation=True, return_tensors="pt",
            ).to(self._device)  # fmt: skip
            with torch.inference_mode():
                pooled = self._model.text_model(**tokens).pooler_output
                parts.append(_unit(self._model.text_projection(pooled)))
        return np.concatenate(parts)

    def _tokenizer(self) -> Any:
        vocabulary = self._found.path("vocab.json")
        return clip_tokenizer(vocabulary.parent, self._model.config.text_config.vocab_size)


def clip_tokenizer(folder: Path, words: int) -> Any:
    """Return the CLIP tokenizer of a folder.

    Raises:
        UserError: it knows other than `words` words. transformers builds an empty tokenizer, and says
            nothing, when it finds no files it can read.
    """
    from transformers import CLIPTokenizer

    with quiet_imports():
        tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    if len(tokenizer) != words:
        raise UserError(f"the tokenizer in {folder.name} knows {len(tokenizer)} words, the encoder {words}")
    return tokenizer


def _unit(rows: Any) -> NDArray[np.float32]:
    """Scale each row to length 1."""
    scaled: NDArray[np.float32] = (rows / rows.norm(dim=-1, keepdim=True)).float().cpu().numpy()
    return scaled
