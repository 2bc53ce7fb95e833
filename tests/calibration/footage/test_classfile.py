"""Lists of classes: every known form keeps its ids, every other one is refused with its line."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from aeseg_edge.calibration.footage.classfile import read_classes
from aeseg_edge.errors import EvaluationError

THREE = ("sky", "road", "car")
COCO = {
    "images": [],
    "categories": [{"id": i, "name": n, "supercategory": "x"} for i, n in enumerate(THREE)],
}


def write(folder: Path, text: str, name: str = "classes.txt", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    "text",
    [
        "sky\nroad\ncar\n",
        "\ufeffsky\r\nroad\r\ncar\r\n\r\n",
        "# classes of the yard\n\nsky\nroad\ncar\n# end\n",
        "name,r,g,b\nsky,1,2,3\nroad,4,5,6\ncar,7,8,9\n",
        "sky,1,2,3\nroad,4,5,6\ncar,7,8,9\n",
        "1,2,3,sky\n4,5,6,road\n7,8,9,car\n",
        "name;r;g;b\nsky;1;2;3\nroad;4;5;6\ncar;7;8;9\n",
        "name\tcolor\nsky\t#010203\nroad\t#040506\ncar\t#070809\n",
        "sky,#010203\nroad,#040506\ncar,#070809\n",
        "Pixel Value, Class\n0, sky\n1, road\n2, car\n",
        "id,name\n2,car\n0,sky\n1,road\n",
        "1,road\n0,sky\n2,car\n",
        "sky,0\nroad,1\ncar,2\n",
        "0,sky,1,2,3\n1,road,4,5,6\n2,car,7,8,9\n",
        '"name","r","g","b"\n"sky",1,2,3\n"road",4,5,6\n"car",7,8,9\n',
        "# label:color_rgb:parts:actions\nsky:1,2,3::\nroad:4,5,6::\ncar:7,8,9::\n",
        "0: sky\n1: road\n2: car\n",
        "0 sky\n1 road\n2 car\n",
        "0. sky\n1. road\n2. car\n",
        "0 - sky\n1 - road\n2 - car\n",
        "car: 2\nsky: 0\nroad: 1\n",
        "road = 1\nsky = 0\ncar = 2\n",
        "1 2 3\tsky\n4 5 6\troad\n7 8 9\tcar\n",
        "1 2 3 sky\n4 5 6 road\n7 8 9 car\n",
        "sky 1 2 3\nroad 4 5 6\ncar 7 8 9\n",
        "path: ../data  # where\nnames:\n  0: sky\n  1: 'road'  # asphalt\n  2: car\nnc: 3\n",
        "nc: 3\nnames:\n- sky\n- road\n- car\n",
        "- sky\n- road\n- car\n",
        "names: [sky, 'road', \"car\"]\n",
        "names: {0: sky, 1: road, 2: car}\n",
        json.dumps(THREE),
        json.dumps({"0": "sky", "2": "car", "1": "road"}),
        json.dumps({"car": 2, "sky": 0, "road": 1}),
        json.dumps({"names": list(THREE)}),
        json.dumps(COCO),
    ],
)
def test_known_forms_keep_their_ids(tmp_path: Path, text: str) -> None:
    assert read_classes(write(tmp_path, text)) == THREE


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("car, van\nroad\n", ("car, van", "road")),
        ("2 wheeler\n4 wheeler\n", ("2 wheeler", "4 wheeler")),
        ("sign: stop\nroad\n", ("sign: stop", "road")),
        ("sign/symbol\nStraße\n道\n", ("sign/symbol", "Straße", "道")),
        ("road\n", ("road",)),
        ("class 0\nclass 1\n", ("class 0", "class 1")),
        ("name\n", ("name",)),
        ("#7\nroad\n", ("road",)),
    ],
)
def test_plain_names_stay_what_they_are(tmp_path: Path, text: str, names: tuple[str]) -> None:
    assert read_classes(write(tmp_path, text)) == names


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("class\nsky\nroad\n", "line 1 .* may be a heading"),
        ("sky\n# road\ncar\n", "line 2 .* is a comment between names"),
        ("sky\n\ncar\n", "line 2 .* is blank"),
        ("what,colour\nsky,1\nroad,2\n", "line 1 .* heading of no known form"),
        ("sky,1,2,3\nroad\n", "line 1 .* row of a table"),
        ("name,r,g,b\nsky,1,2,3\nroad,4,5\n", "line 3 .* has 3 columns, the first 4"),
        ("id,name\nx,sky\n1,road\n", "line 2 .* has no id"),
        ("sky,1,2\nroad,4,5\n", "line 1 .* without one column of names"),
        ("a,b,1\nc,d,2\n", "line 1 .* without one column of names"),
        ("3\nsky\nroad\ncar\n", "line 1 .* is a number"),
        ("0\n1\n2\n", "line 1 .* is a number"),
        ("<annotation>\nsky\n</annotation>\n", "line 1 .* no known form"),
        ("nc: 3\nsky\n", "line 1 .* no known form"),
        ("names: sky\n", "line 1 .* no known form"),
        ("names:\n  0: sky\n  road\n", "line 3 .* no known form"),
        ("sky\nSKY\n", "SKY more than once"),
        ("0: sky\n0: road\n", "line 2 .* id 0 again, that of sky"),
        ("1. sky\n2. road\n", "line 1 .* may be id 1 or a name"),
        ("sky, road, car\n", "line 1 .* several on one line"),
        ("// classes\nsky\n", "line 1 .* no known form"),
        ("sky 1 2 3\nroad\n", "line 1 .* row of a table"),
        ("filename,sky,road\na.jpg,1,0\n", "line 1 .* heading of no known form"),
        ("1 lane\n2 lanes\n", "line 1 .* may be id 1 or a name"),
        ("id,name\n0,sky\n0,road\n", "line 3 .* id 0 again, that of sky"),
        ("id,name\n0,sky\n255,road\n", "line 3 .* id 255: masks of 8 bits"),
        ("sky\nro\x07ad\n", "line 2 .* cannot be shown"),
        ("sky\n" + "x" * 65 + "\n", "line 2 .* 65 characters"),
        ("\n".join(f"class {chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(300)), "id 255"),
        ("", "names no class"),
        ("# nothing\n\n", "names no class"),
        ("sk\0y\n", "is no text"),
        ("[1, 2]", "JSON of no known form"),
        ('{"a": "b"}', "JSON of no known form"),
        ('{"names": null}', "JSON of no known form"),
        ('["sky"', "not valid JSON"),
    ],
)
def test_everything_else_is_refused_with_its_line(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(EvaluationError, match=line):
        read_classes(write(tmp_path, text))


def test_text_of_another_encoding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="cannot be read as a list of classes"):
        read_classes(write(tmp_path, "sky\nroad\n", encoding="utf-16"))


def test_ids_that_are_left_out_shift_nothing_and_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, json.dumps([{"id": 1, "name": "car"}, {"id": 3, "name": "road"}]))
    with caplog.at_level(logging.WARNING):
        assert read_classes(path) == ("unnamed 0", "car", "unnamed 2", "road")
    assert "no name for the ids 0, 2" in caplog.text
