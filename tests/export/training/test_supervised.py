"""Training with labels: what is learned, from what, what is refused, and the bundle of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from aeseg_edge.bundle.archive import Bundle  # noqa: E402
from aeseg_edge.bundle.codebook import VOID  # noqa: E402
from aeseg_edge.bundle.geometry import Geometry  # noqa: E402
from aeseg_edge.cli import main  # noqa: E402
from aeseg_edge.errors import EvaluationError, FootageError, UsageError  # noqa: E402
from aeseg_edge.export import checkpoint  # noqa: E402
from aeseg_edge.export.network.autoencoder import add_class_head, build_autoencoder  # noqa: E402
from aeseg_edge.export.network.config import AutoencoderConfig  # noqa: E402
from aeseg_edge.export.network.windows import Windows  # noqa: E402
from aeseg_edge.export.training.loop import train  # noqa: E402
from aeseg_edge.export.training.losses import Batch, LabelledObjective  # noqa: E402
from aeseg_edge.export.training.settings import TrainSettings  # noqa: E402
from aeseg_edge.export.training.supervised import (  # noqa: E402
    CrossEntropy,
    LabelledFootage,
    freeze_encoder,
    gather_labelled,
    head_codebook,
    loss_weights,
)
from aeseg_edge.segment.segmenter import Segmenter  # noqa: E402

pytestmark = pytest.mark.host

NAMES = ("ground", "bright", "stripes")
IGNORED = 7
GEOMETRY = Geometry(48, 48)


def write_scenes(folder: Path, count: int = 12, *, seed: int = 0) -> tuple[Path, Path]:
    """Dark ground with a bright and a striped rectangle, and masks that tell them apart.

    Bright and striped have the same mean, so colour alone does not tell all.
    """
    random = np.random.default_rng(seed)
    images, masks = folder / "images", folder / "masks"
    images.mkdir(parents=True)
    masks.mkdir()
    for index in range(count):
        picture = random.normal(60, 5, (48, 48, 3))
        mask = np.zeros((48, 48), np.uint8)
        for label, left in ((1, 0), (2, 24)):
            top, height = random.integers(0, 20), random.integers(20, 28)
            inside = np.s_[top : top + height, left + 2 : left + 22]
            texture = 150 if label == 1 else np.where(np.arange(20) // 2 % 2, 240, 60)[:, None]
            picture[inside] = texture + random.normal(0, 5, picture[inside].shape)
            mask[inside] = label
        mask[:2] = IGNORED
        cv2.imwrite(str(images / f"{index:02d}.png"), picture.clip(0, 255).astype(np.uint8))
        cv2.imwrite(str(masks / f"{index:02d}.png"), mask)
    return images, masks


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def labelled(scenes: tuple[Path, Path]) -> LabelledFootage:
    return gather_labelled(*scenes, NAMES, ignore=IGNORED, geometry=GEOMETRY, holdout=0.25)


def network(seed: int = 0) -> Any:
    plain = build_autoencoder(AutoencoderConfig("shallow", latent_dim=16), seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return add_class_head(plain, len(NAMES), 16)


SETTINGS = TrainSettings(
    optimizer="adamw",
    learning_rate=1e-2,
    batch=3,
    epochs=12,
    crop=(32, 32),
    threads=1,
    arithmetic="float32",
)


def learned(labelled: LabelledFootage, folder: Path, *, tune: str = "all") -> list[float]:
    """Train for a second or two; give the validation mIoU of each epoch."""
    net = network()
    if tune == "head":
        freeze_encoder(net)
    objective = CrossEntropy(labelled, weighting="none", tune=tune)
    # A frozen, random encoder takes the head a little longer.
    settings = replace(SETTINGS, epochs=30) if tune == "head" else SETTINGS
    result = train(net, labelled.footage, settings, folder, objective=objective)
    return [record.validation_miou for record in result.history]


@pytest.mark.parametrize("tune", ["all", "head"])
def test_textures_are_learned_from_masks(
    labelled: LabelledFootage, tmp_path: Path, tune: str
) -> None:
    history = learned(labelled, tmp_path, tune=tune)
    assert history[-1] > 0.8
    told = json.loads((tmp_path / "history.json").read_text())
    assert [record["validation_miou"] for record in told] == history


def test_nothing_is_learned_from_shuffled_masks(labelled: LabelledFootage, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    # The same amounts of each class, elsewhere: only the place of labels is destroyed.
    shuffled = labelled.masks.copy()
    for mask in shuffled:
        flat = mask.reshape(-1)
        flat[:] = random.permutation(flat)
    lies = LabelledFootage(labelled.footage, shuffled, labelled.held_out_masks, NAMES)
    assert learned(lies, tmp_path)[-1] < 0.5


def test_tuning_the_head_leaves_the_encoder_as_it_was(
    labelled: LabelledFootage, tmp_path: Path
) -> None:
    net = network()
    # The statistics of normalisation in a frozen trunk must stay too.
    net.trunk.append(torch.nn.BatchNorm2d(64))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    freeze_encoder(net)
    objective = CrossEntropy(labelled, weighting="none", tune="head")
    train(net, labelled.footage, SETTINGS, tmp_path, objective=objective)
    changed = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert all(k.startswith(("project.1", "project.2", "decoder")) for k in changed)


def test_masks_are_cut_and_mirrored_as_their_images_are(labelled: LabelledFootage) -> None:
    ids = np.arange(48 * 48).reshape(48, 48) % 3
    masks = np.stack([ids, ids[::-1]]).astype(np.uint8)
    objective = CrossEntropy(
        LabelledFootage(labelled.footage, masks, masks, NAMES), weighting="none", tune="all"
    )
    boxes = torch.tensor([[0.25, 0.5, 0.5, 0.5], [0.0, 0.0, 0.5, 0.5]])
    windows = Windows(boxes, torch.tensor([True, False]))
    images = torch.zeros((2, 3, 24, 24))
    truth = objective._truth(Batch(images, images, torch.tensor([1, 0]), windows))
    np.testing.assert_array_equal(truth[0], masks[1, 12:36, 24:48][:, ::-1])
    np.testing.assert_array_equal(truth[1], masks[0, :24, :24])


def test_ignored_pixels_have_no_part_in_the_loss(labelled: LabelledFootage) -> None:
    images = torch.rand((1, 3, 48, 48), generator=torch.Generator().manual_seed(0))
    net = network().eval()
    losses = []
    for filled in (0, VOID):
        masks = np.full((1, 48, 48), filled, np.uint8)
        masks[:, :24] = 1
        part = LabelledFootage(labelled.footage, masks, masks, NAMES)
        objective = CrossEntropy(part, weighting="none", tune="all")
        loss = objective(net, Batch(images, images, torch.tensor([0]), None))
        losses.append(float(loss.detach()))
    scores = torch.nn.functional.interpolate(
        net.logits(net.encode(images)), (48, 48), mode="bilinear"
    )[:, :, :24]
    expected = -torch.log_softmax(scores, 1)[:, 1].mean()
    assert losses[1] == pytest.approx(float(expected.detach()), rel=1e-4)
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def test_a_batch_without_any_label_has_a_loss_of_nought(labelled: LabelledFootage) -> None:
    masks = np.stack([np.full((48, 48), VOID, np.uint8), np.zeros((48, 48), np.uint8)])
    part = LabelledFootage(labelled.footage, masks, masks, NAMES)
    objective = CrossEntropy(part, weighting="none", tune="all")
    images = torch.zeros((1, 3, 48, 48))
    assert float(objective(network(), Batch(images, images, torch.tensor([0]), None))) == 0


def test_class_weights_are_one_on_average_and_larger_for_rare_classes() -> None:
    pixels = np.array([900, 100, 0])
    for kind, ratio in (
        ("none", 1.0),
        ("power", 9**0.3),
        ("log", np.log(1.02 + 0.9) / np.log(1.02 + 0.1)),
    ):
        weights = loss_weights(pixels, kind)
        assert weights[1] / weights[0] == pytest.approx(ratio, rel=1e-5)
        assert (weights * pixels).sum() / 1000 == pytest.approx(1, rel=1e-5)
        assert weights[2] == 0
    with pytest.raises(UsageError, match="unknown"):
        loss_weights(pixels, "cube")


def test_a_resumed_training_equals_one_without_interruption(
    labelled: LabelledFootage, tmp_path: Path
) -> None:
    class Stop(Exception):
        pass

    def stop(at: Any) -> None:
        if at.record is not None and at.epoch == 2:
            raise Stop

    weights = []
    for name, interrupted in (("whole", False), ("parts", True)):
        objective = CrossEntropy(labelled, weighting="power", tune="all")
        settings = replace(SETTINGS, epochs=4)
        net = network()
        if interrupted:
            with pytest.raises(Stop):
                train(
                    net,
                    labelled.footage,
                    settings,
                    tmp_path / name,
                    objective=objective,
                    progress=stop,
                )
            net = network(seed=5)
        result = train(net, labelled.footage, settings, tmp_path / name, objective=objective)
        weights.append(net.state_dict())
        assert result.resumed_from == (2 if interrupted else 0)
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_other_masks_are_another_training(labelled: LabelledFootage, tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=1)
    objective = CrossEntropy(labelled, weighting="none", tune="all")
    assert isinstance(objective, LabelledObjective)
    train(network(), labelled.footage, settings, tmp_path, objective=objective)
    other = LabelledFootage(labelled.footage, labelled.masks[::-1], labelled.held_out_masks, NAMES)
    again = CrossEntropy(other, weighting="none", tune="all")
    with pytest.raises(Exception, match="labels"):
        train(network(), labelled.footage, settings, tmp_path, objective=again)


def test_the_heads_last_layer_is_the_codebook() -> None:
    net = network().eval()
    codebook = head_codebook(net, NAMES)
    latents = torch.rand((1, 16, 5, 6), generator=torch.Generator().manual_seed(0))
    scores = net.logits(latents)[0].permute(1, 2, 0).detach().numpy()
    found = codebook.scores(latents[0].permute(1, 2, 0).numpy())
    np.testing.assert_allclose(found, scores, atol=1e-5)
    assert (codebook.method, [c.name for c in codebook.classes]) == ("supervised", list(NAMES))


def test_a_checkpoint_with_a_head_is_read_back(tmp_path: Path) -> None:
    net = network().eval()
    checkpoint.save_model(tmp_path, net, {})
    read, _ = checkpoint.load_model(tmp_path)
    assert read.config == net.config
    images = torch.rand((1, 3, 48, 48), generator=torch.Generator().manual_seed(0))
    assert torch.equal(read.logits(read.encode(images)), net.logits(net.encode(images)))


def test_frames_and_masks_keep_one_order_and_every_frame_is_kept(
    scenes: tuple[Path, Path], tmp_path: Path
) -> None:
    images, masks = (shutil.copytree(path, tmp_path / path.name) for path in scenes)
    for index in range(4):  # near-duplicates, which footage without labels would drop
        shutil.copy(images / "00.png", images / f"z{index}.png")
        shutil.copy(masks / "00.png", masks / f"z{index}.png")
    found = gather_labelled(images, masks, NAMES, ignore=IGNORED, geometry=GEOMETRY, holdout=0.25)
    assert (len(found.masks), len(found.held_out_masks)) == (12, 4)
    assert found.footage.sizes is not None
    assert found.footage.sizes.tolist() == [[48, 48]] * 16
    frames = np.concatenate([found.footage.frames, found.footage.held_out])
    truth = np.concatenate([found.masks, found.held_out_masks])
    for frame, mask in zip(frames, truth, strict=True):
        assert (mask[:2] == VOID).all()
        assert frame[mask == 0].mean() < 70  # the ground is dark
        assert frame[mask == 1].mean() > 140


def faulty_size(images: Path, masks: Path) -> None:
    cv2.imwrite(str(masks / "03.png"), np.zeros((40, 48), np.uint8))


def faulty_value(images: Path, masks: Path) -> None:
    cv2.imwrite(str(masks / "03.png"), np.full((48, 48), 5, np.uint8))


def faulty_partner(images: Path, masks: Path) -> None:
    (masks / "03.png").unlink()


def faulty_all_ignored(images: Path, masks: Path) -> None:
    for path in masks.iterdir():
        cv2.imwrite(str(path), np.full((48, 48), IGNORED, np.uint8))


def faulty_too_few(images: Path, masks: Path) -> None:
    for folder in (images, masks):
        for path in sorted(folder.iterdir())[1:]:
            path.unlink()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (faulty_size, "03.png is 48x40|48x48, its mask"),
        (faulty_value, "03.png holds the value 5"),
        (faulty_partner, "03.png: no mask of the same name"),
        (faulty_all_ignored, "every pixel"),
        (faulty_too_few, "2 or more"),
    ],
)
def test_a_faulty_data_set_is_one_clear_error_before_training(
    spoil: Any, says: str, scenes: tuple[Path, Path], tmp_path: Path
) -> None:
    images, masks = (shutil.copytree(path, tmp_path / path.name) for path in scenes)
    spoil(images, masks)
    with pytest.raises((EvaluationError, FootageError), match=says):
        gather_labelled(images, masks, NAMES, ignore=IGNORED, geometry=GEOMETRY)


@pytest.mark.slow
def test_the_command_line_trains_exports_and_tunes_from_a_label_free_checkpoint(
    scenes: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, masks = map(str, scenes)
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    plain, head = tmp_path / "plain.aeseg", tmp_path / "head.aeseg"
    common = ["--epochs", "1", "--batch", "3", "--threads", "1"]
    network_is = ["--arch", "shallow", "--imgsz", "48x48", "--latent-dim", "8"]
    assert main(["train", images, "-o", str(plain), *network_is, "--clusters", "3", *common]) == 0
    labels = ["--masks", masks, "--classes", str(tmp_path / "classes.txt"), "--ignore", "7"]
    start = ["--from", str(tmp_path / "plain.train"), "--tune", "head", "--class-weights", "log"]
    length = ["--epochs", "30", "--lr", "0.02", "--batch", "4", "--threads", "1"]
    assert main(["train", images, "-o", str(head), *labels, *start, *length]) == 0
    assert "trained with labels" in capsys.readouterr().out
    bundle = Bundle.open(head)
    assert bundle.manifest.method == "supervised"
    assert [item.name for item in bundle.codebook.classes] == list(NAMES)
    told = bundle.manifest.training["labels"]
    assert (told["tune"], told["class_weights"]) == ("head", "log")
    assert bundle.manifest.provenance["weights"].endswith("starting from plain.train")
    assert bundle.manifest.training["validation_miou"] > 0.6
    for entry in bundle.manifest.entries:
        assert entry.agreement is None or entry.agreement["labels_equal"] > 0.9
    frame = cv2.imread(str(scenes[0] / "05.png"))
    mask = cv2.imread(str(scenes[1] / "05.png"), cv2.IMREAD_GRAYSCALE)
    with Segmenter.load(head, precision="fp32", backend="onnxruntime", threads=1) as segmenter:
        labels_found = segmenter(frame).labels
    assert (labels_found == mask)[mask != IGNORED].mean() > 0.75
    again = tmp_path / "again.aeseg"
    assert main(["export", str(tmp_path / "head.train"), "-o", str(again), "--threads", "1"]) == 0
    assert Bundle.open(again).codebook.classes == bundle.codebook.classes
    np.testing.assert_array_equal(Bundle.open(again).codebook.weights, bundle.codebook.weights)
    for command, says in (
        (["export", str(tmp_path / "head.train"), "--clusters", "5"], "--clusters does nothing"),
        (["calibrate", str(head), images], "was learned from labels"),
    ):
        capsys.readouterr()
        assert main([*command, "-o", str(tmp_path / "other.aeseg")]) == 2
        assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--tune", "head"], "does nothing without --masks"),
        (["--masks", "m"], "needs the names of the classes"),
        (["--masks", "m", "--classes", "c", "--clusters", "5"], "--clusters does nothing"),
        (["--masks", "m", "--classes", "c", "--loss", "l1"], "--loss does nothing"),
        (["--masks", "m", "--classes", "c", "--with-decoder"], "--with-decoder does nothing"),
        (["--masks", "m", "--classes", "c", "--tune", "head"], "none to start from"),
        (["--masks", "m", "--classes", "c", "--teacher", "timm:x"], "--teacher timm:x does"),
        (["--masks", "m", "--classes", "c", "--from", "x", "--arch", "deep"], "--arch is that of"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    more: list[str],
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "c").write_text("\n".join(NAMES))
    assert main(["train", "images", "-o", "x.aeseg", *more]) == 2
    assert says in capsys.readouterr().err


def test_the_trunk_of_lite_learns_slowly_also_from_a_checkpoint(tmp_path: Path) -> None:
    from aeseg_edge.export.checkpoint import save_model
    from aeseg_edge.export.settings import Labels, TrainOptions
    from aeseg_edge.export.tasks import Labelled

    start = tmp_path / "before.train"
    before = build_autoencoder(AutoencoderConfig("lite", 4), seed=0)
    save_model(start, before, {"geometry": {"width": 64, "height": 64}})
    labels = Labels(tmp_path, class_names=("a", "b"), ignore=None, start=start)
    found = Labelled([tmp_path], TrainOptions(), labels).network(tmp_path / "after.train")
    slow = {id(weight) for weight in found.pretrained_weights()}
    assert slow == {id(weight) for weight in found.trunk.features.parameters()}


@pytest.mark.parametrize(
    ("more", "resize"),
    [
        ([], "letterbox"),
        (["--imgsz", "96x64"], "letterbox"),
        (["--resize", "stretch"], "stretch"),
    ],
)
def test_frames_are_brought_to_size_as_the_start_was_trained(
    more: list[str],
    resize: str,
    scenes: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = tmp_path / "before.train"
    before = build_autoencoder(AutoencoderConfig("shallow", 4), seed=0)
    geometry = {"width": 64, "height": 48, "channels": 3, "resize": "letterbox"}
    checkpoint.save_model(start, before, {"geometry": geometry})
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    asked: list[Geometry] = []

    def stop(*args: object, geometry: Geometry, **more: object) -> None:
        asked.append(geometry)
        raise FootageError("enough", fix="Nothing.")

    monkeypatch.setattr("aeseg_edge.export.tasks.gather_labelled", stop)
    labels = ["--masks", str(scenes[1]), "--classes", str(tmp_path / "classes.txt")]
    output = ["-o", str(tmp_path / "after.aeseg"), "--from", str(start)]
    assert main(["train", str(scenes[0]), *output, *labels, *more]) == 1
    size = (96, 64) if "--imgsz" in more else (64, 48)
    assert asked == [Geometry(*size, resize=resize)]
