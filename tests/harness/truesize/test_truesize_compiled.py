"""What `torch.compile` makes of FLUX's blocks with packed layers: whole graphs, one input quantized once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from interpreter import needs_interpreter
from torch import Tensor
from true_sizes import CPU, reduced_recipe

from harness.kernels import dispatch
from harness.kernels.gelu import LinearAfterGelu
from harness.kernels.joined import JoinedLinear, SecondOfTwo
from harness.kernels.layers import PackedLinear
from harness.truesize.inputs import denoiser_inputs
from harness.truesize.quantize import Recipe, load_true_size, quantize_true_size

pytest.importorskip("triton")

BF16 = torch.bfloat16
PUBLISHED = {"grid": "3", "iterations": "1", "rescale": "true", "shared": "true", "scales": "e8m0"}


def flux(folder: Path, **settings: str) -> tuple[Recipe, Any]:
    recipe = reduced_recipe("flux.1-dev", "svdquant", a_bits=4, settings={**PUBLISHED, **settings})
    recipe.config.config["num_single_layers"] = 3
    quantize_true_size(recipe, folder, CPU, BF16)
    return recipe, load_true_size(recipe, folder, CPU, BF16)


def call_of(recipe: Recipe) -> dict[str, Any]:
    shape: dict[str, Any] = {"side": recipe.side, "text_tokens": recipe.text_tokens}
    return denoiser_inputs(recipe.card, recipe.config.config, CPU, BF16, **shape)


@pytest.fixture
def kernels_that_write_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU take the GPU's roads, with kernels that return tensors of the right shape."""
    from harness.kernels.triton import few, inputs, launch

    def quantize_projected(x: Tensor, bits: int, grid: str, down: Tensor, **_: Any) -> tuple[Tensor, ...]:
        rank = inputs.padded_rank(len(down))
        return (
            torch.zeros(len(x), down.shape[1], dtype=inputs.code_type(grid)),
            torch.zeros(len(x), 1),
            x.new_zeros(len(x), rank),
        )

    def linear(codes: Tensor, weight: Tensor, *_: Any, dtype: torch.dtype, **__: Any) -> Tensor:
        return torch.zeros(len(codes), len(weight), dtype=dtype)

    def single(x: Tensor, packed: Tensor, *_: Any, **__: Any) -> Tensor:
        return x.new_zeros(len(x), len(packed))

    def expand_float8(
        packed: Tensor,
        _bits: int,
        cols: int,
        *_: Any,
        bias: Tensor,
        up: Tensor,
        dtype: torch.dtype,
        **__: Any,
    ) -> tuple[Tensor, ...]:
        rows, rank = len(packed), inputs.padded_rank(up.shape[1])
        units = torch.zeros(rows, cols, dtype=torch.float8_e4m3fn)
        return units, torch.zeros(rows), bias.to(dtype), torch.zeros(rows, rank, dtype=dtype)

    monkeypatch.setattr(inputs, "quantize_projected", quantize_projected)
    for made in (expand_float8, linear):
        monkeypatch.setattr(launch, made.__name__, made)
    monkeypatch.setattr(few, "single", single)
    monkeypatch.setattr(dispatch, "INTERPRETED", True)


