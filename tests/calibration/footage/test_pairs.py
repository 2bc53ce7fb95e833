"""Paired folders go the whole way: footage, training, a bundle, and every verb with frames."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")
torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from aeseg_edge.bundle.archive import Bundle  # noqa: E402
from aeseg_edge.bundle.manifest import Modality  # noqa: E402
from aeseg_edge.calibration.footage.gather import gather  # noqa: E402
from aeseg_edge.calibration.footage.pairs import find_modalities  # noqa: E402
from aeseg_edge.cli import main  # noqa: E402
from aeseg_edge.errors import SourceError, UsageError  # noqa: E402
from aeseg_edge.export.kept_frames import load_frames, save_frames  # noqa: E402
from tests.doubles.modalities import write_pairs  # noqa: E402

RGBT = (Modality("visible", 3), Modality("thermal", 1))
Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What --modalities takes: ten scenes."""
    return write_pairs(tmp_path_factory.mktemp("pairs"))[0]


@pytest.fixture(scope="module")
def bundle(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on colour and heat, with the decoder."""
    output = tmp_path_factory.mktemp("trained") / "rgbt.aeseg"
    command = ["train", "--modalities", text, "-o", str(output), "--arch", "shallow"]
    options = ["--imgsz", "96x64", "--epochs", "1", "--clusters", "4", "--latent-dim", "6"]
    assert main([*command, *options, "--threads", "1", "--with-decoder"]) == 0
    return output


def run(bundle: Path, *more: str) -> int:
    return main(["run", "-b", str(bundle), "--threads", "1", *more])


def folder_of(text: str) -> str:
    """The visible folder alone."""
    return text.split(",")[0].removeprefix("visible=")


# --- footage --------------------------------------------------------------------------------------


def test_footage_has_all_channels_and_names_its_source(text: str) -> None:
    uri = f"pairs://{text}"
    assert find_modalities([uri]) == RGBT
    assert find_modalities([folder_of(text)]) == ()
    footage = gather([uri], size=(48, 32), channels=4, modalities=RGBT)
    assert footage.frames.shape[1:] == (32, 48, 4)
    # The warm spot is in the fourth channel alone.
    assert footage.frames[..., 3].max() > 200
    (report,) = footage.report.sources
    assert (report.source, report.kind, report.found) == (text, "pairs", 10)


def test_a_budget_takes_scenes_evenly(text: str) -> None:
    footage = gather(
        [f"pairs://{text}"], size=(48, 32), channels=4, modalities=RGBT, max_frames=5, holdout=0
    )
    assert len(footage.frames) == 5


def test_unpaired_scenes_are_in_the_report(tmp_path: Path) -> None:
    pairs, _, thermal = write_pairs(tmp_path)
    (thermal / "s4.png").unlink()
    uri = f"pairs://{pairs}?unpaired=skip"
    footage = gather([uri], size=(48, 32), channels=4, modalities=RGBT)
    (report,) = footage.report.sources
    assert report.found == 9
    assert len(report.unreadable) == 1
    assert report.unreadable[0].endswith("s4.png")


def test_pairs_and_plain_footage_do_not_mix(text: str) -> None:
    with pytest.raises(UsageError, match="has one modality, and"):
        find_modalities([f"pairs://{text}", folder_of(text)])
    with pytest.raises(SourceError, match="trained on visible"):
        gather([folder_of(text)], size=(48, 32), channels=4, modalities=RGBT)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6])
def test_kept_frames_of_any_number_of_channels_come_back(tmp_path: Path, channels: int) -> None:
    frames = np.random.default_rng(0).integers(100, 110, (3, 16, 24, channels), np.uint8)
    save_frames(tmp_path, frames)
    again = load_frames(tmp_path)
    assert again.shape == frames.shape
    # JPEG changes colours a little; the others lose nothing.
    assert np.abs(again.astype(int) - frames).max() <= (16 if channels == 3 else 0)


# --- the bundle -----------------------------------------------------------------------------------


def test_the_bundle_names_its_modalities_and_has_a_preview(bundle: Path, text: str) -> None:
    opened = Bundle.open(bundle)
    assert opened.manifest.modalities == RGBT
    assert opened.manifest.geometry.channels == 4
    assert opened.preview is not None
    assert opened.manifest.provenance["footage"] == [text]
    assert {entry.precision for entry in opened.manifest.entries} == {"fp32", "fp16", "int8"}


def test_info_tells_of_them(bundle: Path, capsys: Output) -> None:
    assert main(["info", str(bundle)]) == 0
    assert "frames   visible (3 channels) and thermal (1)" in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_every_view_and_sink_takes_the_frames(
    bundle: Path, text: str, tmp_path: Path, precision: str
) -> None:
    sinks = [f"{tmp_path}/{view}/%d.png?view={view}" for view in ("both", "labels", "decoded")]
    sinks += [f"{tmp_path}/out.avi", f"json:{tmp_path}/lines.json", "null://"]
    options = [part for sink in sinks for part in ("-o", sink)]
    assert run(bundle, "--modalities", text, "--precision", precision, *options) == 0
    assert len(list((tmp_path / "both").iterdir())) == 10
    assert cv2.imread(str(tmp_path / "decoded" / "9.png")) is not None
    assert len((tmp_path / "lines.json").read_text().splitlines()) == 10


def test_the_heat_changes_the_labels(bundle: Path, tmp_path: Path) -> None:
    pairs, _, thermal = write_pairs(tmp_path / "in")
    pattern = "%d.png?view=labels"
    assert run(bundle, "--modalities", pairs, "-o", f"{tmp_path}/warm/{pattern}") == 0
    for path in thermal.iterdir():
        cv2.imwrite(str(path), np.full((64, 96), 230, np.uint8))
    assert run(bundle, "--modalities", pairs, "-o", f"{tmp_path}/cold/{pattern}") == 0
    warm, cold = (cv2.imread(str(tmp_path / name / "0.png"), 0) for name in ("warm", "cold"))
    assert (warm != cold).any()


def test_a_run_without_modalities_or_with_others_is_refused_with_the_fix(
    bundle: Path, text: str, capsys: Output
) -> None:
    assert run(bundle, folder_of(text)) == 1
    assert "--modalities visible=DIR,thermal=DIR" in capsys.readouterr().err
    assert run(bundle, "--modalities", text.replace("thermal=", "depth=")) == 1
    assert "the modalities are visible, depth" in capsys.readouterr().err
    assert run(bundle) == 2
    assert "no SOURCE is given" in capsys.readouterr().err
    assert run(bundle, folder_of(text), "--modalities", text) == 2
    assert "both given" in capsys.readouterr().err


def test_a_bundle_of_one_camera_refuses_them(v1_bundle: Path, text: str, capsys: Output) -> None:
    assert run(v1_bundle, "--modalities", text) == 1
    assert "was trained on one" in capsys.readouterr().err


def test_channels_and_modalities_exclude_each_other(
    text: str, tmp_path: Path, capsys: Output
) -> None:
    output = str(tmp_path / "x.aeseg")
    command = ["train", "--modalities", text, "--channels", "4", "-o", output]
    assert main(command) == 2
    assert "exclude each other" in capsys.readouterr().err


def test_export_and_calibrate_keep_the_modalities(bundle: Path, text: str, tmp_path: Path) -> None:
    again, other = tmp_path / "again.aeseg", tmp_path / "other.aeseg"
    few = ["--clusters", "3", "--restarts", "1", "--threads", "1"]
    folder = str(bundle.with_suffix(".train"))
    assert main(["export", folder, "-o", str(again), *few]) == 0
    assert Bundle.open(again).manifest.modalities == RGBT
    command = ["calibrate", str(bundle), "--modalities", text, "-o", str(other), *few]
    assert main(command) == 0
    assert Bundle.open(other).manifest.modalities == RGBT
    assert Bundle.open(other).manifest.clusters == 3
    assert Bundle.open(other).decoder is not None


def test_a_sheet_of_clusters_and_a_bench_take_the_uri(
    bundle: Path, text: str, tmp_path: Path
) -> None:
    sheet = tmp_path / "sheet.png"
    assert main(["name", str(bundle), "--sheet", str(sheet), f"pairs://{text}"]) == 0
    assert cv2.imread(str(sheet)) is not None
    bench = ["bench", str(bundle), f"pairs://{text}", "--frames", "3", "--warmup", "0"]
    assert main([*bench, "--threads", "1"]) == 0


def test_eval_scores_scenes_against_masks(
    bundle: Path, text: str, tmp_path: Path, capsys: Output
) -> None:
    (tmp_path / "classes.txt").write_text("above\nbelow\n")
    masks = tmp_path / "masks"
    masks.mkdir()
    for index in range(10):
        mask = np.zeros((64, 96), np.uint8)
        mask[32:] = 1
        cv2.imwrite(str(masks / f"s{index}.png"), mask)
    classes = ["--masks", str(masks), "--classes", str(tmp_path / "classes.txt")]
    command = ["eval", str(bundle), *classes, "--threads", "1"]
    assert main([*command, "--modalities", text, "--json", str(tmp_path / "r.json")]) == 0
    assert json.loads((tmp_path / "r.json").read_text())["frames"] == 10
    assert main(command) == 2
    assert main([*command, "--modalities", text, "--images", folder_of(text)]) == 2
    (masks / "s3.png").unlink()
    capsys.readouterr()
    assert main([*command, "--modalities", text]) == 1
    assert "s3.png" in capsys.readouterr().err


# --- compare --------------------------------------------------------------------------------------


@pytest.fixture
def rgb(v1_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(v1_bundle, tmp_path / "rgb.aeseg"))


def test_compare_gives_each_bundle_the_channels_it_wants(
    bundle: Path, rgb: Path, text: str, tmp_path: Path, capsys: Output
) -> None:
    sheet, report = tmp_path / "sheet.png", tmp_path / "report.json"
    command = ["compare", str(rgb), str(bundle), "--modalities", text, "--threads", "1"]
    assert main([*command, "--sheet", str(sheet), "--rows", "2", "--json", str(report)]) == 0
    assert "10 frames" in capsys.readouterr().out
    found = json.loads(report.read_text())
    assert found["frames"] == 10
    assert -0.1 < found["ari"] < 1
    assert 0 < found["matched"] <= 1
    # Visible, thermal, A, B, and where they differ; two rows and a line of titles.
    picture = cv2.imread(str(sheet))
    assert picture.shape == (34 + 2 * (240 + 10), 10 + 5 * (360 + 10), 3)
    # The second column shows the heat: grey, and not what the first one shows.
    thermal = picture[34:274, 380:740]
    assert (thermal.max(axis=2) - thermal.min(axis=2)).max() == 0
    assert (thermal != picture[34:274, 10:370]).any()


def test_a_bundle_compared_with_itself_agrees(
    v1_bundle: Path, rgb: Path, text: str, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    folder = folder_of(text)
    command = ["compare", str(v1_bundle), str(rgb), folder, "--threads", "1", "--frames", "4"]
    assert main([*command, "--json", str(report)]) == 0
    found = json.loads(report.read_text())
    assert (found["frames"], found["ari"], found["matched"]) == (4, 1.0, 1.0)


def test_a_modality_can_be_blanked_for_one_side(
    bundle: Path, text: str, tmp_path: Path, capsys: Output
) -> None:
    found = {}
    for name in ("thermal", "visible"):
        report = tmp_path / f"{name}.json"
        command = ["compare", str(bundle), str(bundle), "--modalities", text, "--blank", name]
        assert main([*command, "--threads", "1", "--json", str(report)]) == 0
        found[name] = json.loads(report.read_text())["matched"]
    assert found["thermal"] < 1
    # Most of the scene is in the colours.
    assert found["visible"] < found["thermal"]
    command = ["compare", str(bundle), str(bundle), "--modalities", text, "--blank", "depth"]
    assert main(command) == 2
    assert "The bundles have visible, thermal" in capsys.readouterr().err


def test_compare_refuses_what_it_cannot_read_or_write(
    bundle: Path, rgb: Path, text: str, tmp_path: Path, capsys: Output
) -> None:
    both = ["compare", str(rgb), str(bundle)]
    assert main([*both, folder_of(text)]) == 1
    assert "--modalities" in capsys.readouterr().err
    assert main([*both, "--modalities", text, "--sheet", str(tmp_path / "sheet.txt")]) == 2
    assert "is no picture" in capsys.readouterr().err
    assert main(["compare", str(rgb), str(rgb), "test://96x64"]) == 2
    assert "has no end" in capsys.readouterr().err
