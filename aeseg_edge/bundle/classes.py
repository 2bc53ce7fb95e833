"""Naming: what people change of a codebook once they see what its clusters are.

Every function takes a codebook and gives another; weights and graphs stay as they are, so
nothing is built again. Ids are stable: no edit changes the id of a class that it does not
name, and a class that has lost its last cluster is gone from the list.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from aeseg_edge.bundle.codebook import MAX_CLASSES, VOID, ClassInfo, Codebook, default_classes
from aeseg_edge.errors import CodebookError, UsageError

MAX_NAME = 64
"""Characters of a class's name."""

Edit = Callable[[Codebook], Codebook]
"""One change, ready to be applied to whatever codebook is in use."""


def rename(codebook: Codebook, class_id: int, name: str) -> Codebook:
    """Name a class, 1 to 64 characters; spaces at the ends go.

    A name that another class has already (upper and lower case are the same) merges this class
    into that one: two classes of one name would be one class to a reader.

    Raises:
        CodebookError: If there is no such class, or the name cannot be used.
    """
    wanted = check_class_name(name)
    found = _class(codebook, class_id)
    same = find_class(codebook, wanted)
    if same is not None and same.id != class_id:
        return merge(codebook, same.id, [class_id])
    return _with_class(codebook, replace(found, name=wanted))


def recolor(codebook: Codebook, class_id: int, color: Sequence[int]) -> Codebook:
    """Give a class another colour, RGB, each 0..255.

    Raises:
        CodebookError: If there is no such class, or that is no colour.
    """
    parts = tuple(color)
    if len(parts) != 3 or any(not 0 <= part <= 255 for part in parts):
        raise CodebookError(
            f"{list(parts)} is not a colour", fix="Give red, green, blue, each 0..255."
        )
    found = _class(codebook, class_id)
    return _with_class(codebook, replace(found, color=(parts[0], parts[1], parts[2])))


def merge(codebook: Codebook, into: int, others: Sequence[int]) -> Codebook:
    """Give all clusters of ``others`` to class ``into``, which keeps its id, name and colour.

    Raises:
        CodebookError: If one of them does not exist, or ``into`` is among the others.
    """
    for class_id in (into, *others):
        _class(codebook, class_id)
    if into in others:
        raise CodebookError(
            f"class {into} cannot be merged into itself", fix="Name two different classes."
        )
    return _assign(codebook, np.isin(codebook.remap, list(others)), into)


def make_void(codebook: Codebook, class_id: int) -> Codebook:
    """Make all clusters of a class void: not drawn, and 255 in label maps; the class is gone.

    Raises:
        CodebookError: If there is no such class.
    """
    _class(codebook, class_id)
    return _assign(codebook, codebook.remap == class_id, VOID)


def split(codebook: Codebook, cluster: int) -> Codebook:
    """Give a cluster a class of its own: takes back a merge, or makes void visible again.

    The class gets the cluster's number as its id where that is free, else the lowest free one.

    Raises:
        CodebookError: If there is no such cluster, or all 255 ids are taken.
    """
    before = _cluster(codebook, cluster)
    if before != VOID and int((codebook.remap == before).sum()) == 1:
        return codebook
    taken = {item.id for item in codebook.classes}
    free = [i for i in (cluster, *range(MAX_CLASSES)) if i not in taken and i < MAX_CLASSES]
    if not free:
        raise CodebookError(
            f"all {MAX_CLASSES} class ids are taken", fix="Merge two classes first."
        )
    fresh = default_classes(free[0] + 1)[free[0]]
    name = _unused(codebook, f"class {cluster}")
    classes = sorted((*codebook.classes, replace(fresh, name=name)), key=lambda item: item.id)
    wider = replace(codebook, classes=tuple(classes))
    return _assign(wider, np.arange(codebook.clusters) == cluster, fresh.id)


def clusters_of(codebook: Codebook, class_id: int) -> tuple[int, ...]:
    """Numbers of the clusters of a class (or of void), ascending."""
    return tuple(int(i) for i in np.flatnonzero(codebook.remap == class_id))


def find_class(codebook: Codebook, name: str) -> ClassInfo | None:
    """Find a class by its name, upper and lower case being the same; None where none has it."""
    wanted = unicodedata.normalize("NFC", name).strip().casefold()
    return next((c for c in codebook.classes if c.name.casefold() == wanted), None)