def test_blocks_are_whole_graphs_in_which_an_input_is_quantized_once(
    tmp_path: Path, kernels_that_write_nothing: None
) -> None:
    recipe, denoiser = flux(tmp_path)
    graphs: list[Counter[str]] = []

    def count(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(
            Counter(str(n.target).split(".")[1] for n in graph.graph.nodes if "harness" in str(n.target))
        )
        return graph.forward

    torch._dynamo.reset()
    with torch.no_grad(), dispatch.use_backend("triton"):
        ahead = denoiser.single_transformer_blocks[1].proj_out
        ahead(torch.zeros(1, ahead.in_features, dtype=BF16))
        assert ahead.plan is not None  # which is no reason for a graph of its own
        denoiser.compile_repeated_blocks(fullgraph=True, backend=count)
        denoiser(**call_of(recipe))
    torch._dynamo.reset()
    products = dict.fromkeys(("expand_float8", "quantize_projected", "scaled_linear"), 8)
    assert graphs[0] == products | {"single": 2}  # q k v, out, up, down of two streams; two modulations
    # The first single block is given whole tensors, the others what was cut out of the former's output.
    assert graphs[1:] == [dict.fromkeys(products, 2) | {"single": 1}] * 2  # q k v and up, and the two after


def test_projections_of_one_input_become_one_layer_without_a_change_of_values(tmp_path: Path) -> None:
    recipe, denoiser = flux(tmp_path)
    attention = denoiser.transformer_blocks[0].attn
    assert isinstance(attention.to_qkv, PackedLinear)
    assert attention.to_added_qkv.shape == (3 * 64, 64)
    assert not hasattr(attention, "to_q")
    block = denoiser.single_transformer_blocks[0]
    assert isinstance(block.attn.to_qkv, SecondOfTwo)
    assert block.attn.to_qkv.first is block.proj_mlp
    assert block.proj_mlp.joined.shape == ((3 + 4) * 64, 64)
    apart = quantize_true_size(recipe, tmp_path, CPU, BF16).denoiser
    assert isinstance(apart.transformer_blocks[0].attn.to_q, PackedLinear)
    assert isinstance(block.proj_out, LinearAfterGelu)
    assert isinstance(denoiser.transformer_blocks[0].ff.net[2], LinearAfterGelu)
    single = apart.single_transformer_blocks[0]
    assert torch.equal(single.attn.to_q.smooth, single.proj_mlp.smooth)
    assert not torch.equal(single.attn.to_q.branch.down, single.proj_mlp.branch.down)
    with torch.no_grad():
        assert torch.equal(denoiser(**call_of(recipe))[0], apart(**call_of(recipe))[0])


def test_norms_are_given_q_and_k_in_one_piece_each(tmp_path: Path) -> None:
    recipe, denoiser = flux(tmp_path)
    given: list[bool] = []
    for block in (*denoiser.transformer_blocks, *denoiser.single_transformer_blocks):
        norms = ["norm_q", "norm_k", "norm_added_q", "norm_added_k"]
        for name in norms if hasattr(block.attn, "to_added_qkv") else norms[:2]:
            norm = getattr(block.attn, name)
            norm.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].is_contiguous()))
    with torch.no_grad():
        denoiser(**call_of(recipe))
    assert given == [True] * (2 * 4 + 3 * 2)


@needs_interpreter
def test_pieces_and_compiled_slices_make_one_image(tmp_path: Path) -> None:
    recipe, denoiser = flux(tmp_path)
    denoiser.float()  # the interpreter has no arithmetic in bfloat16
    call = {
        name: value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in call_of(recipe).items()
    }
    torch._dynamo.reset()
    with torch.no_grad(), dispatch.use_backend("triton"):
        eager = denoiser(**call)[0]
        assert {module.road_taken for module in denoiser.modules() if isinstance(module, JoinedLinear)} == {
            "fp8"
        }
        denoiser.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
        assert torch.equal(denoiser(**call)[0], eager)
    torch._dynamo.reset()


def test_projections_with_a_branch_each_stay_apart(tmp_path: Path) -> None:
    _, denoiser = flux(tmp_path, shared="false")
    for module in (*denoiser.transformer_blocks, *denoiser.single_transformer_blocks):
        assert isinstance(module.attn.to_q, PackedLinear)
        assert not module.attn.fused_projections


def test_blocks_left_unsmoothed_compile_to_the_graph_of_the_others(
    tmp_path: Path, kernels_that_write_nothing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.truesize import quantize

    evened = quantize.even_smoothing

    def as_some_searches_end(denoiser: Any) -> None:
        first, second = (block.attn for block in denoiser.transformer_blocks)
        for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"):
            getattr(second, name).smooth = None
        evened(denoiser)
        assert second.to_q.smooth is second.to_k.smooth is second.to_v.smooth
        assert first.to_q.smooth is first.to_k.smooth
        # One width, ones on either side: but of other inputs, and not one tensor in the first block.
        assert second.add_q_proj.smooth is not second.to_q.smooth
        assert torch.equal(second.add_q_proj.smooth, second.to_q.smooth)

    monkeypatch.setattr(quantize, "even_smoothing", as_some_searches_end)
    monkeypatch.setattr(quantize, "fuse_projections", lambda _: 0)
    recipe, denoiser = flux(tmp_path)
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    with torch.no_grad(), dispatch.use_backend("triton"):
        denoiser(**call_of(recipe))  # as the benchmark does before it compiles
        denoiser.compile_repeated_blocks(fullgraph=True, backend=keep)
        denoiser(**call_of(recipe))
    torch._dynamo.reset()
    assert len(graphs) == 1 + 2  # two double blocks: one; three single blocks: whole inputs, and slices
