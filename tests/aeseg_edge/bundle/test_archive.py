"""A bundle is read whole and verified, or not at all."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import resource
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aeseg_edge.bundle import archive as bundle_module
from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.codebook import ClassInfo, Codebook
from aeseg_edge.bundle.geometry import fit_labels
from aeseg_edge.bundle.manifest import Manifest
from aeseg_edge.errors import BundleError, UsageError


def contents(bundle: Bundle) -> tuple[object, ...]:
    book = bundle.codebook
    arrays = [book.weights, book.bias, book.remap, book.centres]
    return (
        bundle.manifest,
        [None if a is None else (a.dtype, a.tobytes()) for a in arrays],
        bundle.graphs,
        bundle.preview,
        None if bundle.region is None else bundle.region.tobytes(),
    )


def rewrite(
    source: Path, target: Path, change: Callable[[str, bytes], tuple[str, bytes] | None]
) -> Path:
    """Copy a zip member by member, changing some."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            member = change(name, old.read(name))
            if member is not None:
                new.writestr(*member)
    return target


def with_manifest(source: Path, target: Path, **fields: object) -> Path:
    def change(name: str, data: bytes) -> tuple[str, bytes]:
        if name == "manifest.json":
            data = json.dumps({**json.loads(data), **fields}).encode()
        return name, data

    return rewrite(source, target, change)


def test_the_version_1_bundle_is_still_read(v1_bundle: Path) -> None:
    bundle = Bundle.open(v1_bundle)
    assert json.loads(zipfile.ZipFile(v1_bundle).read("manifest.json"))["schema_version"] == 1
    assert bundle.codebook.clusters == bundle.manifest.clusters == 5
    assert {e.key for e in bundle.manifest.entries} == {
        ("fp32", "onnxruntime"),
        ("fp32", "tensorrt"),
        ("fp16", "tensorrt"),
        ("int8", "onnxruntime"),
        ("int8", "tensorrt"),
    }


def test_writing_and_reading_gives_the_same_bundle(v1_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(v1_bundle)
    region = np.zeros((64, 96), np.uint8)
    region[32:] = 255
    full = Bundle.build(
        bundle.manifest, bundle.codebook, bundle.graphs, preview=b"\xff\xd8", region=region
    )
    full.write(tmp_path / "a.aeseg")
    again = Bundle.open(tmp_path / "a.aeseg")
    assert contents(again) == contents(full)
    again.write(tmp_path / "b.aeseg")
    assert (tmp_path / "a.aeseg").read_bytes() == (tmp_path / "b.aeseg").read_bytes()


def test_a_new_codebook_leaves_the_graphs_alone(v1_bundle: Path) -> None:
    bundle = Bundle.open(v1_bundle)
    names = (ClassInfo(0, "sky", (0, 0, 255)), ClassInfo(1, "rest", (9, 9, 9)))
    book = Codebook.from_centres(
        np.eye(7, 8, dtype=np.float32), remap=[0, 1, 1, 1, 1, 1, 255], classes=names
    )
    changed = bundle.with_codebook(book)
    assert changed.graphs == bundle.graphs
    assert changed.manifest.classes == names
    assert changed.manifest.clusters == 7


@pytest.mark.parametrize("keep", [0, 1, 100, 0.3, 0.9, 0.999])
def test_a_bundle_cut_short_is_refused(v1_bundle: Path, tmp_path: Path, keep: float) -> None:
    data = v1_bundle.read_bytes()
    size = int(keep * len(data)) if isinstance(keep, float) else keep
    cut = tmp_path / "cut.aeseg"
    cut.write_bytes(data[:size])
    with pytest.raises(BundleError, match=r"cut\.aeseg: not a bundle, or cut short"):
        Bundle.open(cut)


def test_a_flipped_byte_gives_an_error_or_the_same_content(v1_bundle: Path, tmp_path: Path) -> None:
    good = contents(Bundle.open(v1_bundle))
    data = bytearray(v1_bundle.read_bytes())
    generator = np.random.default_rng(0)
    # Headers and the directory lie at the ends, where most kinds of damage are told apart.
    ends = [*range(120), *range(len(data) - 700, len(data))]
    places = sorted({*ends, *generator.integers(0, len(data), 150).tolist()})
    target = tmp_path / "flipped.aeseg"
    refused = 0
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(generator.integers(8))
        target.write_bytes(damaged)
        try:
            found = contents(Bundle.open(target))
        except BundleError:
            refused += 1
        else:
            assert found == good, f"byte {place} changed the content unnoticed"
    assert refused > len(places) // 2


def test_a_member_that_does_not_match_its_hash_is_refused(v1_bundle: Path, tmp_path: Path) -> None:
    def change(name: str, data: bytes) -> tuple[str, bytes]:
        return name, data[:-1] + bytes([data[-1] ^ 1]) if name == "graphs/fp16.onnx" else data

    with pytest.raises(BundleError, match=r"graphs/fp16\.onnx does not match its hash"):
        Bundle.open(rewrite(v1_bundle, tmp_path / "x.aeseg", change))


def test_a_newer_schema_says_to_update(v1_bundle: Path, tmp_path: Path) -> None:
    newer = with_manifest(v1_bundle, tmp_path / "x.aeseg", schema_version=99)
    with pytest.raises(BundleError, match=r"schema version 99.*Update aeseg_edge"):
        Bundle.open(newer)


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a\\b", "c:evil", "a//b", "./a"])
def test_names_that_leave_the_folder_are_refused(
    v1_bundle: Path, tmp_path: Path, name: str
) -> None:
    target = rewrite(v1_bundle, tmp_path / "x.aeseg", lambda n, d: (n, d))
    with zipfile.ZipFile(target, "a") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"x")
    with pytest.raises(BundleError, match="unsafe name"):
        Bundle.open(target)
    assert list(tmp_path.iterdir()) == [target]


