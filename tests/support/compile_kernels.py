"""Compile every kernel ahead of time for one architecture and print how many: run without TRITON_INTERPRET.

python tests/support/compile_kernels.py 90
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from harness.kernels.expansion import CODES_PER_SLOT, SLOTS_AT_ONCE
from harness.kernels.triton import expand, few, gemm, gemv, project, quantize, several, single

FLOAT8_FROM = 89
OVERLAP_FROM = 90
HOLDING = 90
COPYING = 90
SIXTEENTHS = {"cols", "outs", "tokens", "row_words", "x_stride", "out_stride", "groups"}
"""Numbers that are multiples of 16 in true models: told to the compiler, as at a launch."""

Case = tuple[Any, dict[str, str], dict[str, Any], int]


def expansions(arch: int) -> Iterator[Case]:
    """Every width, read by words and by bytes, into every type of scratch."""
    words = {1: "u8", 2: "i16", 4: "i32", 8: "i64"}
    kinds = [("bf16", "stored", "none", "fp16"), ("i8", "fixed", "none", "u8"), ("fp16", "fixed", "rows", "")]
    kinds += [("fp32", "fixed", "shared", "fp32"), ("fp8e4nv", "stored", "none", "i8")]
    for bits in (1, 2, 3, 4, 5, 8):
        for index, (out, offset, table, scale) in enumerate(kinds):
            if out == "fp8e4nv" and arch < FLOAT8_FROM:
                continue
            whole = bits in words and index % 2 == bits % 2
            fixed = "i32" if out == "i8" else "fp32"
            signature = {
                "out": f"*{out}",
                "packed": f"*{words[bits] if whole else 'u8'}",
                "fixed_offset": fixed,
            }
            for name in ("rows", "cols", "row_words", "group", "scale_row_stride", "multiplier"):
                signature[name] = "i32"
            signature |= {"scale": f"*{scale}"} if scale else {}
            signature |= {"offset": "*u8"} if offset == "stored" else {}
            signature |= {"table": "*fp32"} if table != "none" else {}
            signature |= {"rows_of": "*i64"} if bits == 3 else {}
            constants = {
                "BITS": bits, "WHOLE": whole, "TABLE": table, "OFFSET": offset, "FLAT": table == "shared",
                "SCALED": bool(scale), "EXPONENT": scale == "i8", "WORDWISE": table == "none",
                "SCATTER": bits == 3, "ROWS": 8, "WORDS": 128,
            }  # fmt: skip
            yield expand.expand_kernel, signature, constants, 4


def quantizations(arch: int) -> Iterator[Case]:
    """Every grid of activations, with and without stored ranges, alone and after a projection."""
    sizes = {"tokens": "i32", "cols": "i32", "x_stride": "i32"}
    for grid, bits, codes in (("asymmetric", 8, "i8"), ("asymmetric", 4, "i8"), ("symmetric", 6, "i8"),
                              ("integer", 4, "i8"), ("e8m0", 4, "fp8e4nv")):  # fmt: skip
        if codes == "fp8e4nv" and arch < FLOAT8_FROM:
            continue
        grouped = grid in {"integer", "e8m0"}
        for x in ("bf16", "fp16", "fp32"):
            given = x == "fp16" and not grouped
            signature = {
                "codes": f"*{codes}", "row_scale": "*fp32", "row_zero": "*fp32", "x": f"*{x}",
                "smooth": "*fp16", "out_stride": "i32", "tokens_per_range": "i32", **sizes,
            }  # fmt: skip
            signature |= {"lo_given": "*fp32", "hi_given": "*fp32"} if given else {}
            constants = {
                "BITS": bits, "GRID": grid, "GIVEN": given, "GROUP": 64, "SMOOTH": True, "TOKENS": 1,
                "LARGEST_K": 18 if grid == "integer" else 1, "COLS": 4096,
            }  # fmt: skip
            yield quantize.quantize_kernel, signature, constants, 4
            if grouped:
                yield from after_projection(arch, grid, codes, x, constants["LARGEST_K"])
    for x, both in (("bf16", True), ("fp16", False), ("fp32", True)):
        signature = {
            "scratch": "*fp32", "x": f"*{x}", "smooth": "*fp16", "down": "*fp16", "span": "i32",
            "rank": "i32", **sizes,
        }  # fmt: skip
        precision = "ieee" if x == "fp32" else "same"
        common = {"SMOOTH": True, "RANK": 32, "ASIDE": both, "OVERLAP": arch >= OVERLAP_FROM}
        constants = {**common, "PRECISION": precision, "TOKENS": 64, "COLS": 64}
        yield project.project_kernel, signature, constants, 4
        if arch == HOLDING and x != "fp32":
            held = {name: kind for name, kind in signature.items() if name != "span"}
            held |= dict.fromkeys(("ahead_stride", "ahead_cols"), "i32")
            held |= {"ahead": f"*{x}", "whole": f"*{x}"} if both else {}
            constants = {**common, "AHEAD": both, "GELU": both, "NATIVE": True, "TOKENS": 64, "COLS": 256}
            yield project.project_held_kernel, held, constants, 16 if both else 4


def after_projection(arch: int, grid: str, codes: str, x: str, largest_k: int) -> Iterator[Case]:
    """Quantization with the tokens' magnitudes known, the projection beside the codes or among them."""
    for append in (False, True) if grid == "e8m0" else (False,):
        signature = {
            "codes": f"*{codes}", "row_scale": "*fp32", "x": f"*{x}", "scratch": "*fp32", "tokens": "i32",
            "cols": "i32", "x_stride": "i32", "out_stride": "i32",
        }  # fmt: skip
        signature |= {"gains": "*fp32"} if append else {"projected": f"*{x}"}
        constants = {
            "BITS": 4, "GRID": grid, "GROUP": 64, "LARGEST_K": largest_k, "SMOOTH": x != "fp16", "RANK": 32,
            "PARTS": 8, "PARTS_HELD": 8, "APPEND": append, "TOKENS": 8, "COLS": 1024,
            "OVERLAP": arch >= OVERLAP_FROM,
        }  # fmt: skip
        yield quantize.scaled_kernel, signature, constants, 4


