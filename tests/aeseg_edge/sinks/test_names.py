"""Names of sources become parts of the names of files, unlike each other."""

from __future__ import annotations

import pytest

from aeseg_edge.sinks.names import file_part, file_parts


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("csi://0", "csi-0"),
        ("rtsp://10.0.0.2:554/a", "rtsp-10.0.0.2-554-a"),
        ("../..", "source"),
        ("cam_1.mp4", "cam_1.mp4"),
        ("東", "東"),
        ("Straße 3.avi", "Straße-3.avi"),
    ],
)
def test_a_name_of_a_source_becomes_a_part_of_a_file_name(name: str, part: str) -> None:
    assert file_part(name) == part


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (["東", "西"], ["東", "西"]),
        (["!", "?", "!!"], ["source", "source-2", "source-3"]),
        (["a/b.mp4", "a-b.mp4"], ["a-b.mp4", "a-b.mp4-2"]),
        (["A", "a"], ["A", "a-2"]),
        (["a-2", "a", "a "], ["a-2", "a", "a-3"]),
    ],
)
def test_no_two_sources_have_one_part(names: list[str], parts: list[str]) -> None:
    assert file_parts(names) == parts
