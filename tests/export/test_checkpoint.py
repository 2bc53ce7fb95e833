"""What a training leaves on disk is read back exactly, or refused with the reason."""

from __future__ import annotations

import json
import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

cv2 = pytest.importorskip("cv2")
torch = pytest.importorskip("torch")

from aeseg_edge.errors import TrainingError  # noqa: E402
from aeseg_edge.export import checkpoint  # noqa: E402
from aeseg_edge.export.checkpoint import State  # noqa: E402
from aeseg_edge.export.kept_frames import keep_frames, load_frames, load_sizes, save_frames  # noqa: E402
from aeseg_edge.export.network.autoencoder import Autoencoder, build_autoencoder  # noqa: E402
from aeseg_edge.export.network.config import AutoencoderConfig  # noqa: E402

META = {"geometry": {"width": 64, "height": 64}, "training": {"epochs": 3}}


@contextmanager
def disk_with_room_for(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes, as on a disk that is nearly full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def network(seed: int = 0, arch: str = "edge") -> Autoencoder:
    return build_autoencoder(AutoencoderConfig(arch, latent_dim=6), seed=seed)


def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "street.train"
    checkpoint.save_model(folder, network(), META)
    return folder


def pictures(channels: int, count: int = 5) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(0).integers(0, 256, (count, 4, 4, channels), dtype=np.uint8)
    grown = [cv2.resize(picture, (64, 48)).reshape(48, 64, channels) for picture in coarse]
    return np.stack(grown).astype(np.uint8)


# --- the model ------------------------------------------------------------------------------------


def test_a_model_comes_back_bit_for_bit_and_ready_to_use(tmp_path: Path) -> None:
    original = network()
    # Training keeps weights channels-last; the file must not depend on it.
    original.to(memory_format=torch.channels_last)
    with torch.no_grad():
        original.train()(torch.rand(2, 3, 64, 64))
    checkpoint.save_model(tmp_path / "new" / "street.train", original, META)
    loaded, meta = checkpoint.load_model(tmp_path / "new" / "street.train")
    assert meta == META
    assert loaded.config == original.config
    assert not loaded.training
    for name, tensor in original.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert loaded.state_dict()["trunk.stem.1.num_batches_tracked"] == 1


def damage_nothing_there(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def damage_no_model(folder: Path) -> None:
    (folder / "model.json").unlink()


def damage_no_weights(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()


def damage_cut_weights(folder: Path) -> None:
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def damage_flipped_weight(folder: Path) -> None:
    path = folder / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-500] ^= 1
    path.write_bytes(data)


def damage_cut_json(folder: Path) -> None:
    path = folder / "model.json"
    path.write_text(path.read_text()[:60])


def damage_list_json(folder: Path) -> None:
    (folder / "model.json").write_text("[]")


def change_json(folder: Path, **values: object) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def damage_newer(folder: Path) -> None:
    change_json(folder, schema=99)


def damage_config(folder: Path) -> None:
    change_json(folder, config={"arch": "huge"})


def damage_config_keys(folder: Path) -> None:
    change_json(folder, config={"layers": 3})


def damage_other_network(folder: Path) -> None:
    change_json(folder, config={"arch": "shallow", "latent_dim": 6, "channels": 3})


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (damage_nothing_there, "is not a folder"),
        (damage_no_model, "model.json cannot be read"),
        (damage_no_weights, "weights.safetensors cannot be read"),
        (damage_cut_weights, "weights.safetensors is not the file"),
        (damage_flipped_weight, "weights.safetensors is not the file"),
        (damage_cut_json, "model.json is cut off or damaged"),
        (damage_list_json, "model.json is not a JSON object"),
        (damage_newer, "schema 99, this version reads up to 1"),
        (damage_config, "model.json is damaged .*huge"),
        (damage_config_keys, "model.json is damaged .*layers"),
        (damage_other_network, "does not fit architecture shallow"),
    ],
)
def test_a_damaged_model_is_refused_by_name(tmp_path: Path, damage, says: str) -> None:
    folder = saved(tmp_path)
    damage(folder)
    with pytest.raises(TrainingError, match=says):
        checkpoint.load_model(folder)


def test_an_unfinished_training_says_how_to_finish_it(tmp_path: Path) -> None:
    checkpoint.save_state(tmp_path, State({"a": torch.ones(2)}, {}))
    with pytest.raises(TrainingError, match="is not finished"):
        checkpoint.load_model(tmp_path)


