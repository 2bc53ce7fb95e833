"""An autoencoder on CIFAR-10: the second article's experiment.

    python -m examples.cifar10 cifar-10-binary.tar.gz

``deep`` (convolutions with 64, 128 and 256 channels, mirrored), 32x32 images, binary
cross-entropy, Adam, 32 images a step. It writes, into build/cifar10 unless -o says otherwise,

    reconstructions.png   test images, and below each what the decoder makes of it
    loss.png              training and validation loss by epoch
    report.json           the same figures, and the accuracy of the head
    cifar10.train/        the weights, as `aeseg train` leaves them

and then trains the article's classifier: the encoder as it is, a convolution and a fully
connected layer on its latents, softmax cross-entropy. Reconstruction is the point here; the
classifier shows what the latents tell without having seen a label.

DATA is the binary version of CIFAR-10 (a folder with data_batch_1.bin, or the .tar.gz as it is
downloaded), or a folder or zip of pictures laid out as train/CLASS/NAME and test/CLASS/NAME.
"""

from __future__ import annotations

import argparse
import json
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from aeseg_edge.calibration.footage.gather import Footage, FootageReport
from aeseg_edge.errors import AesegError, FootageError
from aeseg_edge.export.checkpoint import save_model
from aeseg_edge.export.network.autoencoder import Autoencoder, build_autoencoder
from aeseg_edge.export.network.config import AutoencoderConfig
from aeseg_edge.export.training.history import EpochRecord, TrainProgress
from aeseg_edge.export.training.loop import train
from aeseg_edge.export.training.settings import TrainSettings
from aeseg_edge.sources.images import decode_image, is_image, natural
from aeseg_edge.support.files import write_bytes

Images = NDArray[np.uint8]
SIDE = 32
RECORD = 1 + 3 * SIDE * SIDE
"""Bytes: the label, then all red, all green, all blue values, row by row."""
COLUMNS = 12
_LAYOUT = "Give the binary version of CIFAR-10, or pictures as train/CLASS/NAME, test/CLASS/NAME."


@dataclass(frozen=True)
class Split:
    """Images and what is on them.

    Attributes:
        images: uint8 [N, 32, 32, 3], BGR.
        labels: int64 [N], 0..9.
    """

    images: Images
    labels: NDArray[np.int64]

    def some(self, count: int, seed: int) -> Split:
        """Choose images at random, all where there are no more."""
        order = np.random.default_rng(seed).permutation(len(self.images))[:count]
        return Split(self.images[order], self.labels[order])


# --- data -----------------------------------------------------------------------------------------


def load(data: Path) -> tuple[Split, Split]:
    """Read the training and the test images; nothing is unpickled or unpacked.

    Raises:
        FootageError: If there are none, or they are not laid out as the module's text says.
    """
    if not data.exists():
        raise FootageError(f"{data} does not exist", fix=_LAYOUT)
    try:
        return _load(data)
    except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, zlib.error) as error:
        raise FootageError(f"{data} is damaged ({error})", fix="Download it again.") from error


def _load(data: Path) -> tuple[Split, Split]:
    if data.suffix == ".zip":
        with zipfile.ZipFile(data) as archive:
            names = [name for name in archive.namelist() if is_image(Path(name))]
            return _pictures(names, (archive.read(name) for name in names), data)
    if data.is_file() and tarfile.is_tarfile(data):
        with tarfile.open(data) as archive:
            members = [m for m in archive.getmembers() if m.isfile() and m.name.endswith(".bin")]
            found = {}
            for member in members:
                stream = archive.extractfile(member)
                found[PurePosixPath(member.name).name] = stream.read() if stream else b""
            return _batches(found, data)
    if not data.is_dir():
        raise FootageError(f"{data} is neither a folder nor an archive", fix=_LAYOUT)
    batches = sorted(data.glob("*_batch*.bin"))
    if batches or (data / "data_batch_1").exists():
        return _batches({path.name: path.read_bytes() for path in batches}, data)
    files = sorted(path for path in data.rglob("*") if is_image(path))
    names = [path.relative_to(data).as_posix() for path in files]
    return _pictures(names, (path.read_bytes() for path in files), data)


def _batches(files: dict[str, bytes], data: Path) -> tuple[Split, Split]:
    """Read the binary version (Krizhevsky 2009; its layout is on the data set's page)."""
    parts: dict[str, list[NDArray[np.uint8]]] = {"data": [], "test": []}
    for name in sorted(files):
        kind = name.partition("_")[0]
        if kind not in parts or len(files[name]) % RECORD or not files[name]:
            raise FootageError(
                f"{name} of {data} has {len(files[name])} bytes, not {RECORD} an image",
                fix="Download it again: CIFAR-10 binary version.",
            )
        parts[kind].append(np.frombuffer(files[name], np.uint8).reshape(-1, RECORD))
    if not (parts["data"] and parts["test"]):
        raise FootageError(
            f"{data} has no data_batch_1.bin and test_batch.bin: it may be the Python version, "
            "whose batches are pickles, and to read a pickle is to run what is in it",
            fix="Download the binary version (for C programs) from the same page.",
        )
    train_records, test_records = (np.concatenate(parts[kind]) for kind in ("data", "test"))
    return _split(train_records), _split(test_records)


