"""Edits change what they name and nothing else: ids stay, weights stay, empty classes go."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from aeseg_edge.bundle.classes import (
    MAX_NAME,
    check_class_name,
    clusters_of,
    find_class,
    make_void,
    merge,
    parse_color,
    parse_edit,
    recolor,
    rename,
    split,
)
from aeseg_edge.bundle.codebook import VOID, Codebook
from aeseg_edge.errors import AesegError, CodebookError, UsageError


@pytest.fixture
def book() -> Codebook:
    """Six clusters, each a class of its own."""
    return Codebook.from_centres(np.eye(6, 4))


def names(book: Codebook) -> dict[int, str]:
    return {item.id: item.name for item in book.classes}


def test_a_rename_changes_one_name_and_leaves_the_old_codebook_alone(book: Codebook) -> None:
    named = rename(book, 3, "  road ")
    assert names(named) == names(book) | {3: "road"}
    assert names(book)[3] == "class 3"
    assert named.class_of(3).color == book.class_of(3).color  # type: ignore[union-attr]
    assert named.weights is book.weights
    assert named.remap.tolist() == book.remap.tolist()


def test_a_class_may_be_given_the_name_it_has_in_other_letters(book: Codebook) -> None:
    assert names(rename(rename(book, 3, "road"), 3, "Road"))[3] == "Road"


def test_two_classes_of_one_name_become_one(book: Codebook) -> None:
    named = rename(rename(book, 3, "road"), 5, "ROAD")
    assert names(named)[3] == "road"
    assert 5 not in names(named)
    assert clusters_of(named, 3) == (3, 5)


def test_a_colour_changes_alone(book: Codebook) -> None:
    drawn = recolor(book, 2, (1, 2, 255))
    assert drawn.class_of(2).color == (1, 2, 255)  # type: ignore[union-attr]
    assert [c for c in drawn.classes if c.id != 2] == [c for c in book.classes if c.id != 2]


def test_a_merge_keeps_the_ids_of_all_other_classes(book: Codebook) -> None:
    merged = merge(book, 4, [1, 5])
    assert merged.remap.tolist() == [0, 4, 2, 3, 4, 4]
    assert sorted(names(merged)) == [0, 2, 3, 4]
    again = merge(merged, 0, [4])
    assert clusters_of(again, 0) == (0, 1, 4, 5)


def test_what_is_made_void_is_no_class_any_more(book: Codebook) -> None:
    left = make_void(merge(book, 4, [1]), 4)
    assert left.remap.tolist() == [0, VOID, 2, 3, VOID, 5]
    assert sorted(names(left)) == [0, 2, 3, 5]
    assert clusters_of(left, VOID) == (1, 4)


def test_a_split_takes_back_a_merge_with_the_clusters_own_id(book: Codebook) -> None:
    back = split(merge(book, 4, [1, 5]), 5)
    assert back.remap.tolist() == [0, 4, 2, 3, 4, 5]
    assert names(back)[5] == "class 5"
    assert back.class_of(5) == book.class_of(5)


def test_a_split_brings_void_back_and_leaves_a_single_cluster_alone(book: Codebook) -> None:
    assert split(make_void(book, 2), 2).remap.tolist() == book.remap.tolist()
    assert split(book, 2) is book


def test_a_split_takes_the_lowest_free_id_where_its_own_is_taken(book: Codebook) -> None:
    # Cluster 4 gives its class to cluster 1, and class 1 is gone.
    merged = merge(book, 4, [1])
    alone = split(merged, 4)
    assert alone.remap.tolist() == [0, 4, 2, 3, 1, 5]
    assert names(alone)[1] == "class 4 (2)"


def test_a_split_without_a_free_id_is_refused() -> None:
    remap = np.append(np.arange(255), 0)
    full = Codebook.from_centres(
        np.zeros((256, 2)), remap=remap, classes=Codebook.from_centres(np.zeros((255, 2))).classes
    )
    with pytest.raises(CodebookError, match="255 class ids are taken"):
        split(full, 255)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda b: rename(b, 9, "road"), "no class 9"),
        (lambda b: rename(b, 1, "  "), "0 characters"),
        (lambda b: rename(b, 1, "x" * (MAX_NAME + 1)), "65 characters"),
        (lambda b: rename(b, 1, "a\nb"), "cannot be shown"),
        (lambda b: rename(b, 1, "a\ud800"), "cannot be shown"),
        (lambda b: recolor(b, 1, (0, 0, 256)), "not a colour"),
        (lambda b: recolor(b, 1, (0, 0)), "not a colour"),
        (lambda b: merge(b, 1, [1]), "into itself"),
        (lambda b: merge(b, 1, [9]), "no class 9"),
        (lambda b: make_void(b, VOID), "no class 255"),
        (lambda b: split(b, 6), "no cluster 6"),
        (lambda b: split(b, -1), "no cluster -1"),
    ],
)
def test_an_edit_that_cannot_be_is_refused(
    book: Codebook, edit: Callable[[Codebook], Codebook], says: str
) -> None:
    with pytest.raises(CodebookError, match=says):
        edit(book)


def test_names_are_kept_in_the_form_in_which_they_compare_equal() -> None:
    assert check_class_name("Stra\u00dfe") == "Stra\u00dfe"
    assert check_class_name("caf\u0065\u0301") == "caf\u00e9"


def test_a_class_is_found_by_its_name_in_any_case(book: Codebook) -> None:
    assert find_class(book, " CLASS 4 ") == book.class_of(4)
    assert find_class(book, "road") is None
    composed = rename(book, 4, "caf\u00e9")
    assert find_class(composed, "CAFE\u0301") == composed.class_of(4)


def test_colours_are_read_with_and_without_the_sign() -> None:
    assert parse_color("#8040fF") == parse_color("8040ff") == (128, 64, 255)
    for wrong in ("#80404", "red", "#80408g", "8040ff0", "\u0661\u0661\u0661\u0661\u0661\u0661"):
        with pytest.raises(CodebookError, match="not a colour"):
            parse_color(wrong)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"action": "rename", "id": 3, "name": "road"}, lambda b: rename(b, 3, "road")),
        ({"action": "recolor", "id": 3, "color": "#0a0b0c"}, lambda b: recolor(b, 3, (10, 11, 12))),
        ({"action": "merge", "into": 4, "ids": [1, 5]}, lambda b: merge(b, 4, [1, 5])),
        ({"action": "void", "id": 4}, lambda b: make_void(b, 4)),
        ({"action": "split", "cluster": 2}, lambda b: split(b, 2)),
    ],
)
def test_an_edit_from_json_does_what_the_function_does(
    book: Codebook, data: object, expected: Callable[[Codebook], Codebook]
) -> None:
    found, wanted = parse_edit(data)(book), expected(book)
    assert found.classes == wanted.classes
    assert found.remap.tolist() == wanted.remap.tolist()


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        {"action": "fly"},
        {"action": ["rename"]},
        {"action": "rename", "id": "3", "name": "road"},
        {"action": "rename", "id": True, "name": "road"},
        {"action": "rename", "id": 3},
        {"action": "rename", "id": 3, "name": ""},
        {"action": "recolor", "id": 3, "color": [1, 2, 3]},
        {"action": "merge", "into": 3, "ids": 4},
        {"action": "merge", "into": 3, "ids": ["4"]},
        {"action": "void", "id": 1.5},
        {"action": "split"},
    ],
)
def test_what_is_no_edit_is_refused(data: object) -> None:
    with pytest.raises((UsageError, CodebookError)) as caught:
        parse_edit(data)
    assert isinstance(caught.value, AesegError)