def test_a_zip_bomb_is_refused_before_it_is_unpacked(
    v1_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_module, "MAX_BUNDLE", 16 << 20)
    target = rewrite(v1_bundle, tmp_path / "x.aeseg", lambda n, d: (n, d))
    with zipfile.ZipFile(target, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bytes(32 << 20))
    assert target.stat().st_size < 1 << 20
    with pytest.raises(BundleError, match="more than 16 MiB"):
        Bundle.open(target)


def test_a_size_that_lies_does_not_let_a_bomb_through(tmp_path: Path) -> None:
    target = tmp_path / "x.aeseg"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", bytes(64 << 20))
    data = target.read_bytes()
    assert data.count(struct.pack("<I", 64 << 20)) == 2
    target.write_bytes(data.replace(struct.pack("<I", 64 << 20), struct.pack("<I", 1000)))
    tracemalloc.start()
    with pytest.raises(BundleError, match="cut short"):
        Bundle.open(target)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 4 << 20


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_members_whose_unpacking_has_no_bound_are_refused(
    v1_bundle: Path, tmp_path: Path, method: int
) -> None:
    target = tmp_path / "x.aeseg"
    with zipfile.ZipFile(v1_bundle) as old, zipfile.ZipFile(target, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(BundleError, match=rf"packed by method {method}: only stored and deflated"):
        Bundle.open(target)


@pytest.mark.parametrize(
    ("shape", "descr"),
    [
        ((1_000_000_000, 16), "<f4"),
        ((5, 15), "<f4"),
        ((-1, -80), "<f4"),
        ((-5, -16), "<f4"),
        ((5, 16), ("<f4",)),
        ((5, 8), ("<f4", (2,))),
    ],
)
def test_an_array_header_that_lies_is_refused(
    v1_bundle: Path, tmp_path: Path, shape: tuple[int, int], descr: object
) -> None:
    buffer = io.BytesIO()
    header: Any = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    manifest = json.loads(zipfile.ZipFile(v1_bundle).read("manifest.json"))
    lie = buffer.getvalue() + bytes(5 * 16 * 4)
    manifest["files"]["codebook/weights.npy"] = {
        "sha256": hashlib.sha256(lie).hexdigest(),
        "size": len(lie),
    }

    def change(name: str, data: bytes) -> tuple[str, bytes]:
        return {
            "manifest.json": (name, json.dumps(manifest).encode()),
            "codebook/weights.npy": (name, lie),
        }.get(name, (name, data))

    with pytest.raises(BundleError, match=r"header that does not fit|not a numpy array"):
        Bundle.open(rewrite(v1_bundle, tmp_path / "x.aeseg", change))


@pytest.mark.parametrize(("shape", "descr"), [((-1, 0), "<f4"), ((3,), "|V0")])
def test_an_empty_array_with_a_header_that_lies_is_refused(
    shape: tuple[int, ...], descr: str
) -> None:
    buffer = io.BytesIO()
    header: Any = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    with pytest.raises(BundleError, match="header that does not fit"):
        bundle_module._load_npy("weights", buffer.getvalue())


def test_objects_are_never_unpickled() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(BundleError, match="header that does not fit"):
        bundle_module._load_npy("weights", buffer.getvalue())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "other"}, "not one of a bundle"),
        ({"schema_version": "1"}, "schema version '1'"),
        ({"stride": 3}, "strides do not divide"),
        ({"entries": []}, "entries are missing"),
        ({"clusters": 6}, "different sizes"),
        ({"latent_dim": 0}, "not a count"),
        ({"classes": [{"id": 0, "name": "a", "color": [0, 0, 300]}]}, "not a colour"),
        ({"geometry": {"width": 96, "height": 64, "channels": 3, "resize": "x"}}, "resize mode"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(
    v1_bundle: Path, tmp_path: Path, fields: dict[str, object], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        Bundle.open(with_manifest(v1_bundle, tmp_path / "x.aeseg", **fields))


def test_what_is_no_bundle_says_so(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such file"):
        Bundle.open(tmp_path / "none.aeseg")
    with pytest.raises(BundleError, match="a folder"):
        Bundle.open(tmp_path)
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    with pytest.raises(BundleError, match="not a bundle"):
        Bundle.open(text)
    empty = tmp_path / "empty.zip"
    with zipfile.ZipFile(empty, "w") as archive:
        archive.writestr("a.txt", "x")
    with pytest.raises(BundleError, match="no manifest"):
        Bundle.open(empty)


def test_a_file_that_cannot_be_opened_is_not_called_damaged(
    v1_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = tmp_path / "loop.aeseg"
    loop.symlink_to(loop)
    with pytest.raises(BundleError, match=r"Too many levels of symbolic links") as caught:
        Bundle.open(loop)
    assert "damaged" not in str(caught.value)
    assert "may be read" in caught.value.fix

    def refuse(path: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(zipfile, "ZipFile", refuse)
    with pytest.raises(
        BundleError, match=r"v1\.aeseg: the file cannot be read \(Permission denied"
    ):
        Bundle.open(v1_bundle)


def test_an_entry_that_is_not_there_lists_those_that_are(v1_bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"no fp16 graph for onnxruntime.*int8 for tensorrt"):
        Bundle.open(v1_bundle).graph("fp16", "onnxruntime")


def test_building_with_a_missing_graph_is_refused(v1_bundle: Path) -> None:
    bundle = Bundle.open(v1_bundle)
    graphs = {k: v for k, v in bundle.graphs.items() if "fp16" not in k}
    with pytest.raises(BundleError, match=r"graphs/fp16\.onnx is named but not listed"):
        Bundle.build(bundle.manifest, bundle.codebook, graphs)


def test_a_codebook_for_other_graphs_is_refused_before_it_is_written(v1_bundle: Path) -> None:
    bundle = Bundle.open(v1_bundle)
    book = bundle.codebook
    fewer = replace(book, weights=np.ascontiguousarray(book.weights[:, 2:]), centres=None)
    with pytest.raises(BundleError, match=r"is for 7 latent channels, and the graphs give 8\."):
        bundle.with_codebook(fewer)


def test_a_full_disk_leaves_the_old_file_and_no_half_one(v1_bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "street.aeseg"
    target.write_bytes(b"old")
    script = (
        "import sys; from aeseg_edge.bundle.archive import Bundle\n"
        "from aeseg_edge.errors import BundleError\n"
        "bundle = Bundle.open(sys.argv[1])\n"
        "try: bundle.write(sys.argv[2])\n"
        "except BundleError as error: print(error); sys.exit(7)\n"
    )

    def limit() -> None:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    done = subprocess.run(
        [sys.executable, "-c", script, str(v1_bundle), str(target)],
        preexec_fn=limit, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 7, done.stderr
    assert "cannot be written" in done.stdout
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_manifest_survives_json(v1_bundle: Path) -> None:
    manifest = Bundle.open(v1_bundle).manifest
    assert Manifest.from_json(manifest.to_json()) == manifest
    with pytest.raises(BundleError, match="repeated"):
        Manifest.from_json(replace(manifest, entries=manifest.entries * 2).to_json())


def test_a_bundle_runs_at_another_size_and_keeps_its_own_on_disk(v1_bundle: Path) -> None:
    bundle = Bundle.open(v1_bundle)
    own, multiple = bundle.manifest.geometry, bundle.manifest.multiple
    larger = bundle.with_size(own.width + multiple, own.height + 2 * multiple)
    size = larger.manifest.geometry
    assert (size.width, size.height) == (own.width + multiple, own.height + 2 * multiple)
    assert larger.graphs == bundle.graphs
    assert Bundle.open(v1_bundle).manifest.geometry == own


def test_a_region_of_interest_is_resized_with_its_bundle(v1_bundle: Path) -> None:
    pytest.importorskip("cv2")
    bundle = Bundle.open(v1_bundle)
    own = bundle.manifest.geometry
    region = np.zeros((own.height, own.width), np.uint8)
    region[: own.height // 2] = 255
    bounded = Bundle.build(bundle.manifest, bundle.codebook, bundle.graphs, region=region)
    resized = bounded.with_size(2 * own.width, 2 * own.height).region
    assert resized is not None
    assert resized.shape == (2 * own.height, 2 * own.width)
    assert (resized[: own.height] == 255).all()
    assert not resized[own.height :].any()


def test_a_letterboxed_region_goes_with_sizes_of_its_own_aspect_alone(v1_bundle: Path) -> None:
    pytest.importorskip("cv2")
    bundle = Bundle.open(v1_bundle)
    boxed = replace(bundle.manifest.geometry, resize="letterbox")
    top, left, rows, columns = boxed.box(90, 160)
    region = np.zeros((boxed.height, boxed.width), np.uint8)
    region[top : top + rows, left : left + columns // 2] = 255
    bounded = Bundle.build(
        replace(bundle.manifest, geometry=boxed), bundle.codebook, bundle.graphs, region=region
    )
    twice = bounded.with_size(2 * boxed.width, 2 * boxed.height)
    assert twice.region is not None
    inside = fit_labels(twice.region, twice.manifest.geometry, 90, 160) > 127
    assert inside[:, :78].all()
    assert not inside[:, 82:].any()
    # The bars would lie elsewhere, and nothing says how large the frames are.
    with pytest.raises(UsageError, match=r"112x64 has another aspect than 96x64.*letterbox"):
        bounded.with_size(112, 64)


@pytest.mark.parametrize(
    ("resize", "bounded"), [("stretch", True), ("stretch", False), ("letterbox", False)]
)
def test_other_bundles_run_at_any_aspect(v1_bundle: Path, resize: str, bounded: bool) -> None:
    pytest.importorskip("cv2")
    bundle = Bundle.open(v1_bundle)
    geometry = replace(bundle.manifest.geometry, resize=resize)
    region = np.full((geometry.height, geometry.width), 255, np.uint8) if bounded else None
    manifest = replace(bundle.manifest, geometry=geometry)
    made = Bundle.build(manifest, bundle.codebook, bundle.graphs, region=region)
    assert made.with_size(112, 64).manifest.geometry.width == 112


@pytest.mark.parametrize("size", [(0, 64), (33, 64), (64, -32)])
def test_a_size_that_does_not_fit_the_encoder_is_refused(
    v1_bundle: Path, size: tuple[int, int]
) -> None:
    with pytest.raises(UsageError, match="does not fit this encoder"):
        Bundle.open(v1_bundle).with_size(*size)
