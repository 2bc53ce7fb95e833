"""Naming by majority: which class a cluster gets, which id, and what unseen clusters become."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from aeseg_edge.bundle import classes as naming
from aeseg_edge.bundle.codebook import VOID, Codebook
from aeseg_edge.calibration.footage.masks import Pair, evenly_spaced
from aeseg_edge.calibration.labels.naming import class_weights, mask_classes, name_by_majority
from aeseg_edge.errors import CodebookError, EvaluationError

NAMES = ("sky", "road", "car")
# Rows are classes, columns clusters 0..4; cluster 3 is in no labelled pixel.
COUNTS = np.array([[1, 90, 0, 0, 0], [50, 10, 4, 0, 70], [0, 0, 6, 0, 0]], np.int64)


def line_of(centres: int) -> Codebook:
    """Centres at 0, 1, 2, ... on a line."""
    return Codebook.from_centres(np.arange(centres, dtype=np.float32)[:, None])


def names(codebook: Codebook) -> dict[int, str]:
    return {item.id: item.name for item in codebook.classes}


def test_clusters_take_the_class_of_most_of_their_pixels_under_its_id_in_the_masks() -> None:
    named = name_by_majority(line_of(5), COUNTS, NAMES)
    assert named.codebook.remap.tolist() == [1, 0, 2, 3, 1]
    assert names(named.codebook) == {0: "sky", 1: "road", 2: "car", 3: "class 3"}
    assert named.unseen == (3,)
    assert named.without_cluster == ()
    second = named.clusters[1]
    assert (second.name, second.pixels) == ("sky", 100)
    assert second.share == pytest.approx(100 / 231)
    assert second.purity == pytest.approx(0.9)
    assert named.clusters[3].purity is None


def test_weights_and_centres_stay_and_the_first_codebook_too() -> None:
    before = line_of(5)
    named = name_by_majority(before, COUNTS, NAMES)
    assert named.codebook.weights is before.weights
    assert before.remap.tolist() == [0, 1, 2, 3, 4]


def test_a_class_without_a_cluster_is_said_and_not_listed() -> None:
    counts = COUNTS.copy()
    counts[2] = 0
    named = name_by_majority(line_of(5), counts, NAMES)
    assert named.without_cluster == ("car",)
    assert 2 not in names(named.codebook)


def test_an_unseen_clusters_id_moves_out_of_the_way_of_the_masks_classes() -> None:
    counts = np.roll(COUNTS, 3, axis=1)  # clusters 1 and 3 swap places: 1 is now unseen
    named = name_by_majority(line_of(5), counts, NAMES)
    assert named.unseen == (1,)
    assert names(named.codebook) == {0: "sky", 1: "road", 2: "car", 3: "class 1"}


def test_an_unseen_cluster_that_a_person_named_keeps_its_name() -> None:
    by_hand = naming.rename(line_of(5), 3, "kerb")
    assert names(name_by_majority(by_hand, COUNTS, NAMES).codebook)[3] == "kerb"
    by_hand = naming.rename(line_of(5), 3, "Car")
    assert name_by_majority(by_hand, COUNTS, NAMES).codebook.remap[3] == 2


def test_an_unseen_cluster_can_take_the_class_of_its_nearest_neighbour_or_be_void() -> None:
    near = replace(line_of(5), centres=np.array([[0], [5], [9], [5.5], [1]], np.float32))
    assert name_by_majority(near, COUNTS, NAMES, unseen="nearest").codebook.remap[3] == 0
    void = name_by_majority(near, COUNTS, NAMES, unseen="void")
    assert void.codebook.remap[3] == VOID
    assert void.clusters[3].name == "void"


def test_weighting_lets_a_rare_class_win_where_it_is_nearly_the_majority() -> None:
    counts = np.array([[1000, 60], [0, 50]], np.int64)
    assert name_by_majority(line_of(2), counts, NAMES[:2]).codebook.remap.tolist() == [0, 0]
    weighted = name_by_majority(line_of(2), counts, NAMES[:2], weighted=True)
    assert weighted.codebook.remap.tolist() == [0, 1]


def test_weights_are_one_on_average_and_nought_for_what_is_not_there() -> None:
    pixels = np.array([900, 100, 0])
    weights = class_weights(pixels)
    assert weights[1] / weights[0] == pytest.approx(9**0.3)
    assert (weights * pixels).sum() / pixels.sum() == pytest.approx(1)
    assert weights[2] == 0


def test_more_unseen_clusters_than_class_ids_are_refused_with_the_way_out() -> None:
    counts = np.zeros((3, 255), np.int64)
    counts[:, 254] = 1
    with pytest.raises(CodebookError, match="--unseen nearest"):
        name_by_majority(line_of(255), counts, NAMES)
    assert name_by_majority(line_of(255), counts, NAMES, unseen="nearest").codebook.remap.max() == 0


def test_colours_are_the_palettes_unless_the_bundle_has_a_class_of_that_name() -> None:
    fresh = mask_classes(NAMES)
    assert fresh[1].color == line_of(5).classes[1].color
    painted = naming.recolor(naming.rename(line_of(5), 4, "road"), 4, (1, 2, 3))
    assert mask_classes(NAMES, painted)[1].color == (1, 2, 3)


def test_names_that_differ_only_in_case_are_refused() -> None:
    with pytest.raises(CodebookError, match="twice"):
        mask_classes(("Road", "road"))


def test_masks_that_are_ignored_altogether_are_refused() -> None:
    with pytest.raises(EvaluationError, match="ignored"):
        name_by_majority(line_of(5), np.zeros((3, 5), np.int64), NAMES)


def test_a_few_frames_lie_evenly_over_all(tmp_path) -> None:  # type: ignore[no-untyped-def]
    pairs = [Pair(tmp_path / str(i), tmp_path) for i in range(9)]
    assert [int(p.image.name) for p in evenly_spaced(pairs, 3)] == [0, 4, 8]
    assert [int(p.image.name) for p in evenly_spaced(pairs, 1)] == [4]
    assert len(evenly_spaced(pairs, None)) == len(evenly_spaced(pairs, 20)) == 9
