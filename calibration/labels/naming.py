"""Names from labelled frames: each cluster takes the class that most of its pixels have.

Only names, merges and class ids change; weights and graphs stay as they are. Class ids
become those of the masks (line numbers of the list of classes, from 0), so that label maps
compare with masks directly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.classes import check_class_name, find_class
from aeseg_edge.bundle.codebook import MAX_CLASSES, VOID, ClassInfo, Codebook, default_classes
from aeseg_edge.bundle.precisions import REFERENCE
from aeseg_edge.calibration.footage.masks import Pair, reader_for
from aeseg_edge.calibration.score.counts import UNMATCHED, majority_map
from aeseg_edge.calibration.score.evaluation import Progress, count_clusters, outside_region
from aeseg_edge.errors import CodebookError, EvaluationError
from aeseg_edge.segment.segmenter import Segmenter

FITS = ("majority", "linear")
"""How names follow from masks: by most pixels, or with a codebook fitted to them."""

WEIGHTS = ("none", "power")

Unseen = Literal["own", "nearest", "void"]
UNSEEN: tuple[Unseen, ...] = ("own", "nearest", "void")
"""What becomes of clusters without a labelled pixel: they keep the class that they have,
take that of the nearest cluster with one, or are left out."""

POWER = 0.3
"""Class weights are frequency to the power -0.3: between 0 (pixels count alike, and rare
classes vanish) and 1 (classes count alike, and rare ones flood the frame)."""


@dataclass(frozen=True)
class NamedCluster:
    """How one cluster got its class.

    Attributes:
        cluster: Its number.
        class_id: Of the class it belongs to now; 255 for void.
        name: Of that class.
        pixels: Labelled pixels of the cluster.
        share: Of all labelled pixels, 0..1.
        purity: Share of its pixels that have the class; None for a cluster without any.
    """

    cluster: int
    class_id: int
    name: str
    pixels: int
    share: float
    purity: float | None

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers and strings."""
        return {
            "cluster": self.cluster,
            "id": self.class_id,
            "class": self.name,
            "pixels": self.pixels,
            "share": round(self.share, 6),
            "purity": None if self.purity is None else round(self.purity, 6),
        }


@dataclass(frozen=True)
class NamedClusters:
    """A codebook with the names of labelled frames, and one entry a cluster, by number.

    ``unseen`` are clusters without a labelled pixel, ``without_cluster`` classes that no
    cluster became.
    """

    codebook: Codebook
    clusters: tuple[NamedCluster, ...]
    unseen: tuple[int, ...]
    without_cluster: tuple[str, ...]


def name_by_majority(
    codebook: Codebook,
    counts: NDArray[np.int64],
    class_names: Sequence[str],
    *,
    unseen: Unseen = "own",
    weighted: bool = False,
) -> NamedClusters:
    """Name every cluster by the class that most of its labelled pixels have.

    A class whose name the codebook has already keeps its colour; the others get the
    palette's colour of their id.

    Args:
        codebook: Left as it is.
        counts: int64 [classes, clusters], labelled pixels by class and cluster.
        class_names: Names of the classes 0, 1, ... of the masks.
        unseen: See ``UNSEEN``. ``own`` gives class ids past those of the masks.
        weighted: Divide each class's pixels by its frequency to the power 0.3 first: rare
            classes win more clusters (higher mIoU, lower pixel accuracy).

    Raises:
        CodebookError: A name cannot be used, or class ids run out.
        EvaluationError: There are no labelled pixels.
    """
    infos = mask_classes(class_names, codebook)
    total = int(counts.sum())
    if not total:
        raise EvaluationError(
            "every pixel of the masks has the ignored value", fix="Check --ignore and the masks."
        )
    votes = counts * class_weights(counts.sum(axis=1))[:, None] if weighted else counts
    mapping = majority_map(votes)
    missing = np.flatnonzero(mapping == UNMATCHED)
    remap: NDArray[np.int64] = np.where(mapping == UNMATCHED, VOID, mapping)
    kept: list[ClassInfo] = []
    if unseen == "nearest":
        remap[missing] = _nearest(codebook, mapping, missing)
    elif unseen == "own":
        kept = _keep(codebook, missing, remap, infos)
    used = [item for item in infos if (remap == item.id).any()]
    named = replace(
        codebook,
        remap=remap.astype(np.uint8),
        classes=tuple(sorted((*used, *kept), key=lambda item: item.id)),
    )
    pixels = counts.sum(axis=0)
    rows = []
    for cluster, class_id in enumerate(named.remap.tolist()):
        found = named.class_of(class_id)
        seen = int(pixels[cluster])
        rows.append(
            NamedCluster(
                cluster,
                class_id,
                "void" if found is None else found.name,
                seen,
                seen / total,
                float(counts[class_id, cluster]) / seen if seen else None,
            )
        )
    without = tuple(item.name for item in infos if item not in used)
    return NamedClusters(named, tuple(rows), tuple(missing.tolist()), without)


