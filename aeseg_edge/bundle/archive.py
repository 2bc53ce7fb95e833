"""The bundle: one file, ``NAME.aeseg``, with everything a device needs.

A zip of a manifest, ONNX graphs and codebook arrays. Nothing in it is ever unpacked to
disk, unpickled or executed, and nothing is used before its size and hash are verified.
"""

from __future__ import annotations

import errno
import hashlib
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.codebook import Codebook
from aeseg_edge.bundle.contract import DecoderParts
from aeseg_edge.bundle.manifest import (
    DecoderInfo,
    FileInfo,
    Manifest,
    Modality,
    validate_member_name,
)
from aeseg_edge.errors import BundleError, CodebookError, UsageError
from aeseg_edge.support.files import write_bytes
from aeseg_edge.support.require import import_cv2
from aeseg_edge.support.zips import read_member
from aeseg_edge.version import __version__

MANIFEST = "manifest.json"
SUFFIX = ".aeseg"

MAX_MANIFEST = 4 << 20
MAX_BUNDLE = 512 << 20
"""Bytes, unpacked. A real bundle has a few megabytes; more is a mistake or an attack."""

MAX_SIDE = 16384
"""Pixels of a frame inside the graph: its latents alone are tens of megabytes there."""

_DAMAGED = "Copy the bundle again, or export it again."
_FIXED_TIME = (1980, 1, 1, 0, 0, 0)


