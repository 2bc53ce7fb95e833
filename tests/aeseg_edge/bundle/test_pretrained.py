"""The package brings a bundle that runs, is small, and says what may be done with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from aeseg_edge.bundle import pretrained
from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.pretrained import LICENCE, pretrained_path
from aeseg_edge.errors import BundleError


def test_it_states_its_licence_and_shows_no_picture() -> None:
    bundle = Bundle.open(pretrained_path())
    assert LICENCE in bundle.manifest.provenance["footage_licence"]
    assert bundle.preview is None


def test_it_is_small_and_its_clusters_have_names() -> None:
    assert pretrained_path().stat().st_size < 6e6
    names = {item.name.casefold() for item in Bundle.open(pretrained_path()).manifest.classes}
    assert {"road", "sky", "building", "car"} <= names


def test_it_segments_a_frame() -> None:
    pytest.importorskip("cv2")
    pytest.importorskip("onnxruntime")
    from aeseg_edge.segment.segmenter import Segmenter
    from aeseg_edge.sources.scene import draw_scene

    with Segmenter.load(pretrained_path(), backend="onnxruntime") as segmenter:
        result = segmenter(draw_scene(0, 320, 240))
    assert result.labels.shape == (240, 320)
    assert len(set(result.labels.ravel().tolist())) > 1


def test_an_installation_without_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "__file__", str(tmp_path / "pretrained.py"))
    with pytest.raises(BundleError, match="no pretrained bundle") as caught:
        pretrained_path()
    assert "-b" in caught.value.fix