def count_pixels(
    bundle: Bundle,
    pairs: Sequence[Pair],
    class_names: Sequence[str],
    *,
    ignore: int | None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> NDArray[np.int64]:
    """Count labelled pixels, int64 [classes, clusters], with the fp32 graph on ONNX Runtime.

    Pixels outside the bundle's region of interest do not count.

    Raises:
        EvaluationError: A file is missing or faulty, or a mask holds a value that is no class.
    """
    with Segmenter.load(bundle, *REFERENCE, threads=threads) as segmenter:
        matrix = count_clusters(
            segmenter.clusters,
            pairs,
            class_names,
            clusters=bundle.manifest.clusters,
            ignore=ignore,
            progress=progress,
            read=reader_for(bundle.manifest),
            outside=outside_region(bundle),
        )
    return matrix.counts


def mask_classes(class_names: Sequence[str], codebook: Codebook | None = None) -> list[ClassInfo]:
    """Give the classes of masks: ids in the order of the names, from 0.

    Classes that ``codebook`` has already keep their colour.

    Raises:
        CodebookError: There are too many, a name cannot be used, or two are alike.
    """
    if len(class_names) > MAX_CLASSES:
        raise CodebookError(
            f"{len(class_names)} classes do not fit into {MAX_CLASSES} class ids",
            fix="Join some of them.",
        )
    infos = [
        replace(item, name=check_class_name(name))
        for item, name in zip(default_classes(len(class_names)), class_names, strict=True)
    ]
    folded = [item.name.casefold() for item in infos]
    for name in folded:
        if folded.count(name) > 1:
            raise CodebookError(
                f"the class {name!r} is listed twice (upper and lower case are the same)",
                fix="Give each class its own name.",
            )
    if codebook is not None:
        before = [find_class(codebook, item.name) for item in infos]
        infos = [
            item if had is None else replace(item, color=had.color)
            for item, had in zip(infos, before, strict=True)
        ]
    return infos


def class_weights(pixels: NDArray[np.int64] | NDArray[np.float32]) -> NDArray[np.float64]:
    """Weigh classes, by their pixels or any other amount, by frequency to the power -0.3.

    float64 [classes], 1 on average over the pixels; 0 for a class without any.
    """
    weights = np.zeros(len(pixels))
    seen = pixels > 0
    frequency = pixels[seen] / pixels.sum()
    weights[seen] = frequency**-POWER
    return np.asarray(weights / (weights[seen] * frequency).sum())


def _nearest(
    codebook: Codebook, mapping: NDArray[np.int64], missing: NDArray[np.intp]
) -> NDArray[np.int64]:
    """Give each unseen cluster the class of the nearest seen one.

    With few labelled frames and many clusters this is worth a lot: on CamVid's drive 0006R0
    with 256 clusters, 1 frame: 1.3 to 3.4 points of mIoU; 5 frames: 0 to 0.9. Votes spread
    over several neighbours, weighted by distance, gave no more.
    """
    centres = codebook.weights if codebook.centres is None else codebook.centres
    seen = np.flatnonzero(mapping != UNMATCHED)
    offsets = centres[missing, None].astype(np.float64) - centres[None, seen]
    found: NDArray[np.int64] = mapping[seen[(offsets**2).sum(axis=2).argmin(axis=1)]]
    return found


def _keep(
    codebook: Codebook,
    missing: NDArray[np.intp],
    remap: NDArray[np.int64],
    infos: Sequence[ClassInfo],
) -> list[ClassInfo]:
    """Let unseen clusters keep their class, under a free id; changes ``remap``.

    A class of theirs that has the name of one in the masks is that one.
    """
    by_name = {item.name.casefold(): item.id for item in infos}
    kept: dict[int, ClassInfo] = {}
    wanted = [int(i) for i in np.unique(codebook.remap[missing]) if i != VOID]
    free = [i for i in range(len(infos), MAX_CLASSES) if i not in wanted]
    for before in wanted:
        item = codebook.class_of(before)
        assert item is not None  # Codebook's own check
        members = missing[codebook.remap[missing] == before]
        same = by_name.get(item.name.casefold())
        if same is None:
            if before < len(infos):
                if not free:
                    raise CodebookError(
                        f"{len(missing)} clusters without a labelled pixel need more class ids "
                        f"than there are ({MAX_CLASSES})",
                        fix="Pass --unseen nearest or --unseen void, or give more labelled frames.",
                    )
                item = replace(item, id=free.pop(0))
            kept[item.id] = item
            same = item.id
        remap[members] = same
    return list(kept.values())
