"""Lists of classes, as people and labelling tools write them: names of the ids 0, 1, ...

Known are one name a line (with comments before and after), tables (CSV and the like, with or
without a heading, with ids, with colours; Roboflow's ``_classes.csv``), CVAT's ``labelmap.txt``,
``names:`` of YAML, and JSON: a list, ids to names, or ``categories`` as COCO has them. Everything
else is refused with its line: a line too many would shift every id after it.
"""

from __future__ import annotations

import csv
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aeseg_edge.bundle.classes import check_class_name
from aeseg_edge.bundle.codebook import MAX_CLASSES
from aeseg_edge.errors import CodebookError, EvaluationError

_log = logging.getLogger(__name__)

_FIX = "Write one class name a line."
_NAMES = {"name", "names", "class", "classes", "label", "labels", "category", "class name"}
_IDS = {"id", "index", "pixel value", "value", "class id", "label id", "category id"}
_COLORS = {"r", "g", "b", "red", "green", "blue", "color", "colour", "hex", "rgb"}

Lines = list[tuple[int, str]]
"""Number, from 1, and text of the lines that say something."""


def read_classes(path: Path) -> tuple[str, ...]:
    """Read class names by id, from any form that the module's text lists.

    Ids that a table or JSON leaves out get names of their own, with a warning.

    Raises:
        EvaluationError: The file cannot be read, is of an unknown form, has a blank line
            between names, or a name twice or that cannot be used.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(
            f"{path} cannot be read as a list of classes ({error})",
            fix="Give a text file with one class name a line.",
        ) from error
    if "\0" in text:
        raise EvaluationError(f"{path} is no text", fix=_FIX)
    read = _from_json if text.lstrip()[:1] in ("{", "[") else _from_lines
    return _checked(path, read(path, text))


def _from_lines(path: Path, text: str) -> list[tuple[int, int, str]]:
    """Give line, id and name of each class of a text file."""
    every = [line.strip() for line in text.split("\n")]
    while every and not every[-1]:
        every.pop()
    said = [(number, line) for number, line in enumerate(every, 1) if not line.startswith("#")]
    if not any(line for _, line in said):
        raise EvaluationError(f"{path} names no class", fix=_FIX)
    if (found := _from_yaml(path, said)) is not None:
        return found
    while not said[0][1]:
        del said[0]  # blank lines and comments before the first name
    blank = next((number for number, line in said if not line), None)
    if blank is not None:
        raise EvaluationError(
            f"line {blank} of {path} is blank, which would shift the class ids", fix=_FIX
        )
    first, last = said[0][0], said[-1][0]
    if last - first + 1 != len(said):
        number = next(n for n in range(first, last) if every[n - 1].startswith("#"))
        raise _refused(path, number, every[number - 1], "is a comment between names")
    if (
        found := _from_numbered(path, said) or _from_colors(said) or _from_table(path, said)
    ) is not None:
        return found
    for number, line in said:
        if re.fullmatch(r"[\d.,;:\s-]+", line):
            raise _refused(path, number, line, "is a number and no name")
        if line.startswith(("<", "//")) or re.fullmatch(r"(names|nc|path|train|val|test):.*", line):
            raise _refused(path, number, line, "is of no known form")
        cells = re.split(r"[,;\t]", line)
        if len(said) == 1 and len(cells) > 1:
            raise _refused(path, number, line, "is one class, or several on one line")
        if any(map(_is_number, cells[1:])) or re.search(r"\d\s+\d+\s+\d", line):
            raise _refused(path, number, line, "looks like a row of a table, and others do not")
    if len(said) > 1 and _word(said[0][1]) in _NAMES:
        raise _refused(path, first, said[0][1], "may be a heading: take it out, or rename it")
    return [(number, index, line) for index, (number, line) in enumerate(said)]


def _from_yaml(path: Path, said: Lines) -> list[tuple[int, int, str]] | None:
    """Read ``names:`` with a list or ids under it, or a file that is such a list."""
    start = next((i for i, (_, line) in enumerate(said) if re.match(r"names\s*:", line)), None)
    if start is None and not all(line.startswith("- ") for _, line in said if line):
        return None
    rest = said if start is None else said[start + 1 :]
    first = "" if start is None else _plain(said[start][1].partition(":")[2])
    if start is not None and first:
        number, inner = said[start][0], first[1:-1]
        parts = [part.strip() for part in inner.split(",")] if inner.strip() else []
        if first[0] + first[-1] == "[]":
            return [(number, i, _unquoted(part)) for i, part in enumerate(parts)]
        if first[0] + first[-1] != "{}":
            raise _refused(path, number, said[start][1], "is of no known form")
        rest = [(number, part) for part in parts]
    found: list[tuple[int, int, str]] = []
    for number, line in rest:
        entry = re.fullmatch(r"(?:-|(\d+)\s*:)\s+(.+)", _plain(line))
        if entry is not None:
            known = int(entry[1]) if entry[1] else len(found)
            found.append((number, known, _unquoted(entry[2])))
        elif line and re.match(r"[\w-]+\s*:", line):
            break  # the next key
        elif line:
            raise _refused(path, number, line, "is of no known form")
    return found


def _from_numbered(path: Path, said: Lines) -> list[tuple[int, int, str]] | None:
    """Read ``0: road`` or ``0 road``, where every line is so."""
    pattern = r"(\d+)(\s*[:=]\s*|[.)]?\s+(?:-\s+)?)([^\d\s].*)"
    found = [(number, re.fullmatch(pattern, line)) for number, line in said]
    entries = [(number, int(match[1]), match[3]) for number, match in found if match is not None]
    if len(entries) < len(said):
        return None
    if all(match and match[2].strip() in (":", "=") for _, match in found):
        return entries
    ids = [known for _, known, _ in entries]
    if ids == list(range(1, len(ids) + 1)):
        raise _refused(path, *said[0], "may be id 1 or a name: write 1: before it, or leave it out")
    # Others are names, such as "2 wheeler".
    return entries if ids == list(range(len(ids))) else None


def _from_colors(said: Lines) -> list[tuple[int, int, str]] | None:
    """Read CVAT's label:color_rgb:parts:actions, ``1 2 3 road`` or ``road 1 2 3``, in order."""
    for pattern in (
        r"([^:]+):\d+,\d+,\d+:[^:]*:[^:]*",
        r"\d+\s+\d+\s+\d+\s+([^\d\s].*)",
        r"(.*[^\d\s])\s+\d+\s+\d+\s+\d+",
    ):
        found = [re.fullmatch(pattern, line) for _, line in said]
        if all(found):
            return [(said[i][0], i, match[1].strip()) for i, match in enumerate(found) if match]
    found = [re.fullmatch(r"(.*\S)\s*[:=]\s*(\d+)", line) for _, line in said]
    if not all(found):
        return None
    return [(said[i][0], int(m[2]), _unquoted(m[1])) for i, m in enumerate(found) if m]


