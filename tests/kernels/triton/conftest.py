"""The backend of tests that run a layer on each of the kernels' roads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from harness.kernels import dispatch


@pytest.fixture
def the_kernels(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """Let layers run on kernels without gradients, and append the branch where the road is called so."""
    road = getattr(request.node, "callspec", None)
    if road is not None and road.params.get("road") == "fp8 appended":
        monkeypatch.setattr(dispatch, "appends_branch", lambda *_: True)
    with torch.no_grad(), dispatch.use_backend("triton"):
        yield
