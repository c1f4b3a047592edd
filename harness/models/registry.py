"""The models by name. Imports neither torch nor diffusers: the command line lists models without them."""

from __future__ import annotations

from harness.errors import unknown
from harness.models import (
    dit_xl_2,
    flux_dev,
    flux_schnell,
    ldm_4_bedroom,
    ldm_4_imagenet,
    pixart_sigma,
    sana,
    sd_14,
    sd_15,
    sdxl,
    sdxl_turbo,
    tiny_dit,
    tiny_unet,
)
from harness.models.card import ModelCard

_MODULES = (
    *(tiny_unet, tiny_dit),
    *(flux_dev, flux_schnell, pixart_sigma, sana, sdxl, sdxl_turbo, sd_14, sd_15),
    *(dit_xl_2, ldm_4_imagenet, ldm_4_bedroom),
)
_CARDS: dict[str, ModelCard] = {module.CARD.name: module.CARD for module in _MODULES}


def names() -> list[str]:
    """Return the models' names in the order of the grid."""
    return list(_CARDS)


def get(name: str) -> ModelCard:
    """Return the card of model `name`.

    Raises:
        harness.errors.UserError: no model has that name.
    """
    if name not in _CARDS:
        raise unknown("model", name, _CARDS)
    return _CARDS[name]