def float8_expansions(arch: int) -> Iterator[Case]:
    """Every width in units of float8, with each way a branch can go."""
    if arch < FLOAT8_FROM:
        return
    for bits, branch in ((4, "append"), (4, "copy"), (3, "append"), (2, "none")):
        words = {2: "i16", 4: "i32"}.get(bits, "u8")
        signature = {
            "out": "*fp8e4nv", "col_scale": "*fp32", "packed": f"*{words}", "exponent": "*i8",
            "row_scale": "*fp16", "bias": "*fp16", "bias_out": "*bf16", "fixed_offset": "fp32",
            "worth": "fp32",
        }  # fmt: skip
        integers = ("rows", "cols", "span", "row_words", "groups", "out_stride", "rank", "bits_of_one")
        signature |= dict.fromkeys(integers, "i32")
        signature |= {"offset": "*u8"} if bits == 3 else {}
        signature |= {"up": "*fp16"} if branch != "none" else {}
        signature |= {"gains": "*fp32"} if branch == "append" else {}
        signature |= {"up_out": "*bf16"} if branch == "copy" else {}
        constants = {
            "BITS": bits, "WHOLE": bits != 3, "GROUP": 64, "STORED": bits == 3, "BIAS": True,
            "BRANCH": branch, "MULTIPLIER": 2 if bits == 2 else 1, "RANK": 32, "ROWS": 8, "WORDS": 128,
            "OVERLAP": branch == "append" and arch >= OVERLAP_FROM,
        }  # fmt: skip
        yield expand.units_kernel, signature, constants, 4


def products(arch: int) -> Iterator[Case]:
    """The integer and float8 GEMM, and the few-token product at every width."""
    for kind, accumulate in (("i8", tl.int32), ("fp8e4nv", tl.float32)):
        if kind == "fp8e4nv" and arch < FLOAT8_FROM:
            continue
        sizes = (
            ("bf16", 128, True, 32),
            ("fp32", 64, False, 32),
            ("fp16", 16, True, 32),
            ("fp32", 128, True, 0),
        )
        for out, rows, even, rank in sizes:
            zero = kind == "i8" and not even
            signature = {
                "out": f"*{out}", "codes": f"*{kind}", "weight": f"*{kind}", "row_scale": "*fp32",
                "col_scale": "*fp16", "bias": "*fp16", "tokens": "i32", "outs": "i32", "cols": "i32",
                "rank": "i32",
            }  # fmt: skip
            signature |= {"projected": f"*{out}", "up": "*fp16"} if rank else {}
            signature |= {"row_zero": "*fp32", "col_sum": "*i32"} if zero else {}
            constants = {
                "ZERO": zero, "RANK": rank, "BIAS": True, "PRECISION": "ieee" if out == "fp32" else "same",
                "EVEN": even, "ACCUMULATE": accumulate, "TILE_M": rows, "TILE_N": 128 if rows == 128 else 64,
                "TILE_K": 128, "GROUP_M": 8,
            }  # fmt: skip
            yield gemm.linear_kernel, signature, constants, 4
    for bits, alone, kind in ((2, True, "bf16"), (3, False, "bf16"), (4, True, "fp16"), (4, False, "bf16")):
        signature = {
            "out": f"*{kind}", "x": f"*{kind}", "packed": "*i16", "scale": "*fp16",
            "bias": "*fp16", "tokens": "i32", "outs": "i32", "slots": "i32", "row_words": "i32",
            "groups": "i32",
        }  # fmt: skip
        signature |= {"offset": "*u8"} if bits != 4 else {}
        codes = CODES_PER_SLOT[bits]
        constants = {
            "BITS": bits, "CODES": codes, "PER": 0 if kind == "fp16" else 64 // codes, "STORED": bits != 4,
            "OFFSET": 8.0 if bits == 4 else 0.0, "BIAS": True, "ALONE": alone, "NATIVE": True,
            "TOKENS": 8 if alone else 16, "ROWS": 16, "SLOTS": SLOTS_AT_ONCE, "STAGES": 2,
        }  # fmt: skip
        yield gemv.gemv_kernel, signature, constants, 1
        if not alone:
            signature = {"out": f"*{kind}", "x": f"*{kind}", "tokens": "i32", "cols": "i32", "slots": "i32"}
            constants = {"BITS": bits, "CODES": codes, "TOKENS": 16, "SLOTS": 16}
            yield gemv.arrange_kernel, signature, constants, 4