def _split(records: NDArray[np.uint8]) -> Split:
    planes = records[:, 1:].reshape(-1, 3, SIDE, SIDE)
    bgr = np.ascontiguousarray(planes[:, ::-1].transpose(0, 2, 3, 1))
    return Split(bgr, records[:, 0].astype(np.int64))


def _pictures(names: Sequence[str], contents: Iterator[bytes], data: Path) -> tuple[Split, Split]:
    """Read train/CLASS/NAME and test/CLASS/NAME, in natural order."""
    found: dict[str, list[tuple[str, Images]]] = {"train": [], "test": []}
    by_name = sorted(zip(names, contents, strict=True), key=lambda item: natural(item[0]))
    for name, content in by_name:
        split, label = PurePosixPath(name).parts[-3:-1] if name.count("/") > 1 else ("", "")
        if split not in found:
            continue
        image = decode_image(content, 3)
        if isinstance(image, str) or image.shape[:2] != (SIDE, SIDE):
            reason = image if isinstance(image, str) else "is not 32x32"
            raise FootageError(f"{name} of {data} {reason}", fix="Take it out, or replace it.")
        found[split].append((label, image))
    if not (found["train"] and found["test"]):
        raise FootageError(f"{data} has no train/ and test/ with pictures", fix=_LAYOUT)
    classes = sorted({label for items in found.values() for label, _ in items})
    train_split, test_split = (
        Split(
            np.stack([image for _, image in items]),
            np.array([classes.index(label) for label, _ in items], np.int64),
        )
        for items in found.values()
    )
    return train_split, test_split


# --- the autoencoder ------------------------------------------------------------------------------


def train_autoencoder(
    images: Images, held_out: Images, folder: Path, options: argparse.Namespace
) -> tuple[Autoencoder, Sequence[EpochRecord]]:
    """Train ``deep`` on whole images without augmentation, as the article does."""
    autoencoder = build_autoencoder(
        AutoencoderConfig("deep", options.latent_dim), seed=options.seed
    )
    settings = TrainSettings.for_arch(
        "deep",
        batch=32,
        epochs=None if options.minutes else options.epochs,
        minutes=options.minutes,
        crop=None,
        augment=False,
        seed=options.seed,
        threads=options.threads,
    )
    assert (settings.loss, settings.optimizer) == ("bce", "adam")
    report = FootageReport((), frames=len(images), held_out=len(held_out))

    def tell(at: TrainProgress) -> None:
        if at.record is not None:
            print(
                f"epoch {at.record.epoch:3d}  train {at.record.train_loss:.4f}  "
                f"validation {at.record.validation_loss:.4f}  {at.record.seconds:.0f} s",
                flush=True,
            )

    result = train(autoencoder, Footage(images, held_out, report), settings, folder, progress=tell)
    save_model(folder, autoencoder, {"settings": asdict(settings)})
    return autoencoder, result.history


def floor_of(images: Images) -> float:
    """Compute the least binary cross-entropy that any reconstruction of these can have.

    Pixels are not 0 or 1, so even a perfect copy costs their entropy.
    """
    x = np.clip(images / 255.0, 1e-7, 1 - 1e-7)
    return float(-(x * np.log(x) + (1 - x) * np.log(1 - x)).mean())


