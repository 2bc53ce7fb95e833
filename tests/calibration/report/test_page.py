"""The report says what differs from fp32, in one file that needs nothing else."""

from __future__ import annotations

import base64
import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

cv2 = pytest.importorskip("cv2")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from aeseg_edge.bundle.archive import Bundle  # noqa: E402
from aeseg_edge.bundle.codebook import ClassInfo  # noqa: E402
from aeseg_edge.calibration.report.page import render_page  # noqa: E402
from aeseg_edge.calibration.score.by_precision import BINS, PrecisionReport, compare_precisions  # noqa: E402
from aeseg_edge.cli.main import main  # noqa: E402
from aeseg_edge.errors import CalibrationError  # noqa: E402
from aeseg_edge.segment.segmenter import Segmenter  # noqa: E402
from aeseg_edge.sources.scene import draw_scene  # noqa: E402

UNSAFE = '<script>alert("x")</script>'


def scenes(count: int = 8) -> list[NDArray[np.uint8]]:
    return [draw_scene(9 * index, 96, 64) for index in range(count)]


@pytest.fixture(scope="module")
def bundle(v1_bundle: Path) -> Bundle:
    opened = Bundle.open(v1_bundle)
    first, *rest = opened.codebook.classes
    named = replace(opened.codebook, classes=(ClassInfo(first.id, UNSAFE, first.color), *rest))
    return opened.with_codebook(named)


@pytest.fixture(scope="module")
def report(bundle: Bundle) -> PrecisionReport:
    return compare_precisions(bundle, scenes(), source=UNSAFE, total=8, threads=1)


@pytest.fixture(scope="module")
def page(report: PrecisionReport) -> str:
    return render_page(report, title=f"a{UNSAFE}.aeseg", made="now", machine="here")


def test_every_graph_is_compared_and_what_is_emulated_says_so(report: PrecisionReport) -> None:
    titles = [each.title for each in report.figures]
    assert titles == [
        "fp32 for ONNX Runtime",
        "fp16 for TensorRT, emulated",
        "int8 for ONNX Runtime",
        "int8 for TensorRT, emulated",
    ]
    assert report.frames == 8
    assert [each.backend for each in report.layers] == ["onnxruntime", "tensorrt"]


def test_agreement_is_that_of_the_labels(report: PrecisionReport, bundle: Bundle) -> None:
    labels = {}
    for precision in ("fp32", "int8"):
        with Segmenter.load(bundle, precision=precision, backend="onnxruntime") as segmenter:
            labels[precision] = np.stack([segmenter(frame).labels for frame in scenes()])
    equal = labels["fp32"] == labels["int8"]
    figures = report.figures[2]
    assert figures.agreement is not None
    assert figures.agreement.labels_equal == pytest.approx(equal.mean())
    assert figures.shares == pytest.approx(equal.mean(axis=(1, 2)))
    one = int(np.bincount(labels["fp32"].ravel()).argmax())
    first, second = (labels[name] == one for name in ("fp32", "int8"))
    assert figures.agreement.iou[one] == pytest.approx(
        (first & second).sum() / (first | second).sum()
    )


def test_the_worst_frames_come_first_with_their_pictures(report: PrecisionReport) -> None:
    figures = report.figures[2]
    lowest = sorted(range(8), key=lambda index: figures.shares[index])[:3]
    assert [each.index for each in figures.worst] == lowest
    worst = figures.worst[0]
    assert np.array_equal(worst.image, scenes()[worst.index])
    assert (worst.expected == worst.found).mean() == pytest.approx(worst.labels_equal)


