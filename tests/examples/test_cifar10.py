"""The CIFAR-10 example reads what is offered as CIFAR-10, and runs from one end to the other."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")
torch = pytest.importorskip("torch")

from aeseg_edge.errors import FootageError  # noqa: E402
from aeseg_edge.export.checkpoint import load_model  # noqa: E402
from examples import cifar10  # noqa: E402


def pictures(count: int, seed: int) -> list[tuple[str, np.ndarray]]:
    """Class and picture: a disc on a plain ground, or stripes, in colours of their own."""
    random = np.random.default_rng(seed)
    made = []
    for index in range(count):
        colors = random.integers(0, 256, (2, 3)).tolist()
        image = np.full((32, 32, 3), colors[0], np.uint8)
        if index % 2:
            cv2.circle(image, tuple(random.integers(8, 24, 2).tolist()), 7, colors[1], -1)
        else:
            image[:: int(random.integers(3, 7))] = colors[1]
        made.append(("disc" if index % 2 else "stripes", image))
    return made


def write_zip(path: Path, train: int = 64, test: int = 48) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for split, count, seed in (("train", train, 0), ("test", test, 1)):
            for index, (label, image) in enumerate(pictures(count, seed)):
                data = cv2.imencode(".png", image)[1].tobytes()
                archive.writestr(f"{split}/{label}/{index:04d}.png", data)
    return path


def record(label: int, image: np.ndarray) -> bytes:
    """One image of the binary version: red, green and blue planes after the label."""
    return bytes([label]) + image[..., ::-1].transpose(2, 0, 1).tobytes()


def test_a_zip_of_pictures_gives_images_and_labels(tmp_path: Path) -> None:
    train, test = cifar10.load(write_zip(tmp_path / "c.zip", 6, 4))
    assert train.images.shape == (6, 32, 32, 3)
    # Classes by name: discs are 0. Entries by name, too: discs come first.
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert (train.images[0] == pictures(6, 0)[1][1]).all()
    assert len(test.images) == 4


def test_a_folder_of_pictures_gives_the_same(tmp_path: Path) -> None:
    packed = write_zip(tmp_path / "c.zip", 6, 4)
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path / "out")
    for ours, theirs in zip(cifar10.load(tmp_path / "out"), cifar10.load(packed), strict=True):
        assert (ours.images == theirs.images).all()
        assert (ours.labels == theirs.labels).all()


def test_binary_batches_are_read_from_a_folder_and_from_the_archive(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    images = [image for _, image in pictures(5, 2)]
    (folder / "data_batch_1.bin").write_bytes(record(3, images[0]) + record(9, images[1]))
    (folder / "data_batch_2.bin").write_bytes(record(0, images[2]))
    (folder / "test_batch.bin").write_bytes(record(7, images[3]) + record(1, images[4]))
    (folder / "batches.meta.txt").write_text("airplane\n")
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as archive:
        archive.add(folder, "cifar-10-batches-bin")
    for data in (folder, tmp_path / "cifar-10-binary.tar.gz"):
        train, test = cifar10.load(data)
        assert train.labels.tolist() == [3, 9, 0]
        assert test.labels.tolist() == [7, 1]
        assert (train.images == np.stack(images[:3])).all()
        assert (test.images == np.stack(images[3:])).all()


def test_pickled_batches_are_refused_and_not_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (tmp_path / "sprung",)

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("data_batch_1", "test_batch"):
        (folder / name).write_bytes(pickle.dumps(Trap()))
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(folder, "cifar-10-batches-py")
    for data in (folder, tmp_path / "cifar-10-python.tar.gz"):
        with pytest.raises(FootageError, match="to read a pickle is to run") as caught:
            cifar10.load(data)
        assert "binary version" in caught.value.fix
    assert not (tmp_path / "sprung").exists()


def test_damaged_batches_and_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FootageError, match="does not exist"):
        cifar10.load(tmp_path / "nothing")
    (tmp_path / "cut.zip").write_bytes(write_zip(tmp_path / "whole.zip", 4, 2).read_bytes()[:300])
    with pytest.raises(FootageError, match=r"cut\.zip is damaged"):
        cifar10.load(tmp_path / "cut.zip")
    (tmp_path / "notes.txt").write_text("no data")
    with pytest.raises(FootageError, match="neither a folder nor an archive"):
        cifar10.load(tmp_path / "notes.txt")
    with pytest.raises(FootageError, match="no train/ and test/"):
        cifar10.load(tmp_path)
    (tmp_path / "data_batch_1.bin").write_bytes(b"\0" * 5000)
    with pytest.raises(FootageError, match=r"data_batch_1\.bin .* has 5000 bytes"):
        cifar10.load(tmp_path)
    with zipfile.ZipFile(tmp_path / "large.zip", "w") as archive:
        data = cv2.imencode(".png", np.zeros((40, 40, 3), np.uint8))[1].tobytes()
        archive.writestr("train/a/0.png", data)
    with pytest.raises(FootageError, match=r"train/a/0\.png .* is not 32x32"):
        cifar10.load(tmp_path / "large.zip")


def test_a_perfect_copy_of_pure_black_and_white_costs_nothing_and_of_grey_the_most() -> None:
    pure = np.array([0, 255, 255], np.uint8)
    assert cifar10.floor_of(pure) == pytest.approx(0, abs=1e-4)
    assert cifar10.floor_of(np.array([127, 128], np.uint8)) == pytest.approx(np.log(2), abs=1e-4)


@pytest.mark.slow
def test_the_command_learns_and_leaves_pictures_figures_and_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write_zip(tmp_path / "c.zip"), tmp_path / "out"
    options = ["--epochs", "3", "--images", "60", "--latent-dim", "8", "--threads", "1"]
    assert cifar10.main([str(data), "-o", str(out), *options]) == 0
    said = capsys.readouterr().out
    assert said.count("epoch") == 3
    for name in ("reconstructions.png", "loss.png", "report.json", "cifar10.train"):
        assert str(out / name) in said
        assert (out / name).exists()
    report = json.loads((out / "report.json").read_text())
    losses = [each["validation_loss"] for each in report["history"]]
    assert losses[-1] < losses[0]
    assert losses[-1] > report["loss_of_a_perfect_copy"]
    assert (report["training_images"], report["test_images"]) == (60, 12)
    # One row of twelve originals above twelve reconstructions, three times as large.
    picture = cv2.imread(str(out / "reconstructions.png"))
    assert picture.shape == (2 * 96, 12 * 96, 3)
    assert (picture[:96] != picture[96:]).any()
    autoencoder, _ = load_model(out / "cifar10.train")
    assert autoencoder.config.arch == "deep"


def test_a_missing_file_is_one_line_and_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cifar10.main([str(tmp_path / "gone.zip")]) == 1
    assert "does not exist" in capsys.readouterr().err


def test_the_reader_of_archives_takes_no_other_members(tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo("../../outside_batch.bin")
        info.size = cifar10.RECORD
        archive.addfile(info, io.BytesIO(b"\0" * cifar10.RECORD))
    with pytest.raises(FootageError, match=r"outside_batch\.bin"):
        cifar10.load(path)
