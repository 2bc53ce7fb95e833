"""The decoder's graph draws what the autoencoder draws, from centred latents of any size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cv2")
torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

from aeseg_edge.bundle.archive import Bundle  # noqa: E402
from aeseg_edge.calibration.fit import FitSettings  # noqa: E402
from aeseg_edge.calibration.graphs.deployed import centre_latents  # noqa: E402
from aeseg_edge.errors import ExportError  # noqa: E402
from aeseg_edge.export.checkpoint import load_model, save_model  # noqa: E402
from aeseg_edge.export.kept_frames import save_frames  # noqa: E402
from aeseg_edge.export.network.autoencoder import build_autoencoder  # noqa: E402
from aeseg_edge.export.network.config import AutoencoderConfig  # noqa: E402
from aeseg_edge.export.onnx.decoder import export_decoder, folded_mean  # noqa: E402
from aeseg_edge.export.onnx.encoder import export_encoder  # noqa: E402
from aeseg_edge.export.pipeline import export_bundle  # noqa: E402
from aeseg_edge.segment.decoder import Decoder  # noqa: E402
from aeseg_edge.segment.segmenter import Segmenter  # noqa: E402
from aeseg_edge.sources.scene import draw_scene  # noqa: E402


@pytest.mark.parametrize(
    ("arch", "channels"),
    [("edge", 3), ("shallow", 4), pytest.param("deep", 1, marks=pytest.mark.slow)],
)
def test_the_graph_draws_what_torch_draws_at_any_size(arch: str, channels: int) -> None:
    autoencoder = build_autoencoder(AutoencoderConfig(arch, 6, channels), seed=1).eval()
    mean = np.linspace(-1, 1, 6)
    graph = export_decoder(autoencoder, mean).SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    for size in ((2, 3), (5, 4)):
        latents = random.normal(0, 3, (1, 6, *size)).astype(np.float32)
        (drawn,) = session.run(None, {"latents": latents})
        whole = torch.from_numpy(latents + mean[:, None, None].astype(np.float32))
        with torch.no_grad():
            wanted = autoencoder.decode(whole).clamp(0, 1).permute(0, 2, 3, 1) * 255
        assert drawn.dtype == np.uint8
        assert drawn.shape == tuple(wanted.shape)
        # Half a level for rounding, and a hair for another order of sums.
        assert np.abs(drawn - wanted.numpy()).max() < 0.501
        assert drawn.std() > 0


def test_the_mean_is_found_by_what_centring_changed() -> None:
    encoder = export_encoder(
        build_autoencoder(AutoencoderConfig("shallow", 6), seed=0).eval(), height=16, width=16
    )
    mean = np.linspace(-3, 2, 6)
    found = folded_mean(encoder, centre_latents(encoder, mean))
    assert found == pytest.approx(mean, abs=1e-6)
    assert (folded_mean(encoder, encoder) == 0).all()


def test_a_mean_of_other_latents_is_refused() -> None:
    autoencoder = build_autoencoder(AutoencoderConfig("shallow", 6)).eval()
    with pytest.raises(ExportError, match=r"shape \[5\], not \[6\]"):
        export_decoder(autoencoder, np.zeros(5))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """An untrained network, saved as a training leaves it."""
    folder = tmp_path / "street.train"
    save_model(
        folder,
        build_autoencoder(AutoencoderConfig("shallow", 6), seed=2),
        {
            "geometry": {"width": 96, "height": 64, "channels": 3, "resize": "stretch"},
            "output_stride": 2,
            "training": {},
            "provenance": {},
        },
    )
    save_frames(folder, np.stack([draw_scene(9 * index, 96, 64) for index in range(8)]))
    return folder


def test_a_bundles_decoder_takes_the_bundles_own_latents(checkpoint: Path) -> None:
    output = checkpoint.with_suffix(".aeseg")
    fit = FitSettings(clusters=3, restarts=1, samples=500, threads=1)
    export_bundle(checkpoint, output, fit=fit, decoder=True)
    bundle = Bundle.open(output)
    frame = draw_scene(4, 96, 64)
    with Segmenter.load(bundle, precision="fp32", backend="onnxruntime", threads=1) as segmenter:
        latents = segmenter(frame, want=frozenset({"latents"})).latents
    assert latents is not None
    drawn = Decoder.open(bundle, threads=1)(latents)
    autoencoder, _ = load_model(checkpoint)
    images = torch.from_numpy(frame.astype(np.float32) / 255).permute(2, 0, 1)[None]
    with torch.no_grad():
        _, wanted = autoencoder(images)
    levels = wanted[0].clamp(0, 1).permute(1, 2, 0).numpy() * 255
    assert np.abs(drawn - levels).max() < 0.6
    # The preview is made before; it is still there.
    assert bundle.preview is not None


def test_a_bundle_has_no_decoder_unless_it_is_asked_for(checkpoint: Path) -> None:
    output = checkpoint.with_suffix(".aeseg")
    fit = FitSettings(clusters=3, restarts=1, samples=500, threads=1)
    export_bundle(checkpoint, output, fit=fit)
    assert Bundle.open(output).decoder is None
