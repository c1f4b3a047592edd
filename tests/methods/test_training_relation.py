"""Relation losses and the queue against explicit loops in double precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from harness.methods.training.relation import (
    EMPTY,
    PixelQueue,
    as_pixels,
    memory_relation,
    smoothed_relation,
)


def softmax(values: list[float]) -> list[float]:
    peak = max(values)
    powers = [math.exp(v - peak) for v in values]
    return [p / sum(powers) for p in powers]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


def unit(vector: list[float]) -> list[float]:
    length = math.sqrt(sum(v * v for v in vector))
    return [v / length for v in vector]


def dot(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def features(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def smoothed_by_hand(student: Tensor, teacher: Tensor) -> float:
    total = 0.0
    for image in range(len(student)):
        relations = []
        for f in (student, teacher):
            steps = f[image].double().tolist()
            mean = [
                unit([sum(step[p][c] for step in steps) / len(steps) for c in range(len(steps[0][p]))])
                for p in range(len(steps[0]))
            ]
            relations.append([softmax([dot(a, b) for b in mean]) for a in mean])
        total += sum(kl(t, s) for s, t in zip(*relations, strict=True))
    return total / len(student)


def test_smoothed_relation_equals_loops():
    student, teacher = features(0, 2, 3, 5, 4), features(1, 2, 3, 5, 4)
    assert smoothed_relation(student, teacher).item() == pytest.approx(
        smoothed_by_hand(student, teacher), rel=1e-4
    )
    assert smoothed_relation(teacher, teacher).item() == pytest.approx(0, abs=1e-6)


def test_smoothed_relation_averages_before_it_relates():
    student, teacher = features(2, 1, 2, 5, 4), features(3, 1, 2, 5, 4)
    apart = [smoothed_relation(student[:, k : k + 1], teacher[:, k : k + 1]).item() for k in (0, 1)]
    assert abs(smoothed_relation(student, teacher).item() - sum(apart) / 2) > 1e-3


@pytest.mark.parametrize("steps", [1, 2])
def test_the_gradient_of_the_smoothed_relation_reaches_every_step_of_the_student(steps):
    student, teacher = features(4, 1, steps, 4, 3).double().float(), features(5, 1, steps, 4, 3)
    student.requires_grad_()
    smoothed_relation(student, teacher).backward()
    assert student.grad.abs().amax(dim=(0, 2, 3)).min() > 1e-4
    moved = torch.zeros_like(student)
    for place in ((0, 0, 1, 2), (0, steps - 1, 3, 0)):
        shift = moved.clone()
        shift[place] = 1e-2
        with torch.no_grad():
            quotient = (
                smoothed_by_hand(student + shift, teacher) - smoothed_by_hand(student - shift, teacher)
            ) / 2e-2
        assert student.grad[place].item() == pytest.approx(quotient, rel=2e-2, abs=1e-4)


def memory_by_hand(
    student: Tensor, teacher: Tensor, steps: list[int], pixels: Tensor, tags: list[int], span: int | None
) -> float:
    total = 0.0
    for row in range(len(student)):
        seen = [
            k for k, tag in zip(pixels.double().tolist(), tags, strict=True)
            if span is None or abs(tag - steps[row]) <= span
        ]  # fmt: skip
        for position in range(student.shape[1]):
            s, t = (unit(f[row, position].double().tolist()) for f in (student, teacher))
            if seen:
                total += kl(
                    softmax([dot(t, k) / 0.1 for k in seen]), softmax([dot(s, k) / 0.1 for k in seen])
                )
    return total / (student.shape[0] * student.shape[1])


@pytest.mark.parametrize("span", [None, 0, 1])
def test_memory_relation_equals_loops(span):
    student, teacher = features(6, 3, 4, 5), features(7, 3, 4, 5)
    pixels = torch.nn.functional.normalize(features(8, 6, 5), dim=-1)
    tags, steps = [0, 1, 1, 2, 2, 3], [0, 2, 7]
    got = memory_relation(
        student, teacher, torch.tensor(steps), (pixels, torch.tensor(tags)), span=span, temperature=0.1
    )
    want = memory_by_hand(student, teacher, steps, pixels, tags, span)
    assert got.item() == pytest.approx(want, rel=1e-4)


def test_the_gradient_of_the_memory_relation_reaches_the_student():
    student = features(9, 2, 3, 4).requires_grad_()
    teacher = features(10, 2, 3, 4)
    pixels = torch.nn.functional.normalize(features(11, 8, 4), dim=-1)
    memory = (pixels, torch.zeros(8, dtype=torch.int64))
    memory_relation(student, teacher, torch.tensor([0, 1]), memory).backward()
    assert student.grad.abs().amax(dim=-1).min() > 1e-5
    shift = torch.zeros(2, 3, 4)
    shift[1, 2, 0] = 1e-2
    moved = [
        memory_by_hand(student.detach() + sign * shift, teacher, [0, 1], pixels, [0] * 8, None)
        for sign in (1, -1)
    ]
    assert student.grad[1, 2, 0].item() == pytest.approx((moved[0] - moved[1]) / 2e-2, rel=2e-2)


def test_pixels_of_maps_are_pixels_of_one_image():
    maps = torch.arange(2 * 3 * 2 * 2.0).view(2, 3, 2, 2)
    pixels = as_pixels(maps)
    for image in range(2):
        for y in range(2):
            for x in range(2):
                assert pixels[image, 2 * y + x].tolist() == [maps[image, c, y, x].item() for c in range(3)]
    tokens = torch.zeros(2, 5, 3)
    assert as_pixels(tokens) is tokens
    with pytest.raises(ValueError, match="neither"):
        as_pixels(torch.zeros(2, 3))


def test_the_queue_holds_whole_pixels_with_their_steps_and_forgets_the_oldest():
    queue = PixelQueue(3, size=10)
    assert queue.empty()
    remembered: list[tuple[list[float], int]] = []
    for call in range(4):
        maps = features(20 + call, 2, 3, 2, 2)
        steps = torch.tensor([call, call + 10])
        order = torch.randperm(8, generator=torch.Generator().manual_seed(call))[:4]
        for index in order.tolist():
            image, position = divmod(index, 4)
            vector = [maps[image, c, position // 2, position % 2].item() for c in range(3)]
            remembered.append((unit(vector), int(steps[image])))
        queue.enqueue(as_pixels(maps), steps, 4, torch.Generator().manual_seed(call))
    assert queue.position == 16 % 10
    for place in range(10):
        vector, tag = remembered[place + 10] if place < 6 else remembered[place]
        assert queue.pixels[place].tolist() == pytest.approx(vector, abs=1e-6)
        assert queue.tags[place].item() == tag


def test_the_contrast_is_of_filled_places_only_and_evenly_spaced_over_the_steps():
    queue = PixelQueue(2, size=100)
    for step, count in ((5, 40), (1, 20)):
        queue.enqueue(features(step, 1, count, 2), torch.tensor([step]), count, torch.Generator())
    pixels, tags = queue.contrast(1000)
    assert len(pixels) == 60
    assert EMPTY not in tags.tolist()
    pixels, tags = queue.contrast(30)
    assert tags.tolist() == [1] * 10 + [5] * 20
    assert torch.allclose(pixels.norm(dim=1), torch.ones(30))
