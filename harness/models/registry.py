"""The models by name. Imports neither torch nor diffusers: the command line lists models without them."""

from __future__ import annotations

from harness.errors import unknown
from harness.models import tiny_dit, tiny_unet
from harness.models.card import ModelCard

_CARDS = {card.name: card for card in (tiny_unet.CARD, tiny_dit.CARD)}


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
