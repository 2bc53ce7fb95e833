"""Edits of a running segmenter: in the next frame, and in the bundle once they are saved."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cv2")
pytest.importorskip("onnxruntime")

from aeseg_edge.bundle import pretrained
from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.classes import make_void, merge, rename
from aeseg_edge.bundle.codebook import VOID
from aeseg_edge.bundle.geometry import Geometry
from aeseg_edge.errors import BundleError, CodebookError, UsageError
from aeseg_edge.page.classes import LiveClasses, cluster_at
from aeseg_edge.segment.segmenter import Segmenter
from aeseg_edge.sources.scene import draw_scene


@pytest.fixture
def bundle(v1_bundle: Path, tmp_path: Path) -> Path:
    path = tmp_path / "street.aeseg"
    shutil.copy(v1_bundle, path)
    return path


@pytest.fixture
def segmenter(bundle: Path) -> Iterator[Segmenter]:
    with Segmenter.load(bundle, precision="fp32", backend="onnxruntime", threads=1) as opened:
        yield opened


def test_an_edit_is_in_the_next_frame(segmenter: Segmenter) -> None:
    classes, scene = LiveClasses(segmenter), draw_scene(0, 96, 64)
    before = segmenter(scene)
    common = max(before.shares, key=lambda key: before.shares[key])
    classes.apply(partial(make_void, class_id=common))
    after = segmenter(scene)
    assert ((after.labels == VOID) == (before.labels == common)).all()
    classes.undo()
    np.testing.assert_array_equal(segmenter(scene).labels, before.labels)


def test_a_saved_edit_is_in_the_bundle_and_the_rest_of_it_is_untouched(
    segmenter: Segmenter, bundle: Path
) -> None:
    classes = LiveClasses(segmenter)
    first = Bundle.open(bundle)
    assert not classes.unsaved
    classes.apply(partial(rename, class_id=2, name="road"))
    assert classes.unsaved
    assert Bundle.open(bundle).codebook.classes[2].name == "class 2"
    classes.save()
    assert not classes.unsaved
    found = Bundle.open(bundle)
    assert found.codebook.classes[2].name == "road"
    assert found.graphs == first.graphs
    classes.apply(partial(merge, into=2, others=[3]))
    assert classes.unsaved
    classes.undo()
    assert not classes.unsaved


def test_an_edit_that_does_not_fit_changes_nothing(segmenter: Segmenter) -> None:
    classes = LiveClasses(segmenter)
    book = classes.current()
    with pytest.raises(CodebookError):
        classes.apply(partial(rename, class_id=9, name="road"))
    assert classes.current() is book
    with pytest.raises(UsageError, match="nothing to take back"):
        classes.undo()


def test_a_bundle_that_cannot_be_written_keeps_its_edits(
    segmenter: Segmenter, tmp_path: Path
) -> None:
    classes = LiveClasses(segmenter, tmp_path / "gone" / "x.aeseg")
    classes.apply(partial(rename, class_id=2, name="road"))
    with pytest.raises(BundleError, match="cannot be written"):
        classes.save()
    assert classes.unsaved
    plain = Bundle.open(tmp_path / "street.aeseg")
    made = Bundle.build(plain.manifest, plain.codebook, plain.graphs)
    with Segmenter.load(made, backend="onnxruntime") as nameless:
        with pytest.raises(BundleError, match="never a file"):
            LiveClasses(nameless).save()
        assert LiveClasses(nameless).title == "unnamed bundle"


def narrower(bundle: Bundle) -> Bundle:
    """As if trained again with latents of half the size."""
    book, half = bundle.codebook, bundle.manifest.latent_dim // 2
    return Bundle.build(
        replace(bundle.manifest, latent_dim=half),
        replace(book, weights=np.ascontiguousarray(book.weights[:, : 2 * half]), centres=None),
        {name: data + b" " for name, data in bundle.graphs.items()},
    )


def calibrated_again(bundle: Bundle) -> Bundle:
    return bundle.with_codebook(replace(bundle.codebook, bias=bundle.codebook.bias + 1))


def named_meanwhile(bundle: Bundle) -> Bundle:
    return bundle.with_codebook(rename(bundle.codebook, 1, "sky"))


@pytest.mark.parametrize(
    ("change", "what"),
    [(narrower, "graphs"), (calibrated_again, "clusters"), (named_meanwhile, "names")],
)
def test_a_bundle_that_was_replaced_meanwhile_is_left_alone(
    segmenter: Segmenter, bundle: Path, change: Callable[[Bundle], Bundle], what: str
) -> None:
    classes = LiveClasses(segmenter)
    classes.apply(partial(rename, class_id=2, name="road"))
    classes.save()
    classes.apply(partial(rename, class_id=3, name="tree"))
    classes.save()  # Its own changes are none of somebody else's.
    classes.apply(partial(rename, class_id=2, name="path"))
    change(Bundle.open(bundle)).write(bundle)
    before = bundle.read_bytes()
    with pytest.raises(BundleError, match=f"replaced during this run, and has other {what}"):
        classes.save()
    assert bundle.read_bytes() == before
    assert classes.unsaved
    assert classes.current().classes[2].name == "path"


def test_edits_are_saved_into_another_file_as_often_as_wanted(
    segmenter: Segmenter, bundle: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.aeseg"
    classes = LiveClasses(segmenter, other)
    for name in ("road", "path"):
        classes.apply(partial(rename, class_id=2, name=name))
        classes.save()
    assert Bundle.open(other).codebook.classes[2].name == "path"
    assert Bundle.open(bundle).codebook.classes[2].name == "class 2"


def test_the_bundle_of_the_package_is_never_written(
    segmenter: Segmenter, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "_path", bundle.resolve)
    (tmp_path / "link.aeseg").symlink_to(bundle)
    before = bundle.read_bytes()
    for path in (None, tmp_path / "link.aeseg"):
        classes = LiveClasses(segmenter, path)
        classes.apply(partial(rename, class_id=2, name="road"))
        with pytest.raises(BundleError, match=r"comes with the package.*Copy it"):
            classes.save()
    assert bundle.read_bytes() == before


def test_what_was_never_saved_is_kept_beside_the_bundle_and_said(
    segmenter: Segmenter, bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    classes, before = LiveClasses(segmenter), bundle.read_bytes()
    assert classes.keep_draft() is None
    classes.apply(partial(rename, class_id=2, name="road"))
    draft = classes.keep_draft()
    assert draft == bundle.with_name("street.draft.aeseg")
    assert f"mv {draft} {bundle}" in caplog.text
    assert Bundle.open(draft).codebook.classes[2].name == "road"
    assert Bundle.open(draft).graphs == Bundle.open(bundle).graphs
    assert bundle.read_bytes() == before
    # Closing twice is fine, and so is an edit that was taken back by hand.
    assert classes.keep_draft() is None
    later = LiveClasses(segmenter)
    later.apply(partial(rename, class_id=2, name="path"))
    assert later.keep_draft() == bundle.with_name("street.draft-2.aeseg")
    assert Bundle.open(draft).codebook.classes[2].name == "road"
    later.apply(partial(rename, class_id=2, name="kerb"))
    later.apply(partial(rename, class_id=2, name="path"))
    assert later.keep_draft() is None


def test_every_edit_is_on_the_disk_before_the_run_ends(segmenter: Segmenter, bundle: Path) -> None:
    classes, draft = LiveClasses(segmenter), bundle.with_name("street.draft.aeseg")
    classes.keep_edits()
    assert not draft.exists()
    for name in ("road", "path"):
        classes.apply(partial(rename, class_id=2, name=name))
        classes.keep_edits()
        assert Bundle.open(draft).codebook.classes[2].name == name
    # This run's own draft is written over, and is the one that the end of the run names.
    assert classes.keep_draft() == draft
    assert [path.name for path in bundle.parent.glob("*draft*")] == [draft.name]


@pytest.mark.parametrize("how", ["save", "undo"])
def test_the_draft_goes_with_the_edits(segmenter: Segmenter, bundle: Path, how: str) -> None:
    classes = LiveClasses(segmenter)
    classes.apply(partial(rename, class_id=2, name="road"))
    classes.keep_edits()
    assert list(bundle.parent.glob("*draft*"))
    getattr(classes, how)()
    classes.keep_edits()
    assert list(bundle.parent.glob("*draft*")) == []


def test_nothing_is_kept_of_what_was_saved(segmenter: Segmenter, bundle: Path) -> None:
    classes = LiveClasses(segmenter)
    classes.apply(partial(rename, class_id=2, name="road"))
    classes.save()
    assert classes.keep_draft() is None
    assert list(bundle.parent.glob("*draft*")) == []


def test_a_draft_does_not_go_over_a_bundle_that_was_replaced(
    segmenter: Segmenter, bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    classes, graphs = LiveClasses(segmenter), Bundle.open(bundle).graphs
    classes.apply(partial(rename, class_id=2, name="road"))
    narrower(Bundle.open(bundle)).write(bundle)
    draft = classes.keep_draft()
    assert draft is not None
    assert Bundle.open(draft).graphs == graphs
    assert "mv " not in caplog.text
    assert f"-b {draft}" in caplog.text


def test_a_draft_of_the_packages_bundle_goes_into_the_working_folder(
    segmenter: Segmenter, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "_path", bundle.resolve)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    classes = LiveClasses(segmenter)
    classes.apply(partial(rename, class_id=2, name="road"))
    assert classes.keep_draft() == Path("street.draft.aeseg")
    assert [path.name for path in here.iterdir()] == ["street.draft.aeseg"]


def test_a_draft_that_cannot_be_written_is_said_and_the_run_ends_well(
    segmenter: Segmenter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    classes = LiveClasses(segmenter, tmp_path / "gone" / "x.aeseg")
    classes.apply(partial(rename, class_id=2, name="road"))
    assert classes.keep_draft() is None
    assert "are lost" in caplog.text


def test_the_history_is_bounded(segmenter: Segmenter) -> None:
    classes = LiveClasses(segmenter)
    for index in range(130):
        classes.apply(partial(rename, class_id=0, name=f"name {index}"))
    for _ in range(100):
        classes.undo()
    assert not classes.can_undo


@pytest.mark.parametrize("size", [(64, 96), (120, 200), (33, 47)])
def test_the_cluster_under_a_point_is_the_one_the_graph_chose(
    segmenter: Segmenter, size: tuple[int, int]
) -> None:
    scene = draw_scene(3, size[1], size[0])
    wanted = segmenter.clusters(scene)
    latents = segmenter(scene, want=frozenset({"latents"})).latents
    assert latents is not None
    rows, columns = np.random.default_rng(0).integers(0, size, (200, 2)).T
    found = [
        cluster_at(segmenter.codebook, segmenter.manifest.geometry, latents, size, (int(r), int(c)))
        for r, c in zip(rows, columns, strict=True)
    ]
    # Labels are computed at half the stride and repeated; edges differ by that much.
    assert (np.array(found) == wanted[rows, columns]).mean() > 0.9


def test_only_clusters_of_the_label_are_looked_at(segmenter: Segmenter) -> None:
    latents = np.zeros((8, 16, 24), np.float32)
    for label in range(5):
        found = cluster_at(segmenter.codebook, Geometry(96, 64), latents, (64, 96), (10, 10), label)
        assert segmenter.codebook.remap[found] == label