class Bundle:
    """A verified bundle, held in memory.

    Use ``Bundle.open`` to read one and ``Bundle.build`` to make one.

    Attributes:
        manifest: What the bundle says about itself.
        codebook: The assignment, with the manifest's classes.
        path: Where it was read from; None for one that was just built.
    """

    def __init__(
        self,
        manifest: Manifest,
        codebook: Codebook,
        members: Mapping[str, bytes],
        path: Path | None = None,
    ) -> None:
        self.manifest = manifest
        self.codebook = codebook
        self.path = path
        self._members = dict(members)

    @classmethod
    def build(
        cls,
        manifest: Manifest,
        codebook: Codebook,
        graphs: Mapping[str, bytes],
        *,
        preview: bytes | None = None,
        region: NDArray[np.uint8] | None = None,
        decoder: DecoderParts | None = None,
    ) -> Bundle:
        """Make a bundle in memory.

        Args:
            manifest: Its ``files``, ``codebook``, ``classes``, ``clusters``, ``method``,
                ``preview``, ``region`` and ``decoder`` are filled in here.
            codebook: The assignment.
            graphs: Member path -> serialised ONNX, for every path the entries name.
            preview: A JPEG or PNG to look at, or None.
            region: uint8 [H, W] at the graph's size, above 127 inside, or None.
            decoder: What draws pictures from latents, or None.

        Raises:
            BundleError: If an entry names a graph that is not given, or the codebook is for
                latents of another size.
        """
        if codebook.latent_dim != manifest.latent_dim:
            raise BundleError(
                f"the codebook is for {codebook.latent_dim} latent channels, and the graphs give "
                f"{manifest.latent_dim}",
                fix="Calibrate the codebook with these graphs.",
            )
        members = dict(graphs)
        arrays: dict[str, NDArray[Any]] = {
            "weights": codebook.weights,
            "bias": codebook.bias,
            "remap": codebook.remap,
        }
        if codebook.centres is not None:
            arrays["centres"] = codebook.centres
        names = {}
        for name, array in arrays.items():
            names[name] = f"codebook/{name}.npy"
            members[names[name]] = _npy(array)
        if preview is not None:
            members["preview.jpg"] = preview
        if region is not None:
            members["region.npy"] = _npy(region)
        info = None if decoder is None else _add_decoder(members, decoder)
        files = {
            name: FileInfo(hashlib.sha256(data).hexdigest(), len(data))
            for name, data in members.items()
        }
        filled = replace(
            manifest,
            files=files,
            codebook=names,
            classes=codebook.classes,
            clusters=codebook.clusters,
            method=codebook.method,
            preview="preview.jpg" if preview is not None else None,
            region="region.npy" if region is not None else None,
            decoder=info,
            created_with=f"aeseg_edge {__version__}",
        )
        # The reader's own checks decide what may be written.
        return cls(Manifest.from_json(filled.to_json()), codebook, members)

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Read and verify a bundle.

        Args:
            path: An ``.aeseg`` file.

        Raises:
            BundleError: If it is missing, truncated, damaged, unsafe, too large or of a
                newer schema; the message says which, and what to do.
        """
        path = Path(path)
        try:
            members, manifest = _read(path)
            codebook = _codebook(manifest, members)
        except BundleError as error:
            raise BundleError(f"{path}: {error.problem}", fix=error.fix) from error
        except CodebookError as error:
            raise BundleError(f"{path}: {error.problem}", fix=_DAMAGED) from error
        return cls(manifest, codebook, members, path)

    def write(self, path: str | Path) -> None:
        """Write the bundle; the target is whole or as it was before.

        Equal bundles give equal bytes: member times are fixed.

        Args:
            path: Target file; its folder must exist.

        Raises:
            BundleError: If the folder is missing or read-only, or the disk is full.
        """
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            manifest = self.manifest.to_json().encode()
            for name, data in ((MANIFEST, manifest), *sorted(self._members.items())):
                info = zipfile.ZipInfo(name, _FIXED_TIME)
                # Pictures are compressed already.
                packed = not name.endswith((".jpg", ".png"))
                info.compress_type = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
                archive.writestr(info, data)
        write_bytes(Path(path), buffer.getvalue(), error=BundleError)

    def graph(self, precision: str, backend: str) -> bytes:
        """Give the serialised ONNX of one entry; BundleError where there is none."""
        return self._members[self.manifest.entry(precision, backend).graph]

    @property
    def graphs(self) -> dict[str, bytes]:
        """Member path -> serialised ONNX, each graph once."""
        return {entry.graph: self._members[entry.graph] for entry in self.manifest.entries}

    @property
    def preview(self) -> bytes | None:
        """The preview picture's bytes, or None."""
        name = self.manifest.preview
        return None if name is None else self._members[name]

    @property
    def region(self) -> NDArray[np.uint8] | None:
        """Region of interest: uint8 [H, W] at the graph's size, above 127 inside; or None."""
        name = self.manifest.region
        if name is None:
            return None
        array = _load_npy(name, self._members[name])
        shape = (self.manifest.geometry.height, self.manifest.geometry.width)
        if array.dtype != np.uint8 or array.shape != shape:
            raise BundleError(f"the region of interest is not uint8 {list(shape)}", fix=_DAMAGED)
        return array

    @property
    def decoder(self) -> DecoderParts | None:
        """What draws pictures from latents, or None."""
        info = self.manifest.decoder
        if info is None:
            return None
        latents = None
        if info.latents is not None:
            latents = _load_npy(info.latents, self._members[info.latents])
            shape = (self.manifest.clusters, self.manifest.latent_dim)
            if latents.dtype != np.float32 or latents.shape != shape:
                raise BundleError(
                    f"the decoder's mean latents are not float32 {list(shape)}", fix=_DAMAGED
                )
        return DecoderParts(self._members[info.graph], latents, info.median, info.p99, info.frames)

    def with_codebook(self, codebook: Codebook) -> Bundle:
        """Give a copy with other centres, names or colours; the graphs stay as they are.

        A decoder's mean latents belong to the clusters: they go where these change.
        """
        decoder = self.decoder
        same = np.array_equal(codebook.weights, self.codebook.weights) and np.array_equal(
            codebook.bias, self.codebook.bias
        )
        if decoder is not None and not same:
            decoder = replace(decoder, latents=None)
        return self._again(codebook=codebook, decoder=decoder)

    def with_manifest(self, manifest: Manifest) -> Bundle:
        """Give a copy that says something else about itself; its members stay as they are."""
        return self._again(manifest=manifest)

    def with_size(self, width: int, height: int) -> Bundle:
        """Give a copy for frames of another size; the graphs take any.

        Sides are multiples of the encoder's deepest stride. A region of interest is resized with
        it, and the preview left out. UsageError where a side is not such a multiple, or a
        letterboxed region of interest would need other bars.
        """
        multiple = self.manifest.multiple
        sides = (width, height)
        if any(type(side) is not int or side < multiple or side % multiple for side in sides):
            raise UsageError(
                f"{width}x{height} does not fit this encoder",
                fix=f"Give a width and a height that are multiples of {multiple}.",
            )
        if max(sides) > MAX_SIDE:
            raise UsageError(
                f"{width}x{height} takes more memory than there is",
                fix=f"Give sides of at most {MAX_SIDE} pixels.",
            )
        own = self.manifest.geometry
        geometry = replace(own, width=width, height=height)
        region = self.region
        if region is not None:
            # It lies over the input, bars included; these change with the aspect, and how large
            # the frames are is not known here.
            if own.resize == "letterbox" and width * own.height != height * own.width:
                raise UsageError(
                    f"{width}x{height} has another aspect than {own.width}x{own.height}, and the "
                    "bundle has a region of interest and letterboxes",
                    fix="Use a size of the same aspect, or export it at that size: "
                    f"aeseg export NAME.train SOURCE --imgsz {width}x{height}.",
                )
            cv2 = import_cv2()
            region = cv2.resize(region, (width, height), interpolation=cv2.INTER_NEAREST)
        manifest = replace(self.manifest, geometry=geometry)
        resized = self._again(manifest=manifest, region=region, preview=None)
        resized.path = self.path
        return resized

    def with_modalities(self, modalities: tuple[Modality, ...]) -> Bundle:
        """Give a copy that says what the channels of its frames are."""
        return self._again(manifest=replace(self.manifest, modalities=modalities))

    def with_decoder(self, decoder: DecoderParts) -> Bundle:
        """Give a copy with a decoder, or with another one."""
        return self._again(decoder=decoder)

    def with_preview(self, preview: bytes | None) -> Bundle:
        """Give a copy with another picture, a JPEG or PNG, or with none."""
        return self._again(preview=preview)

    def _again(self, **changes: Any) -> Bundle:
        """Build a copy in which some parts differ."""
        parts: dict[str, Any] = {
            "manifest": self.manifest,
            "codebook": self.codebook,
            "graphs": self.graphs,
            "preview": self.preview,
            "region": self.region,
            "decoder": self.decoder,
        }
        return Bundle.build(**parts | changes)


