"""What people named keeps its name when clusters are found again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("cv2")
pytest.importorskip("onnxruntime")
pytest.importorskip("sklearn")
pytest.importorskip("scipy")

from aeseg_edge.bundle import classes as naming
from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.codebook import VOID, Codebook
from aeseg_edge.calibration.clusters.latents import EncoderSession
from aeseg_edge.calibration.clusters.match import (
    encoder_of,
    encoder_shift,
    match_centres,
    match_codebooks,
)
from aeseg_edge.calibration.fit import FitSettings
from aeseg_edge.calibration.graphs.deployed import centre_latents
from aeseg_edge.calibration.recalibrate import recalibrate
from aeseg_edge.errors import CalibrationError
from aeseg_edge.sources.scene import draw_scene

SETTINGS = FitSettings(clusters=5, restarts=4, samples=2000, threads=1)


def centres(count: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 5, (count, 4)).astype(np.float32)


def named() -> Codebook:
    """Six clusters: 0 road, 1 and 4 merged as plant, 2 void, 3 and 5 as they were found."""
    book = naming.rename(Codebook.from_centres(centres()), 0, "road")
    book = naming.recolor(naming.rename(book, 1, "plant"), 1, (1, 2, 3))
    return naming.make_void(naming.merge(book, 1, [4]), 2)


def test_names_colours_merges_and_void_survive_another_order_of_clusters() -> None:
    old = named()
    shuffle = np.array([3, 5, 0, 4, 1, 2])
    moved = centres()[shuffle] + np.random.default_rng(1).normal(0, 0.1, (6, 4))
    found = match_codebooks(old, Codebook.from_centres(moved))
    assert found.count == 6
    book = found.codebook
    np.testing.assert_array_equal(found.partners, np.arange(6))
    np.testing.assert_array_equal(found.order, np.argsort(shuffle))
    np.testing.assert_array_equal(book.remap, old.remap)
    assert book.classes == old.classes
    # The rows moved with their names: latents near an old centre are of its class.
    np.testing.assert_array_equal(book.remap[book.assign(centres())], [0, 1, VOID, 3, 1, 5])
    assert (found.distances < 0.5).all()


def test_a_far_cluster_is_not_matched_and_gets_a_name_that_nothing_had() -> None:
    old = named()
    new = np.concatenate([centres()[[0, 1, 3]], [[60, 0, 0, 0], [0, 60, 0, 0]]])
    found = match_codebooks(old, Codebook.from_centres(new))
    assert found.count == 3
    book = found.codebook
    assert [c.name for c in book.classes] == ["road", "plant", "class 2", "class 3", "class 4"]
    assert sorted(found.to_json()["partners"], key=str) == [0, 1, 3, None, None]
    # Ids of old classes stay theirs; void is an id of no class, so 2 was free, and 4 too.
    assert [c.id for c in book.classes] == [0, 1, 2, 3, 4]
    far = book.assign(np.array([[60, 0, 0, 0], [0, 60, 0, 0]], np.float32))
    assert set(book.remap[far].tolist()) == {2, 4}
    assert book.class_of(5) is None


def test_how_far_is_far_follows_the_nearest_class_and_not_the_nearest_cluster() -> None:
    points = np.array([[0, 0], [1, 0], [10, 0]], np.float32)
    old = Codebook.from_centres(points)
    merged = naming.merge(old, 0, [1])
    new = Codebook.from_centres(np.array([[-3, 0], [10, 0]], np.float32))
    # 3 from the first centre, whose neighbour is at 1: too far, unless both are one class.
    assert match_centres(old, new)[0].tolist() == [-1, 2]
    assert match_centres(merged, new)[0].tolist() == [0, 2]
    assert match_centres(merged, new)[1][0] == pytest.approx(3 / 5)


def test_one_to_one_and_the_whole_is_best() -> None:
    old = Codebook.from_centres(np.array([[0, 0], [10, 0]], np.float32))
    new = Codebook.from_centres(np.array([[1, 0], [-2, 0]], np.float32))
    # Both lie near the first; one gets it, and the other does not take the second's name.
    partners, shares = match_centres(old, new)
    assert partners.tolist() == [0, -1]
    assert np.isnan(shares[1])


def test_directions_are_compared_where_one_codebook_is_spherical() -> None:
    points = centres()
    old = Codebook.from_centres(
        points / np.linalg.norm(points, axis=1)[:, None], method="spherical"
    )
    new = Codebook.from_centres(points * 3)
    assert match_centres(old, new)[0].tolist() == list(range(6))
    plain = match_centres(replace(old, method="kmeans"), new)[0]
    assert (plain == -1).any()


def test_what_cannot_be_compared_is_refused() -> None:
    old = named()
    with pytest.raises(CalibrationError, match=r"the old codebook \(linear\) has no centres"):
        match_codebooks(replace(old, centres=None, method="linear"), old)
    with pytest.raises(CalibrationError, match="has 4 latent channels, the new one 3"):
        match_codebooks(old, Codebook.from_centres(centres()[:, :3]))


# --- encoders -------------------------------------------------------------------------------------


def scenes(count: int = 12) -> list[np.ndarray]:
    return [draw_scene(7 * index, 96, 64) for index in range(count)]


def changed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The encoder with one trained weight changed."""
    other = onnx.ModelProto.FromString(model.SerializeToString())
    item = next(i for i in other.graph.initializer if len(i.dims) == 4)
    values = onnx.numpy_helper.to_array(item) * 1.2
    item.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), item.name))
    return other


