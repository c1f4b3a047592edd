import pytest

from harness.measure.floor import Ceilings, linear_work, measure_ceilings

CEILINGS = Ceilings(bandwidth=4e12, bf16=800e12)


def test_a_layer_at_one_row_is_bound_by_its_weight() -> None:
    k, n = 3072, 18432
    bf16 = linear_work(1, k, n, weight_bytes=2 * k * n + 2 * n, act_bits=16)
    packed = linear_work(1, k, n, weight_bytes=k * n // 2 + k * n // 32, act_bits=16)
    assert bf16.bytes == 2 * k + 2 * k * n + 2 * n + 2 * n
    assert bf16.floor_ms(CEILINGS) == pytest.approx(1e3 * bf16.bytes / 4e12)
    # 16 bits against 4.25 bits per weight
    assert bf16.floor_ms(CEILINGS) / packed.floor_ms(CEILINGS) == pytest.approx(16 / 4.25, rel=2e-3)


def test_many_rows_are_bound_by_operations_and_8_bits_halve_them() -> None:
    m, k, n = 4608, 3072, 9216
    bf16 = linear_work(m, k, n, weight_bytes=2 * k * n, act_bits=16)
    packed = linear_work(m, k, n, weight_bytes=k * n // 2, act_bits=4)
    assert bf16.floor_ms(CEILINGS) == pytest.approx(1e3 * 2 * m * k * n / 800e12)
    assert packed.floor_ms(CEILINGS) == pytest.approx(bf16.floor_ms(CEILINGS) / 2)
    assert packed.intensity == pytest.approx(2 * m * k * n / (2 * m * k + k * n // 2 + 2 * m * n))


def test_the_branch_adds_both_its_products() -> None:
    plain = linear_work(8, 16, 32, weight_bytes=1, act_bits=4)
    ranked = linear_work(8, 16, 32, weight_bytes=1, act_bits=4, rank=2)
    assert ranked.operations - plain.operations == 2 * 8 * 2 * (16 + 32)


def test_ceilings_are_measured_where_asked() -> None:
    found = measure_ceilings("cpu")
    assert found.bandwidth > 0
    assert found.bf16 > 0
    assert found.operations("8-bit") == 2 * found.operations("bf16")