def _add_decoder(members: dict[str, bytes], decoder: DecoderParts) -> DecoderInfo:
    graph, latents = "decoder/fp32.onnx", "decoder/latents.npy"
    members[graph] = decoder.graph
    if decoder.latents is not None:
        members[latents] = _npy(decoder.latents)
    return DecoderInfo(
        graph=graph,
        latents=latents if decoder.latents is not None else None,
        median=decoder.median,
        p99=decoder.p99,
        frames=decoder.frames,
    )


def _read(path: Path) -> tuple[dict[str, bytes], Manifest]:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            _check_listing(infos)
            manifest = Manifest.from_json(read_member(archive, archive.getinfo(MANIFEST)))
            wanted = manifest.files
            listed = {info.filename for info in infos} - {MANIFEST}
            if listed != set(wanted):
                raise BundleError(
                    f"members and manifest differ: {sorted(listed ^ set(wanted))}", fix=_DAMAGED
                )
            members = {}
            for info in infos:
                if info.filename == MANIFEST:
                    continue
                expected = wanted[info.filename]
                if info.file_size != expected.size:
                    raise BundleError(
                        f"{info.filename} has {info.file_size} bytes, the manifest says "
                        f"{expected.size}",
                        fix=_DAMAGED,
                    )
                data = read_member(archive, info)
                if hashlib.sha256(data).hexdigest() != expected.sha256:
                    raise BundleError(f"{info.filename} does not match its hash", fix=_DAMAGED)
                members[info.filename] = data
            return members, manifest
    except FileNotFoundError as error:
        raise BundleError("there is no such file", fix="Check the path.") from error
    except IsADirectoryError as error:
        raise BundleError("this is a folder, not a bundle", fix="Give an .aeseg file.") from error
    except zipfile.BadZipFile as error:
        raise BundleError(f"not a bundle, or cut short ({error})", fix=_DAMAGED) from error
    except OSError as error:
        # Damaged offsets give these two; all others are of the disk, the path or its rights.
        if error.errno in (None, errno.EINVAL):
            raise BundleError(f"the file is damaged ({error})", fix=_DAMAGED) from error
        raise BundleError(
            f"the file cannot be read ({error.strerror})",
            fix="See that it is there and may be read.",
        ) from error
    except (
        zlib.error,
        struct.error,
        EOFError,
        KeyError,
        ValueError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        # zipfile lets all of these out for one damaged byte or another.
        raise BundleError(f"the file is damaged ({error})", fix=_DAMAGED) from error


def _check_listing(infos: list[zipfile.ZipInfo]) -> None:
    names = [info.filename for info in infos]
    for name in names:
        validate_member_name(name)
    if len(set(names)) != len(names):
        raise BundleError("the bundle has two members of one name", fix=_DAMAGED)
    manifest = next((info for info in infos if info.filename == MANIFEST), None)
    if manifest is None:
        raise BundleError("the file has no manifest", fix="Give an .aeseg file.")
    if manifest.file_size > MAX_MANIFEST or sum(i.file_size for i in infos) > MAX_BUNDLE:
        raise BundleError(
            f"the bundle unpacks to more than {MAX_BUNDLE >> 20} MiB",
            fix="Do not use this file; get the bundle from its maker again.",
        )


def _codebook(manifest: Manifest, members: Mapping[str, bytes]) -> Codebook:
    arrays = {
        name: _load_npy(member, members[member]) for name, member in manifest.codebook.items()
    }
    missing = {"weights", "bias", "remap"} - set(arrays)
    if missing:
        raise BundleError(f"the codebook has no {', '.join(sorted(missing))}", fix=_DAMAGED)
    codebook = Codebook(
        weights=arrays["weights"],
        bias=arrays["bias"],
        remap=arrays["remap"],
        classes=manifest.classes,
        method=manifest.method,
        centres=arrays.get("centres"),
    )
    if (codebook.clusters, codebook.latent_dim) != (manifest.clusters, manifest.latent_dim):
        raise BundleError("codebook and manifest have different sizes", fix=_DAMAGED)
    codebook.columns(manifest.squares)
    return codebook


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def _load_npy(name: str, data: bytes) -> NDArray[Any]:
    """Read an .npy member: the header is checked against the size before memory is taken."""
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read_header(stream)
    except (ValueError, LookupError) as error:
        raise BundleError(f"{name} is not a numpy array ({error})", fix=_DAMAGED) from error
    body = data[stream.tell() :]
    # Plain numbers only, and no size of -1, which numpy would work out by itself.
    odd = dtype.kind not in "biuf" or fortran or min(shape, default=0) < 0
    if odd or math.prod(shape) * dtype.itemsize != len(body):
        raise BundleError(f"{name} has a header that does not fit its size", fix=_DAMAGED)
    return np.frombuffer(body, dtype).reshape(shape).copy()
