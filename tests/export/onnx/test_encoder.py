"""The deployed graph computes what PyTorch computes, and puts labels where the image is."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
cv2 = pytest.importorskip("cv2")
onnxruntime = pytest.importorskip("onnxruntime")

from torch.nn import functional  # noqa: E402

from aeseg_edge.backends.onnxruntime import OnnxRuntimeBackend  # noqa: E402
from aeseg_edge.bundle.codebook import Codebook, default_classes  # noqa: E402
from aeseg_edge.bundle.contract import INPUTS, GraphSpec  # noqa: E402
from aeseg_edge.bundle.precisions import Layout  # noqa: E402
from aeseg_edge.calibration.graphs.deployed import (  # noqa: E402
    attach_head,
    centre_latents,
    detach_head,
    to_half,
)
from aeseg_edge.errors import CodebookError, ExportError  # noqa: E402
from aeseg_edge.export.network.autoencoder import Autoencoder, build_autoencoder  # noqa: E402
from aeseg_edge.export.network.catalogue import ARCHITECTURES  # noqa: E402
from aeseg_edge.export.network.config import AutoencoderConfig  # noqa: E402
from aeseg_edge.export.onnx.encoder import export_encoder  # noqa: E402

HEIGHT, WIDTH, DIM = 160, 160, 8


def network(arch: str) -> Autoencoder:
    """Random weights with running statistics of a real-looking image, so no layer is silent."""
    model = build_autoencoder(AutoencoderConfig(arch, latent_dim=DIM), seed=3)
    images = torch.rand(4, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(5))
    images = functional.avg_pool2d(images, 9, 1, 4)
    model.train()
    with torch.no_grad():
        for _ in range(20):
            model(images)
    return model.eval()


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES))
def model(request: pytest.FixtureRequest) -> Autoencoder:
    return network(request.param)


@pytest.fixture(scope="module")
def encoder(model: Autoencoder) -> onnx.ModelProto:
    return export_encoder(model, height=HEIGHT, width=WIDTH)


@pytest.fixture(scope="module")
def frame() -> np.ndarray:
    """Smooth random colours: every region differs, no region is flat."""
    small = np.random.default_rng(7).integers(0, 256, (9, 15, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC))


def spec(model: Autoencoder, output_stride: int) -> GraphSpec:
    return GraphSpec(HEIGHT, WIDTH, 3, DIM, model.stride, output_stride)


def torch_latents(model: Autoencoder, frame: np.ndarray) -> Any:
    with torch.no_grad():
        return model.encode(torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255)


def random_book(latents: Any, clusters: int) -> Codebook:
    points = latents[0].flatten(1).T.numpy()
    chosen = np.random.default_rng(1).choice(len(points), clusters, replace=False)
    return Codebook.from_centres(
        points[chosen], remap=np.arange(clusters) % 200, classes=default_classes(200)
    )


def run(graph: onnx.ModelProto, sizes: GraphSpec, book: Codebook, frame: np.ndarray) -> Any:
    backend = OnnxRuntimeBackend(graph.SerializeToString(), sizes, book, threads=1)
    return backend.collect(backend.submit(frame), frozenset({"latents", "margin"}))


def torch_scores(latents: Any, book: Codebook, sizes: GraphSpec) -> tuple[Any, Any, np.ndarray]:
    """Scores at the latents and at the labels, and where no two clusters tie within rounding."""
    scores = torch.from_numpy(book.scores(latents[0].permute(1, 2, 0).numpy())).permute(2, 0, 1)
    planes = functional.interpolate(
        scores[None], size=sizes.label_shape, mode="bilinear", align_corners=False
    )[0]
    first, second = planes.topk(2, dim=0).values
    return scores, planes, ((first - second) > 2e-6 * first.abs().max()).numpy()


@pytest.mark.parametrize("output_stride", [1, 2, 4, 8])
@pytest.mark.parametrize("layout", ["any", "cpu", "tensorrt"])
def test_labels_equal_pytorch_at_every_output_stride(
    model: Autoencoder,
    encoder: onnx.ModelProto,
    frame: np.ndarray,
    output_stride: int,
    layout: Layout,
) -> None:
    if model.stride % output_stride:
        pytest.skip(f"{model.config.arch} has stride {model.stride}")
    latents = torch_latents(model, frame)
    book = random_book(latents, 27)
    sizes = spec(model, output_stride)
    outputs = run(attach_head(encoder, sizes, layout=layout), sizes, book, frame)
    np.testing.assert_allclose(outputs.latents, latents[0].numpy(), atol=2e-5, rtol=1e-4)
    scores, planes, clear = torch_scores(latents, book, sizes)
    expected = book.remap[planes.argmax(0).numpy()]
    assert outputs.labels.shape == sizes.label_shape
    assert clear.mean() >= 0.95
    assert (outputs.labels == expected)[clear].all()
    best = scores.sort(dim=0).values
    np.testing.assert_allclose(outputs.margin, (best[-1] - best[-2]).numpy(), atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("layout", ["any", "cpu", "tensorrt"])
def test_without_squares_the_labels_are_the_same_from_half_the_weights(
    model: Autoencoder, encoder: onnx.ModelProto, frame: np.ndarray, layout: Layout
) -> None:
    whole = spec(model, model.stride // 2)
    plain = dataclasses.replace(whole, squares=False)
    latents = torch_latents(model, frame)
    book = random_book(latents, 27)
    clear = torch_scores(latents, book, plain)[2]
    assert clear.mean() >= 0.95
    with_squares = run(attach_head(encoder, whole), whole, book, frame)
    graph = attach_head(encoder, plain, layout=layout)
    without = run(graph, plain, book, frame)
    # Labels alone: on a CPU the last layer and the codebook are one product then.
    backend = OnnxRuntimeBackend(graph.SerializeToString(), plain, book, threads=1)
    alone = backend.collect(backend.submit(frame)).labels
    assert (alone == without.labels)[clear].all()
    np.testing.assert_allclose(without.latents, with_squares.latents, atol=1e-5)
    assert detach_head(graph) == detach_head(attach_head(encoder, whole))
    assert (without.labels == with_squares.labels)[clear].all()
    np.testing.assert_allclose(without.margin, with_squares.margin, atol=2e-4, rtol=1e-3)
    assert [i.type.tensor_type.shape.dim[1].dim_value for i in weights_of(encoder, plain)] == [DIM]


def weights_of(encoder: onnx.ModelProto, sizes: GraphSpec) -> list[onnx.ValueInfoProto]:
    return [i for i in attach_head(encoder, sizes).graph.input if i.name == "weights"]


def test_labels_alone_never_run_the_last_layer_of_a_linear_codebook_on_a_cpu(
    model: Autoencoder, encoder: onnx.ModelProto
) -> None:
    plain = dataclasses.replace(spec(model, model.stride), squares=False)
    convolutions = [n.name for n in encoder.graph.node if n.op_type == "Conv"]
    graph = attach_head(encoder, plain, layout="cpu").graph
    outside = [n.name for n in graph.node if n.op_type == "Conv"]
    assert outside == convolutions[:-1]
    (branch,) = [n for n in graph.node if n.op_type == "If"]
    inside = {a.name: [n.name for n in a.g.node if n.op_type == "Conv"] for a in branch.attribute}
    assert inside == {"then_branch": convolutions[-1:], "else_branch": []}


def test_a_codebook_of_squares_is_refused_by_a_graph_without(
    model: Autoencoder, encoder: onnx.ModelProto, frame: np.ndarray
) -> None:
    plain = dataclasses.replace(spec(model, model.stride), squares=False)
    book = random_book(torch_latents(model, frame), 3)
    squares = dataclasses.replace(book, weights=np.ones_like(book.weights))
    with pytest.raises(CodebookError, match="squares of latents"):
        run(attach_head(encoder, plain), plain, squares, frame)


def test_what_is_not_asked_for_is_not_computed_on_a_cpu(
    model: Autoencoder, encoder: onnx.ModelProto, frame: np.ndarray
) -> None:
    sizes = spec(model, model.stride)
    graph = attach_head(encoder, sizes, gate=0.5, layout="cpu")
    book = random_book(torch_latents(model, frame), 3)
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    names = [each.name for each in session.get_inputs()]
    assert names == [*INPUTS, "extras"]
    feed = {
        "frame": frame[None],
        "weights": book.columns(True),
        "bias": book.bias[:, None],
        "remap": book.remap.astype(np.float32),
        "previous": np.zeros((1, *sizes.latent_shape), np.float32),
        "mix": np.zeros(1, np.float32),
    }
    labels, latents, margin = session.run(None, {**feed, "extras": np.array([False])})
    assert (latents.size, margin.size) == (0, 0)
    more = session.run(None, {**feed, "extras": np.array([True])})
    assert (more[1].size, more[2].size) == (latents_of(sizes), labels.size)
    np.testing.assert_array_equal(labels, more[0])


def latents_of(sizes: GraphSpec) -> int:
    return int(np.prod(sizes.latent_shape))


@pytest.mark.parametrize("layout", ["any", "cpu", "tensorrt"])
def test_every_head_comes_off_again(
    model: Autoencoder, encoder: onnx.ModelProto, layout: Layout
) -> None:
    sizes = spec(model, model.stride)
    assert detach_head(attach_head(encoder, sizes, gate=1.0, layout=layout)) == detach_head(
        attach_head(encoder, sizes)
    )


def test_one_graph_takes_any_number_of_clusters(
    model: Autoencoder, encoder: onnx.ModelProto, frame: np.ndarray
) -> None:
    sizes = spec(model, model.stride)
    graph = attach_head(encoder, sizes).SerializeToString()
    latents = torch_latents(model, frame)
    backend = OnnxRuntimeBackend(graph, sizes, random_book(latents, 2), threads=1)
    points = latents[0].permute(1, 2, 0).numpy()
    for clusters in (2, 3, 27, 100, 200):
        book = random_book(latents, clusters)
        backend.set_codebook(book)
        labels = backend.collect(backend.submit(frame)).labels
        assert (labels == book.remap[book.assign(points)]).mean() >= 0.995


def test_one_graph_takes_another_image_size(
    model: Autoencoder, encoder: onnx.ModelProto, frame: np.ndarray
) -> None:
    larger = np.ascontiguousarray(np.tile(frame, (2, 1, 1)))
    sizes = GraphSpec(2 * HEIGHT, WIDTH, 3, DIM, model.stride, model.stride)
    latents = torch_latents(model, larger)
    outputs = run(attach_head(encoder, sizes), sizes, random_book(latents, 5), larger)
    np.testing.assert_allclose(outputs.latents, latents[0].numpy(), atol=2e-5, rtol=1e-4)


def test_detaching_the_head_gives_the_encoder_back(
    model: Autoencoder, encoder: onnx.ModelProto
) -> None:
    sizes = spec(model, model.stride)
    again = detach_head(attach_head(encoder, sizes))
    assert [n.name for n in again.graph.node] == [n.name for n in encoder.graph.node]
    assert attach_head(again, sizes) == attach_head(encoder, sizes)


def test_no_batch_normalisation_is_left(encoder: onnx.ModelProto) -> None:
    kinds = {node.op_type for node in encoder.graph.node}
    assert "BatchNormalization" not in kinds
    assert kinds <= {
        "Cast", "Transpose", "Add", "Mul", "Conv", "Relu", "Clip", "MaxPool", "Resize",
    }  # fmt: skip


def test_the_byte_cast_comes_before_the_transpose(encoder: onnx.ModelProto) -> None:
    assert [node.op_type for node in encoder.graph.node[:2]] == ["Cast", "Transpose"]


def test_centred_latents_lose_their_mean_and_nothing_else(
    model: Autoencoder, encoder: onnx.ModelProto, frame: np.ndarray
) -> None:
    sizes = spec(model, model.stride)
    latents = torch_latents(model, frame)
    mean = latents.mean((0, 2, 3)).numpy().astype(np.float64)
    graph = attach_head(centre_latents(encoder, mean), sizes)
    outputs = run(graph, sizes, random_book(latents, 3), frame)
    expected = latents[0].numpy() - mean[:, None, None]
    np.testing.assert_allclose(outputs.latents, expected, atol=2e-5, rtol=1e-4)


def test_the_half_encoder_is_close_and_keeps_float_outside(
    model: Autoencoder, encoder: onnx.ModelProto, frame: np.ndarray
) -> None:
    half = to_half(encoder)
    weights = {i.name: i.data_type for i in half.graph.initializer}
    convolutions = [n for n in half.graph.node if n.op_type == "Conv"]
    assert convolutions
    for node in convolutions:
        assert {weights[name] for name in node.input[1:]} == {onnx.TensorProto.FLOAT16}
    sizes = spec(model, model.stride)
    latents = torch_latents(model, frame)
    outputs = run(attach_head(half, sizes), sizes, random_book(latents, 3), frame)
    error = np.abs(outputs.latents - latents[0].numpy()).mean()
    assert 0 < error < 0.02 * latents.std().item()


def test_smoothing_mixes_in_the_last_frame(
    model: Autoencoder, encoder: onnx.ModelProto, frame: np.ndarray
) -> None:
    sizes = spec(model, model.stride)
    other = np.ascontiguousarray(frame[::-1])
    first, second = (torch_latents(model, f)[0].numpy() for f in (frame, other))
    book = random_book(torch_latents(model, frame), 3)
    backend = OnnxRuntimeBackend(
        attach_head(encoder, sizes).SerializeToString(), sizes, book, threads=1
    )
    want = frozenset({"latents"})
    # Nothing came before the first frame, so it is not mixed with zeros.
    alone = backend.collect(backend.submit(frame, mix=0.25), want).latents
    np.testing.assert_allclose(alone, first, atol=2e-5, rtol=1e-4)
    mixed = backend.collect(backend.submit(other, mix=0.25), want).latents
    np.testing.assert_allclose(mixed, 0.75 * second + 0.25 * first, atol=5e-5, rtol=1e-3)


@pytest.mark.parametrize("layout", ["any", "cpu", "tensorrt"])
def test_the_gate_smooths_what_stands_still_and_lets_pass_what_moves(
    model: Autoencoder, encoder: onnx.ModelProto, frame: np.ndarray, layout: Layout
) -> None:
    sizes = spec(model, model.stride)
    noisy = np.clip(frame.astype(int) + np.arange(frame.size).reshape(frame.shape) % 3 - 1, 0, 255)
    moved = noisy.astype(np.uint8)
    moved[: HEIGHT // 2] = 255 - moved[: HEIGHT // 2]
    first, second = (torch_latents(model, f)[0].numpy() for f in (frame, moved))
    step = second - first
    distance = np.abs(step)
    gate = float(np.sqrt(np.quantile(distance, 0.1) * np.quantile(distance, 0.9)))
    backend = OnnxRuntimeBackend(
        attach_head(encoder, sizes, gate=gate, layout=layout).SerializeToString(),
        sizes,
        random_book(torch_latents(model, frame), 3),
        threads=1,
    )
    backend.collect(backend.submit(frame, mix=0.8))
    found = backend.collect(backend.submit(moved, mix=0.8), frozenset({"latents"})).latents
    assert found is not None
    weight = 0.8 * np.exp(-((distance / gate) ** 2))
    assert weight.max() > 0.7
    assert weight.min() < 0.01
    # What is mixed in wrongly is bounded, however far things move.
    assert np.abs(found - second).max() <= 0.8 * 0.43 * gate + 1e-4
    np.testing.assert_allclose(found, second - weight * step, atol=1e-4, rtol=1e-3)


def test_a_gate_is_taken_off_with_the_head_and_has_a_width(encoder: onnx.ModelProto) -> None:
    sizes = GraphSpec(HEIGHT, WIDTH, 3, DIM, 4, 4)
    gated = attach_head(encoder, sizes, gate=0.5)
    assert detach_head(gated) == detach_head(attach_head(encoder, sizes))
    with pytest.raises(ExportError, match=r"width 0\.0"):
        attach_head(encoder, sizes, gate=0.0)


@pytest.mark.parametrize("mix", [0.0, 0.6])
def test_each_camera_is_smoothed_with_its_own_last_frame(
    model: Autoencoder, encoder: onnx.ModelProto, frame: np.ndarray, mix: float
) -> None:
    sizes = spec(model, model.stride)
    graph = attach_head(encoder, sizes).SerializeToString()
    book = random_book(torch_latents(model, frame), 3)
    other = np.ascontiguousarray(frame[:, ::-1])
    want = frozenset({"latents"})

    def run_alone(images: list[np.ndarray]) -> list[np.ndarray]:
        backend = OnnxRuntimeBackend(graph, sizes, book, threads=1)
        return [backend.collect(backend.submit(i, mix=mix), want).latents for i in images]

    together = OnnxRuntimeBackend(graph, sizes, book, threads=1)
    order = [(0, frame), (1, other), (1, frame), (0, other), (1, other)]
    found: dict[int, list[np.ndarray]] = {0: [], 1: []}
    for stream, image in order:
        outputs = together.collect(together.submit(image, mix=mix, stream=stream), want)
        found[stream].append(outputs.latents)
    for stream in found:
        alone = run_alone([image for lane, image in order if lane == stream])
        np.testing.assert_array_equal(np.stack(found[stream]), np.stack(alone))
    together.reset(1)
    again = together.collect(together.submit(frame, mix=mix, stream=1), want).latents
    np.testing.assert_array_equal(again, run_alone([frame])[0])


def symmetric(model: Autoencoder) -> Autoencoder:
    """Make every kernel equal to its mirror image: only geometry can now move an edge."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.copy_((module.weight + module.weight.flip((2, 3))) / 2)
    return model


