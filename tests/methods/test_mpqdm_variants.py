"""The [+] variant of MPQ-DM, and the merged placement that MPQ-DMv2's reconstruction refuses."""

from __future__ import annotations

import layer_jobs as jobs
import pytest
import torch

from harness.errors import UserError
from harness.methods import registry
from harness.methods.salience import pearson_kurtosis


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_plus_raises_a_tenth_of_the_channels_by_kurtosis_and_lowers_none(bits: int) -> None:
    done = jobs.run("mpqdm", jobs.job("mpqdm", bits), swap="plus", prescale="never")
    plain = jobs.run("mpqdm", jobs.job("mpqdm", bits), swap="off", prescale="never")
    low, high = registry.configure("mpqdm", {"swap": "plus"}).mean_bits(bits)
    assert (low, high) == (bits, bits + 0.1)
    x, net = jobs.inputs(), jobs.Net()
    before, after = (jobs.output_error(work, x, net) for work in (plain, done))
    for name in jobs.NAMES:
        weight = done.denoiser.get_submodule(name).weight
        tenth = weight.rows // 10
        assert weight.mean_bits == pytest.approx(bits + tenth / weight.rows)
        assert weight.mean_bits <= bits + 0.1 + 1e-9
        raised = {int(r) for r in torch.where(weight.row_part == _part(weight, bits + 1))[0]}
        kurtosis = pearson_kurtosis(net.get_submodule(name).weight.detach().flatten(1))
        assert raised == set(kurtosis.argsort(descending=True)[:tenth].tolist())
        assert done.notes[name]["swap"] == round(tenth / weight.rows, 4)
        assert after[name] < before[name]


def _part(weight: object, bits: int) -> int:
    (index,) = [i for i, part in enumerate(weight.parts) if part.mean_bits == bits]
    return index


def test_other_settings_keep_the_mean_exactly() -> None:
    for swap in ("search", "off"):
        assert registry.configure("mpqdm", {"swap": swap}).mean_bits(3) == (3, 3)
    assert registry.configure("mpqdm", {"swap": "plus"}).mean_bits(8) == (8, 8)


def test_a_branch_merged_before_rounding_is_refused_unless_asked_for() -> None:
    with pytest.raises(UserError, match="allow_merged=true"):
        registry.configure("mpqdmv2", {"placement": "merged"})
    merged = {"placement": "merged", "allow_merged": "true", "planes": "false"}
    x, net = jobs.inputs(), jobs.Net()
    worse, plain, side = (
        jobs.output_error(jobs.run("mpqdmv2", jobs.job("mpqdmv2", 2), **settings), x, net)
        for settings in (merged, {"planes": "false", "rank": "0"}, {"planes": "false"})
    )
    for name in ("q", "k", "down"):
        assert worse[name] > plain[name] > side[name]
    done = jobs.run("mpqdmv2", jobs.job("mpqdmv2", 2), **merged)
    assert done.denoiser.get_submodule("q").branch is None


@pytest.mark.parametrize("method", ["ptq", "svdquant", "mpqdm", "mpqdmv2"])
def test_every_member_of_every_named_set_is_a_valid_and_different_configuration(method: str) -> None:
    for members in registry.get(method).variants.values():
        configs = [registry.configure(method, member) for member in members]
        assert len(set(configs)) == len(members)
