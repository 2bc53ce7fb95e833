"""What is learned from footage: latents alone, or classes that masks show.

Both go one way (see ``pipeline``): frames, a network, a checkpoint, a bundle. A task says what
differs on it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aeseg_edge.bundle.geometry import Geometry
from aeseg_edge.calibration.clusters.methods import METHODS, check_directions
from aeseg_edge.calibration.footage.gather import Footage, gather
from aeseg_edge.calibration.footage.pairs import find_modalities
from aeseg_edge.calibration.settings import FitSettings
from aeseg_edge.errors import CalibrationError, UsageError
from aeseg_edge.export.checkpoint import load_model, read_model
from aeseg_edge.export.network.autoencoder import (
    Autoencoder,
    add_class_head,
    build_autoencoder,
    origin_of,
)
from aeseg_edge.export.network.catalogue import NO_TEACHER, starts_pretrained
from aeseg_edge.export.network.reduce import DimensionChoice, Wanted, reduce_latents
from aeseg_edge.export.settings import Labels, TrainOptions
from aeseg_edge.export.training.invariance import even_latents
from aeseg_edge.export.training.losses import Objective, Taught
from aeseg_edge.export.training.settings import TUNE
from aeseg_edge.export.training.supervised import (
    HEAD_CHANNELS,
    CrossEntropy,
    LabelledFootage,
    freeze_encoder,
    gather_labelled,
)
from aeseg_edge.export.training.teacher import Targets, Teacher, make_targets, open_teacher
from aeseg_edge.export.training.team import Team
from aeseg_edge.sources.pairs import describe

_log = logging.getLogger(__name__)

Progress = Callable[[str, float, str], None]
"""(stage, fraction of that stage, short note)."""


class Task:
    """What is learned, step by step, and what is written down of it.

    ``start`` is how the network that training starts from was trained, None for fresh weights.
    ``weights`` (where they come from), ``about`` (beside the settings) and ``after`` (training) are
    for the manifest, ``meta`` for later exports; ``dimension`` is None where latents were not
    reduced.
    """

    start: Geometry | None = None
    dimension: DimensionChoice | None = None

    def __init__(self, sources: Sequence[str | Path], options: TrainOptions) -> None:
        self.sources, self.options = sources, options
        self.settings = options.training
        self.weights: dict[str, Any] = {}
        self.about: dict[str, Any] = {}
        self.after: dict[str, Any] = {}
        self.meta: dict[str, Any] = {}

    def network(self, folder: Path) -> Autoencoder:
        """Build the network that is trained into ``folder``."""
        raise NotImplementedError

    def gather(self, geometry: Geometry, tell: Progress) -> Footage:
        """Read frames at the size of the network."""
        raise NotImplementedError

    def check(self, frames: NDArray[np.uint8], stride: int) -> None:
        """Refuse, before training, footage that cannot give what is asked."""

    def objective(
        self, autoencoder: Autoencoder, footage: Footage, folder: Path, tell: Progress, team: Team
    ) -> Objective | None:
        """Say what training minimises; None for the network's own loss."""
        raise NotImplementedError

    def told_settings(self) -> dict[str, Any]:
        """Give the settings that the manifest tells of."""
        return asdict(self.settings)

    def finish(self, autoencoder: Autoencoder, frames: NDArray[np.uint8]) -> Autoencoder:
        """Do what is left to do to the trained network."""
        return autoencoder

    def footage_names(self, footage: Footage) -> list[str]:
        """Name what was learned from."""
        return [source.source for source in footage.report.sources]