def _from_table(path: Path, said: Lines) -> list[tuple[int, int, str]] | None:
    """Read a table: a heading says which column is what, or the cells do."""
    for delimiter in ",;\t":
        cells = list(csv.reader([line for _, line in said], delimiter=delimiter))
        rows = [[cell.strip() for cell in row] for row in cells]
        widths = {len(row) for row in rows}
        heading = [_word(cell) for cell in rows[0]]
        known = any(word in _NAMES for word in heading) and len(heading) > 1
        bare = [
            i for i, row in enumerate(rows) if not any(_is_number(c) or _is_color(c) for c in row)
        ]
        if min(widths) > 1 and (known or len(bare) <= min(1, len(rows) - 1)):
            break
    else:
        return None
    odd = next((i for i, row in enumerate(rows) if len(row) != len(rows[0])), None)
    if odd is not None:
        raise _refused(path, *said[odd], f"has {len(rows[odd])} columns, the first {len(rows[0])}")
    kinds = heading
    if known:
        said, rows = said[1:], rows[1:]
    elif bare:
        what = "lacks the numbers of the others" if bare[0] else "is a heading of no known form"
        raise _refused(path, *said[bare[0]], what)
    else:
        kinds = _kinds(rows)
    names = [i for i, kind in enumerate(kinds) if kind in _NAMES]
    ids = [i for i, kind in enumerate(kinds) if kind in _IDS]
    if len(names) != 1 or len(ids) > 1 or not rows:
        raise _refused(path, *(said or [(1, "")])[0], "is of a table without one column of names")
    found = []
    for index, ((number, line), row) in enumerate(zip(said, rows, strict=True)):
        if ids and not row[ids[0]].isdecimal():
            raise _refused(path, number, line, f"has no id in column {ids[0] + 1}")
        found.append((number, int(row[ids[0]]) if ids else index, row[names[0]]))
    return found


