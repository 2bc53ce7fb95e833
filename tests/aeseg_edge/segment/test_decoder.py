"""Latents become pictures: the segmented image, and the reconstruction error."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from aeseg_edge.bundle import classes as naming  # noqa: E402
from aeseg_edge.bundle.archive import Bundle  # noqa: E402
from aeseg_edge.bundle.codebook import VOID, Codebook  # noqa: E402
from aeseg_edge.bundle.contract import DecoderParts  # noqa: E402
from aeseg_edge.bundle.geometry import Geometry  # noqa: E402
from aeseg_edge.bundle.manifest import Manifest  # noqa: E402
from aeseg_edge.cli import main  # noqa: E402
from aeseg_edge.errors import BackendError, BundleError, UsageError  # noqa: E402
from aeseg_edge.segment.result import Segmentation  # noqa: E402
from aeseg_edge.segment.segmenter import Segmenter  # noqa: E402
from aeseg_edge.sources.scene import draw_scene  # noqa: E402
from aeseg_edge.view.draw import render  # noqa: E402
from tests.doubles import decoder as double  # noqa: E402

MEANS = np.random.default_rng(3).normal(0, 2, (5, 8)).astype(np.float32)


@pytest.fixture
def drawing(v1_bundle: Path) -> Bundle:
    """The version-1 bundle (96x64, stride 4, D = 8, K = 5) with a decoder."""
    parts = DecoderParts(double.decoder(8, 4), MEANS, median=10.0, p99=40.0, frames=7)
    return Bundle.open(v1_bundle).with_decoder(parts)


@pytest.fixture
def frame() -> np.ndarray:
    return draw_scene(5, 96, 64)


def segment(bundle: Bundle, frame: np.ndarray, **options: object) -> Segmentation:
    with Segmenter.load(
        bundle,
        precision="fp32",
        backend="onnxruntime",
        threads=1,
        decoder=True,
        **options,  # type: ignore[arg-type]
    ) as segmenter:
        return segmenter(frame)


def segmented(bundle: Bundle, frame: np.ndarray, **options: object) -> np.ndarray:
    decoding = segment(bundle, frame, **options).decoding
    assert decoding is not None
    return decoding.segmented()


# --- the segmented image --------------------------------------------------------------------------


def test_each_latent_is_drawn_as_the_mean_of_its_cluster(
    drawing: Bundle, frame: np.ndarray
) -> None:
    result = segment(drawing, frame)
    assert result.latents is not None
    assert result.decoding is not None
    clusters = drawing.codebook.assign(result.latents.transpose(1, 2, 0))
    assert len(np.unique(clusters)) > 1
    wanted = double.draw(MEANS[clusters].transpose(2, 0, 1), 4, 3)
    assert (result.decoding.segmented() == wanted).all()


def test_a_merged_class_is_still_drawn_cluster_by_cluster(
    drawing: Bundle, frame: np.ndarray
) -> None:
    book = drawing.codebook
    merged = drawing.with_codebook(naming.merge(book, 0, [1, 2, 3]))
    assert (segmented(merged, frame) == segmented(drawing, frame)).all()


def test_void_is_black(drawing: Bundle, frame: np.ndarray) -> None:
    left = np.zeros((64, 96), np.uint8)
    left[:, :48] = 255
    picture = segmented(drawing, frame, roi=left)
    assert not picture[:, 48:].any()
    assert picture[:, :48].any()


@pytest.mark.parametrize("size", [(64, 96), (480, 640), (33, 50), (200, 90)])
def test_pictures_have_the_frames_own_size(drawing: Bundle, size: tuple[int, int]) -> None:
    result = segment(drawing, draw_scene(5, size[1], size[0]))
    assert result.decoding is not None
    assert result.decoding.segmented().shape == (*size, 3)


def test_the_bars_of_a_letterboxed_frame_are_cut_off(drawing: Bundle) -> None:
    geometry = Geometry(96, 64, 3, "letterbox")
    boxed = Bundle.build(
        replace(drawing.manifest, geometry=geometry),
        drawing.codebook,
        drawing.graphs,
        decoder=drawing.decoder,
    )
    square = draw_scene(5, 64, 64)
    result = segment(boxed, square)
    assert result.latents is not None
    assert result.decoding is not None
    clusters = drawing.codebook.assign(result.latents.transpose(1, 2, 0))
    whole = double.draw(MEANS[clusters].transpose(2, 0, 1), 4, 3)
    assert (result.decoding.segmented() == whole[:, 16:80]).all()
    errors = result.decoding.errors(square)
    assert np.isnan(errors[:, :4]).all()
    assert np.isnan(errors[:, 20:]).all()
    assert not np.isnan(errors[:, 4:20]).any()


# --- the reconstruction error ---------------------------------------------------------------------


def test_the_error_is_the_mean_difference_to_the_frame_over_a_latents_pixels(
    drawing: Bundle, frame: np.ndarray
) -> None:
    result = segment(drawing, frame)
    assert result.latents is not None
    assert result.decoding is not None
    drawn = double.draw(result.latents, 4, 3).astype(float)
    wanted = np.abs(frame - drawn).reshape(16, 4, 24, 4, 3).mean(axis=(1, 3, 4))
    assert result.decoding.errors(frame) == pytest.approx(wanted, abs=1e-3)
    assert result.decoding.error(frame) == pytest.approx(wanted.mean(), abs=1e-3)


def test_void_does_not_count_into_a_frames_error(drawing: Bundle, frame: np.ndarray) -> None:
    left = np.zeros((64, 96), np.uint8)
    left[:, :48] = 255
    result, whole = segment(drawing, frame, roi=left), segment(drawing, frame)
    assert result.decoding is not None
    assert whole.decoding is not None
    wanted = float(whole.decoding.errors(frame)[:, :12].mean())
    assert result.decoding.error(frame) == pytest.approx(wanted, abs=1e-3)
    nothing = segment(drawing, frame, roi=np.zeros((64, 96), np.uint8)).decoding
    assert nothing is not None
    assert nothing.error(frame) is None


def test_the_heat_map_has_the_calibration_frames_scale_whatever_the_frame_holds(
    drawing: Bundle, frame: np.ndarray
) -> None:
    for image in (frame, np.full_like(frame, 255)):
        decoding = segment(drawing, image).decoding
        assert decoding is not None
        wanted = np.clip(decoding.errors(image) / 40 * 0.6 * 255, 0, 255)
        cells = decoding.heat(image)[2::4, 2::4]
        assert cells.astype(float) == pytest.approx(wanted, abs=1.01)


@pytest.mark.parametrize("view", ["decoded", "error"])
def test_both_are_views_with_and_without_a_panel_beside(
    drawing: Bundle, frame: np.ndarray, view: str
) -> None:
    result = segment(drawing, frame)
    bare = render(frame, result, view=view, legend=False)
    full = render(frame, result, view=view)
    assert bare.shape == (64, 96, 3)
    assert full.shape[1] > 96
    assert (full[:, :96] == bare).all()
    assert render(frame, result, view=view, legend=False, size=(128, 192)).shape == (128, 192, 3)


# --- the bundle -----------------------------------------------------------------------------------


def test_a_bundle_with_a_decoder_is_read_as_it_was_written(drawing: Bundle, tmp_path: Path) -> None:
    drawing.write(tmp_path / "a.aeseg")
    again = Bundle.open(tmp_path / "a.aeseg").decoder
    assert again is not None
    assert again.graph == double.decoder(8, 4)
    assert again.latents is not None
    assert (again.latents == MEANS).all()
    assert (again.median, again.p99, again.frames) == (10.0, 40.0, 7)


def test_a_reader_may_ignore_the_decoder(
    drawing: Bundle,
) -> None:
    data = json.loads(drawing.manifest.to_json())
    del data["decoder"]
    assert Manifest.from_json(json.dumps(data)).decoder is None


@pytest.mark.parametrize(
    "change",
    [{"graph": "nothing.onnx"}, {"median": 50.0}, {"p99": -1.0}, {"frames": 0}, {"p99": "x"}],
)
def test_a_manifest_whose_decoder_does_not_fit_is_refused(
    drawing: Bundle, change: dict[str, object]
) -> None:
    data = json.loads(drawing.manifest.to_json())
    data["decoder"].update(change)
    with pytest.raises(BundleError, match="not valid"):
        Manifest.from_json(json.dumps(data))


def test_mean_latents_of_another_size_are_refused(drawing: Bundle) -> None:
    parts = drawing.decoder
    assert parts is not None
    wrong = drawing.with_decoder(replace(parts, latents=MEANS[:4]))
    with pytest.raises(BundleError, match=r"not float32 \[5, 8\]"):
        _ = wrong.decoder


def test_a_damaged_decoder_is_refused_when_it_is_opened(drawing: Bundle) -> None:
    parts = drawing.decoder
    assert parts is not None
    broken = drawing.with_decoder(replace(parts, graph=parts.graph[:80]))
    with pytest.raises(BackendError, match="cannot open the decoder"):
        Segmenter.load(broken, backend="onnxruntime", decoder=True)


def test_names_keep_the_mean_latents_and_another_codebook_drops_them(
    drawing: Bundle, frame: np.ndarray
) -> None:
    renamed = drawing.with_codebook(naming.rename(drawing.codebook, 0, "road"))
    assert renamed.decoder is not None
    assert renamed.decoder.latents is not None
    random = np.random.default_rng(0)
    linear = Codebook(
        weights=random.normal(0, 1, (5, 16)).astype(np.float32),
        bias=np.zeros(5, np.float32),
        remap=np.arange(5, dtype=np.uint8),
        classes=drawing.codebook.classes,
        method="linear",
    )
    other = drawing.with_codebook(linear)
    decoding = segment(other, frame).decoding
    assert decoding is not None
    with pytest.raises(BundleError, match=r"no mean latents for this codebook \(linear\)"):
        decoding.segmented()
    assert decoding.error(frame) is not None


def test_a_codebook_set_while_running_is_refused_likewise(
    drawing: Bundle, frame: np.ndarray
) -> None:
    with Segmenter.load(drawing, backend="onnxruntime", threads=1, decoder=True) as segmenter:
        other = np.random.default_rng(1).normal(0, 1, (5, 8)).astype(np.float32)
        segmenter.set_codebook(Codebook.from_centres(other))
        decoding = segmenter(frame).decoding
        assert decoding is not None
        with pytest.raises(BundleError, match="no mean latents"):
            decoding.segmented()


def test_without_a_decoder_the_error_says_how_to_get_one(
    v1_bundle: Path, frame: np.ndarray
) -> None:
    with pytest.raises(BundleError, match="has no decoder") as caught:
        Segmenter.load(v1_bundle, decoder=True)
    assert "--with-decoder" in caught.value.fix
    with Segmenter.load(v1_bundle, backend="onnxruntime", threads=1) as segmenter:
        result = segmenter(frame)
    assert result.decoding is None
    assert result.latents is None
    with pytest.raises(UsageError, match="needs a decoder"):
        render(frame, result, view="decoded")


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def files(drawing: Bundle, tmp_path: Path) -> tuple[Path, Path]:
    drawing.write(tmp_path / "street.aeseg")
    (tmp_path / "in").mkdir()
    for index in range(3):
        cv2.imwrite(str(tmp_path / "in" / f"{index}.png"), draw_scene(9 * index, 120, 80))
    return tmp_path / "in", tmp_path / "street.aeseg"


def test_a_run_draws_and_writes_the_error_of_each_frame(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    source, bundle = files
    lines = tmp_path / "lines.json"
    pattern = tmp_path / "out" / "%d.png"
    command = ["run", str(source), "-b", str(bundle), "--view", "error", "--threads", "1"]
    options = ["-o", f"{pattern}?view=decoded", "-o", f"json:{lines}", "--no-legend"]
    assert main([*command, *options]) == 0
    assert cv2.imread(str(tmp_path / "out" / "2.png")).shape == (80, 120, 3)
    found = [json.loads(line)["reconstruction_error"] for line in lines.read_text().splitlines()]
    assert len(found) == 3
    assert all(0 < each < 255 for each in found)


def test_other_runs_say_nothing_of_errors(files: tuple[Path, Path], tmp_path: Path) -> None:
    source, bundle = files
    lines = tmp_path / "lines.json"
    for view in ("overlay", "decoded"):
        command = ["run", str(source), "-b", str(bundle), "-o", f"json:{lines}", "--view", view]
        assert main(command) == 0
        assert "reconstruction_error" not in lines.read_text()


def test_a_run_that_needs_a_decoder_is_refused_before_any_frame(
    files: tuple[Path, Path],
    v1_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sink = f"{tmp_path / 'out'}/%d.png"
    assert main(["run", str(files[0]), "-b", str(v1_bundle), "-o", sink, "--view", "decoded"]) == 1
    assert "--with-decoder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_info_tells_of_the_decoder(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(files[1])]) == 0
    assert "median 10.0, p99 40.0 grey levels" in capsys.readouterr().out


def test_void_clusters_are_left_out_too(drawing: Bundle, frame: np.ndarray) -> None:
    result = segment(drawing, frame)
    cluster = int(np.bincount(result.labels.ravel()).argmax())
    without = drawing.with_codebook(naming.make_void(drawing.codebook, cluster))
    blacked = segment(without, frame)
    assert blacked.decoding is not None
    assert (blacked.labels == VOID).any()
    assert not blacked.decoding.segmented()[blacked.labels == VOID].any()
