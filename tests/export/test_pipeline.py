"""Footage becomes a bundle and a checkpoint; the checkpoint becomes other bundles."""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")
torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from aeseg_edge.bundle import classes as naming  # noqa: E402
from aeseg_edge.bundle.archive import Bundle  # noqa: E402
from aeseg_edge.bundle.geometry import LETTERBOX_VALUE, Geometry, fit_frame  # noqa: E402
from aeseg_edge.calibration.assemble import Material  # noqa: E402
from aeseg_edge.calibration.fit import FitSettings  # noqa: E402
from aeseg_edge.errors import (  # noqa: E402
    AesegError,
    CalibrationError,
    TrainingError,
    UsageError,
)
from aeseg_edge.export import pipeline  # noqa: E402
from aeseg_edge.export.checkpoint import save_model  # noqa: E402
from aeseg_edge.export.kept_frames import (  # noqa: E402
    frame_region,
    load_frames,
    resize_frames,
    save_frames,
)
from aeseg_edge.export.network.autoencoder import build_autoencoder  # noqa: E402
from aeseg_edge.export.network.config import AutoencoderConfig  # noqa: E402
from aeseg_edge.export.pipeline import export_bundle, train_bundle  # noqa: E402
from aeseg_edge.export.settings import Labels, TrainOptions  # noqa: E402
from aeseg_edge.export.sizes import check_output_stride, round_size  # noqa: E402
from aeseg_edge.export.training.settings import TrainSettings  # noqa: E402
from aeseg_edge.segment.segmenter import Segmenter  # noqa: E402
from aeseg_edge.sources.scene import draw_scene  # noqa: E402

FIT = FitSettings(clusters=4, restarts=1, samples=2000, threads=1)
OPTIONS = TrainOptions(
    model=AutoencoderConfig("shallow", latent_dim=6),
    image_size=(96, 64),
    training=TrainSettings.for_arch("shallow", epochs=2, threads=1),
    fit=FIT,
)


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A drive as a video and as pictures."""
    folder = tmp_path_factory.mktemp("footage")
    writer = cv2.VideoWriter(
        str(folder / "drive.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 25.0, (120, 80)
    )
    (folder / "pictures").mkdir()
    for index in range(16):
        writer.write(draw_scene(6 * index, 120, 80))
        cv2.imwrite(str(folder / "pictures" / f"{index}.png"), draw_scene(200 + 6 * index, 120, 80))
    writer.release()
    return [folder / "drive.mp4", folder / "pictures"]


@pytest.fixture(scope="module")
def trained(footage: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("trained") / "street.aeseg"
    train_bundle(footage, output, OPTIONS)
    return output


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint that a test may change."""
    return Path(shutil.copytree(trained.with_suffix(".train"), tmp_path / "street.train"))


def grey_footage(folder: Path, channels: int) -> Path:
    folder.mkdir()
    for index in range(8):
        scene = draw_scene(9 * index, 120, 60)
        alpha = np.full((60, 120, 1), 20 * index, np.uint8)
        image = scene if channels == 1 else np.concatenate([scene, alpha], axis=2)
        cv2.imwrite(str(folder / f"{index}.png"), image)
    return folder


# --- train ----------------------------------------------------------------------------------------


def test_footage_becomes_a_bundle_with_its_checkpoint_beside_it(trained: Path) -> None:
    assert sorted(path.name for path in trained.parent.iterdir()) == [
        "street.aeseg",
        "street.train",
    ]
    assert sorted(path.name for path in trained.with_suffix(".train").iterdir()) == [
        "frames",
        "history.json",
        "model.json",
        "state.safetensors",
        "weights.safetensors",
    ]
    manifest = Bundle.open(trained).manifest
    assert manifest.geometry == Geometry(96, 64, 3, "stretch")
    assert (manifest.stride, manifest.output_stride, manifest.latent_dim) == (4, 2, 6)
    assert manifest.clusters == 4
    assert {(e.precision, e.backend) for e in manifest.entries} == {
        ("fp32", "onnxruntime"),
        ("fp32", "tensorrt"),
        ("fp16", "tensorrt"),
        ("int8", "onnxruntime"),
        ("int8", "tensorrt"),
    }


