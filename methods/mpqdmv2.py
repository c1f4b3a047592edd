"""MPQ-DMv2, a reconstruction: residual mixed quantization and a branch started from the quantization error.

No code and no formulas of MPQ-DMv2 are public; this is built from its abstract and from the authors'
neighbouring work, without the distillation:

* flexible residual quantization: every output channel is stored either on a uniform grid or as a sum of
  binary planes (sign residuals with least-squares amplitudes) of the same width, whichever has the least
  output error;
* the balanced N-1/N/N+1 mix of MPQ-DM on top, as an option;
* object-oriented low-rank initialisation: a 16-bit side branch fitted to the quantization error as the
  layer's output sees it, i.e. an SVD weighted by the second moment of the inputs. The branch stays beside
  the weight: merged before rounding, the same start makes a layer worse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from harness.kernels.branch import LowRankBranch
from harness.methods.contract import QuantizeJob, method
from harness.methods.layers import activation_quantizer, packed_layer, weight_matrix
from harness.methods.lowrank import output_svd, rank_rule, seen_error, truncated_svd
from harness.methods.mixing import Mix, best_mix
from harness.methods.objective import LayerSample, row_errors
from harness.methods.rounding import (
    MixedRows,
    PlaneRows,
    UniformRows,
    round_plain,
    round_planes,
    round_uniform,
)
from harness.methods.salience import descending, pearson_kurtosis
from harness.methods.training.settings import Relation, TrainingConfig
from harness.methods.training.trainer import Distiller

SAMPLE_ROWS = 512
PLANE_ITERATIONS = 5
# Above this many bits binary planes gain nothing over a uniform grid and cost 2^bits levels to search.
MAX_PLANES = 4
ABLATION: tuple[dict[str, str], ...] = (
    {"planes": "false", "rank": "0"},
    {"rank": "0"},
    {"planes": "false"},
    {"weighting": "none"},
    {"iterations": "0"},
    {},
    {"swap": "search"},
    {"placement": "merged", "allow_merged": "true"},
)
"""Rounding only, planes only, branch only, plain SVD, no refinement, the default, with the mix, merged."""

TRAINED: tuple[dict[str, str], ...] = ({}, {"train_relation": "off"})
"""For `--set mpqdmv2.train_steps=N`: trained, without relation loss."""


@dataclass(frozen=True)
class Mpqdmv2Config(TrainingConfig):
    """Settings of `mpqdmv2`.

    Attributes:
        planes: whether a channel may be stored as binary planes.
        swap: `search` over 0, 10, ..., 50 % of the channels, or `off`: beside a branch the mix lowers the
            error of layers a little and that of whole models not at all.
        salience: what orders the channels of the mix: the output error a bit saves, or kurtosis as in MPQ-DM.
        rank: rank of the branch; None is the rank rule (`harness.methods.lowrank.rank_rule`), 0 no branch.
        weighting: what the SVD of the error is weighted by: the full second moment of the inputs, its
            diagonal, or nothing.
        damping: added to the second moment, relative to its mean diagonal.
        iterations: refinements: round what the branch leaves, refit the branch, keep the best.
        placement: `side` keeps the branch beside the weight. `merged` adds it to the weight before rounding
            and keeps nothing beside it, as distillation methods do with the factors they train; started from
            the error this makes layers worse, so it is refused unless `allow_merged` is set.
        allow_merged: run `placement=merged` all the same.
    """

    planes: bool = True
    swap: Literal["search", "off"] = "off"
    salience: Literal["error", "kurtosis"] = "error"
    rank: int | None = None
    weighting: Literal["full", "diagonal", "none"] = "full"
    damping: float = 0.05
    iterations: int = 4
    placement: Literal["side", "merged"] = "side"
    allow_merged: bool = False
    train_relation: Relation = "memory"

    def __post_init__(self) -> None:
        """Check the numbers; raises ValueError."""
        super().__post_init__()
        if self.rank is not None and self.rank < 0:
            raise ValueError(f"rank is none or at least 0, not {self.rank}")
        if not 0 < self.damping <= 10:
            raise ValueError(f"damping is above 0 and at most 10, not {self.damping}")
        if self.iterations < 0:
            raise ValueError(f"iterations is at least 0, not {self.iterations}")
        if self.placement == "merged" and not self.allow_merged:
            raise ValueError(
                "placement=merged starts worse than no branch at all; set allow_merged=true to run it"
            )


@dataclass(frozen=True)
class _Fit:
    """A rounded weight and its branch, with the output error."""

    rows: MixedRows
    branch: LowRankBranch | None
    error: float


@method(
    "mpqdmv2",
    Mpqdmv2Config,
    version=1,
    needs_calibration=True,
    reconstruction=True,
    variants={"ablation": ABLATION, "trained": TRAINED},
    summary="uniform or binary-plane channels, error-initialised branch (reconstruction)",
)
def quantize(job: QuantizeJob, config: Mpqdmv2Config) -> None:
    """Replace every target by its mix of channels and a branch for what the mix loses; train, if asked to."""
    distiller = Distiller.of(job, config)
    for target in round_plain(job, job.targets):
        layer = job.layer(target.name)
        weight = weight_matrix(layer)
        act = activation_quantizer(target)
        sample = LayerSample(layer, job.stream().samples(target.name), SAMPLE_ROWS)
        inputs = sample.rows(None, act)
        by_kurtosis = config.salience == "kurtosis"
        mix = best_mix(
            weight,
            target.w_bits,
            lambda rows, bits: _roundings(rows, bits, config),
            sample.target,
            inputs,
            order=descending(pearson_kurtosis(weight)) if by_kurtosis else None,
            swap=config.swap == "search",
        )
        rank = rank_rule(job.width, job.embedded) if config.rank is None else config.rank
        fit = (_merged if config.placement == "merged" else _fit)(
            weight, mix, min(rank, *weight.shape), sample, inputs, config
        )
        job.replace(target.name, packed_layer(layer, fit.rows.pack(), act, branch=fit.branch))
        job.note(
            target.name,
            swap=round(mix.swapped / len(weight), 4),
            planes=round(fit.rows.share_of_planes(), 4),
            rank=0 if fit.branch is None else fit.branch.rank,
        )
    if distiller is not None:
        distiller.run(job)


def _roundings(rows: Tensor, bits: int, config: Mpqdmv2Config) -> list[UniformRows | PlaneRows]:
    """Return the ways a channel may be stored at a width."""
    ways = [round_uniform(rows, bits)]
    if config.planes and 1 < bits <= MAX_PLANES:
        ways.append(round_planes(rows, bits, PLANE_ITERATIONS))
    return ways


def _fit(
    weight: Tensor, mix: Mix, rank: int, sample: LayerSample, inputs: Tensor, config: Mpqdmv2Config
) -> _Fit:
    """Fit the branch to the rounding error, round again what it leaves, and so on; keep the best."""
    rows = mix.rows
    best = _Fit(rows, None, mix.error)
    branch: LowRankBranch | None = None
    for _ in range(config.iterations + 1 if rank else 0):
        if branch is not None:
            rows = rows.again(weight - branch.product())
        rounded = rows.values()
        branch = LowRankBranch(*_decompose(weight - rounded, rank, sample.plain, config))
        wanted = sample.target - branch(sample.plain)
        error = float(row_errors(wanted, inputs, rounded).double().sum())
        if error < best.error:
            best = _Fit(rows, branch, error)
    return best


def _merged(
    weight: Tensor, mix: Mix, rank: int, sample: LayerSample, inputs: Tensor, config: Mpqdmv2Config
) -> _Fit:
    """Round the weight with the fit of its rounding error added to it."""
    if not rank:
        return _Fit(mix.rows, None, mix.error)
    branch = LowRankBranch(*_decompose(weight - mix.rows.values(), rank, sample.plain, config))
    rows = mix.rows.again(weight + branch.product())
    return _Fit(rows, None, float(row_errors(sample.target, inputs, rows.values()).double().sum()))


def _decompose(error: Tensor, rank: int, inputs: Tensor, config: Mpqdmv2Config) -> tuple[Tensor, Tensor]:
    """Low-rank factors of the error, as the weighting asks."""
    if config.weighting == "none":
        return truncated_svd(error, rank)
    if config.weighting == "full":
        return output_svd(error, seen_error(error, inputs, config.damping), rank)
    moment = inputs.square().mean(dim=0)
    return output_svd(error, error * (moment + config.damping * moment.mean()).sqrt(), rank)
