"""Videos that no OpenCV writes: damaged, turned, of a variable rate, interlaced."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")

DATA = Path(__file__).parents[1] / "data" / "video"
"""Made with FFmpeg 7: testsrc through ``-vf interlace ... -flags +ildct+ilme`` (x264), the same
behind a progressive part (MPEG-TS), and testsrc in AV1 (SVT)."""


def write_jpegs(path: Path, frames: int = 12, fps: float = 10.0) -> Path:
    """Frame i is noise around the i-th grey level, each in a packet of its own."""
    rng = np.random.default_rng(0)
    writer = cv2.VideoWriter(
        str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"MJPG"), fps, (64, 48)
    )
    for index in range(frames):
        noise = rng.integers(0, 8, (48, 64, 3))
        writer.write((10 + 16 * index + noise).clip(0, 255).astype(np.uint8))
    writer.release()
    return path


def damage_jpegs(path: Path, *numbers: int) -> Path:
    """Overwrite the starts of some frames: none of them can be decoded."""
    data = bytearray(path.read_bytes())
    starts = [at for at in range(len(data)) if data[at : at + 3] == b"\xff\xd8\xff"]
    for number in numbers:
        data[starts[number] : starts[number] + 200] = bytes(200)
    path.write_bytes(data)
    return path


def turn_mp4(path: Path, degrees: int) -> Path:
    """Set the matrix of an MP4's track header, as a phone that is held upright does."""
    cosine, sine = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    fixed = [value * 0x10000 for value in (cosine, sine, 0, -sine, cosine, 0, 0, 0)]
    data[at : at + 36] = struct.pack(">9i", *fixed, 0x40000000)
    path.write_bytes(data)
    return path


def lengthen_mp4_frame(path: Path, number: int, times: int) -> Path:
    """Make one frame of a constant-rate MP4 last longer: split its entry of the time table."""
    data = path.read_bytes()
    at = data.index(b"stts") - 4
    count, each = struct.unpack(">II", data[at + 16 : at + 24])
    entries = [(number, each), (1, times * each), (count - number - 1, each)]
    new = struct.pack(">I4sII", 16 + 24, b"stts", 0, 3)
    new += b"".join(struct.pack(">II", *entry) for entry in entries)
    out = bytearray(data[:at] + new + data[at + 24 :])
    # The edit list ends where the frames ended before.
    edit = out.index(b"elst") + 12
    out[edit : edit + 4] = struct.pack(">I", 1 << 20)
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
        box = out.index(name) - 4
        out[box : box + 4] = struct.pack(">I", struct.unpack(">I", out[box : box + 4])[0] + 16)
    path.write_bytes(out)
    return path
