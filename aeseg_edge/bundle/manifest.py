"""The manifest: what a bundle says about itself, as JSON with a schema version."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from aeseg_edge.bundle.codebook import ClassInfo
from aeseg_edge.bundle.contract import GraphSpec
from aeseg_edge.bundle.drift import Spread
from aeseg_edge.bundle.geometry import Geometry
from aeseg_edge.bundle.precisions import BACKENDS as BACKENDS
from aeseg_edge.bundle.precisions import PRECISIONS as PRECISIONS
from aeseg_edge.errors import AesegError, BundleError
from aeseg_edge.support.text import to_json

FORMAT = "aeseg-bundle"
SCHEMA_VERSION = 2
"""2: graphs may be without squares of latents (``squares``); 1 always had them."""


@dataclass(frozen=True)
class FileInfo:
    """One member of the bundle beside the manifest: hex digest and bytes, uncompressed."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Entry:
    """One way to run the bundle.

    Attributes:
        precision: ``fp32``, ``fp16`` or ``int8``: a property of the graph.
        backend: ``onnxruntime`` or ``tensorrt``: what the graph was shaped for.
        graph: Path of the graph inside the bundle.
        agreement: Measured against fp32 by calibration.score.agreement; None when not measured.
        recommended: False where agreement is below the gate that was asked for.
        note: For people: emulation, exclusions, why not recommended.
    """

    precision: str
    backend: str
    graph: str
    agreement: Mapping[str, Any] | None = None
    recommended: bool = True
    note: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """(precision, backend)."""
        return self.precision, self.backend


@dataclass(frozen=True)
class Modality:
    """One of several pictures that make a frame, such as ``thermal``: 3 (BGR) or 1 channels."""

    name: str
    channels: int


@dataclass(frozen=True)
class DecoderInfo:
    """The decoder, where the bundle has one. Readers that do not know it leave it alone.

    Attributes:
        graph: Member path of its ONNX graph.
        latents: Member path of the mean latents of each cluster (float32 .npy [K, D]), or None.
        median: Of the reconstruction error on calibration frames, grey levels.
        p99: 99th percentile of the same.
        frames: How many frames these are from.
    """

    graph: str
    latents: str | None
    median: float
    p99: float
    frames: int


@dataclass(frozen=True)
class Manifest:
    """Everything about a bundle but its arrays and graphs.

    Attributes:
        geometry: Size, channels and resize mode of the graphs' input.
        stride: Encoder stride r.
        output_stride: Label stride s.
        multiple: Width and height must be multiples of this (the deepest stride).
        latent_dim: Latent channels, D.
        clusters: Rows of the codebook, K.
        classes: Names and colours; the only place where they live.
        method: How the codebook was found.
        entries: Every (precision, backend) the bundle can be run as.
        files: Size and hash of every member but the manifest.
        codebook: Array name -> member path.
        preview: Member path of a picture, or None.
        region: Member path of a region-of-interest mask (uint8 .npy), or None.
        decoder: What draws pictures from latents, or None.
        modalities: What the frame's channels are, in their order; empty for one camera.
        gate: Width of the smoothing gate in the graphs, in units of the latents; None in
            older bundles, which mix everywhere alike.
        squares: Whether the graphs score squares of latents too, see ``GraphSpec``.
        spread: Distances of calibration's latents to their centres; None in older bundles
            and for codebooks without centres.
        training: Summary of how the weights were made.
        provenance: Origin and licence of weights and footage, as far as they are known.
        created_with: Package name and version.
        schema_version: Version of this layout.
    """

    geometry: Geometry
    stride: int
    output_stride: int
    multiple: int
    latent_dim: int
    clusters: int
    classes: tuple[ClassInfo, ...]
    method: str
    entries: tuple[Entry, ...]
    files: Mapping[str, FileInfo] = field(default_factory=dict)
    codebook: Mapping[str, str] = field(default_factory=dict)
    preview: str | None = None
    region: str | None = None
    decoder: DecoderInfo | None = None
    modalities: tuple[Modality, ...] = ()
    gate: float | None = None
    squares: bool = True
    spread: Spread | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    created_with: str = ""
    schema_version: int = SCHEMA_VERSION

    @property
    def spec(self) -> GraphSpec:
        """Sizes of the deployed graphs."""
        return GraphSpec(
            height=self.geometry.height,
            width=self.geometry.width,
            channels=self.geometry.channels,
            latent_dim=self.latent_dim,
            stride=self.stride,
            output_stride=self.output_stride,
            squares=self.squares,
        )

    def entry(self, precision: str, backend: str) -> Entry:
        """Find one way to run the bundle; BundleError, which lists those there are, without it."""
        for entry in self.entries:
            if entry.key == (precision, backend):
                return entry
        found = ", ".join(f"{p} for {b}" for p, b in (e.key for e in self.entries))
        raise BundleError(
            f"the bundle has no {precision} graph for {backend}",
            fix=f"It has: {found}. Choose one of these, or export again.",
        )

    def to_json(self) -> str:
        """Write the manifest as JSON, keys in a fixed order."""
        data: dict[str, Any] = {"format": FORMAT}
        data.update(asdict(self))
        return to_json(data, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Read a manifest of this schema or an older one; BundleError if it is none, or newer."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BundleError(
                f"the manifest is not JSON ({error})", fix="Copy the bundle again."
            ) from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise BundleError("the manifest is not one of a bundle", fix="Give an .aeseg file.")
        version = data.get("schema_version")
        if not isinstance(version, int) or version < 1:
            raise BundleError(
                f"the manifest has schema version {version!r}", fix="Copy the bundle again."
            )
        if version > SCHEMA_VERSION:
            raise BundleError(
                f"the bundle has schema version {version}, this aeseg_edge reads up to "
                f"{SCHEMA_VERSION}",
                fix="Update aeseg_edge: git pull in its clone, or a newer wheel.",
            )
        try:
            return _parse(data)
        except AesegError as error:
            raise BundleError(
                f"the manifest is not valid: {error.problem}", fix="Export the bundle again."
            ) from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(
                f"the manifest is not valid ({type(error).__name__}: {error})",
                fix="Export the bundle again.",
            ) from error


