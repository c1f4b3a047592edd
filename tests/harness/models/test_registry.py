from __future__ import annotations

import subprocess
import sys

import pytest

from harness.errors import UserError
from harness.models import registry, roles


def test_every_card_can_be_got_by_its_name_and_has_a_role_table() -> None:
    assert registry.names() == ["tiny-unet", "tiny-dit"]
    for name in registry.names():
        card = registry.get(name)
        assert card.name == name
        assert (
            roles.role_of(card.family, {"sd-unet": "conv_out", "pixart": "proj_out"}[card.family]) == "final"
        )


def test_default_sampling_is_at_most_twelve_steps_at_64_pixels() -> None:
    for name in registry.names():
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
