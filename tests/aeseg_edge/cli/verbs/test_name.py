"""``aeseg name``: names reach the bundle, graphs stay as they were, mistakes change nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.codebook import VOID
from aeseg_edge.cli import main

Output = pytest.CaptureFixture[str]


@pytest.fixture
def street(v1_bundle: Path, tmp_path: Path) -> Path:
    path = tmp_path / "street.aeseg"
    shutil.copy(v1_bundle, path)
    return path


def names(path: Path) -> dict[int, str]:
    return {item.id: item.name for item in Bundle.open(path).codebook.classes}


def test_names_merges_and_void_are_written_in_place_and_graphs_stay(street: Path) -> None:
    before = Bundle.open(street)
    command = ["name", str(street), "0=road", "2=sky", "--merge", "2,3", "--void", "4"]
    assert main([*command, "--color", "road=#804080"]) == 0
    after = Bundle.open(street)
    assert names(street) == {0: "road", 1: "class 1", 2: "sky"}
    assert after.codebook.remap.tolist() == [0, 1, 2, 2, VOID]
    assert after.codebook.classes[0].color == (0x80, 0x40, 0x80)
    assert after.graphs == before.graphs
    np.testing.assert_array_equal(after.codebook.weights, before.codebook.weights)
    assert after.manifest.entries == before.manifest.entries


def test_another_file_is_written_and_the_first_left_alone(street: Path, tmp_path: Path) -> None:
    before = street.read_bytes()
    other = tmp_path / "other.aeseg"
    assert main(["name", str(street), "1=road", "-o", str(other)]) == 0
    assert street.read_bytes() == before
    assert names(other)[1] == "road"


def test_a_number_stands_for_the_class_its_cluster_belongs_to(street: Path) -> None:
    assert main(["name", str(street), "--merge", "2,3"]) == 0
    assert main(["name", str(street), "3=kerb", "class 1=road"]) == 0
    assert names(street) == {0: "class 0", 1: "road", 2: "kerb", 4: "class 4"}
    assert main(["name", str(street), "--split", "3"]) == 0
    assert names(street)[3] == "class 3"


def test_a_merge_of_what_is_one_class_already_is_no_mistake(street: Path) -> None:
    assert main(["name", str(street), "--merge", "2,3", "--merge", "3,2,4"]) == 0
    assert Bundle.open(street).codebook.remap.tolist() == [0, 1, 2, 2, 2]


def test_a_void_cluster_that_is_named_is_a_class_again(street: Path) -> None:
    assert main(["name", str(street), "--void", "4"]) == 0
    assert 4 not in names(street)
    assert main(["name", str(street), "4=tree"]) == 0
    assert names(street)[4] == "tree"


def test_clusters_of_one_name_are_one_class(street: Path) -> None:
    assert main(["name", str(street), "0=road", "3=road"]) == 0
    assert Bundle.open(street).codebook.remap.tolist() == [0, 1, 2, 0, 4]


def test_the_result_is_listed_as_json(street: Path, capsys: Output) -> None:
    assert main(["name", str(street), "0=road", "--void", "4", "--json", "-"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == ["road", "class 1", "class 2", "class 3", "void"]
    assert rows[0]["clusters"] == "0"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "nothing to do"),
        (["road"], 2, "is not WHICH=VALUE"),
        (["=road"], 2, "is not WHICH=VALUE"),
        (["9=road"], 1, "no cluster 9"),
        (["0= "], 1, "0 characters"),
        (["tram=road"], 1, "no class 'tram'"),
        (["--merge", "2"], 2, "names one class"),
        (["--merge", "2,9"], 1, "no cluster 9"),
        (["--void", "x"], 1, "no class 'x'"),
        (["--split", "x"], 2, "not a cluster's number"),
        (["--color", "1=red"], 1, "not a colour"),
        (["0=road", "-o", "x.zip"], 2, "does not end in .aeseg"),
        (["0=road", "9=sky"], 1, "no cluster 9"),
        (["--sheet", "x.txt", "test://64x48"], 2, "is no picture"),
        (["0=road", "--sheet", "s.gif", "test://64x48"], 2, "is no picture"),
        (["0=road", "--sheet", "gone/s.png", "test://64x48"], 1, "Make the folder first"),
        (["0=road", "--sheet", "photo.png", "photo.png"], 2, "would destroy it"),
        (["0=road", "--sheet", "s.png", "no such file.mp4"], 1, "does not exist"),
    ],
)
def test_a_mistake_changes_nothing(
    street: Path,
    arguments: list[str],
    code: int,
    says: str,
    capsys: Output,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.png").write_bytes(b"")
    before = street.read_bytes()
    assert main(["name", str(street), *arguments]) == code
    assert says in capsys.readouterr().err
    assert street.read_bytes() == before


def test_a_sheet_is_drawn_and_the_bundle_left_alone(street: Path, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    pytest.importorskip("onnxruntime")
    before = street.read_bytes()
    sheet = tmp_path / "sheet.png"
    command = ["name", str(street), "--sheet", str(sheet), "test://96x64@30", "--sheet-frames", "3"]
    assert main(command) == 0
    picture = cv2.imread(str(sheet))
    assert picture.shape[0] > 5 * 132
    assert street.read_bytes() == before