def _kinds(rows: Sequence[Sequence[str]]) -> list[str]:
    """Say what the columns of a table without a heading are."""
    columns = list(zip(*rows, strict=True))
    numbers = [i for i, column in enumerate(columns) if all(map(_is_number, column))]
    kinds = ["color" if all(map(_is_color, column)) else "name" for column in columns]
    for i in numbers:
        kinds[i] = "color"
    if len(numbers) in (1, 4):
        kinds[numbers[0]] = "id"
    elif len(numbers) not in (0, 3):
        return []
    return kinds


def _from_json(path: Path, text: str) -> list[tuple[int, int, str]]:
    try:
        data: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"{path} is not valid JSON ({error})", fix=_FIX) from error
    if isinstance(data, Mapping):
        data = next((data[key] for key in ("categories", "names", "classes") if key in data), data)
    try:
        if isinstance(data, Mapping):
            pairs = data.items()
            if all(isinstance(value, int) for _, value in pairs):
                return [(0, value, str(key)) for key, value in pairs]
            return [(0, int(key), _text(value)) for key, value in pairs]
        if all(isinstance(item, Mapping) for item in data):
            return [(0, int(item["id"]), _text(item["name"])) for item in data]
        return [(0, index, _text(item)) for index, item in enumerate(data)]
    except (KeyError, TypeError, ValueError) as error:
        raise EvaluationError(
            f"{path} is JSON of no known form",
            fix='Give a list of names, {"0": "road"}, or categories with id and name as in COCO.',
        ) from error


def _checked(path: Path, found: Iterable[tuple[int, int, str]]) -> tuple[str, ...]:
    """Put names in the order of their ids, and refuse what cannot be used."""
    names: dict[int, str] = {}
    folded: dict[str, str] = {}
    for number, known, text in found:
        at = f"line {number} of {path}" if number else f"{path}, id {known}"
        try:
            name = check_class_name(text)
        except CodebookError as error:
            raise EvaluationError(f"{at}: {error.problem}", fix=error.fix) from error
        if not 0 <= known < MAX_CLASSES:
            raise EvaluationError(
                f"{at} has the id {known}: masks of 8 bits have classes 0 to {MAX_CLASSES - 1}",
                fix="Join or leave out some classes.",
            )
        if known in names:
            raise EvaluationError(
                f"{at} has the id {known} again, that of {names[known]}",
                fix="Give each class its own id.",
            )
        if name.casefold() in folded:
            raise EvaluationError(
                f"{path} names {name} more than once (upper and lower case are the same)",
                fix="Give each class its own name.",
            )
        names[known] = folded[name.casefold()] = name
    if not names:
        raise EvaluationError(f"{path} names no class", fix=_FIX)
    missing = [i for i in range(max(names)) if i not in names]
    if missing:
        shown = ", ".join(map(str, missing[:8])) + (" ..." if len(missing) > 8 else "")
        _log.warning("%s has no name for the ids %s: they are called unnamed", path, shown)
    return tuple(names.get(i, f"unnamed {i}") for i in range(max(names) + 1))


def _refused(path: Path, number: int, line: str, what: str) -> EvaluationError:
    return EvaluationError(f"line {number} of {path}, {line[:60]!r}, {what}", fix=_FIX)


def _word(cell: str) -> str:
    return re.sub(r"[\s_-]+", " ", cell.strip().strip("\"'").casefold())


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"\s*-?\d+(\.\d+)?\s*", cell) is not None


def _is_color(cell: str) -> bool:
    return re.fullmatch(r"#[0-9a-fA-F]{6}", cell) is not None


def _plain(line: str) -> str:
    """Take a comment off a line of YAML, and a comma."""
    return re.sub(r"\s+#.*$", "", line).strip()


def _unquoted(text: str) -> str:
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    return text[1:-1] if quoted else text


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no name")
    return value
