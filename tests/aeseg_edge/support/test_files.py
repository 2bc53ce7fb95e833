"""A file is whole or as it was before, whatever goes wrong while it is written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aeseg_edge.errors import BundleError, SinkError
from aeseg_edge.support.files import replacing, temporary_beside, write_bytes


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_and_replaced_and_nothing_else_stays(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    write_bytes(target, b"first, and longer")
    write_bytes(target, b"second")
    assert target.read_bytes() == b"second"
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("interruption", [ValueError("a fault"), KeyboardInterrupt()])
def test_an_exception_leaves_the_old_content(tmp_path: Path, interruption: BaseException) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")

    def write() -> None:
        with replacing(target) as temporary:
            temporary.write_bytes(b"half of the n")
            raise interruption

    with pytest.raises(type(interruption)):
        write()
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_the_target_stays_as_it_was_until_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with replacing(target) as temporary:
        temporary.write_bytes(b"new")
        assert target.read_bytes() == b"old"
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".bin"
    assert target.read_bytes() == b"new"


def test_a_missing_folder_is_named_with_a_fix(tmp_path: Path) -> None:
    target = tmp_path / "none" / "a.bin"
    with pytest.raises(BundleError, match="No such file or directory") as caught:
        write_bytes(target, b"", error=BundleError)
    assert str(target) in caught.value.problem
    assert caught.value.fix == "Make the folder first."


def test_a_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SinkError, match="Not a directory"):
        write_bytes(tmp_path / "file" / "a.bin", b"")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="there is no /proc")
def test_a_folder_that_takes_no_files_is_refused() -> None:
    with pytest.raises(SinkError, match=r"/proc/a\.bin cannot be written"):
        write_bytes(Path("/proc/a.bin"), b"")


def test_a_folder_in_place_of_the_file_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.bin").mkdir()
    with pytest.raises(SinkError, match="Is a directory"), replacing(tmp_path / "a.bin"):
        pytest.fail("the block must not run")
    assert names(tmp_path) == ["a.bin"]


def test_a_long_name_leaves_room_for_the_temporary_one(tmp_path: Path) -> None:
    target = tmp_path / ("n" * 250 + ".bin")
    write_bytes(target, b"x")
    assert names(tmp_path) == [target.name]


def test_the_umask_decides_who_may_read(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "a.bin", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "a.bin").stat().st_mode & 0o777 == 0o640


def test_a_link_stays_a_link_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "a.bin").symlink_to(tmp_path / "disk" / "real.bin")
    with replacing(tmp_path / "a.bin") as temporary:
        # A rename works within one disk only.
        assert temporary.parent == tmp_path / "disk"
        temporary.write_bytes(b"x")
    assert (tmp_path / "a.bin").is_symlink()
    assert (tmp_path / "disk" / "real.bin").read_bytes() == b"x"
    assert names(tmp_path / "disk") == ["real.bin"]


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from aeseg_edge.errors import SinkError
from aeseg_edge.support.files import write_bytes
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_bytes(Path(sys.argv[1]), bytes(5000))
except SinkError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are a POSIX thing")
def test_a_full_disk_leaves_the_old_content(tmp_path: Path, repository: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(target)],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"{target} cannot be written: File too large" in done.stdout
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_a_device_is_written_to_and_stays_a_device() -> None:
    # Never /dev/null: where this fails for root, the machine would lose it.
    read, write = os.openpty()
    device = Path(os.ttyname(write))
    try:
        write_bytes(device, b"result")
        assert os.read(read, 100) == b"result"
        assert device.is_char_device()
        with pytest.raises(SinkError, match=r"is a device or a pipe.*Choose the name of a file"):
            temporary_beside(device)
    finally:
        os.close(write)
        os.close(read)


def test_standard_output_that_goes_to_a_file_keeps_what_it_holds(
    tmp_path: Path, repository: Path
) -> None:
    script = (
        "from pathlib import Path; from aeseg_edge.support.files import write_bytes\n"
        "print('before', flush=True)\n"
        "write_bytes(Path('/dev/stdout'), b'result\\n')\n"
        "print('after')"
    )
    with (tmp_path / "out.txt").open("a") as output:
        subprocess.run([sys.executable, "-c", script], cwd=repository, stdout=output, check=True)
    assert (tmp_path / "out.txt").read_text() == "before\nresult\nafter\n"
