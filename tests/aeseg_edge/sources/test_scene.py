"""The test scene moves, repeats and ends."""

from __future__ import annotations

import numpy as np
import pytest

from aeseg_edge.errors import SourceError
from aeseg_edge.sources.registry import open_source

cv2 = pytest.importorskip("cv2")


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_test_scene_moves_and_repeats(channels: int) -> None:
    def take() -> list[np.ndarray]:
        with open_source("test://96x64@15", channels=channels) as source:
            assert source.fps == 15
            return [frame.image for frame, _ in zip(source, range(3), strict=False)]

    first, again = take(), take()
    assert first[0].shape == (64, 96, channels)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[0], first[2])


def test_the_test_scene_ends_when_it_is_closed() -> None:
    source = open_source("test://8x8")
    frames = iter(source)
    assert next(frames).timestamp == 0
    assert next(frames).timestamp == pytest.approx(1 / 30)
    source.close()
    assert list(frames) == []


@pytest.mark.parametrize("rest", ["640", "0x480", "640x480@0", "axb", "640x480@x", "99999x9"])
def test_a_test_scene_of_no_size_or_rate_is_refused(rest: str) -> None:
    with pytest.raises(SourceError, match="is not a size and rate"):
        open_source(f"test://{rest}")
