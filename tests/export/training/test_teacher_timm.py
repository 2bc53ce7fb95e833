"""Any network of timm can teach. In an environment of its own: `make test-timm`."""

from __future__ import annotations

import numpy as np
import pytest

timm = pytest.importorskip("timm", reason="timm is not installed: make test-timm")
torch = pytest.importorskip("torch")

from aeseg_edge.errors import UsageError  # noqa: E402
from aeseg_edge.export.training.teacher import TimmTeacher, make_targets  # noqa: E402

pytestmark = pytest.mark.timm


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_a_network_of_timm_gives_targets(name: str) -> None:
    """Random weights: what is tested is the way from its layers to targets on the grid."""
    teacher = TimmTeacher(f"timm:{name}", pretrained=False)
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 96, 3), dtype=np.uint8)
    targets = make_targets(teacher, frames, frames[:1], 8)
    assert targets.frames.shape == (3, 8, 4, 6)
    np.testing.assert_allclose(np.linalg.norm(targets.frames, axis=1), 1, atol=2e-3)
    assert np.array_equal(targets.frames[:1], targets.held_out)


def test_a_network_that_timm_does_not_have_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot make 'no_such_network'"):
        TimmTeacher("timm:no_such_network", pretrained=False)
