"""ImageReward (Xu et al., "ImageReward: Learning and Evaluating Human Preferences", NeurIPS 2023).

The weights are `ImageReward.pt`, `med_config.json`, and the files of the `bert-base-uncased` tokenizer: a
folder the user supplies, or the hub's cache. Nothing is downloaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.compat import import_image_reward, quiet_imports
from harness.errors import UserError
from harness.metrics.sources import Found
from harness.metrics.weights import load_tensors

if TYPE_CHECKING:
    from torch import nn


def load_image_reward(found: Found, device: str = "cpu") -> nn.Module:
    """Build the reward model from its files.

    Args:
        found: `ImageReward.pt`, `med_config.json` and `vocab.txt`, beside the tokenizer's other files.
        device: to compute on.

    Raises:
        UserError: a file is malformed, or lacks weights of the model.
        ModuleNotFoundError: image-reward is not installed.
    """
    package = import_image_reward()
    with quiet_imports(), local_tokenizer(found.path("vocab.txt").parent):
        model: nn.Module = package.ImageReward(med_config=str(found.path("med_config.json")), device=device)
    state = load_tensors(found.path("ImageReward.pt"))
    try:
        missing = model.load_state_dict(state, strict=False).missing_keys
    except RuntimeError as error:
        raise UserError("ImageReward.pt holds weights of other shapes than med_config.json says") from error
    # Position indices are constants that newer transformers no longer store.
    missing = [name for name in missing if not name.endswith("position_ids")]
    if missing:
        raise UserError(f"ImageReward.pt lacks {len(missing)} weights of the model, the first {missing[0]}")
    return model.to(device).eval()


def image_reward(model: nn.Module, images: NDArray[np.uint8], prompts: Sequence[str]) -> NDArray[np.float64]:
    """Return the reward of each image for its prompt.

    Args:
        model: what `load_image_reward` returns.
        images: uint8 [n, height, width, 3].
        prompts: n texts.

    Returns:
        float64 [n], standardised by the authors: about 0 on average, higher is better.
    """
    import torch
    from PIL import Image

    with torch.inference_mode():
        scores = [
            model.score(text, Image.fromarray(image))  # type: ignore[operator]
            for text, image in zip(prompts, images, strict=True)
        ]
    return np.array(scores, dtype=np.float64)


@contextmanager
def local_tokenizer(folder: Path) -> Iterator[None]:
    """Let BLIP build its tokenizer from local files, where the package would fetch it by name."""
    blip = importlib.import_module("ImageReward.models.BLIP.blip_pretrain")
    stock = blip.init_tokenizer
    blip.init_tokenizer = lambda: _tokenizer(folder)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        blip.init_tokenizer = stock  # type: ignore[attr-defined]


def _tokenizer(folder: Path) -> Any:
    """Return the BERT tokenizer of `folder`, with BLIP's two extra tokens.

    Raises:
        UserError: it does not know every word of `vocab.txt`. transformers builds an empty tokenizer, and
            says nothing, when it finds no files it can read.
    """
    from transformers import BertTokenizer

    words = len((folder / "vocab.txt").read_text(encoding="utf-8").split())
    tokenizer = BertTokenizer.from_pretrained(str(folder), local_files_only=True)
    if len(tokenizer) < words:
        raise UserError(
            f"the tokenizer in {folder.name} knows {len(tokenizer)} of {words} words of vocab.txt"
        )
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_tokens(["[ENC]"], special_tokens=True)
    tokenizer.enc_token_id = tokenizer.convert_tokens_to_ids("[ENC]")
    return tokenizer
