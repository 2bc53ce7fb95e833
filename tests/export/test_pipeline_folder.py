"""NAME.train changes as one: network, frames, region and provenance belong together."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")
torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from aeseg_edge.bundle.archive import Bundle  # noqa: E402
from aeseg_edge.calibration.settings import FitSettings  # noqa: E402
from aeseg_edge.errors import TrainingError, UsageError  # noqa: E402
from aeseg_edge.export import checkpoint, pipeline  # noqa: E402
from aeseg_edge.export.kept_frames import load_frames, save_frames  # noqa: E402
from aeseg_edge.export.lock import training_in  # noqa: E402
from aeseg_edge.export.network.config import AutoencoderConfig  # noqa: E402
from aeseg_edge.export.pipeline import export_bundle, train_bundle  # noqa: E402
from aeseg_edge.export.settings import Labels, TrainOptions  # noqa: E402
from aeseg_edge.export.training.settings import TrainSettings  # noqa: E402
from aeseg_edge.sources.scene import draw_scene  # noqa: E402

OPTIONS = TrainOptions(
    model=AutoencoderConfig("shallow", latent_dim=4),
    image_size=(48, 32),
    training=TrainSettings.for_arch("shallow", epochs=2, threads=1),
    fit=FitSettings(clusters=3, restarts=1, samples=500, threads=1),
)
LONGER = replace(OPTIONS, training=replace(OPTIONS.training, epochs=4))
Contents = dict[str, bytes]


def pictures(folder: Path, start: int) -> Path:
    folder.mkdir(parents=True)
    for index in range(8):
        cv2.imwrite(str(folder / f"{index}.png"), draw_scene(start + 9 * index, 48, 32))
    return folder


def contents(folder: Path) -> Contents:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def stop_after(epochs: int):
    def stop(stage: str, fraction: float, note: str) -> None:
        if stage == "training" and fraction > (epochs + 0.1) / 4:
            raise KeyboardInterrupt

    return stop


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    pictures(folder / "a", 0)
    pictures(folder / "b", 300)
    train_bundle([folder / "a"], folder / "cam.aeseg", OPTIONS)
    export_bundle(folder / "cam.train", folder / "whole.aeseg")
    return folder


@pytest.fixture
def work(made: Path, tmp_path: Path) -> Path:
    """Footage in a and b, and what a training on a left."""
    return Path(shutil.copytree(made, tmp_path / "work"))


def check_whole(work: Path) -> None:
    """An export is what it was before."""
    export_bundle(work / "cam.train", work / "x.aeseg")
    assert (work / "x.aeseg").read_bytes() == (work / "whole.aeseg").read_bytes()


def check_is_of(work: Path, name: str) -> None:
    """Network, frames and provenance are of one footage."""
    folder = work / "cam.train"
    export_bundle(folder, work / "x.aeseg")
    assert Bundle.open(work / "x.aeseg").manifest.provenance["footage"] == [str(work / name)]
    shown = np.sort(load_frames(folder).mean((1, 2, 3)))
    given = np.sort([cv2.imread(str(path)).mean() for path in (work / name).iterdir()])
    np.testing.assert_allclose(shown, given, atol=1)


@pytest.mark.parametrize("epochs", [0, 1])
def test_an_interrupted_fresh_training_leaves_network_and_frames_as_they_were(
    work: Path, epochs: int, caplog: pytest.LogCaptureFixture
) -> None:
    folder = work / "cam.train"
    before = contents(folder)
    with pytest.raises(KeyboardInterrupt):
        train_bundle(
            [work / "b"],
            work / "cam.aeseg",
            replace(LONGER, fresh=True),
            progress=stop_after(epochs),
        )
    assert ("without --fresh" in caplog.text) is bool(epochs)
    told_anew = {"state.safetensors", "history.json"} if epochs else set()
    now = contents(folder)
    assert {name for name in before | now if before.get(name) != now.get(name)} == told_anew
    if epochs:
        with pytest.raises(TrainingError, match=r"cam\.train is not finished") as caught:
            export_bundle(folder, work / "x.aeseg")
        assert "without --fresh" in caught.value.fix
        assert "delete" in caught.value.fix
        (folder / "state.safetensors").unlink()
    check_whole(work)


def test_a_finished_training_replaces_network_frames_and_provenance(work: Path) -> None:
    train_bundle([work / "b"], work / "cam.aeseg", replace(LONGER, fresh=True))
    check_is_of(work, "b")


@pytest.mark.parametrize("other", [{"image_size": (32, 32)}, {"keep_frames": False}, {}])
def test_a_refused_training_changes_nothing(work: Path, other: dict[str, object]) -> None:
    before = contents(work)
    with pytest.raises(TrainingError, match="holds a training with"):
        train_bundle([work / "b"], work / "cam.aeseg", replace(OPTIONS, **other))
    assert contents(work) == before
    check_whole(work)


@pytest.mark.parametrize("at", ["keep_frames", "save_region", "save_model"])
def test_a_crash_while_a_training_is_put_down_is_noticed_and_mended(
    work: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    real = getattr(pipeline, at)

    def crash(*given: object, **more: object) -> None:
        if at != "save_model":
            real(*given, **more)
        raise KeyboardInterrupt

    again = replace(LONGER, fresh=True)
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, at, crash)
        with pytest.raises(KeyboardInterrupt):
            train_bundle([work / "b"], work / "cam.aeseg", again)
    with pytest.raises(TrainingError, match="is not finished") as caught:
        export_bundle(work / "cam.train", work / "x.aeseg")
    assert "delete" not in caught.value.fix
    trained = train_bundle([work / "b"], work / "cam.aeseg", LONGER)
    assert len(trained.history) == 4
    check_is_of(work, "b")


# --- older folders --------------------------------------------------------------------------------


def make_older(folder: Path) -> None:
    """What versions before the stamps left."""
    model = json.loads((folder / "model.json").read_text())
    del model["training"], model["frames"]
    (folder / "model.json").write_text(json.dumps(model))
    state = checkpoint.load_state(folder)
    assert state is not None
    kept = {name: state.record[name] for name in ("identity", "history")}
    checkpoint.save_state(folder, checkpoint.State(state.tensors, kept))


def test_an_older_folder_is_exported_and_its_training_is_found_complete(work: Path) -> None:
    make_older(work / "cam.train")
    check_whole(work)
    trained = train_bundle([work / "a"], work / "cam.aeseg", OPTIONS)
    assert len(trained.history) == 2
    check_is_of(work, "a")


def test_an_older_folder_whose_fresh_training_was_interrupted_is_refused(work: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_bundle(
            [work / "b"], work / "cam.aeseg", replace(LONGER, fresh=True), progress=stop_after(1)
        )
    make_older(work / "cam.train")
    with pytest.raises(TrainingError, match="is not finished") as caught:
        export_bundle(work / "cam.train", work / "x.aeseg")
    # Frames were replaced at once by that version: there is no way back.
    assert "delete" not in caught.value.fix


def test_frames_that_cannot_be_the_networks_are_refused_and_others_are_told_of(
    work: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = work / "cam.train"
    with caplog.at_level(logging.WARNING):
        export_bundle(folder, work / "x.aeseg")
        assert "not those that the training left" not in caplog.text
        save_frames(folder, np.stack([draw_scene(9 * i, 48, 32) for i in range(6)]))
        export_bundle(folder, work / "x.aeseg")
        assert "not those that the training left" in caplog.text
    for frames in (np.zeros((4, 32, 32, 3), np.uint8), np.zeros((4, 32, 48, 1), np.uint8)):
        save_frames(folder, frames)
        with pytest.raises(TrainingError, match="they are of another training") as caught:
            export_bundle(folder, work / "x.aeseg")
        assert "SOURCE" in caught.value.fix


# --- footage that would be replaced ---------------------------------------------------------------


@pytest.mark.parametrize(
    "source", ["cam.train/frames", "cam.train/frames/*.jpg", "cam.train", ".", "links", "cam.zip"]
)
def test_footage_that_the_training_would_replace_is_refused(
    work: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    (work / "links").mkdir()
    (work / "links" / "a.jpg").symlink_to(work / "cam.train" / "frames" / "000000.jpg")
    (work / "cam.zip").symlink_to(work / "cam.aeseg")
    monkeypatch.chdir(work)
    before = contents(work)
    for name in ("cam.aeseg", str(work / "cam.aeseg")):
        with pytest.raises(UsageError, match="which this training replaces") as caught:
            train_bundle([source], Path(name), replace(OPTIONS, fresh=True))
        assert "another name" in caught.value.fix
    assert contents(work) == before


def test_masks_and_teachers_that_the_training_would_replace_are_refused(work: Path) -> None:
    folder = work / "cam.train"
    labels = Labels(folder / "frames", ("road", "sky"))
    with pytest.raises(UsageError, match="which this training replaces"):
        train_bundle([work / "a"], work / "cam.aeseg", replace(OPTIONS, labels=labels))
    taught = replace(OPTIONS, training=replace(OPTIONS.training, teacher=str(folder)))
    with pytest.raises(UsageError, match="would be trained over"):
        train_bundle([work / "a"], work / "cam.aeseg", taught)


def test_files_in_the_place_of_frames_that_no_training_wrote_are_not_lost(work: Path) -> None:
    pictures(work / "new.train" / "frames", 0)
    before = contents(work)
    with pytest.raises(TrainingError, match="that no training wrote"):
        train_bundle([work / "a"], work / "new.aeseg", OPTIONS)
    assert contents(work) == before


def test_a_folder_that_is_trained_in_is_neither_trained_nor_exported(work: Path) -> None:
    with training_in(work / "cam.train"):
        with pytest.raises(TrainingError, match="a training is under way"):
            train_bundle([work / "a"], work / "cam.aeseg", OPTIONS)
        with pytest.raises(TrainingError, match="a training is under way"):
            export_bundle(work / "cam.train", work / "x.aeseg")
    assert not (work / "cam.train" / "lock").exists()
