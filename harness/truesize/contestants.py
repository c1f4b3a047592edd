"""The models that `harness bench model` measures beside each other, and how each is built."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from harness.bench.peers import WHOLE_MODEL_PEERS, Peer
from harness.truesize.build import build_empty, materialise
from harness.truesize.quantize import load_true_size
from harness.truesize.request import REFERENCE, SIXTEEN_BIT, BenchRequest


@dataclass(frozen=True)
class Entrant:
    """A model to be measured.

    Attributes:
        name: of its row.
        bits: of weights and inputs, and the version of its library.
        build: puts it on the device; None where its package is missing.
        compiled: whether it is timed under `torch.compile` too.
    """

    name: str
    bits: str
    build: Callable[[], Any] | None
    compiled: bool = True


def entrants(request: BenchRequest) -> list[Entrant]:
    """Return the models in the order in which they are built and run: quantized, 16-bit, the peers."""
    recipe, device, dtype = request.recipe, request.device, request.dtype

    def plain() -> Any:
        denoiser = build_empty(recipe.config)
        materialise(denoiser, device, dtype, seed=recipe.seed)
        return denoiser

    def of(peer: Peer) -> Callable[[], Any]:
        def build() -> Any:
            denoiser = plain()
            assert peer.whole is not None
            with torch.no_grad():
                peer.whole(denoiser)
            return denoiser

        return build

    found: list[Entrant] = []
    if request.quantized:
        bits = f"W{recipe.w_bits}A{recipe.a_bits}"
        found.append(
            Entrant(request.name, bits, lambda: load_true_size(recipe, request.folder, device, dtype))
        )
    if request.reference:
        found.append(Entrant(REFERENCE, SIXTEEN_BIT, plain))
    peers = {peer.name: peer for peer in WHOLE_MODEL_PEERS}
    for peer in (peers[name] for name in request.peers):
        found.append(Entrant(peer.name, peer.label, of(peer) if peer.installed else None, peer.compiled))
    return found


def free() -> None:
    """Give back what models that are gone held on the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