def test_margins_are_counted_where_labels_agree_and_where_they_differ(
    report: PrecisionReport, bundle: Bundle
) -> None:
    stride = bundle.manifest.stride
    cells = 8 * (64 // stride) * (96 // stride)
    for figures in report.figures[1:]:
        assert figures.agree.shape == figures.differ.shape == (BINS,)
        assert figures.agree.sum() + figures.differ.sum() == cells
    figures = report.figures[3]
    centre = np.arange(BINS)
    assert figures.differ.sum() > 0
    # Labels flip where two clusters are nearly equally near.
    means = [(counts * centre).sum() / counts.sum() for counts in (figures.differ, figures.agree)]
    assert means[0] < means[1]


def test_no_frames_are_an_error(bundle: Bundle) -> None:
    with pytest.raises(CalibrationError, match="no frames"):
        compare_precisions(bundle, [], source="empty")


def test_a_region_of_interest_is_not_counted_outside(bundle: Bundle) -> None:
    region = np.zeros((64, 96), np.uint8)
    region[:, :48] = 255
    held = Bundle.build(bundle.manifest, bundle.codebook, bundle.graphs, region=region)
    found = compare_precisions(held, scenes(2), source="x", layers=False)
    cells = 2 * (64 // held.manifest.stride) * (48 // held.manifest.stride)
    assert found.figures[1].agree.sum() + found.figures[1].differ.sum() == cells
    worst = found.figures[3].worst[0]
    assert (worst.expected[:, 48:] == 255).all()
    inside = worst.expected[:, :48] == worst.found[:, :48]
    assert worst.labels_equal == pytest.approx(inside.mean())
    assert found.layers == ()


# --- the page -------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Collects tags, and what they point to."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.targets += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]


def test_the_page_has_no_script_and_points_nowhere(page: str) -> None:
    reader = Reader()
    reader.feed(page)
    assert not {"script", "link", "iframe", "object"} & set(reader.tags)
    assert reader.targets
    assert all(target.startswith("data:image/") for target in reader.targets)
    assert "default-src 'none'" in page
    assert not re.search(r"url\(|@import|https?://", page)


def test_names_are_escaped(page: str) -> None:
    assert UNSAFE not in page
    # Title and heading, the source, and the class.
    assert page.count("&lt;script&gt;") >= 4


def test_the_page_is_for_phones_and_for_the_dark(page: str) -> None:
    assert "width=device-width" in page
    assert "prefers-color-scheme: dark" in page


def test_pictures_are_whole_images(page: str) -> None:
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    # Four for each of the three worst frames of three graphs.
    assert len(found) == 36
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(found[0]), np.uint8), 1)
    assert picture.shape == (64, 96, 3)


def test_every_layer_and_precision_has_its_row(page: str, report: PrecisionReport) -> None:
    for found in report.layers:
        for layer in found.layers:
            assert page.count(f"<td>{layer.name}</td>") == 2
    assert "their milliseconds say nothing about a device" in " ".join(page.split())
    assert "Nothing was run on a GPU" in page


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frames")
    for index, frame in enumerate(scenes(6)):
        cv2.imwrite(str(folder / f"{index}.png"), frame)
    return folder


def test_the_command_writes_one_page_and_its_figures(
    v1_bundle: Path, footage: Path, tmp_path: Path
) -> None:
    target, figures = tmp_path / "report.html", tmp_path / "report.json"
    command = ["report", str(v1_bundle), str(footage), "-o", str(target), "--frames", "3"]
    assert main([*command, "--no-layers", "--threads", "1", "--json", str(figures)]) == 0
    assert target.read_text().endswith("</html>\n")
    data = json.loads(figures.read_text())
    assert data["frames"] == 3
    assert data["int8_layers"] == []
    assert [each["emulated"] for each in data["precisions"]] == [False, True, False, True]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


@pytest.mark.parametrize("name", ["report.txt", "missing/report.html"])
def test_a_page_that_cannot_be_written_is_refused_before_any_work(
    v1_bundle: Path, footage: Path, tmp_path: Path, name: str
) -> None:
    assert main(["report", str(v1_bundle), str(footage), "-o", str(tmp_path / name)]) in (1, 2)
    assert list(tmp_path.iterdir()) == []


def test_without_jinja2_the_command_says_what_to_install_before_any_work(
    v1_bundle: Path,
    footage: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.delitem(sys.modules, "aeseg_edge.calibration.report.page")
    target = tmp_path / "report.html"
    assert main(["report", str(v1_bundle), str(footage), "-o", str(target)]) == 1
    assert "[calibrate]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_report_leaves_nothing(
    v1_bundle: Path, footage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aeseg_edge.calibration.report import page as report_page

    def interrupted(*given: object, **more: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(report_page, "render_page", interrupted)
    target = tmp_path / "report.html"
    target.write_text("as before")
    command = ["report", str(v1_bundle), str(footage), "-o", str(target), "--no-layers"]
    assert main(command) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert target.read_text() == "as before"
