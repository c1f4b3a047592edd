"""MPQ-DM: outlier-driven mixed quantization of output channels (AAAI 2025), without the distillation.

Channels with heavy-tailed weights get one bit more, as many with light tails one bit less; the mean stays
exactly N. The share of swapped channels is searched on the layer's output error with weights and activations
quantized by the final grids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from harness.kernels.activations import ActQuantizer
from harness.methods.contract import LayerTarget, QuantizeJob, method
from harness.methods.layers import (
    ActMode,
    calibrated_quantizer,
    kernel_taps,
    packed_layer,
    per_column,
    weight_matrix,
)
from harness.methods.mixing import Mix, best_mix, raised_mix
from harness.methods.objective import LayerSample, row_errors
from harness.methods.rounding import PLAIN_BITS, PlaneRows, UniformRows, round_plain, round_uniform
from harness.methods.salience import descending, pearson_kurtosis
from harness.methods.smoothing import input_channel_absmax, smoothing_scale
from harness.methods.training.settings import TrainingConfig
from harness.methods.training.trainer import Distiller

SAMPLE_ROWS = 512
ABLATION: tuple[dict[str, str], ...] = (
    {"prescale": "never", "swap": "off"},
    {"swap": "off"},
    {"prescale": "never"},
    {},
    {"prescale": "always"},
    {"range": "minmax"},
    {"swap": "plus"},
)
"""Neither part, pre-scale only, mix only, both, the pre-scale as published, min-max grids, [+]."""

TRAINED: tuple[dict[str, str], ...] = (
    {},
    {"train_relation": "off"},
    {"prescale": "never", "swap": "off"},
)
"""For `--set mpqdm.train_steps=N`: trained, without relation loss, without pre-scale and mix."""


@dataclass(frozen=True)
class MpqdmConfig(TrainingConfig):
    """Settings of `mpqdm`.

    Attributes:
        prescale: `search` keeps the pre-scale where it lowers the output error, `always` is as published.
        alpha: exponent of the pre-scale (max|x| / max|w|)^alpha.
        swap: `search` over 0, 10, ..., 50 % of the channels, `off`, or `plus` for the [+] variant: a tenth of
            the channels gets one bit more and none gives one up, so the mean is N + 0.1 (a reconstruction
            from the sizes published for it).
        range: how the ends of a weight grid are found.
        act: activation ranges: `dynamic`, `static`, or `per_step` as in the published code.
    """

    prescale: Literal["search", "always", "never"] = "search"
    alpha: float = 0.5
    swap: Literal["search", "off", "plus"] = "search"
    range: Literal["mse", "minmax"] = "mse"
    act: Literal["dynamic", "static", "per_step"] = "dynamic"

    def __post_init__(self) -> None:
        """Check the exponent and the training settings; raises ValueError."""
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is between 0 and 1, not {self.alpha}")

    def mean_bits(self, bits: int) -> tuple[float, float]:
        """Exactly N; up to N + 0.1 with `swap=plus` (layers of under ten channels raise none)."""
        return float(bits), bits + (0.1 if self.swap == "plus" and bits < PLAIN_BITS else 0.0)


@method(
    "mpqdm",
    MpqdmConfig,
    version=1,
    weight_bits=(2, 3, 4, 5, 6, 7, 8),
    needs_calibration=True,
    summary="kurtosis-driven N-1/N/N+1 channel mix, pre-scaled",
    variants={"ablation": ABLATION, "plus": ({"swap": "plus"},), "trained": TRAINED},
)
def quantize(job: QuantizeJob, config: MpqdmConfig) -> None:
    """Replace every target by the mix of widths with the least output error; then train, if asked to."""
    distiller = Distiller.of(job, config)
    for target in round_plain(job, job.targets):
        layer = job.layer(target.name)
        sample = LayerSample(layer, job.stream().samples(target.name), SAMPLE_ROWS)
        scale = _choose_scale(job, target, layer, sample, config)
        weight = _scaled(layer, scale)
        mix = _mix(
            weight, target, sample, sample.rows(scale, _scoring_act(job, target, scale, config)), config
        )
        act = calibrated_quantizer(target, config.act, job.stream(), scale)
        job.replace(target.name, packed_layer(layer, mix.rows.pack(), act, smooth=scale))
        job.note(
            target.name,
            swap=round(mix.swapped / len(weight), 4),
            prescale=scale is not None,
            gain=round(1 - mix.error / mix.unswapped, 4) if mix.unswapped > 0 else 0.0,
        )
    if distiller is not None:
        distiller.run(job)


def _mix(
    weight: Tensor, target: LayerTarget, sample: LayerSample, inputs: Tensor, config: MpqdmConfig
) -> Mix:
    order = descending(pearson_kurtosis(weight))

    def rounder(rows: Tensor, bits: int) -> list[UniformRows | PlaneRows]:
        return [round_uniform(rows, bits, ranges=config.range)]

    if config.swap == "plus":
        return raised_mix(weight, target.w_bits, rounder, sample.target, inputs, order=order)
    swap = config.swap == "search"
    return best_mix(weight, target.w_bits, rounder, sample.target, inputs, order=order, swap=swap)


def _choose_scale(
    job: QuantizeJob,
    target: LayerTarget,
    layer: nn.Linear | nn.Conv2d,
    sample: LayerSample,
    config: MpqdmConfig,
) -> Tensor | None:
    """Return the pre-scale, or None where the output error before any swap is smaller without."""
    if config.prescale == "never":
        return None
    w_absmax = input_channel_absmax([weight_matrix(layer)], kernel_taps(layer))
    scale = smoothing_scale(job.stream().absmax(target.name), w_absmax, config.alpha, config.alpha)
    if config.prescale == "always":
        return scale
    error = []
    for candidate in (None, scale):
        inputs = sample.rows(candidate, _scoring_act(job, target, candidate, config))
        rounded = round_uniform(_scaled(layer, candidate), target.w_bits, ranges=config.range)
        error.append(float(row_errors(sample.target, inputs, rounded.values()).double().sum()))
    return scale if error[1] < error[0] else None


def _scaled(layer: nn.Linear | nn.Conv2d, scale: Tensor | None) -> Tensor:
    weight = weight_matrix(layer)
    return weight if scale is None else weight * per_column(scale, kernel_taps(layer))


def _scoring_act(
    job: QuantizeJob, target: LayerTarget, scale: Tensor | None, config: MpqdmConfig
) -> ActQuantizer | None:
    """Return the activation quantizer of the search: samples carry no step, so `per_step` is static here."""
    mode: ActMode = "static" if config.act == "per_step" else config.act
    return calibrated_quantizer(target, mode, job.stream(), scale)
