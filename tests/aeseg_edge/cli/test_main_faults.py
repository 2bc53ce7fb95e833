"""Real faults: each ends in a clear error or a clean stop, and nothing half-written stays."""

from __future__ import annotations

import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")
pytest.importorskip("onnxruntime")

from aeseg_edge.bundle.archive import Bundle  # noqa: E402
from aeseg_edge.cli import main  # noqa: E402
from aeseg_edge.sources.scene import draw_scene  # noqa: E402

TINY = ["--imgsz", "96x64", "--arch", "shallow", "--clusters", "4", "--restarts", "1"]
TINY += ["--latent-dim", "6", "--threads", "1"]
host = pytest.mark.host

Output = pytest.CaptureFixture[str]


@pytest.fixture
def footage(tmp_path: Path) -> Path:
    folder = tmp_path / "drive"
    folder.mkdir()
    for index in range(16):
        cv2.imwrite(str(folder / f"{index:02d}.png"), draw_scene(7 * index, 120, 80))
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained NAME.train."""
    folder = tmp_path_factory.mktemp("checkpoint")
    (folder / "drive").mkdir()
    for index in range(16):
        cv2.imwrite(str(folder / "drive" / f"{index:02d}.png"), draw_scene(7 * index, 120, 80))
    command = ["train", str(folder / "drive"), "-o", str(folder / "a.aeseg"), "--epochs", "1"]
    assert main([*command, *TINY]) == 0
    return folder / "a.train"


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, and what is in it."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def check_error(err: str, says: str) -> None:
    """One clear error with its fix, and no traceback."""
    assert "Traceback" not in err
    found = re.search(r"^aeseg: error: (.+)\n  ([A-Z].+\.)$", err, re.MULTILINE)
    assert found is not None, err
    assert re.search(says, found[1]), err


def fails(command: list[str], says: str, capsys: Output, code: int = 1) -> str:
    """Run a command that must fail with an error that says so; give standard error."""
    capsys.readouterr()
    assert main(command) == code
    err = capsys.readouterr().err
    check_error(err, says)
    return err


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Let no file grow beyond ``limit`` bytes; Python ignores SIGXFSZ, so writes fail."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def start(command: list[str], repository: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "aeseg_edge.cli", *command],
        cwd=repository,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background has its children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def wait_for(found: Callable[[], bool], child: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not found():
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def frames_of(path: Path) -> int:
    capture = cv2.VideoCapture(str(path))
    count = 0
    while capture.grab():
        count += 1
    capture.release()
    return count


# --- sources that are not what they should be -----------------------------------------------------


def make_nothing(folder: Path) -> Path:
    return folder / "gone.mp4"


def make_empty_folder(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def make_folder_of_text(folder: Path) -> Path:
    (folder / "text").mkdir()
    for name in ("a.txt", "b.txt"):
        (folder / "text" / name).write_text("not a picture\n")
    return folder / "text"


def make_cut_video(folder: Path) -> Path:
    """An MP4 without its second half, where its index was."""
    path = folder / "cut.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 25.0, (160, 120))
    for index in range(30):
        writer.write(draw_scene(index, 160, 120))
    writer.release()
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def make_text_named_as_a_video(folder: Path) -> Path:
    (folder / "notes.mp4").write_text("not a video\n" * 100)
    return folder / "notes.mp4"


def make_text_named_as_images(folder: Path) -> Path:
    (folder / "bad").mkdir()
    for index in range(3):
        (folder / "bad" / f"{index}.png").write_text("not a picture\n")
    return folder / "bad"


BAD_SOURCES = [
    (make_nothing, "gone.mp4 does not exist"),
    (make_empty_folder, "empty (holds|has) no images"),
    (make_folder_of_text, "text (holds|has) no images.* 2 other files"),
    (make_cut_video, "cut.mp4"),
    (make_text_named_as_a_video, "notes.mp4"),
    (make_text_named_as_images, "bad"),
]


@pytest.mark.parametrize("verb", [pytest.param("train", marks=host), "calibrate", "run", "bench"])
@pytest.mark.parametrize(("make", "says"), BAD_SOURCES, ids=[m.__name__ for m, _ in BAD_SOURCES])
def test_a_source_that_gives_no_frames_is_refused_by_name(
    verb: str,
    make: Callable[[Path], Path],
    says: str,
    v1_bundle: Path,
    tmp_path: Path,
    capsys: Output,
) -> None:
    source = str(make(tmp_path))
    output = str(tmp_path / "out.aeseg")
    before = listing(tmp_path)
    command = {
        "train": ["train", source, "-o", output, *TINY],
        "calibrate": ["calibrate", str(v1_bundle), source, "-o", output],
        "run": ["run", source, "-b", str(v1_bundle), "-o", str(tmp_path / "out.mp4")],
        "bench": ["bench", str(v1_bundle), source, "--warmup", "0"],
    }[verb]
    fails(command, says, capsys)
    assert listing(tmp_path) == before
    assert not (tmp_path / "out.train").exists()


def test_a_video_cut_where_frames_are_left_is_segmented_to_the_cut_and_said(
    v1_bundle: Path, tmp_path: Path, capsys: Output, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "cut.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25.0, (160, 120))
    for index in range(40):
        writer.write(draw_scene(index, 160, 120))
    writer.release()
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    output = tmp_path / "out.mp4"
    assert main(["run", str(path), "-b", str(v1_bundle), "-o", str(output)]) == 0
    assert 10 <= frames_of(output) < 40
    assert "cut short" in caplog.text
    assert sorted(listing(tmp_path)) == ["cut.avi", "out.mp4"]


@host
def test_one_pixel_is_no_footage(tmp_path: Path, capsys: Output) -> None:
    cv2.imwrite(str(tmp_path / "one.png"), np.full((1, 1, 3), 99, np.uint8))
    command = ["train", str(tmp_path / "one.png"), "-o", str(tmp_path / "a.aeseg"), *TINY]
    fails(command, "one.png is 1x1 pixels", capsys)
    assert sorted(listing(tmp_path)) == ["one.png"]


def test_one_pixel_is_a_frame_to_segment(v1_bundle: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "one.png"), np.full((1, 1, 3), 99, np.uint8))
    sink = str(tmp_path / "labels.png?view=labels")
    assert main(["run", str(tmp_path / "one.png"), "-b", str(v1_bundle), "-o", sink]) == 0
    labels = cv2.imread(str(tmp_path / "labels.png"), cv2.IMREAD_UNCHANGED)
    assert labels.shape == (1, 1)
    assert labels[0, 0] < 5


# --- bundles, clusters, outputs -------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "folder", "gone"])
@pytest.mark.parametrize("verb", ["info", "run", "bench", "calibrate"])
def test_a_damaged_bundle_is_refused_by_every_verb(
    verb: str, damage: str, v1_bundle: Path, footage: Path, tmp_path: Path, capsys: Output
) -> None:
    bundle = tmp_path / "bad.aeseg"
    data = bytearray(v1_bundle.read_bytes())
    if damage == "cut":
        bundle.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        data[len(data) // 2] ^= 0x10
        bundle.write_bytes(data)
    elif damage == "text":
        bundle.write_text("hello\n")
    elif damage == "folder":
        bundle.mkdir()
    before = listing(tmp_path)
    command = {
        "info": ["info", str(bundle)],
        "run": ["run", str(footage), "-b", str(bundle), "-o", str(tmp_path / "out.mp4")],
        "bench": ["bench", str(bundle)],
        "calibrate": ["calibrate", str(bundle), str(footage), "-o", str(tmp_path / "b.aeseg")],
    }[verb]
    fails(command, "bad.aeseg", capsys)
    assert listing(tmp_path) == before


@host
def test_more_clusters_than_samples_are_refused_before_training(
    footage: Path, tmp_path: Path, capsys: Output
) -> None:
    command = ["train", str(footage), "-o", str(tmp_path / "a.aeseg"), *TINY, "--imgsz", "32x32"]
    err = fails([*command, "--max-frames", "4", "--clusters", "900"], "900 clusters", capsys)
    assert "training:" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drive"]
    fails([*command, "--clusters", "5000"], "5000 clusters are not within", capsys, code=2)


def test_more_clusters_than_distinct_latents_are_refused(
    v1_bundle: Path, tmp_path: Path, capsys: Output
) -> None:
    (tmp_path / "flat").mkdir()
    for level in (50, 90, 130):
        flat = np.full((64, 96, 3), level, np.uint8)
        cv2.imwrite(str(tmp_path / "flat" / f"{level}.png"), flat)
    command = ["calibrate", str(v1_bundle), str(tmp_path / "flat"), "--clusters", "900"]
    fails([*command, "-o", str(tmp_path / "b.aeseg")], "900 clusters are more than", capsys)
    assert not (tmp_path / "b.aeseg").exists()


@pytest.mark.parametrize("where", ["gone/a.aeseg", "file/a.aeseg", "folder.aeseg"])
@pytest.mark.parametrize("verb", [pytest.param("train", marks=host), "calibrate"])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    verb: str, where: str, v1_bundle: Path, footage: Path, tmp_path: Path, capsys: Output
) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder.aeseg").mkdir()
    before = listing(tmp_path)
    inputs = [str(footage), *TINY] if verb == "train" else [str(v1_bundle), str(footage)]
    err = fails([verb, *inputs, "-o", str(tmp_path / where)], "cannot be written", capsys)
    assert "footage:" not in err
    assert listing(tmp_path) == before


@pytest.mark.parametrize("where", ["gone/out.mp4", "file/out.mp4", "file/%d.png"])
def test_a_sink_that_cannot_be_written_is_refused(
    where: str, v1_bundle: Path, tmp_path: Path, capsys: Output
) -> None:
    (tmp_path / "file").write_text("in the way")
    command = ["run", "test://64x48", "-b", str(v1_bundle), "--frames", "3"]
    fails([*command, "-o", str(tmp_path / where)], "cannot be written", capsys)
    assert listing(tmp_path) == {"file": b"in the way"}


def test_one_bad_sink_leaves_nothing_of_a_good_one(
    v1_bundle: Path, tmp_path: Path, capsys: Output
) -> None:
    sinks = ["-o", str(tmp_path / "good.mp4"), "-o", str(tmp_path / "gone" / "bad.mp4")]
    command = ["run", "test://64x48", "-b", str(v1_bundle), "--frames", "3", *sinks]
    fails(command, "bad.mp4 cannot be written", capsys)
    assert listing(tmp_path) == {}


# --- training -------------------------------------------------------------------------------------


@host
def test_a_loss_that_is_no_number_stops_training_and_names_an_option_that_exists(
    footage: Path, tmp_path: Path, capsys: Output
) -> None:
    command = ["train", str(footage), "-o", str(tmp_path / "a.aeseg"), *TINY, "--epochs", "5"]
    err = fails([*command, "--learning-rate", "1e9"], "not a finite number in epoch 1", capsys)
    assert not (tmp_path / "a.aeseg").exists()
    assert not (tmp_path / "a.train" / "model.json").exists()
    option = re.search(r"try (--\S+) ", err)
    assert option is not None
    main(["train", "--help"])
    assert option[1] in capsys.readouterr().out


@host
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_in_training_keeps_whole_epochs_and_the_same_command_goes_on(
    number: signal.Signals, footage: Path, tmp_path: Path, repository: Path, capsys: Output
) -> None:
    output, folder = tmp_path / "a.aeseg", tmp_path / "a.train"
    command = ["train", str(footage), "-o", str(output), *TINY, "--epochs", "60"]
    child = start(command, repository)
    wait_for((folder / "state.safetensors").exists, child)
    child.send_signal(number)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "Traceback" not in err
    said = re.search(r"(\d+) epochs are saved in \S+; run the same command to go on", err)
    assert said is not None, err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.train", "drive"]
    assert sorted(path.name for path in folder.iterdir()) == ["history.json", "state.safetensors"]
    if number == signal.SIGTERM:
        return
    child = start(command, repository)
    _, err = child.communicate(timeout=120)
    assert child.returncode == 0, err
    assert f"after epoch {said[1]}" in err
    assert Bundle.open(output).manifest.training["epochs"] == 60


@host
def test_a_full_disk_stops_training_at_the_frames_and_at_the_checkpoint(
    footage: Path, tmp_path: Path, capsys: Output
) -> None:
    output = str(tmp_path / "a.aeseg")
    command = ["train", str(footage), "-o", output, *TINY, "--epochs", "1"]
    with full_disk(200):
        fails(command, "history.json cannot be written", capsys)
    assert not any((tmp_path / "a.train").rglob("*"))
    with full_disk(50_000):
        fails(command, "state.safetensors cannot be written", capsys)
    names = {path.name for path in (tmp_path / "a.train").iterdir()}
    assert names == {"history.json"}
    assert not (tmp_path / "a.aeseg").exists()


@host
def test_a_full_disk_while_exporting_leaves_the_old_bundle(
    checkpoint: Path, tmp_path: Path, capsys: Output
) -> None:
    output = tmp_path / "b.aeseg"
    output.write_bytes(b"the bundle of yesterday")
    before, kept = listing(tmp_path), listing(checkpoint)
    command = ["export", str(checkpoint), "-o", str(output), "--clusters", "4", "--restarts", "1"]
    with full_disk(20_000):
        fails(command, "folder for temporary files cannot be used", capsys)
    with full_disk(130_000):
        fails(command, "b.aeseg cannot be written: File too large", capsys)
    assert listing(tmp_path) == before
    assert listing(checkpoint) == kept


# --- running --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sink", ["out.mp4", "out.avi", "%03d.png"])
def test_a_full_disk_while_segmenting_leaves_nothing_half_written(
    sink: str, v1_bundle: Path, tmp_path: Path, capsys: Output
) -> None:
    command = ["run", "test://320x240", "-b", str(v1_bundle), "--frames", "30"]
    limit = 2_000 if sink.endswith("png") else 30_000
    with full_disk(limit):
        fails([*command, "-o", str(tmp_path / sink)], "cannot be written", capsys)
    assert listing(tmp_path) == {}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("more", [[], ["--json", "-"]], ids=["text", "json"])
def test_a_full_disk_behind_standard_output_is_said(
    more: list[str], v1_bundle: Path, repository: Path
) -> None:
    command = [sys.executable, "-m", "aeseg_edge.cli", "info", str(v1_bundle), *more]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command,
            cwd=repository,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    check_error(done.stderr, "No space left on device")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_ends_a_run_with_a_video_that_plays(
    number: signal.Signals, v1_bundle: Path, tmp_path: Path, repository: Path
) -> None:
    output = tmp_path / "out.mp4"
    child = start(["run", "test://64x48", "-b", str(v1_bundle), "-o", str(output)], repository)
    assert child.stderr is not None
    line = child.stderr.readline()  # One a second; the first frames are done then.
    assert "fps" in line, line
    child.send_signal(number)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    assert "Traceback" not in err
    told = re.search(r"^(\d+) frames in", err, re.MULTILINE)
    assert told is not None, err
    assert frames_of(output) == int(told[1]) > 0
    assert sorted(listing(tmp_path)) == ["out.mp4"]


# --- packages that are missing --------------------------------------------------------------------

WITHOUT = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {package!r}:
            raise ImportError("No module named " + name)

sys.meta_path.insert(0, Refuse())
from aeseg_edge.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("verb", "package", "extra"),
    [
        # Where the rest of the extra is there: torch is not the first of it that is imported.
        pytest.param("train", "torch", "host", marks=pytest.mark.host),
        pytest.param("export", "torch", "host", marks=pytest.mark.host),
        ("calibrate", "sklearn", "calibrate"),
        ("calibrate", "onnx", "calibrate"),
        ("run", "onnxruntime", "cpu"),
        ("run", "cv2", "cpu"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    verb: str,
    package: str,
    extra: str,
    v1_bundle: Path,
    footage: Path,
    tmp_path: Path,
    repository: Path,
) -> None:
    output = str(tmp_path / "b.aeseg")
    command = {
        "train": ["train", str(footage), "-o", output],
        "export": ["export", str(tmp_path / "a.train"), "-o", output],
        "calibrate": ["calibrate", str(v1_bundle), str(footage), "-o", output],
        "run": ["run", str(footage), "-b", str(v1_bundle)],
    }[verb]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(package=package), *command],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    check_error(done.stderr, package if package != "cv2" else "OpenCV")
    assert f"[{extra}]'" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drive"]
