"""Exports the networks that `edge` is timed against, as ONNX at fp32 and int8, into build/peers.

``make peers`` runs it in an environment of its own (.venv-peers): torchvision brings another torch.
Weights are random, with a fixed seed: the peers are for speed alone, and what they compute has the
cost of what a trained network computes. Choices are in a peer's favour:

- ``fcn-resnet18``: torchvision's ResNet-18 and one 1x1 convolution, class scores at stride 32 as
  they are: what jetson-inference's segNet runs as an engine. No upsampling, no argmax.
- ``lraspp-mobilenetv3``: torchvision's LR-ASPP with MobileNetV3-Large, class scores at stride 8.
  torchvision upsamples them bilinearly to the size of the frame; that is left out.
- The input is float32 [1, 3, H, W], normalised and in RGB: making it from a frame is not counted.
- BatchNorm is folded. int8 is ONNX Runtime's own static quantisation after its own
  pre-processing: Q/DQ, one weight scale a channel, activations as uint8, which are the inputs of
  its fused CPU kernels. ``--full-size`` adds to both what a label map takes.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import tempfile
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quant_pre_process,
    quantize_static,
)
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet18
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

ROOT = Path(__file__).resolve().parent.parent
OPSET = 19
INPUT = "image"
SETTLING = 12
"""Batches after which BatchNorm's statistics are those of its inputs."""


class FcnResnet18(nn.Module):
    """ResNet-18 without its classifier, and a 1x1 convolution to the classes."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        trunk = resnet18(weights=None)
        self.trunk = nn.Sequential(*list(trunk.children())[:-2])
        self.head = nn.Conv2d(512, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Scores [1, classes, H/32, W/32]."""
        scores: Tensor = self.head(self.trunk(image))
        return scores


class LrasppMobilenetV3(nn.Module):
    """torchvision's network without its last step, the upsampling."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        network = lraspp_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=classes
        )
        self.backbone, self.classifier = network.backbone, network.classifier

    def forward(self, image: Tensor) -> Tensor:
        """Scores [1, classes, H/8, W/8]."""
        scores: Tensor = self.classifier(self.backbone(image))
        return scores


class FullSize(nn.Module):
    """Scores, brought to the size of the image, and the class of each pixel."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Class ids int64 [1, H, W]."""
        scores = functional.interpolate(
            self.network(image), size=image.shape[-2:], mode="bilinear", align_corners=False
        )
        return scores.argmax(dim=1)


PEERS: dict[str, type[nn.Module]] = {
    "fcn-resnet18": FcnResnet18,
    "lraspp-mobilenetv3": LrasppMobilenetV3,
}


class RandomFrames(CalibrationDataReader):  # type: ignore[misc]
    """Normalised noise for the ranges of activations."""

    def __init__(self, shape: tuple[int, ...], count: int) -> None:
        self._frames: Iterator[np.ndarray[Any, Any]] = iter(
            [random_image(shape, seed) for seed in range(count)]
        )

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        """The next input, or None."""
        frame = next(self._frames, None)
        return None if frame is None else {INPUT: frame}


def random_image(shape: tuple[int, ...], seed: int) -> np.ndarray[Any, Any]:
    """Noise in blocks of 8 pixels, which survives pooling, normalised as for ImageNet."""
    random = np.random.default_rng(seed)
    _, channels, height, width = shape
    coarse = random.uniform(0, 1, (channels, -(-height // 8), -(-width // 8)))
    picture = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]
    picture = 0.8 * picture + 0.2 * random.uniform(0, 1, picture.shape)
    mean = np.array([0.485, 0.456, 0.406])[:, None, None]
    deviation = np.array([0.229, 0.224, 0.225])[:, None, None]
    return ((picture - mean) / deviation)[None].astype(np.float32)


def make_network(kind: type[nn.Module], classes: int, seed: int) -> nn.Module:
    """A network of random weights whose activations neither vanish nor grow.

    BatchNorm is given the statistics of its inputs: with those it starts with, a deep random
    network may compute with denormal numbers, which are many times slower, or with infinity.
    """
    torch.manual_seed(seed)
    network = kind(classes)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches
    network.train()
    with torch.no_grad():
        for step in range(SETTLING):
            image = torch.from_numpy(random_image((1, 3, 256, 256), 1000 + step))
            network(torch.cat([image, image.flip(3)]))
    return network.eval()


def export(network: nn.Module, shape: tuple[int, ...], path: Path) -> None:
    """Write fp32 ONNX, optimised by ONNX Runtime's pre-processing: BatchNorm is folded there."""
    example = torch.zeros(shape)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        raw = Path(folder) / "raw.onnx"
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            external_data=False,
            input_names=[INPUT],
            output_names=["scores"],
            verbose=False,
        )
        assert program is not None
        model = program.model_proto
        # The exporter's notes and shapes hinder the shape inference that follows.
        del model.graph.value_info[:]
        onnx.save(model, raw)
        quant_pre_process(str(raw), str(path), skip_symbolic_shape=True)
    left = {node.op_type for node in onnx.load(path).graph.node} & {"BatchNormalization"}
    if left:
        raise SystemExit(f"{path}: {left} is left, so this would be no fair peer")


def quantise(source: Path, target: Path, shape: tuple[int, ...], frames: int) -> None:
    """Write the int8 model beside the fp32 one."""
    quantize_static(
        str(source),
        str(target),
        RandomFrames(shape, frames),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def main() -> None:
    """Export every peer and say what was made."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="480x352", metavar="WxH")
    parser.add_argument("--classes", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--frames", type=int, default=8, help="random frames to calibrate on")
    parser.add_argument("--full-size", action="store_true", help="upsample, and take the argmax")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "peers")
    options = parser.parse_args()
    width, height = (int(side) for side in options.size.split("x"))
    shape = (1, 3, height, width)
    for name in ("onnx_ir", "onnxscript", "torch.onnx", "root"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    made: dict[str, Any] = {
        "size": options.size,
        "classes": options.classes,
        "seed": options.seed,
        "output": "labels of full size" if options.full_size else "scores at the head's stride",
        "versions": {
            package: metadata.version(package)
            for package in ("torch", "torchvision", "onnx", "onnxruntime")
        },
        "python": platform.python_version(),
        "models": {},
    }
    for name, kind in PEERS.items():
        network = make_network(kind, options.classes, options.seed)
        parameters = sum(weight.numel() for weight in network.parameters())
        if options.full_size:
            network = FullSize(network).eval()
        fp32, int8 = (options.out / f"{name}-{precision}.onnx" for precision in ("fp32", "int8"))
        export(network, shape, fp32)
        quantise(fp32, int8, shape, options.frames)
        for path in (fp32, int8):
            made["models"][path.name] = {"parameters": parameters, "bytes": path.stat().st_size}
            print(
                f"{path}: {path.stat().st_size / 1e6:.2f} MB, {parameters / 1e6:.2f} M parameters"
            )
    (options.out / "peers.json").write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
