"""Walking through a denoiser block by block, so that one block's weights exist at a time.

A transformer's blocks form a chain: each reads what the one before put out. `ChainWalk` lets the denoiser's
own forward find a block's arguments: all blocks before it are stand-ins that return the stored outputs of the
last one, and the forward is left as soon as the block is reached. Only the 16-bit block itself runs.

A UNet's blocks also read skip connections, so its weights are made all at once (5 GiB for SDXL) and
`UnetWalk` goes backwards: a block quantized and freed is never run again, because nothing before it reads it.

Either way inputs are those of the 16-bit model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from harness.methods.contract import LayerTarget
from harness.truesize.build import materialise
from harness.truesize.stream import BlockStream, Recorder

_CHAINS = ("transformer_blocks", "single_transformer_blocks")
_UNET_BLOCK = re.compile(r"(?:(?:down_blocks|up_blocks)\.\d+|mid_block)\.\w+\.\d+")

Call = Mapping[str, Any]


class _ReachedError(Exception):
    """Leaves the denoiser's forward."""


class Walk(Protocol):
    """A way through a denoiser.

    Attributes:
        blocks: module paths, in the order in which they are to be quantized.
    """

    blocks: tuple[str, ...]

    def enter(self, block: str) -> None:
        """Make the weights of `block`, if they are not there."""

    def record(self, block: str, targets: Sequence[LayerTarget]) -> BlockStream | None:
        """Run `block` on all calls; return the inputs of `targets` (None when there are none)."""


def open_walk(
    denoiser: nn.Module, calls: Sequence[Call], device: torch.device, dtype: torch.dtype, seed: int
) -> Walk:
    """Return the walk that fits the denoiser, a module on the meta device."""
    if any(hasattr(denoiser, name) for name in _CHAINS):
        return ChainWalk(denoiser, calls, device, dtype, seed)
    return UnetWalk(denoiser, calls, device, dtype, seed)


def chain_blocks(denoiser: nn.Module) -> tuple[str, ...]:
    """Return the paths of a transformer's blocks, in the order in which they run."""
    return tuple(f"{name}.{i}" for name in _CHAINS for i in range(len(getattr(denoiser, name, None) or ())))


def unet_blocks(denoiser: nn.Module) -> tuple[str, ...]:
    """Return the paths of a UNet's residual blocks, transformers and samplers, in module order."""
    return tuple(name for name, _ in denoiser.named_modules() if _UNET_BLOCK.fullmatch(name))


class ChainWalk:
    """Through a transformer, first block to last, one block's weights at a time."""

    def __init__(
        self,
        denoiser: nn.Module,
        calls: Sequence[Call],
        device: torch.device,
        dtype: torch.dtype,
        seed: int,
    ) -> None:
        """Make the weights outside the blocks."""
        self.blocks = chain_blocks(denoiser)
        self._denoiser, self._calls = denoiser, list(calls)
        self._device, self._dtype, self._seed = device, dtype, seed
        self._outputs: list[Any] = [None] * len(self._calls)
        materialise(denoiser, device, dtype, seed=seed, skip=self.blocks)

    def enter(self, block: str) -> None:
        """Make the weights of `block`."""
        module = self._denoiser.get_submodule(block)
        materialise(module, self._device, self._dtype, seed=self._seed, prefix=block)

    def record(self, block: str, targets: Sequence[LayerTarget]) -> BlockStream | None:
        """Run `block` on what the block before put out; keep its outputs for the next."""
        module = self._denoiser.get_submodule(block)
        recorder = Recorder(targets)
        with recorder.attached(self._denoiser):
            for number in range(len(self._calls)):
                args, kwargs = self._arguments(block, number)
                self._outputs[number] = module(*args, **kwargs)
        return recorder.stream() if targets else None

    def _arguments(self, block: str, number: int) -> tuple[Any, Any]:
        """What the denoiser calls `block` with in call `number`."""
        found: list[tuple[Any, Any]] = []

        def reached(module: nn.Module, args: Any, kwargs: Any) -> None:
            found.append((args, kwargs))
            raise _ReachedError

        before = self.blocks[: self.blocks.index(block)]
        handle = self._denoiser.get_submodule(block).register_forward_pre_hook(reached, with_kwargs=True)
        try:
            with self._replayed(before, self._outputs[number]):
                self._denoiser(**self._calls[number])
        except _ReachedError:
            return found[0]
        finally:
            handle.remove()
        raise ValueError(f"{block} does not run")

    @contextmanager
    def _replayed(self, blocks: Sequence[str], output: Any) -> Iterator[None]:
        """Let blocks return `output` without computing anything."""
        modules = [self._denoiser.get_submodule(name) for name in blocks]
        replay: Callable[..., Any] = lambda *_args, **_kwargs: output  # noqa: E731
        for module in modules:
            module.forward = replay  # type: ignore[method-assign]
        try:
            yield
        finally:
            for module in modules:
                del module.forward


class UnetWalk:
    """Through a UNet backwards, all of its weights made at the start."""

    def __init__(
        self,
        denoiser: nn.Module,
        calls: Sequence[Call],
        device: torch.device,
        dtype: torch.dtype,
        seed: int,
    ) -> None:
        """Make all weights, and find the order in which the blocks run."""
        self._denoiser, self._calls = denoiser, list(calls)
        materialise(denoiser, device, dtype, seed=seed)
        self.blocks = tuple(reversed(self._order(unet_blocks(denoiser))))

    def enter(self, block: str) -> None:
        """Nothing: the weights are there."""

    def record(self, block: str, targets: Sequence[LayerTarget]) -> BlockStream | None:
        """Run the UNet up to the end of `block`."""
        if not targets:
            return None
        recorder = Recorder(targets)

        def passed(*_: Any) -> None:
            raise _ReachedError

        handle = self._denoiser.get_submodule(block).register_forward_hook(passed)
        try:
            with recorder.attached(self._denoiser):
                for call in self._calls:
                    try:
                        self._denoiser(**call)
                    except _ReachedError:
                        continue
        finally:
            handle.remove()
        return recorder.stream()

    def _order(self, names: Sequence[str]) -> list[str]:
        seen: dict[str, None] = {}

        def note(name: str) -> Callable[..., None]:
            return lambda *_: seen.setdefault(name)

        modules = {name: self._denoiser.get_submodule(name) for name in names}
        handles = [module.register_forward_pre_hook(note(name)) for name, module in modules.items()]
        try:
            self._denoiser(**self._calls[0])
        finally:
            for handle in handles:
                handle.remove()
        return list(seen)


def call_bytes(calls: Sequence[Call]) -> int:
    """Return the bytes of the tensors of all calls."""
    return sum(v.nbytes for call in calls for v in call.values() if isinstance(v, Tensor))
