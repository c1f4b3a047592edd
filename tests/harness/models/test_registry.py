from __future__ import annotations

import re
import subprocess
import sys

import pytest

from harness.errors import UserError
from harness.models import registry, roles

FINAL = {
    "sd-unet": "conv_out", "pixart": "proj_out", "flux": "proj_out", "sana": "proj_out", "dit": "proj_out_1"
}  # fmt: skip


def test_every_card_can_be_got_by_its_name_and_has_a_role_table() -> None:
    assert registry.names()[:2] == ["tiny-unet", "tiny-dit"]
    for name in registry.names():
        card = registry.get(name)
        assert card.name == name
        assert roles.role_of(card.family, FINAL[card.family]) == "final"


def test_published_models_say_where_their_weights_are_and_what_they_are_made_of() -> None:
    published = [card for card in map(registry.get, registry.names()) if not card.embedded]
    assert len(published) == 11
    for card in published:
        assert {card.denoiser, "vae", "scheduler"} <= set(card.components)
        assert set(card.published or {}) <= set(roles.POLICY)
        if card.hub is not None:
            assert re.fullmatch(r"[\w.-]+/[\w.-]+", card.hub.repo)
            assert re.fullmatch(r"[0-9a-f]{40}", card.hub.revision)
    assert {card.name for card in published if card.hub is None} == {"ldm-4-imagenet", "ldm-4-bedroom"}


def test_embedded_sampling_is_at_most_twelve_steps_at_64_pixels() -> None:
    for name in ("tiny-unet", "tiny-dit"):
        sampling = registry.get(name).sampling
        assert sampling.steps <= 12
        assert (sampling.height, sampling.width) == (64, 64)


def test_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown model 'tiny_unet'; did you mean tiny-unet"):
        registry.get("tiny_unet")


def test_listing_the_models_imports_neither_torch_nor_diffusers() -> None:
    code = (
        "import sys, harness.models.registry as r; r.names();"
        "sys.exit(any(m in sys.modules for m in ('torch', 'diffusers', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
