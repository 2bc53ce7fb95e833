"""Standard output is JSON's alone, standard error may go away, and --quiet says less."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

cv2 = pytest.importorskip("cv2")
pytest.importorskip("onnxruntime")

from aeseg_edge.cli import main  # noqa: E402

Output = pytest.CaptureFixture[str]

NOISY = """
import os, sys
from aeseg_edge.bundle import archive

real = archive.Bundle.open

def noisy(path):
    print("a library says this", flush=True)
    os.write(1, b"and this from C\\n")
    return real(path)

archive.Bundle.open = noisy
from aeseg_edge.cli import main
sys.exit(main(sys.argv[1:]))
"""


def run(script: str, *command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    full = [sys.executable, "-c", script, *command]
    return subprocess.run(full, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def test_what_libraries_print_is_no_part_of_the_json(v1_bundle: Path, repository: Path) -> None:
    done = run(NOISY, "info", str(v1_bundle), "--json", "-", cwd=repository)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["latent_dim"] == 8
    assert "a library says this" in done.stderr
    assert "and this from C" in done.stderr
    command = ["run", "test://64x48", "-b", str(v1_bundle), "--frames", "2", "--threads", "1"]
    done = run(NOISY, *command, "--stats", "-", cwd=repository)
    assert json.loads(done.stdout)["frames"] == 2, done.stderr


def test_json_lines_on_standard_output_stay_lines(v1_bundle: Path, repository: Path) -> None:
    script = NOISY.replace("archive.Bundle.open = noisy", "").replace(
        "from aeseg_edge.cli import main",
        "from aeseg_edge.segment.segmenter import Segmenter\n"
        "submit = Segmenter.submit\n"
        "def noisy(self, *a, **k):\n"
        "    print('noise', flush=True)\n"
        "    return submit(self, *a, **k)\n"
        "Segmenter.submit = noisy\n"
        "from aeseg_edge.cli import main",
    )
    command = ["run", "test://64x48", "-b", str(v1_bundle), "--frames", "3", "--threads", "1"]
    done = run(script, *command, "-o", "json:-", cwd=repository)
    assert [json.loads(line)["index"] for line in done.stdout.splitlines()] == [0, 1, 2]
    assert done.stderr.count("noise") == 3


@pytest.mark.parametrize("closed", [1, 2, 0])
def test_a_standard_stream_that_is_closed_is_no_traceback(
    closed: int, v1_bundle: Path, tmp_path: Path, repository: Path
) -> None:
    target = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, "-m", "aeseg_edge.cli", "info", str(v1_bundle), "--json", str(target)],
        cwd=repository,
        stdout=subprocess.PIPE if closed != 1 else None,
        stderr=subprocess.PIPE if closed != 2 else None,
        text=True,
        timeout=120,
        preexec_fn=lambda: os.close(closed),
        check=False,
    )
    assert done.returncode == 0
    assert "Traceback" not in (done.stderr or "")
    assert json.loads(target.read_text())["latent_dim"] == 8


def test_a_reader_of_standard_error_that_goes_away_ends_no_recording(
    v1_bundle: Path, tmp_path: Path, repository: Path
) -> None:
    output = tmp_path / "out.avi"
    command = ["run", "test://64x48@10", "-b", str(v1_bundle), "--frames", "30", "--realtime"]
    child = subprocess.Popen(
        [sys.executable, "-m", "aeseg_edge.cli", *command, "-o", str(output)],
        cwd=repository,
        stderr=subprocess.PIPE,
    )
    assert child.stderr is not None
    child.stderr.close()
    assert child.wait(timeout=120) == 0
    assert output.exists()


def test_quiet_says_results_and_errors_alone(
    v1_bundle: Path, tmp_path: Path, capsys: Output
) -> None:
    command = ["run", "test://64x48", "-b", str(v1_bundle), "--frames", "2", "--threads", "1"]
    assert main([*command, "--stats", "-"]) == 0
    assert "2 frames in" in capsys.readouterr().err
    assert main([*command, "--stats", "-", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert json.loads(captured.out)["frames"] == 2
    assert main(["info", str(tmp_path / "gone.aeseg"), "-q"]) == 1
    assert "there is no such file" in capsys.readouterr().err
    assert main(["info", str(v1_bundle), "-q", "-v"]) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="signals are a POSIX thing")
@pytest.mark.parametrize("ignored", [False, True], ids=["ssh is lost", "nohup"])
def test_a_lost_terminal_ends_a_run_whole(
    ignored: bool, v1_bundle: Path, tmp_path: Path, repository: Path
) -> None:
    output = tmp_path / "out.avi"
    command = ["run", "test://64x48", "-b", str(v1_bundle)]
    action = signal.SIG_IGN if ignored else signal.SIG_DFL
    child = subprocess.Popen(
        [sys.executable, "-m", "aeseg_edge.cli", *command, "-o", str(output)],
        cwd=repository,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, action),
    )
    assert child.stderr is not None
    line = child.stderr.readline()
    assert "fps" in line, line
    # The shell sends one, the terminal another.
    child.send_signal(signal.SIGHUP)
    child.send_signal(signal.SIGHUP)
    if ignored:
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(timeout=1)
        child.send_signal(signal.SIGTERM)
    child.stderr.close()
    assert child.wait(timeout=60) == 0
    capture = cv2.VideoCapture(str(output))
    assert capture.grab()
    capture.release()
    assert [path.name for path in tmp_path.iterdir()] == ["out.avi"]


@pytest.mark.parametrize("scheme", ["http", "https", "rtsp", "srt", "ftp"])
@pytest.mark.parametrize("password", ["s3cr#t1", "s3cr/t1", "s3cr?t1", "s3 crt1", "s3@cr/t1"])
def test_no_message_shows_a_password(
    scheme: str, password: str, v1_bundle: Path, tmp_path: Path, capsys: Output
) -> None:
    address = f"{scheme}://me:{password}@127.0.0.1:9/live"
    output = str(tmp_path / "out.aeseg")
    for command in (
        ["run", address, "-b", str(v1_bundle), "-v"],
        ["run", "test://64x48", "-b", str(v1_bundle), "-o", f"{scheme}s://me:{password}@h/x"],
        ["bench", str(v1_bundle), address],
        ["flicker", str(v1_bundle), address, "--frames", "1"],
        ["calibrate", str(v1_bundle), address, "-o", output],
    ):
        assert main(command) in (1, 2)
        captured = capsys.readouterr()
        for part in ("s3cr", "t1", "crt1", "me:"):
            assert part not in captured.out + captured.err.replace(str(v1_bundle), ""), captured.err


def test_a_name_with_control_characters_stays_one_line_and_colours_nothing(
    v1_bundle: Path, tmp_path: Path, capsys: Output
) -> None:
    name = tmp_path / "a\nb\x1b[31m.aeseg"
    assert main(["info", str(name)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert r"a\nb\x1b[31m.aeseg" in lines[0]