def draw_reconstructions(autoencoder: Autoencoder, images: Images) -> Images:
    """Lay originals out in rows, each with its reconstructions below: uint8 [H, W, 3]."""
    with torch.no_grad():
        _, drawn = autoencoder(as_tensor(images))
    copies = (drawn.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    scale, gap = 3, 4
    rows = []
    for start in range(0, len(images) - COLUMNS + 1, COLUMNS):
        for part in (images, copies):
            row = np.concatenate(list(part[start : start + COLUMNS]), axis=1)
            rows.append(row.repeat(scale, axis=0).repeat(scale, axis=1))
        rows.append(np.full((gap, rows[0].shape[1], 3), 255, np.uint8))
    return np.concatenate(rows[:-1])


def draw_loss(history: Sequence[EpochRecord], floor: float) -> Images:
    """Draw training (grey) and validation loss (blue) over the floor: uint8 [H, W, 3]."""
    height, width, edge = 360, 640, 60
    picture = np.full((height, width, 3), 255, np.uint8)
    lines = {
        (160, 160, 160): [each.train_loss for each in history],
        (190, 90, 20): [each.validation_loss or each.train_loss for each in history],
    }
    top = max(max(values) for values in lines.values())
    scale = (height - 2 * edge) / max(top - floor, 1e-9)

    def place(index: int, value: float) -> tuple[int, int]:
        x = edge + (width - 2 * edge) * index / max(1, len(history) - 1)
        return round(x), round(height - edge - (value - floor) * scale)

    for color, values in lines.items():
        points = [place(index, value) for index, value in enumerate(values)]
        cv2.polylines(picture, [np.array(points, np.int32)], False, color, 2, cv2.LINE_AA)
        cv2.circle(picture, points[-1], 3, color, -1, cv2.LINE_AA)
    cv2.line(picture, place(0, floor), (width - edge, height - edge), (60, 60, 60), 1)
    for text, row in (
        (f"{top:.3f}", edge),
        (f"{floor:.3f} perfect copy; grey training, blue validation", height - edge + 24),
    ):
        cv2.putText(picture, text, (6, row), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (40, 40, 40), 1)
    return picture


def as_tensor(images: Images) -> Tensor:
    """Give float32 [N, 3, 32, 32] in 0..1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


# --- the classifier -------------------------------------------------------------------------------


def train_head(
    autoencoder: Autoencoder, train_on: Split, test_on: Split, *, epochs: int, seed: int
) -> float:
    """Train a convolution and a fully connected layer on the frozen encoder's latents.

    Returns:
        Share of the test images that are classified rightly, 0..1.
    """

    def encode(images: Images) -> Tensor:
        with torch.no_grad():
            parts = [autoencoder.encode(as_tensor(part)) for part in _chunks(images, 256)]
        return torch.cat(parts)

    latents, wanted = encode(train_on.images), torch.from_numpy(train_on.labels)
    mean, spread = latents.mean((0, 2, 3), keepdim=True), latents.std((0, 2, 3), keepdim=True)
    torch.manual_seed(seed)
    dim, rows, columns = latents.shape[1:]
    head = nn.Sequential(
        nn.Conv2d(dim, 64, 3, padding=1),
        nn.ReLU(),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(64 * rows * columns, int(wanted.max()) + 1),
    )
    optimizer = torch.optim.Adam(head.parameters(), 1e-3)
    for _ in range(epochs):
        for chosen in torch.randperm(len(latents)).split(64):
            optimizer.zero_grad()
            scores = head((latents[chosen] - mean) / (spread + 1e-6))
            nn.functional.cross_entropy(scores, wanted[chosen]).backward()
            optimizer.step()
    head.eval()
    with torch.no_grad():
        found = head((encode(test_on.images) - mean) / (spread + 1e-6)).argmax(1)
    return float((found.numpy() == test_on.labels).mean())


def _chunks(images: Images, size: int) -> Iterator[Images]:
    for start in range(0, len(images), size):
        yield images[start : start + size]


# --- the command ----------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("-o", "--output", type=Path, default=Path("build/cifar10"), metavar="DIR")
    parser.add_argument("--epochs", type=int, default=10, help="default 10")
    parser.add_argument("--minutes", type=float, help="train for so long instead")
    parser.add_argument("--images", type=int, metavar="N", help="learn from N images only")
    parser.add_argument("--latent-dim", type=int, default=32, metavar="D", help="default 32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    options = parser.parse_args(argv)
    try:
        run(options)
    except AesegError as error:
        print(f"error: {error.problem}.\n  {error.fix}", file=sys.stderr)
        return 1
    return 0


def run(options: argparse.Namespace) -> None:
    """Train, draw, classify, write.

    Raises:
        AesegError: If the data cannot be read, or the results cannot be written.
    """
    train_on, test_on = load(options.data)
    if options.images is not None:
        train_on = train_on.some(options.images, options.seed)
        test_on = test_on.some(max(COLUMNS, options.images // 5), options.seed)
    print(f"{len(train_on.images)} training and {len(test_on.images)} test images")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    folder: Path = options.output
    folder.mkdir(parents=True, exist_ok=True)
    autoencoder, history = train_autoencoder(
        train_on.images, test_on.images, folder / "cifar10.train", options
    )
    floor = floor_of(test_on.images)
    print(f"a perfect copy of the test images would have a loss of {floor:.4f}")
    accuracy = train_head(
        autoencoder, train_on, test_on, epochs=min(10, options.epochs), seed=options.seed
    )
    print(f"classifier on the frozen encoder: {100 * accuracy:.1f} % of the test images right")
    report = {
        "history": [asdict(each) for each in history],
        "loss_of_a_perfect_copy": floor,
        "accuracy": accuracy,
        "training_images": len(train_on.images),
        "test_images": len(test_on.images),
    }
    shown = test_on.some(4 * COLUMNS, options.seed).images
    files = {
        "reconstructions.png": _png(draw_reconstructions(autoencoder, shown)),
        "loss.png": _png(draw_loss(history, floor)),
        "report.json": json.dumps(report, indent=1).encode(),
    }
    for name, content in files.items():
        write_bytes(folder / name, content, error=AesegError)
        print(folder / name)
    print(folder / "cifar10.train")


def _png(picture: Images) -> bytes:
    data: bytes = cv2.imencode(".png", picture)[1].tobytes()
    return data


if __name__ == "__main__":
    sys.exit(main())