def test_a_full_disk_leaves_the_model_that_was_there(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with (
        disk_with_room_for(50_000),
        pytest.raises(TrainingError, match="cannot be written") as caught,
    ):
        checkpoint.save_model(folder, network(seed=1), META)
    assert "another disk" in caught.value.fix
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# --- the state ------------------------------------------------------------------------------------


def test_a_state_comes_back_with_its_record(tmp_path: Path) -> None:
    tensors = {"model.w": torch.arange(6.0).view(2, 3), "optimizer.0.step": torch.tensor(4.0)}
    record = {"identity": {"seed": 1}, "history": [{"train_loss": 0.1 + 0.2}]}
    checkpoint.save_state(tmp_path, State(tensors, record))
    loaded = checkpoint.load_state(tmp_path)
    assert loaded is not None
    assert loaded.record == record
    assert loaded.tensors.keys() == tensors.keys()
    assert all(torch.equal(loaded.tensors[name], tensors[name]) for name in tensors)


def test_a_folder_without_a_state_has_none(tmp_path: Path) -> None:
    assert checkpoint.load_state(tmp_path / "nowhere") is None


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_cut_state_is_refused(tmp_path: Path, keep: int) -> None:
    checkpoint.save_state(tmp_path, State({"a": torch.ones(50)}, {"history": []}))
    path = tmp_path / "state.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(TrainingError, match=r"state.safetensors is cut off or damaged"):
        checkpoint.load_state(tmp_path)


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    (tmp_path / "state.safetensors").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(TrainingError):
        checkpoint.load_state(tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_somebody_elses_safetensors_are_no_state(tmp_path: Path) -> None:
    (saved(tmp_path) / "weights.safetensors").rename(tmp_path / "state.safetensors")
    with pytest.raises(TrainingError, match="is not a training state"):
        checkpoint.load_state(tmp_path)


# --- frames ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "tolerance"), [(1, 0), (3, 1.2), (4, 0)])
def test_frames_come_back_in_order(tmp_path: Path, channels: int, tolerance: float) -> None:
    frames = pictures(channels, count=12)
    save_frames(tmp_path, frames)
    loaded = load_frames(tmp_path)
    assert loaded.shape == frames.shape
    assert loaded.dtype == np.uint8
    assert np.abs(loaded.astype(int) - frames).mean() <= tolerance


def test_the_sizes_that_frames_had_come_back_with_them(tmp_path: Path) -> None:
    sizes = np.arange(2, 802).reshape(400, 2)
    keep_frames(tmp_path, pictures(1, count=400), sizes=sizes, wanted=True)
    kept = load_sizes(tmp_path)
    assert kept is not None
    assert len(kept) == len(load_frames(tmp_path)) == 256
    np.testing.assert_array_equal(kept, sizes[np.linspace(0, 399, 256).round().astype(int)])
    # An older folder has none, and one that is damaged is not taken for it.
    save_frames(tmp_path, pictures(1))
    assert load_sizes(tmp_path) is None
    for damaged in ("", "[[48, 64]]", "[[48, 64, 3]]", '{"a": 1}', "[[0, 64]]", "[[1e400, 64]]"):
        save_frames(tmp_path, pictures(1, count=2 if damaged == "[[48, 64]]" else 1))
        (tmp_path / "frames" / "sizes.json").write_text(damaged)
        with pytest.raises(TrainingError, match=r"sizes\.json is damaged"):
            load_sizes(tmp_path)


def test_a_new_sample_of_frames_replaces_the_old(tmp_path: Path) -> None:
    save_frames(tmp_path, pictures(3, count=8))
    save_frames(tmp_path, pictures(1, count=2))
    assert load_frames(tmp_path).shape == (2, 48, 64, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["frames"]


def test_private_footage_leaves_no_frame_of_an_earlier_crash_either(tmp_path: Path) -> None:
    # What a crash between two renames leaves.
    for name in ("frames", "frames.old", "frames.new"):
        save_frames(tmp_path, pictures(3))
        (tmp_path / "frames").rename(tmp_path / f"{name}.kept")
    for name in ("frames", "frames.old", "frames.new"):
        (tmp_path / f"{name}.kept").rename(tmp_path / name)
    keep_frames(tmp_path, pictures(3), wanted=False)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_frames_that_were_there(tmp_path: Path) -> None:
    save_frames(tmp_path, pictures(3, count=3))
    noise = np.random.default_rng(0).integers(0, 256, (4, 48, 64, 3), dtype=np.uint8)
    with disk_with_room_for(2000), pytest.raises(TrainingError, match="frames cannot be written"):
        save_frames(tmp_path, noise)
    assert len(load_frames(tmp_path)) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["frames"]


def test_a_folder_without_frames_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="keeps no frames") as caught:
        load_frames(tmp_path)
    assert "SOURCE" in caught.value.fix


def test_a_damaged_frame_is_named(tmp_path: Path) -> None:
    save_frames(tmp_path, pictures(3))
    (tmp_path / "frames" / "000002.jpg").write_bytes(b"")
    with pytest.raises(TrainingError, match=r"000002.jpg is damaged"):
        load_frames(tmp_path)
