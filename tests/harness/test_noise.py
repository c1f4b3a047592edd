from __future__ import annotations

import hashlib
from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.datasets.contract import Prompt
from harness.noise import hash_seed, initial_latents, prompt_generators, prompt_seed

PROMPTS = [Prompt(f"p{i}", f"caption {i}") for i in range(5)]


def test_the_seed_is_the_documented_hash() -> None:
    digest = hashlib.sha256(b'["prompt", "p0", "caption 0", 7]').digest()
    assert prompt_seed(PROMPTS[0], 7) == int.from_bytes(digest[:8], "big") // 2


def test_the_seed_depends_on_id_text_and_seed_and_on_nothing_else() -> None:
    prompt = PROMPTS[0]
    assert prompt_seed(prompt, 0) == prompt_seed(replace(prompt, facts={"n": 1}), 0)
    others = [(replace(prompt, id="q"), 0), (replace(prompt, text="q"), 0), (prompt, 1)]
    assert len({prompt_seed(*other) for other in [(prompt, 0), *others]}) == 4


@given(st.lists(st.one_of(st.integers(), st.text(max_size=5)), max_size=4))
def test_seeds_are_valid_for_a_generator_and_parts_do_not_run_together(parts: list[str | int]) -> None:
    seed = hash_seed(*parts)
    assert 0 <= seed < 2**63
    assert torch.Generator().manual_seed(seed).initial_seed() == seed
    assert hash_seed(*parts, "a", "b") != hash_seed(*parts, "ab")
    assert hash_seed(*parts, 1) != hash_seed(*parts, "1")


def test_latents_do_not_depend_on_position_or_company() -> None:
    shape = (4, 8, 8)
    together = initial_latents(prompt_generators(PROMPTS, 3), shape)
    assert together.dtype == torch.float32
    assert together.shape == (5, *shape)
    backwards = initial_latents(prompt_generators(PROMPTS[::-1], 3), shape)
    assert torch.equal(together, backwards.flip(0))
    for i, prompt in enumerate(PROMPTS):
        assert torch.equal(together[i], initial_latents(prompt_generators([prompt], 3), shape)[0])


def test_latents_are_standard_normal_and_distinct() -> None:
    latents = initial_latents(prompt_generators([Prompt(str(i), "x") for i in range(64)], 0), (4, 16, 16))
    assert abs(latents.mean()) < 4 / latents.numel() ** 0.5
    assert abs(latents.std() - 1) < 0.02
    correlation = torch.corrcoef(latents.flatten(1)) - torch.eye(64)
    assert correlation.abs().max() < 0.2


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    initial_latents(prompt_generators(PROMPTS, 0), (4, 8, 8))
    assert torch.equal(torch.get_rng_state(), before)