class LabelFree(Task):
    """Latents that redraw pixels, tell appearance, or give back a teacher's features."""

    def network(self, folder: Path) -> Autoencoder:
        """See ``Task``. The teacher is asked first: what is missing must not cost footage."""
        model, self._teacher = self.options.model, None
        modalities = find_modalities(self.sources)
        wanted = self.options.reduce_to if isinstance(self.options.reduce_to, int) else None
        fit = self.options.fit
        check_directions(METHODS[fit.clustering], wanted or model.latent_dim, fit.fewest_clusters)
        if modalities:
            model = replace(model, channels=sum(each.channels for each in modalities))
            _log.info("frames are %s", describe(modalities))
        self.modalities = modalities
        teacher: Teacher | None = None
        if self.settings.teacher != NO_TEACHER:
            _check_not_itself(self.settings.teacher, folder)
            teacher = open_teacher(self.settings.teacher, model.channels)
        self._teacher = teacher
        pretrained = starts_pretrained(model.arch, self.settings.teacher)
        self.weights = _weights("trained on the footage", model.arch, pretrained, "random weights")
        if teacher is not None:
            self.weights["teacher"] = teacher.origin
        self.meta = {
            "fit": fit.remembered(),
            "modalities": [asdict(each) for each in modalities],
        }
        return build_autoencoder(model, seed=self.settings.seed, pretrained=pretrained)

    def gather(self, geometry: Geometry, tell: Progress) -> Footage:
        """See ``Task``."""
        footage = gather(
            self.sources,
            size=(geometry.width, geometry.height),
            channels=geometry.channels,
            resize=geometry.resize,
            max_frames=self.options.max_frames,
            seed=self.settings.seed,
            modalities=self.modalities,
            progress=lambda done, total, source: tell("footage", done / max(1, total), str(source)),
        )
        tell("footage", 1.0, "")
        _log.info("footage: %s", footage.report.summary())
        return footage

    def check(self, frames: NDArray[np.uint8], stride: int) -> None:
        """Refuse a K that exceeds the number of latents, whatever is learned."""
        clusters = self.options.fit.fewest_clusters
        count, rows, columns = frames.shape[:3]
        latents = count * (rows // stride) * (columns // stride)
        if clusters > latents:
            raise CalibrationError(
                f"{clusters} clusters are more than the {latents} latents of {count} frames",
                fix="Give more footage or larger images, or ask for fewer clusters.",
            )

    def objective(
        self, autoencoder: Autoencoder, footage: Footage, folder: Path, tell: Progress, team: Team
    ) -> Objective | None:
        """See ``Task``."""
        if self._teacher is None:
            return None
        made = None
        if team.first:
            made = make_targets(
                self._teacher,
                footage.frames,
                footage.held_out,
                self.options.model.latent_dim,
                folder=folder,
                tick=lambda done: tell("teacher", done, self.settings.teacher),
            )
        objective = Taught(_shared_targets(made, team), self.settings.loss)
        objective.check(autoencoder)
        return objective

    def finish(self, autoencoder: Autoencoder, frames: NDArray[np.uint8]) -> Autoencoder:
        """Even latents out (a teacher's features are before they are learned), and reduce them."""
        if autoencoder.appearance is not None and self._teacher is None:
            autoencoder = even_latents(autoencoder, frames)
            self.after["evened"] = "over views of the same places"
        autoencoder, self.dimension = reduced(
            autoencoder, frames, self.options.reduce_to, self.options.fit
        )
        self.after |= told(self.dimension)
        return autoencoder


class Labelled(Task):
    """Classes that masks show, with a small head behind the encoder."""

    def __init__(
        self, sources: Sequence[str | Path], options: TrainOptions, labels: Labels
    ) -> None:
        super().__init__(sources, options)
        for given, name in ((options.reduce_to, "fewer latents"), (options.decoder, "a decoder")):
            if given:
                raise UsageError(
                    f"a training with labels has no use for {name}",
                    fix="Leave reduce_to and decoder out.",
                )
        if labels.tune not in TUNE:
            raise UsageError(
                f"there is no tuning {labels.tune!r}", fix=f"Use one of {', '.join(TUNE)}."
            )
        if len(sources) != 1:
            raise UsageError(
                f"masks go with one folder of images, not {len(sources)}",
                fix="Give the folder whose images the masks are named as.",
            )
        self.labels = labels
        self.settings = replace(options.training, teacher=NO_TEACHER)
        self.meta = {"class_names": list(labels.class_names)}

    def network(self, folder: Path) -> Autoencoder:
        """See ``Task``."""
        labels, model, seed = self.labels, self.options.model, self.settings.seed
        classes, how = len(labels.class_names), "trained with labels on the footage"
        if labels.start is None:
            if labels.tune == "head":
                raise UsageError(
                    "--tune head leaves the encoder as it is, and there is none to start from",
                    fix="Give --from NAME.train, or tune all.",
                )
            config = replace(model, classes=classes, head=HEAD_CHANNELS)
            pretrained = starts_pretrained(model.arch, self.options.training.teacher)
            self.weights = _weights(how, model.arch, pretrained, "")
            self._started_from = "imagenet" if pretrained else ""
            return build_autoencoder(config, seed=seed, pretrained=pretrained)
        _check_not_itself(labels.start, folder)
        source, meta = load_model(labels.start)
        source.hold_back_trunk()
        self.start = Geometry(**meta["geometry"])
        self._started_from = read_model(labels.start).weights_sha256
        self.weights = {
            "weights": f"{how}, starting from {labels.start.name}",
            "started_from": meta.get("provenance", {}),
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return add_class_head(source, classes, HEAD_CHANNELS).train()

    def gather(self, geometry: Geometry, tell: Progress) -> Footage:
        """See ``Task``."""
        labels = self.labels
        found: LabelledFootage = gather_labelled(
            Path(self.sources[0]),
            labels.masks,
            labels.class_names,
            ignore=labels.ignore,
            geometry=geometry,
            max_frames=self.options.max_frames,
            seed=self.settings.seed,
            progress=lambda done, total, source: tell("labelled frames", done / total, source),
        )
        pixels = zip(labels.class_names, found.pixels(), strict=True)
        if absent := [name for name, count in pixels if not count]:
            _log.warning("no training frame shows %s: it cannot be learned", ", ".join(absent))
        self._found = found
        return found.footage

    def objective(
        self, autoencoder: Autoencoder, footage: Footage, folder: Path, tell: Progress, team: Team
    ) -> Objective | None:
        """See ``Task``."""
        labels = self.labels
        if labels.tune == "head":
            freeze_encoder(autoencoder)
        self.about = {
            "head_channels": autoencoder.config.head,
            "labels": {
                "method": "supervised",
                "classes": list(labels.class_names),
                "frames": len(footage.frames),
                "images": str(self.sources[0]),
                "class_weights": labels.class_weights,
                "tune": labels.tune,
            },
        }
        return CrossEntropy(
            self._found, weighting=labels.class_weights, tune=labels.tune, start=self._started_from
        )

    def told_settings(self) -> dict[str, Any]:
        """See ``Task``: loss and teacher are not used."""
        settings = asdict(self.settings)
        del settings["loss"], settings["teacher"]
        return settings

    def footage_names(self, footage: Footage) -> list[str]:
        """See ``Task``."""
        return [str(self.sources[0])]


def _weights(how: str, arch: str, pretrained: bool, fresh: str) -> dict[str, Any]:
    """What the manifest says of weights that do not come from an earlier training."""
    if pretrained:
        origin = origin_of(arch)
        return {"weights": f"{how}, starting from {origin['name']}", "started_from": origin}
    return {"weights": f"{how}, starting from {fresh}" if fresh else f"{how}, from scratch"}


def _check_not_itself(start: str | Path, folder: Path) -> None:
    """Refuse to learn from a checkpoint that this training replaces."""
    if Path(start).resolve() == folder.resolve():
        raise UsageError(f"{start} would be trained over", fix="Give the bundle another name.")


def _shared_targets(targets: Targets | None, team: Team) -> Targets:
    """Give what the teacher saw, in the first process, to all."""
    if targets is not None and team.size == 1:
        return targets
    numbers = None if targets is None else {"grid": targets.grid, "explained": targets.explained}
    told = team.share_record(numbers)
    maps = None if targets is None else {"frames": targets.frames, "held_out": targets.held_out}
    arrays = team.share_arrays(maps)
    return Targets(arrays["frames"], arrays["held_out"], told["grid"], told["explained"])


def reduced(
    autoencoder: Autoencoder, frames: NDArray[np.uint8], to: Wanted | None, fit: FitSettings
) -> tuple[Autoencoder, DimensionChoice | None]:
    """Keep fewer latent channels of a network; all of them where ``to`` is None."""
    return (autoencoder, None) if to is None else reduce_latents(autoencoder, frames, to, fit)


def told(dimension: DimensionChoice | None) -> dict[str, Any]:
    """Give what the manifest says of the latent channels, where they were reduced."""
    if dimension is None:
        return {}
    return {"latent_dim": dimension.chosen, "reduced_from": dimension.trained}