def _parse(data: Mapping[str, Any]) -> Manifest:
    geometry = data["geometry"]
    manifest = Manifest(
        geometry=Geometry(
            width=_count(geometry["width"]),
            height=_count(geometry["height"]),
            channels=_count(geometry["channels"]),
            resize=str(geometry["resize"]),
        ),
        stride=_count(data["stride"]),
        output_stride=_count(data["output_stride"]),
        multiple=_count(data["multiple"]),
        latent_dim=_count(data["latent_dim"]),
        clusters=_count(data["clusters"]),
        classes=tuple(_class(item) for item in data["classes"]),
        method=str(data["method"]),
        entries=tuple(_entry(item) for item in data["entries"]),
        files={
            str(k): FileInfo(str(v["sha256"]), int(v["size"])) for k, v in data["files"].items()
        },
        codebook={str(k): str(v) for k, v in data["codebook"].items()},
        preview=_optional(data.get("preview")),
        region=_optional(data.get("region")),
        decoder=_decoder(data.get("decoder")),
        modalities=tuple(
            Modality(str(item["name"]), _count(item["channels"]))
            for item in data.get("modalities", ())
        ),
        gate=None if data.get("gate") is None else _width(data["gate"]),
        squares=_flag(data.get("squares", True)),
        spread=None if data.get("spread") is None else Spread.from_json(data["spread"]),
        training=dict(data.get("training", {})),
        provenance=dict(data.get("provenance", {})),
        created_with=str(data.get("created_with", "")),
        schema_version=SCHEMA_VERSION,
    )
    if manifest.stride % manifest.output_stride or manifest.multiple % manifest.stride:
        raise ValueError("strides do not divide")
    if manifest.geometry.height % manifest.multiple or manifest.geometry.width % manifest.multiple:
        raise ValueError(f"size is not a multiple of {manifest.multiple}")
    if manifest.modalities:
        total = sum(each.channels for each in manifest.modalities)
        names = {each.name for each in manifest.modalities}
        if total != manifest.geometry.channels or len(names) < len(manifest.modalities):
            raise ValueError("modalities do not make the frame's channels")
    keys = [entry.key for entry in manifest.entries]
    if not keys or len(set(keys)) != len(keys):
        raise ValueError("entries are missing or repeated")
    members = [entry.graph for entry in manifest.entries] + list(manifest.codebook.values())
    members += [name for name in (manifest.preview, manifest.region) if name is not None]
    if (decoder := manifest.decoder) is not None:
        members += [name for name in (decoder.graph, decoder.latents) if name is not None]
    for name in members:
        if name not in manifest.files:
            raise ValueError(f"{name} is named but not listed")
    return manifest


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1 << 20:
        raise ValueError(f"{value!r} is not a count")
    return value


def _width(value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e9:
        raise ValueError(f"{value!r} is not a width")
    return float(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is not true or false")
    return value


def _optional(value: Any) -> str | None:
    return None if value is None else str(value)


def _decoder(item: Mapping[str, Any] | None) -> DecoderInfo | None:
    if item is None:
        return None
    median, p99 = float(item["median"]), float(item["p99"])
    if not 0 <= median <= p99 <= 255:
        raise ValueError(f"reconstruction errors {median} and {p99} are out of order")
    return DecoderInfo(
        graph=str(item["graph"]),
        latents=_optional(item.get("latents")),
        median=median,
        p99=p99,
        frames=_count(item["frames"]),
    )


def _class(item: Mapping[str, Any]) -> ClassInfo:
    color = item["color"]
    if len(color) != 3 or any(not isinstance(v, int) or not 0 <= v <= 255 for v in color):
        raise ValueError(f"{color!r} is not a colour")
    return ClassInfo(int(item["id"]), str(item["name"]), (color[0], color[1], color[2]))


def _entry(item: Mapping[str, Any]) -> Entry:
    if item["precision"] not in PRECISIONS or item["backend"] not in BACKENDS:
        raise ValueError(f"entry {item['precision']!r} for {item['backend']!r} is unknown")
    agreement = item.get("agreement")
    return Entry(
        precision=item["precision"],
        backend=item["backend"],
        graph=str(item["graph"]),
        agreement=None if agreement is None else dict(agreement),
        recommended=bool(item.get("recommended", True)),
        note=str(item.get("note", "")),
    )


def validate_member_name(name: str) -> None:
    """Refuse, by BundleError, names that could leave a folder if somebody unpacked the bundle."""
    parts: Sequence[str] = name.split("/")
    if "\\" in name or ":" in name or "\0" in name or any(p in ("", ".", "..") for p in parts):
        raise BundleError(
            f"the bundle has a member with the unsafe name {name!r}",
            fix="Do not use this file; get the bundle from its maker again.",
        )