def test_the_bundle_says_where_it_comes_from(trained: Path, footage: list[Path]) -> None:
    manifest = Bundle.open(trained).manifest
    assert manifest.provenance["footage"] == [str(path) for path in footage]
    assert manifest.provenance["footage_licence"] == "not stated"
    assert manifest.training["arch"] == "shallow"
    assert manifest.training["frames"] + manifest.training["held_out"] == 32
    assert manifest.training["settings"]["epochs"] == manifest.training["epochs"] == 2
    for key in ("fp16", "tensorrt"), ("int8", "onnxruntime"), ("int8", "tensorrt"):
        agreement = manifest.entry(*key).agreement
        assert agreement is not None
        assert agreement["labels_equal"] > 0.9


def test_a_preview_shows_a_frame_beside_its_labels(trained: Path) -> None:
    preview = Bundle.open(trained).preview
    assert preview is not None
    picture = cv2.imdecode(np.frombuffer(preview, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (64, 192, 3)


def test_the_bundle_segments_frames_of_any_size(trained: Path) -> None:
    with Segmenter.load(trained, threads=1) as segmenter:
        result = segmenter(draw_scene(3, 320, 200))
    assert result.labels.shape == (200, 320)
    assert len(np.unique(result.labels)) >= 2


def test_the_same_seed_gives_the_same_bundle_byte_for_byte(
    trained: Path, footage: list[Path], tmp_path: Path
) -> None:
    torch.rand(3)
    train_bundle(footage, tmp_path / "street.aeseg", OPTIONS)
    assert (tmp_path / "street.aeseg").read_bytes() == trained.read_bytes()


def test_an_interrupted_training_goes_on_and_gives_the_same_bundle(
    trained: Path, footage: list[Path], tmp_path: Path
) -> None:
    def stop(stage: str, fraction: float, note: str) -> None:
        if stage == "training" and fraction > 0.6:
            raise KeyboardInterrupt

    output = tmp_path / "street.aeseg"
    with pytest.raises(KeyboardInterrupt):
        train_bundle(footage, output, OPTIONS, progress=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["street.train"]
    with pytest.raises(TrainingError, match="is not finished"):
        export_bundle(output.with_suffix(".train"), tmp_path / "early.aeseg")
    train_bundle(footage, output, OPTIONS)
    assert output.read_bytes() == trained.read_bytes()


def test_private_footage_leaves_no_frame_behind_and_must_be_given_again(
    footage: list[Path], tmp_path: Path, trained: Path
) -> None:
    folder = Path(shutil.copytree(trained.with_suffix(".train"), tmp_path / "street.train"))
    output = tmp_path / "street.aeseg"
    # The earlier run kept frames; this one takes them away, and finds the training done.
    made = train_bundle(footage, output, replace(OPTIONS, keep_frames=False))
    assert len(made.history) == 2
    assert not (folder / "frames").exists()
    assert Bundle.open(output).preview is None
    with pytest.raises(TrainingError, match="keeps no frames") as caught:
        export_bundle(folder, tmp_path / "b.aeseg", fit=FIT)
    assert "SOURCE" in caught.value.fix
    export_bundle(folder, tmp_path / "b.aeseg", sources=footage[1:], fit=FIT)
    bundle = Bundle.open(tmp_path / "b.aeseg")
    assert bundle.preview is None
    assert bundle.manifest.provenance["calibration_footage"] == [str(footage[1])]
    assert not (folder / "frames").exists()


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_four_channel_footage_trains_letterboxed(channels: int, tmp_path: Path) -> None:
    region = np.zeros((60, 120), np.uint8)
    region[30:] = 255
    options = replace(
        OPTIONS,
        model=AutoencoderConfig("shallow", latent_dim=6, channels=channels),
        image_size=(96, 96),
        resize="letterbox",
        region=region,
    )
    folder = grey_footage(tmp_path / "footage", channels)
    train_bundle([folder], tmp_path / "a.aeseg", options)
    bundle = Bundle.open(tmp_path / "a.aeseg")
    assert bundle.manifest.geometry == Geometry(96, 96, channels, "letterbox")
    assert (bundle.preview is not None) == (channels == 4)
    export_bundle(tmp_path / "a.train", tmp_path / "b.aeseg", fit=FIT)
    frame = np.random.default_rng(0).integers(0, 256, (60, 120, channels), np.uint8)
    with Segmenter.load(bundle, threads=1) as segmenter:
        labels = segmenter(frame).labels
    # The mask had the frame's shape, not the letterboxed input's.
    assert (labels[:28] == 255).all()
    assert (labels[32:] != 255).all()


# --- export ---------------------------------------------------------------------------------------


def test_a_checkpoint_exports_at_another_size_k_and_stride_without_footage(
    copied: Path, tmp_path: Path
) -> None:
    region = np.zeros((20, 20), np.uint8)
    region[:, 10:] = 255
    made = export_bundle(
        copied,
        tmp_path / "small.aeseg",
        image_size=(62, 50),
        output_stride=1,
        fit=replace(FIT, clusters=7, clustering="kmeans", minimum_agreement=1.0),
        region=region,
    )
    bundle = Bundle.open(tmp_path / "small.aeseg")
    manifest = bundle.manifest
    assert manifest.geometry == Geometry(64, 48, 3, "stretch")
    assert (manifest.output_stride, manifest.clusters, manifest.method) == (1, 7, "kmeans")
    assert made.history == ()
    assert bundle.region is not None
    assert (bundle.region[:, :32] == 0).all()
    assert (bundle.region[:, 32:] == 255).all()
    with Segmenter.load(bundle, threads=1) as segmenter:
        labels = segmenter(draw_scene(0, 128, 96)).labels
    assert (labels[:, :64] == 255).all()
    assert (labels[:, 64:] < 7).all()
    assert not manifest.entry("int8", "onnxruntime").recommended
    assert ("int8", "onnxruntime") in made.fitted.below


def test_an_export_keeps_the_trained_size_and_stride_and_tells_every_stage(
    copied: Path, tmp_path: Path
) -> None:
    told: dict[str, float] = {}
    export_bundle(
        copied,
        tmp_path / "a.aeseg",
        fit=FIT,
        progress=lambda stage, fraction, note: told.__setitem__(stage, fraction),
    )
    assert list(told) == [
        "exporting",
        "latents",
        "clusters",
        "int8 ranges (cpu)",
        "int8 ranges (tensorrt)",
        "agreement",
    ]
    assert set(told.values()) == {1.0}
    manifest = Bundle.open(tmp_path / "a.aeseg").manifest
    assert manifest.geometry == Geometry(96, 64, 3, "stretch")
    assert manifest.output_stride == 2
    assert manifest.training["epochs"] == 2


def boxed_checkpoint(folder: Path, classes: int = 0) -> Path:
    """A checkpoint of 160x90 footage that was letterboxed to 96x64."""
    geometry = Geometry(96, 64, 3, "letterbox")
    config = AutoencoderConfig("shallow", latent_dim=4, classes=classes, head=8 if classes else 0)
    meta = {"output_stride": 2, "training": {}, "provenance": {}, "class_names": ["a", "b"]}
    network = build_autoencoder(config, seed=0)
    save_model(folder, network, {"geometry": asdict(geometry), **meta})
    frames = [fit_frame(draw_scene(9 * i, 160, 90), geometry) for i in range(8)]
    save_frames(folder, np.stack(frames))
    return folder


@pytest.mark.parametrize("classes", [0, 2])
def test_kept_letterboxed_frames_are_not_stretched_to_another_aspect(
    classes: int, tmp_path: Path
) -> None:
    folder = boxed_checkpoint(tmp_path / "boxed.train", classes)
    with pytest.raises(UsageError, match=r"96x64.*letterboxed.*96x96") as caught:
        export_bundle(folder, tmp_path / "other.aeseg", image_size=(96, 96), fit=FIT)
    assert ("SOURCE" in caught.value.fix) is not bool(classes)
    assert not (tmp_path / "other.aeseg").exists()
    half = resize_frames(load_frames(folder), Geometry(48, 32, 3, "letterbox"), fix="None.")
    assert half.shape == (8, 32, 48, 3)
    assert (abs(half[:, [0, -1]].astype(int) - LETTERBOX_VALUE) < 4).all()


def test_where_the_bars_are_is_known_from_footage_and_from_kept_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[np.ndarray | None] = []

    def stop(material: Material, *args: object, **more: object) -> None:
        told.append(material.sizes)
        raise CalibrationError("enough", fix="Nothing.")

    monkeypatch.setattr("aeseg_edge.export.pipeline.fit_bundle", stop)
    monkeypatch.setattr("aeseg_edge.export.pipeline.deployed_encoder", lambda *args: (None, None))
    source = grey_footage(tmp_path / "footage", 1)
    options = replace(
        OPTIONS,
        model=AutoencoderConfig("shallow", latent_dim=4, channels=1),
        image_size=(64, 64),
        resize="letterbox",
        training=replace(OPTIONS.training, epochs=1),
    )
    folder, output = tmp_path / "a.train", tmp_path / "a.aeseg"
    for make in (
        lambda: train_bundle([source], output, options),
        lambda: export_bundle(folder, output, fit=FIT),
        lambda: export_bundle(folder, output, sources=[source], image_size=(96, 64), fit=FIT),
    ):
        with pytest.raises(CalibrationError, match="enough"):
            make()
    save_frames(folder, load_frames(folder))
    with pytest.raises(CalibrationError, match="enough"):
        export_bundle(folder, output, fit=FIT)
    assert told.pop() is None
    assert [np.unique(sizes, axis=0).tolist() for sizes in told] == [[[60, 120]]] * 3
    assert {len(sizes) for sizes in told} == {8}


def test_the_gate_of_a_training_with_labels_looks_past_bars_and_region(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, object]] = []

    def stop(*args: object, **options: object) -> None:
        told.append(options)
        raise CalibrationError("enough", fix="Nothing.")

    monkeypatch.setitem(pipeline.assemble_labelled.__globals__, "sample_latents", stop)
    folder = boxed_checkpoint(tmp_path / "boxed.train", classes=2)
    save_frames(folder, load_frames(folder), np.full((8, 2), (90, 160)))
    region = np.full((90, 160), 255, np.uint8)
    for options in ({}, {"region": region}):
        with pytest.raises(CalibrationError, match="enough"):
            export_bundle(folder, tmp_path / "a.aeseg", fit=FIT, **options)
    assert [each["boxes"] for each in told] == [[(5, 0, 54, 96)] * 8] * 2
    assert told[0]["region"] is None
    assert np.asarray(told[1]["region"]).sum() == 255 * 54 * 96


def test_an_export_remembers_clusters_and_region(footage: list[Path], tmp_path: Path) -> None:
    region = np.zeros((80, 120), np.uint8)
    region[40:] = 255
    output = tmp_path / "lower.aeseg"
    options = replace(OPTIONS, region=region, fit=replace(FIT, clusters=3, clustering="kmeans"))
    train_bundle(footage, output, options)
    export_bundle(output.with_suffix(".train"), tmp_path / "again.aeseg")
    first, again = Bundle.open(output), Bundle.open(tmp_path / "again.aeseg")
    assert again.manifest.clusters == 3
    assert again.manifest.method == "kmeans"
    assert again.region is not None
    assert first.region is not None
    assert (again.region[32:] == 255).all()
    np.testing.assert_array_equal(again.region, first.region)
    # Trained again without one, it is forgotten.
    train_bundle(footage, output, replace(options, region=None))
    export_bundle(output.with_suffix(".train"), tmp_path / "again.aeseg")
    assert Bundle.open(tmp_path / "again.aeseg").region is None


def test_an_export_keeps_the_names_of_an_earlier_bundle(
    trained: Path, copied: Path, footage: list[Path], tmp_path: Path
) -> None:
    old = Bundle.open(trained)
    book = naming.rename(old.codebook, 2, "road")
    old.with_codebook(naming.make_void(book, 1)).write(tmp_path / "named.aeseg")
    named = Bundle.open(tmp_path / "named.aeseg")
    # Other footage has another mean latent; centres are compared all the same.
    export_bundle(copied, tmp_path / "new.aeseg", sources=[footage[1]], fit=FIT, names_from=named)
    kept = Bundle.open(tmp_path / "new.aeseg")
    told = kept.manifest.training["calibration"]["names"]
    assert told["matched"] >= 2
    for new, partner in enumerate(told["partners"]):
        if partner is not None:
            assert kept.codebook.remap[new] == named.codebook.remap[partner]
    frame = draw_scene(0, 96, 64)
    latents = []
    for bundle in (named, kept):
        with Segmenter.load(bundle, precision="fp32", backend="onnxruntime", threads=1) as seg:
            latents.append(seg(frame, want=frozenset({"latents"})).latents)
    np.testing.assert_allclose(latents[0], latents[1], atol=1e-4)


def test_a_checkpoint_that_was_changed_is_refused(copied: Path, tmp_path: Path) -> None:
    path = copied / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(TrainingError, match="is not the file that"):
        export_bundle(copied, tmp_path / "a.aeseg")
    assert not (tmp_path / "a.aeseg").exists()


# --- early refusals -------------------------------------------------------------------------------


def test_more_clusters_than_the_footage_has_latents_are_refused_before_training(
    footage: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr(pipeline, "train", never)
    options = replace(
        OPTIONS,
        image_size=(32, 32),
        max_frames=4,
        fit=replace(FIT, clusters=300),
    )
    with pytest.raises(CalibrationError, match="300 clusters are more than the 256 latents"):
        train_bundle(footage, tmp_path / "a.aeseg", options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changes", [{"reduce_to": 1}, {"model": AutoencoderConfig("shallow", 1)}])
def test_more_than_two_directions_of_one_channel_are_refused_before_footage(
    changes: dict[str, object], tmp_path: Path
) -> None:
    for clusters in (3, 2):
        options = replace(OPTIONS, fit=replace(FIT, clusters=clusters), **changes)
        says = "one latent channel has two directions" if clusters == 3 else "does not exist"
        with pytest.raises(AesegError, match=says):
            train_bundle([tmp_path / "nowhere"], tmp_path / "a.aeseg", options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"reduce_to": 3}, "no use for fewer latents"),
        ({"decoder": True}, "no use for a decoder"),
        ({"labels": Labels(Path("m"), ("a", "b"), tune="some")}, "no tuning 'some'"),
        ({"sources": 2}, "one folder of images, not 2"),
    ],
)
def test_what_does_nothing_with_labels_is_refused(
    changes: dict[str, object], says: str, tmp_path: Path
) -> None:
    sources = [tmp_path] * changes.pop("sources", 1)  # type: ignore[operator]
    options = replace(OPTIONS, labels=Labels(tmp_path, ("a", "b")))
    with pytest.raises(UsageError, match=says):
        train_bundle(sources, tmp_path / "a.aeseg", replace(options, **changes))


def test_what_does_nothing_in_an_export_is_refused(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does nothing without footage"):
        export_bundle(copied, tmp_path / "x.aeseg", max_frames=50)
    labelled = boxed_checkpoint(tmp_path / "boxed.train", classes=2)
    for given in ({"reduce_to": 2}, {"decoder": True}):
        with pytest.raises(UsageError, match="was trained with labels"):
            export_bundle(labelled, tmp_path / "x.aeseg", **given)


@pytest.mark.parametrize(
    ("size", "multiple", "expected"),
    [
        ((480, 360), 32, (480, 352)),
        ((100, 50), 4, (100, 48)),
        ((17, 16), 32, (32, 32)),
        ((96, 64), 32, (96, 64)),
    ],
)
def test_sizes_are_rounded_to_what_the_network_takes(
    size: tuple[int, int],
    multiple: int,
    expected: tuple[int, int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        assert round_size(size, multiple, "edge") == expected
    assert (f"becomes {expected[0]}x{expected[1]}" in caplog.text) == (size != expected)


def test_a_size_below_half_the_deepest_stride_is_refused() -> None:
    with pytest.raises(UsageError, match="15x480 is too small for 'edge'") as caught:
        round_size((15, 480), 32, "edge")
    assert "32x32" in caught.value.fix


@pytest.mark.parametrize(("wanted", "expected"), [(None, 4), (1, 1), (2, 2), (8, 8)])
def test_label_strides_divide_the_encoders(wanted: int | None, expected: int) -> None:
    assert check_output_stride(wanted, 8) == expected


@pytest.mark.parametrize("wanted", [3, 16, 0, -1])
def test_other_label_strides_are_refused(wanted: int) -> None:
    with pytest.raises(UsageError, match="does not divide") as caught:
        check_output_stride(wanted, 8)
    assert "1, 2, 4, 8" in caught.value.fix


def test_a_region_is_laid_over_the_input_as_a_frame_is() -> None:
    region = np.zeros((50, 100), np.uint8)
    region[:25] = 200
    stretched = frame_region(region, Geometry(64, 64, 3, "stretch"))
    assert (stretched[:32] == 255).all()
    assert (stretched[32:] == 0).all()
    boxed = frame_region(region, Geometry(64, 64, 3, "letterbox"))
    assert (boxed[16:32] == 255).all()
    assert boxed.sum() == 255 * 16 * 64