def check_class_name(name: str) -> str:
    """Give a name without spaces at its ends.

    Raises:
        CodebookError: If it is empty, longer than 64 characters, or has characters that
            cannot be shown (Unicode's control, surrogate and line separators).
    """
    text = unicodedata.normalize("NFC", name).strip()
    if not 1 <= len(text) <= MAX_NAME:
        raise CodebookError(
            f"a name of {len(text)} characters cannot be used",
            fix=f"Use 1 to {MAX_NAME} characters.",
        )
    if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in text):
        raise CodebookError(
            f"the name {text!r} has characters that cannot be shown", fix="Use letters and digits."
        )
    return text


def parse_color(text: str) -> tuple[int, int, int]:
    """Read ``#rrggbb``, with or without the sign.

    Raises:
        CodebookError: If it is written in another way.
    """
    if not re.fullmatch(r"#?[0-9a-fA-F]{6}", text):
        raise CodebookError(f"{text!r} is not a colour", fix="Write it as #804080.")
    red, green, blue = bytes.fromhex(text[-6:])
    return red, green, blue


def parse_edit(data: object) -> Edit:
    """Read an edit as the live page sends it, decoded from JSON.

    ``{"action": "rename", "id": 3, "name": "road"}``, ``{"action": "recolor", "id": 3,
    "color": "#804080"}``, ``{"action": "merge", "into": 7, "ids": [9]}``, ``{"action":
    "void", "id": 4}`` or ``{"action": "split", "cluster": 9}``.

    Raises:
        UsageError: If it is none of these.
        CodebookError: If the name or the colour cannot be used.
    """
    if not isinstance(data, Mapping):
        raise UsageError("the edit is not a JSON object", fix='Send {"action": "rename", ...}.')
    action = data.get("action")
    if action == "rename":
        name = check_class_name(_typed(data, "name", str))
        return partial(rename, class_id=_whole(data, "id"), name=name)
    if action == "recolor":
        color = parse_color(_typed(data, "color", str))
        return partial(recolor, class_id=_whole(data, "id"), color=color)
    if action == "merge":
        others = [_whole({"ids": item}, "ids") for item in _typed(data, "ids", list)]
        return partial(merge, into=_whole(data, "into"), others=others)
    if action == "void":
        return partial(make_void, class_id=_whole(data, "id"))
    if action == "split":
        return partial(split, cluster=_whole(data, "cluster"))
    raise UsageError(
        f"the action {action!r} is unknown", fix="Use rename, recolor, merge, void or split."
    )


def _typed(data: Mapping[str, Any], key: str, kind: type) -> Any:
    value = data.get(key)
    if not isinstance(value, kind):
        raise UsageError(f"{key} is {value!r}, not a {kind.__name__}", fix=f"Give {key}.")
    return value


def _whole(data: Mapping[str, Any], key: str) -> int:
    value = data.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise UsageError(f"{key} is {value!r}, not a whole number", fix=f"Give {key}.")
    return value


def _class(codebook: Codebook, class_id: int) -> ClassInfo:
    found = codebook.class_of(class_id)
    if found is None:
        raise CodebookError(
            f"there is no class {class_id}", fix="`aeseg info` lists the classes of a bundle."
        )
    return found


def _cluster(codebook: Codebook, cluster: int) -> int:
    if not 0 <= cluster < codebook.clusters:
        raise CodebookError(
            f"there is no cluster {cluster}", fix=f"Clusters are 0 to {codebook.clusters - 1}."
        )
    return int(codebook.remap[cluster])


def _with_class(codebook: Codebook, item: ClassInfo) -> Codebook:
    return replace(
        codebook, classes=tuple(item if c.id == item.id else c for c in codebook.classes)
    )


def _assign(codebook: Codebook, chosen: Any, class_id: int) -> Codebook:
    """Move the chosen clusters to a class; the classes that this empties are left out."""
    remap = np.where(chosen, np.uint8(class_id), codebook.remap).astype(np.uint8)
    emptied = set(codebook.remap.tolist()) - set(remap.tolist())
    classes = tuple(item for item in codebook.classes if item.id not in emptied)
    return replace(codebook, remap=remap, classes=classes)


def _unused(codebook: Codebook, name: str) -> str:
    found, number = name, 1
    while find_class(codebook, found) is not None:
        number += 1
        found = f"{name} ({number})"
    return found