def one_token(arch: int) -> Iterator[Case]:
    """Every width, with a branch and without, in whole chunks of columns and not, with few and many."""
    cases = [(4, "bf16", True, False), (3, "bf16", False, False), (2, "fp16", False, True)]
    for bits, kind, branch, long in cases:
        both = {"SMOOTH": branch, "RANK": 32, "OVERLAP": arch >= OVERLAP_FROM}
        smooth = {"smooth": "*fp16"} if branch else {}
        if branch:
            signature = {
                "projected": "*fp32", "x": f"*{kind}", "down": "*fp16", "cols": "i32", "rank": "i32", **smooth
            }  # fmt: skip
            yield project.project_one_kernel, signature, {**both, "PIECES": 4, "COLS": 128}, 4
        signature = {
            "out": f"*{kind}", "x": f"*{kind}", "packed": "*i32", "scale": "*fp16", "outs": "i32",
            "cols": "i32", "row_words": "i32", "groups": "i32", "steps": "i32", "rank": "i32", **smooth,
        }  # fmt: skip
        signature |= {"zero": "*u8"} if bits < 4 else {}
        signature |= {"projected": "*fp32", "up": "*fp16", "bias": "*fp16"} if branch else {}
        constants = {
            **both, "BITS": bits, "PER": 2, "STORED": bits < 4, "OFFSET": 8, "BIAS": branch, "BRANCH": branch,
            "PARTS": 12, "EVEN": branch, "NATIVE": True, "FLIP": single.ROWS_FIRST.value, "LONG": long,
            "CHUNKS": 4 if long else 3, "ROWS": few.MOST_ROWS // (2 if long else 1), **few.SINGLE,
        }  # fmt: skip
        if bits == 3:  # as of a layer whose rows are walked over in one step
            constants["steps"] = 1
            del signature["steps"]
        yield single.single_kernel, signature, constants, few.SINGLE["WARPS"]


def several_tokens(arch: int) -> Iterator[Case]:
    """Every width, with few columns and with as many as are held."""
    if arch < COPYING:
        return
    warps, rows = few.SEVERAL["WARPS"], several.ROWS.value
    for bits, tokens, chunks in ((4, 16, 6), (3, 16, 6), (2, 8, 2), (4, 8, 1)):
        held = triton.next_power_of_2(chunks) * warps
        signature = {
            "out": "*bf16", "x": "*bf16", "scale": f"tensordesc<fp16[{rows}, {held}]>", "bias": "*fp16",
            "packed": f"tensordesc<i16[{rows}, {held * 64 // CODES_PER_SLOT[bits]}]>",
            **dict.fromkeys(("tokens", "outs", "cols", "plane", "steps"), "i32"),
        }  # fmt: skip
        signature |= {"zero": f"tensordesc<u8[{rows}, {held}]>"} if bits < 4 else {}
        signature |= {"third": f"tensordesc<i16[{rows}, {held * 4}]>"} if bits == 3 else {}
        constants = {
            "BITS": bits, "CODES": CODES_PER_SLOT[bits], "STORED": bits < 4, "OFFSET": 8, "BIAS": True,
            "NATIVE": True, "OVERLAP": True, "TOKENS": tokens, "CHUNKS": chunks, "HELD": held // warps,
            **few.SEVERAL,
        }  # fmt: skip
        yield several.several_kernel, signature, constants, warps


def compile_case(arch: int, case: Case) -> None:
    """Compile one kernel to machine code."""
    kernel, signature, constants, warps = case
    names = kernel.arg_names
    types = {name: signature.get(name, "constexpr") for name in names}
    fixed = {name: constants.get(name) for name in names if name not in signature}
    aligned = [name for name, kind in signature.items() if kind.startswith("*") or name in SIXTEENTHS]
    hints = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    compiled = triton.compile(
        ASTSource(kernel, types, fixed, hints),
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": warps, "num_stages": 2},
    )
    if not compiled.asm["cubin"]:
        raise RuntimeError(f"no machine code for {kernel.__name__}")


def main() -> None:
    """Compile all; the number printed is how many there were."""
    arch = int(sys.argv[1])
    cases = [
        *expansions(arch),
        *float8_expansions(arch),
        *quantizations(arch),
        *products(arch),
        *one_token(arch),
        *several_tokens(arch),
    ]
    for case in cases:
        compile_case(arch, case)
    print(len(cases))


if __name__ == "__main__":
    main()
