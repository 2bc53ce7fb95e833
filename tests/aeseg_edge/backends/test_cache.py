"""The engine cache keeps what it was given, or says clearly why it has nothing."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import multiprocessing
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from aeseg_edge.backends import cache as engines
from aeseg_edge.backends.cache import EngineCache, EngineKey, default_cache_dir, padded_clusters
from aeseg_edge.errors import EngineError, EngineNotBuilt, UsageError
from aeseg_edge.support.files import temporary_beside

KEY = EngineKey(
    onnx_sha256="ab" * 32,
    precision="fp16",
    height=360,
    width=480,
    clusters=32,
    tensorrt="10.16.2.3",
    gpu="Orin",
    compute_capability="8.7",
    multiprocessors=8,
    options="optimization=3 workspace=512",
)
PLAN = bytes(range(256)) * 8


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines")


@pytest.fixture
def stored(cache: EngineCache) -> EngineCache:
    with cache.locked(KEY):
        cache.store(KEY, PLAN)
    return cache


def rewrite_sidecar(cache: EngineCache, changes: dict[str, object]) -> None:
    path = cache.path(KEY).with_suffix(".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def leftovers(cache: EngineCache) -> list[str]:
    return sorted(path.name for path in cache.folder.iterdir() if path.name.startswith("."))


# What a key is ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clusters", "built_for"),
    [(1, 32), (27, 32), (32, 32), (33, 64), (64, 64), (65, 128), (256, 256)],
)
def test_an_engine_is_built_for_the_next_power_of_two_of_clusters(
    clusters: int, built_for: int
) -> None:
    assert padded_clusters(clusters) == built_for


def test_a_codebook_without_clusters_is_refused() -> None:
    with pytest.raises(UsageError, match="0 clusters"):
        padded_clusters(0)


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(EngineKey)])
def test_every_part_of_the_key_gives_another_file_and_is_named_in_the_difference(
    field: str, cache: EngineCache
) -> None:
    value = getattr(KEY, field)
    other = dataclasses.replace(KEY, **{field: value + 1 if isinstance(value, int) else "9.9"})
    assert cache.path(other) != cache.path(KEY)
    assert KEY.difference(other).startswith("made for ")
    assert KEY.difference(KEY) == ""


def test_a_key_survives_being_written_and_read() -> None:
    assert EngineKey.from_json(json.loads(json.dumps(dataclasses.asdict(KEY)))) == KEY


@pytest.mark.parametrize(
    "damage",
    [
        lambda key: key.pop("gpu"),
        lambda key: key.update(extra=1),
        lambda key: key.update(height="360"),
        lambda key: key.update(height=True),
        lambda key: key.update(gpu=None),
    ],
)
def test_a_key_with_a_field_missing_unknown_or_of_another_type_is_refused(damage: object) -> None:
    value = dataclasses.asdict(KEY)
    damage(value)  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"fields|type"):
        EngineKey.from_json(value)


# Where the folder is ---------------------------------------------------------------------------


def test_engines_live_in_the_xdg_cache_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "aeseg_edge"


@pytest.mark.parametrize("value", ["", "relative/folder"])
def test_a_relative_or_empty_xdg_cache_folder_is_ignored_as_the_specification_says(
    value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "aeseg_edge"


def test_without_a_home_folder_the_error_names_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(EngineError, match="--cache-dir"):
        default_cache_dir()


def test_a_cache_touches_no_folder_before_something_is_stored(cache: EngineCache) -> None:
    with pytest.raises(EngineNotBuilt):
        cache.load(KEY)
    assert not cache.folder.exists()


# Storing and loading ---------------------------------------------------------------------------


def test_a_stored_plan_comes_back_byte_for_byte_and_is_raw_on_disk(stored: EngineCache) -> None:
    assert stored.load(KEY) == PLAN
    assert stored.path(KEY).read_bytes() == PLAN
    assert leftovers(stored) == []


def test_storing_again_replaces_the_engine(stored: EngineCache) -> None:
    with stored.locked(KEY):
        stored.store(KEY, b"newer")
    assert stored.load(KEY) == b"newer"


def test_a_discarded_engine_is_gone(stored: EngineCache) -> None:
    with stored.locked(KEY):
        stored.discard(KEY)
        stored.discard(KEY)
    with pytest.raises(EngineNotBuilt):
        stored.load(KEY)


def test_an_empty_plan_is_never_stored(cache: EngineCache) -> None:
    with cache.locked(KEY), pytest.raises(EngineError, match="empty"):
        cache.store(KEY, b"")
    with pytest.raises(EngineNotBuilt):
        cache.load(KEY)


def test_a_missing_engine_gives_the_command_to_type(cache: EngineCache) -> None:
    with pytest.raises(EngineNotBuilt, match=r"aeseg build street\.aeseg --precision fp16"):
        cache.load(KEY, command="aeseg build street.aeseg --precision fp16")


def test_an_engine_of_another_version_is_named_with_both_versions_and_architectures(
    cache: EngineCache,
) -> None:
    older = dataclasses.replace(KEY, tensorrt="10.3.0", multiprocessors=16)
    with cache.locked(older):
        cache.store(older, PLAN)
    with pytest.raises(EngineNotBuilt) as caught:
        cache.load(KEY)
    assert (
        "made for TensorRT 10.3.0 and sm_87 and 16 multiprocessors, "
        "this is TensorRT 10.16.2.3 and sm_87 and 8 multiprocessors" in caught.value.problem
    )
    assert cache.load(older) == PLAN


def test_kernel_timings_are_shared_by_models_and_not_by_devices(cache: EngineCache) -> None:
    other_model = dataclasses.replace(KEY, onnx_sha256="cd" * 32)
    other_gpu = dataclasses.replace(KEY, gpu="NVIDIA H100 / 80GB")
    assert cache.timings(KEY) == b""
    with cache.locked(KEY):
        cache.store_timings(KEY, b"timings")
        cache.store_timings(other_gpu, b"others")
    assert cache.timings(other_model) == b"timings"
    assert cache.timings(other_gpu) == b"others"


def test_what_was_noted_at_build_time_can_be_read_back(cache: EngineCache) -> None:
    assert cache.notes(KEY) == {}
    with cache.locked(KEY):
        cache.store(KEY, PLAN, notes={"kernels": 29})
    assert cache.notes(KEY) == {"kernels": 29}
    rewrite_sidecar(cache, {"notes": ["not", "notes"]})
    assert cache.notes(KEY) == {}


# Damaged files ---------------------------------------------------------------------------------


def test_a_truncated_plan_is_refused_with_both_sizes(stored: EngineCache) -> None:
    stored.path(KEY).write_bytes(PLAN[:100])
    with pytest.raises(EngineNotBuilt, match="100 bytes where its sidecar says 2048"):
        stored.load(KEY)


def test_a_plan_with_one_flipped_bit_is_refused(stored: EngineCache) -> None:
    stored.path(KEY).write_bytes(PLAN[:-1] + bytes([PLAN[-1] ^ 1]))
    with pytest.raises(EngineNotBuilt, match="SHA-256 differs"):
        stored.load(KEY)


def test_the_plan_and_sidecar_of_another_model_under_this_name_are_refused(
    stored: EngineCache,
) -> None:
    other = dataclasses.replace(KEY, onnx_sha256="cd" * 32)
    with stored.locked(other):
        stored.store(other, b"another model")
    for suffix in (".plan", ".json"):
        os.replace(stored.path(other).with_suffix(suffix), stored.path(KEY).with_suffix(suffix))
    with pytest.raises(EngineNotBuilt, match="made for graph cdcdcdcdcdcd, this is graph abab"):
        stored.load(KEY)


def test_only_the_plan_of_another_model_under_this_name_is_refused(stored: EngineCache) -> None:
    stored.path(KEY).write_bytes(PLAN[::-1])
    with pytest.raises(EngineNotBuilt, match="SHA-256 differs"):
        stored.load(KEY)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": hashlib.sha256(b"other").hexdigest()}, "SHA-256 differs"),
        ({"size": 7}, "2048 bytes where its sidecar says 7"),
        ({"size": "2048"}, "size or sha256 is missing"),
        ({"sha256": None}, "size or sha256 is missing"),
        ({"key": {}}, "fields are not those"),
        ({"key": [1]}, "not an object"),
        (
            {"key": dataclasses.asdict(KEY) | {"tensorrt": "10.3.0"}},
            "made for TensorRT 10.3.0 and sm_87, this is TensorRT 10.16.2.3 and sm_87",
        ),
    ],
)
def test_a_sidecar_that_lies_is_caught(
    changes: dict[str, object], message: str, stored: EngineCache
) -> None:
    rewrite_sidecar(stored, changes)
    with pytest.raises(EngineNotBuilt, match=message):
        stored.load(KEY)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[1]", "not an object"),
        (b"[" * 100_000, "not JSON"),
        (b" " * (1 << 21), "larger than"),
    ],
    ids=["empty", "cut", "bytes", "list", "nested", "huge"],
)
def test_a_sidecar_that_is_no_sidecar_is_named(
    content: bytes, message: str, stored: EngineCache
) -> None:
    stored.path(KEY).with_suffix(".json").write_bytes(content)
    with pytest.raises(EngineNotBuilt, match=message):
        stored.load(KEY)


def test_a_plan_that_lost_its_sidecar_does_not_count_as_built(stored: EngineCache) -> None:
    stored.path(KEY).with_suffix(".json").unlink()
    with pytest.raises(EngineNotBuilt, match="built yet"):
        stored.load(KEY)


def test_a_power_cut_between_plan_and_sidecar_leaves_no_usable_lie(
    stored: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = engines._write

    def power_cut(path: Path, content: bytes) -> None:
        if path.suffix == ".json":
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(engines, "_write", power_cut)
    with stored.locked(KEY), pytest.raises(KeyboardInterrupt):
        stored.store(KEY, PLAN[::-1])
    with pytest.raises(EngineNotBuilt, match="SHA-256 differs"):
        stored.load(KEY)


# Folders that cannot be written ----------------------------------------------------------------


def refuse_with(number: int) -> object:
    def refuse(*_args: object, **_options: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize(
    ("holder", "function", "number", "message"),
    [
        (os, "open", errno.EROFS, "Read-only file system"),
        (os, "open", errno.EACCES, "Permission denied"),
        (os, "fsync", errno.ENOSPC, "No space left on device"),
        (Path, "replace", errno.EDQUOT, "quota exceeded"),
    ],
)
def test_a_folder_that_cannot_be_written_gives_one_error_and_keeps_the_old_engine(
    holder: object,
    function: str,
    number: int,
    message: str,
    stored: EngineCache,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with stored.locked(KEY), monkeypatch.context() as patch:
        patch.setattr(holder, function, refuse_with(number))
        with pytest.raises(EngineError, match=message) as caught:
            stored.store(KEY, b"newer")
    assert "--cache-dir" in caught.value.fix
    assert stored.load(KEY) == PLAN
    assert leftovers(stored) == []


def test_a_full_disk_leaves_the_old_engine_and_no_half_file(stored: EngineCache) -> None:
    """A real write that fails half-way: the process may write no file beyond 64 kB."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with stored.locked(KEY):
            resource.setrlimit(resource.RLIMIT_FSIZE, (65536, limits[1]))
            with pytest.raises(EngineError, match="File too large"):
                stored.store(KEY, bytes(1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert stored.load(KEY) == PLAN
    assert leftovers(stored) == []


def test_a_cache_path_that_is_a_file_gives_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = EngineCache(tmp_path / "file" / "engines")
    with pytest.raises(EngineError, match="Not a directory"), cache.locked(KEY):
        pytest.fail("a lock was given in a folder that cannot exist")


def test_a_read_only_folder_refuses_the_lock_before_any_building(
    cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.folder.mkdir()
    monkeypatch.setattr(os, "open", refuse_with(errno.EROFS))
    with pytest.raises(EngineError, match=r"cannot lock .*Read-only"), cache.locked(KEY):
        pytest.fail("a lock was given in a read-only folder")


def test_an_unreadable_plan_is_an_error_and_not_a_missing_engine(
    stored: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_bytes", refuse_with(errno.EIO))
    with pytest.raises(EngineError, match="Input/output error") as caught:
        stored.load(KEY)
    assert not isinstance(caught.value, EngineNotBuilt)


# Two processes ---------------------------------------------------------------------------------


def _store_repeatedly(folder: Path, letter: bytes, rounds: int) -> None:
    cache = EngineCache(folder)
    for _ in range(rounds):
        with cache.locked(KEY):
            # Whatever is stored now must be whole, whoever stored it.
            assert len(set(cache.load(KEY))) == 1
            cache.store(KEY, letter * 50_000)


def test_two_processes_that_store_at_once_never_leave_a_mixed_engine(cache: EngineCache) -> None:
    with cache.locked(KEY):
        cache.store(KEY, b"a" * 50_000)
    context = multiprocessing.get_context("fork")
    writers = [
        context.Process(target=_store_repeatedly, args=(cache.folder, letter, 20))
        for letter in (b"x", b"y")
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(30)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert cache.load(KEY) in (b"x" * 50_000, b"y" * 50_000)


@pytest.fixture
def builder_elsewhere(cache: EngineCache) -> Iterator[multiprocessing.process.BaseProcess]:
    """Another process that holds the lock until it is killed."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()

    def hold() -> None:
        with cache.locked(KEY):
            ready.set()
            signal.pause()

    process = context.Process(target=hold)
    process.start()
    assert ready.wait(30)
    yield process
    process.kill()
    process.join()


def test_a_second_builder_waits_and_goes_on_when_the_first_is_killed(
    cache: EngineCache, builder_elsewhere: multiprocessing.process.BaseProcess
) -> None:
    told: list[bool] = []

    def waiting() -> None:
        told.append(True)
        builder_elsewhere.kill()

    with cache.locked(KEY, waiting=waiting):
        cache.store(KEY, PLAN)
    assert told == [True]
    assert cache.load(KEY) == PLAN


def test_what_a_killed_writer_left_is_removed_by_the_next_one(stored: EngineCache) -> None:
    for suffix in (".plan", ".json"):
        temporary_beside(stored.path(KEY).with_suffix(suffix)).write_bytes(PLAN[:9])
    other = dataclasses.replace(KEY, precision="int8")
    at_work = temporary_beside(stored.path(other))
    with stored.locked(KEY):
        assert leftovers(stored) == [at_work.name]
    assert stored.load(KEY) == PLAN