@pytest.fixture(scope="module")
def symmetric_encoders() -> dict[str, tuple[int, onnx.ModelProto]]:
    models = {arch: symmetric(network(arch)) for arch in ARCHITECTURES}
    return {
        arch: (model.stride, export_encoder(model, height=HEIGHT, width=WIDTH))
        for arch, model in models.items()
    }


def edge_bias(stride: int, encoder: onnx.ModelProto, output_stride: int, vertical: bool) -> float:
    """Mean distance in pixels between a moving step edge and the label border."""
    sizes = GraphSpec(HEIGHT, WIDTH, 3, DIM, stride, output_stride)
    book = Codebook.from_centres(np.zeros((2, DIM), np.float32))
    graph = attach_head(encoder, sizes).SerializeToString()
    backend = OnnxRuntimeBackend(graph, sizes, book, threads=1)
    length = WIDTH if vertical else HEIGHT
    errors = []
    for low, high in ((70, 180), (180, 70)):
        # Symmetric about the middle, so that a symmetric network has errors that cancel.
        for position in range(length // 2 - stride // 2, length // 2 + stride // 2 + 1):
            frame = np.full((HEIGHT, WIDTH, 3), low, np.uint8)
            (frame.swapaxes(0, 1) if vertical else frame)[position:] = high
            wanted = backend.collect(backend.submit(frame), frozenset({"latents"})).latents
            assert wanted is not None
            grid = wanted.swapaxes(1, 2) if vertical else wanted
            middle = grid.shape[2] // 2
            # Both middle rows: one alone would see the upper border nearer than the lower.
            line = grid[:, :, middle - 1 : middle + 1].mean(2)
            # Well inside each side, away from the picture's own borders.
            quarter = line.shape[1] // 4
            centres = np.stack([line[:, quarter], line[:, -quarter - 1]])
            backend.set_codebook(Codebook.from_centres(centres))
            labels = backend.collect(backend.submit(frame)).labels
            rows = labels.T if vertical else labels
            start = len(rows) // 4
            inner = rows[start:-start, rows.shape[1] // 2 - 1 : rows.shape[1] // 2 + 1]
            border = (start + float((inner == 0).sum(0).mean())) * output_stride
            errors.append(float(border - position))
    return float(np.mean(errors))


@pytest.mark.parametrize("vertical", [True, False])
@pytest.mark.parametrize("output_stride", [1, 2, 4, 8])
@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_a_moving_step_edge_is_found_where_it_is(
    symmetric_encoders: dict[str, tuple[int, onnx.ModelProto]],
    arch: str,
    output_stride: int,
    vertical: bool,
) -> None:
    stride, encoder = symmetric_encoders[arch]
    if stride % output_stride:
        pytest.skip(f"{arch} has stride {stride}")
    bias = edge_bias(stride, encoder, output_stride, vertical)
    print(f"{arch} at output stride {output_stride}: {bias:+.2f} pixels")
    assert abs(bias) < 1.0, f"labels lie {bias:+.2f} pixels beside the image"


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ExportError, match="not a multiple of 32"):
        export_encoder(network("edge"), height=100, width=160)


def test_an_output_stride_that_does_not_divide_is_refused(encoder: onnx.ModelProto) -> None:
    with pytest.raises(ExportError, match="output stride 3"):
        attach_head(encoder, GraphSpec(HEIGHT, WIDTH, 3, DIM, 8, 3))


def test_a_graph_of_another_kind_is_refused(encoder: onnx.ModelProto) -> None:
    with pytest.raises(ExportError, match="inputs"):
        detach_head(encoder)
