"""The bundle that comes with the package: streets, for a first look without any training.

Its weights were trained on CamVid frames under CC BY-NC 4.0, so it is for research and trying
out. Whoever builds something trains on footage of their own.
"""

from __future__ import annotations

from pathlib import Path

from aeseg_edge.errors import BundleError

NAME = "street.aeseg"
LICENCE = "CC BY-NC 4.0"
NOTICE = (
    "using the pretrained street bundle, whose weights come from CC BY-NC 4.0 data (no commercial "
    "use); train one on your own footage: aeseg train SOURCE -o NAME.aeseg"
)


def pretrained_path() -> Path:
    """Find the pretrained bundle inside the package; BundleError if it was installed without it."""
    path = _path()
    if not path.is_file():
        raise BundleError(
            f"this installation has no pretrained bundle ({path} is missing)",
            fix="Give a bundle with -b, or install aeseg_edge again.",
        )
    return path


def is_pretrained(path: Path) -> bool:
    """Say whether a path is the pretrained bundle's, under whichever name."""
    return path.resolve() == _path()


def _path() -> Path:
    return Path(__file__).resolve().parent.parent / "models" / NAME
