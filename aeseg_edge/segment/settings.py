"""Which of a bundle's graphs runs, where, and at what size."""

from __future__ import annotations

from dataclasses import dataclass

from aeseg_edge.bundle.manifest import BACKENDS, PRECISIONS
from aeseg_edge.support.options import option, positive, size


@dataclass(frozen=True)
class RunnerSettings:
    """How a bundle is run: arguments of ``Segmenter.load``."""

    precision: str = option(
        "auto",
        choices=("auto", *PRECISIONS),
        help="default: int8 where the bundle recommends it",
    )
    backend: str = option(
        "auto",
        choices=("auto", *BACKENDS),
        help="default: TensorRT where it is installed, else ONNX Runtime",
    )
    threads: int | None = option(None, parse=positive, help="threads for ONNX Runtime")
    imgsz: tuple[int, int] | None = option(
        None,
        parse=size,
        metavar="WxH",
        help="run at another size, multiples of the encoder's deepest stride (32 for edge): larger "
        "is finer and slower (default: {default})",
        shown="the bundle's own",
    )