def test_only_a_mean_may_lie_between_two_encoders(v1_bundle: Path) -> None:
    encoder = encoder_of(Bundle.open(v1_bundle))
    mean = np.linspace(-1, 1, 8)
    same, moved, other = (
        EncoderSession(model, threads=1)
        for model in (encoder, centre_latents(encoder, mean), changed(encoder))
    )
    np.testing.assert_array_equal(encoder_shift(same, same, scenes()), np.zeros(8))
    np.testing.assert_allclose(encoder_shift(moved, same, scenes()), mean, atol=1e-4)
    with pytest.raises(CalibrationError, match="has another encoder"):
        encoder_shift(same, other, scenes())


def test_recalibration_on_the_same_footage_keeps_every_name(v1_bundle: Path) -> None:
    first = recalibrate(Bundle.open(v1_bundle), scenes(), SETTINGS).bundle
    book = naming.make_void(naming.rename(first.codebook, 1, "road"), 3)
    old = first.with_codebook(book)
    again = recalibrate(old, scenes(), replace(SETTINGS, seed=1), names_from=old)
    assert again.matched is not None
    assert again.matched.count >= 4
    kept = again.bundle.codebook
    assert kept.class_of(1) == book.class_of(1)
    assert again.matched.to_json() == again.bundle.manifest.training["calibration"]["names"]
    # Shares belong to the clusters in their new order.
    shares = again.bundle.manifest.training["calibration"]["shares"]
    np.testing.assert_allclose(shares, again.clustering.shares, atol=1e-5)
    np.testing.assert_array_equal(again.clustering.centres, kept.centres)
    fresh = recalibrate(old, scenes(), replace(SETTINGS, seed=1))
    assert fresh.matched is None
    assert fresh.bundle.codebook.class_of(1).name == "class 1"  # type: ignore[union-attr]


def test_a_bundle_of_another_encoder_is_refused_before_any_work(v1_bundle: Path) -> None:
    bundle = Bundle.open(v1_bundle)
    graph = onnx.load_from_string(bundle.graph("fp32", "onnxruntime"))
    path = bundle.manifest.entry("fp32", "onnxruntime").graph
    graphs = {**bundle.graphs, path: changed(graph).SerializeToString()}
    other = Bundle.build(bundle.manifest, bundle.codebook, graphs)
    stages: list[str] = []
    with pytest.raises(CalibrationError, match="has another encoder"):
        recalibrate(
            bundle,
            scenes(),
            SETTINGS,
            names_from=other,
            progress=lambda stage, _: stages.append(stage),
        )
    assert stages == []
