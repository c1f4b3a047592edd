"""Making a function a torch custom op that costs nothing where nothing looks on.

A call goes past torch's dispatcher then, which takes longer to get to a body than most bodies take.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch._C import _is_tracing, _len_torch_dispatch_stack
from torch._C._functorch import peek_interpreter_stack

LIBRARY: Any = torch.library.Library("harness", "FRAGMENT")  # type: ignore[no-untyped-call]
PLAIN = frozenset({Tensor, list, int, float, bool, str, torch.dtype, type(None)})
"""What the arguments are when no tensor among them is of a subclass."""

NO_GRADIENT = "harness::{} has no gradient: train with set_backend('reference')"


class Op(Protocol):
    """What a function becomes that is made an op."""

    def __call__(self, *args: Any) -> Any:
        """Call it."""

    def register_fake(self, fake: Callable[..., Any]) -> Callable[..., Any]:
        """Let a function of the same arguments answer for it where tensors have shapes alone."""


def unobserved(args: tuple[Any, ...]) -> bool:
    """Whether calling an op with these arguments is calling its body.

    Not so for what compiles or traces, for dispatch modes, transforms of `torch.func` and tensors of a
    subclass: they have to see the op. Nor for tensors that are trained: an op has no gradient and says so.
    """
    if torch.compiler.is_compiling() or _len_torch_dispatch_stack() or _is_tracing():
        return False
    if trained(args):
        return False
    return peek_interpreter_stack() is None and PLAIN.issuperset(map(type, args))


def trained(args: tuple[Any, ...]) -> bool:
    """Whether a gradient may be asked for of one of the arguments."""
    if not torch.is_grad_enabled():
        return False
    return any(isinstance(each, Tensor) and each.requires_grad for each in args)


def without_gradient(name: str, found: Any) -> Any:
    """Let tensors that an op returned say that it has no gradient, when one is asked for."""

    def refuse(_: Tensor) -> None:
        raise RuntimeError(NO_GRADIENT.format(name))

    for each in found if isinstance(found, tuple | list) else (found,):
        if isinstance(each, Tensor) and each.requires_grad:
            each.register_hook(refuse)  # type: ignore[no-untyped-call]
    return found


def custom_op(
    bare: Callable[..., Any] | None = None, *, mutated: tuple[str, ...] = ()
) -> Callable[[Callable[..., Any]], Op]:
    """Make a function `harness::` and its name: the op when called, its body alone where that is the same.

    `torch.library.custom_op` would do, but puts 7 µs of Python between a compiled graph and the body.

    Args:
        bare: called instead of the body: as it, but returning None for what an op has to return empty.
        mutated: names of the arguments that are written to.
    """

    def made(body: Callable[..., Any]) -> Op:
        name = body.__name__
        schema = torch.library.infer_schema(body, mutates_args=mutated)
        LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        LIBRARY.impl(name, body, "CompositeExplicitAutograd")
        op, direct = getattr(torch.ops.harness, name).default, bare or body

        @functools.wraps(body)
        def call(*args: Any) -> Any:
            if unobserved(args):
                return direct(*args)
            if mutated and trained(args):  # there is no output that could refuse a gradient
                raise RuntimeError(NO_GRADIENT.format(name))
            found = op(*args)
            return found if torch.compiler.is_compiling() else without_gradient(name, found)

        def register_fake(fake: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(fake)
            def untrained(*args: Any) -> Any:
                if trained(args):  # a compiled graph would pass over the gradient without a word
                    raise RuntimeError(NO_GRADIENT.format(name))
                return fake(*args)

            torch.library.register_fake(f"harness::{name}", untrained, lib=LIBRARY)
            return fake

        call.register_fake = register_fake  # type: ignore[attr-defined]
        return cast(Op, call)

    return made
