"""Packages that not everybody needs: imported when they are used, with a fix where they fail."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from shlex import quote
from typing import Any
from urllib.parse import unquote, urlsplit

from aeseg_edge.errors import MissingDependency
from aeseg_edge.support.text import without_password
from aeseg_edge.version import __version__

_ROOT = Path(__file__).resolve().parents[2]
_TITLES = {"cv2": "OpenCV", "sklearn": "scikit-learn"}
_EXTRAS = {"cv2": "cpu", "onnxruntime": "cpu", "starlette": "web", "uvicorn": "web"}
"""The extra that brings a package; ``calibrate`` brings the others."""

_AGAIN = {
    "cv2": "opencv-python-headless (on a Jetson: apt install --reinstall python3-opencv)",
    "sklearn": "scikit-learn",
    "tensorrt": "tensorrt (on a Jetson: apt install --reinstall python3-libnvinfer)",
}


def require(module: str, *, extra: str = "", for_: str = "", title: str = "", fix: str = "") -> Any:
    """Import an optional package such as ``scipy.optimize``, or say how to get it.

    ``extra``, ``title`` and ``fix`` stand for the usual ones. MissingDependency if it is not there,
    or is and does not load: half an installation, a missing library, a build for another numpy.
    """
    package = module.partition(".")[0]
    name = title or _TITLES.get(package, package)
    needs = f"{for_} needs {name}, which" if for_ else name
    try:
        importlib.import_module(package)
        return importlib.import_module(module)
    except Exception as error:  # A broken package raises whatever its code happens to meet.
        named = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
        if named or not _is_there(package):
            extra = extra or _EXTRAS.get(package, "calibrate")
            jetson = "apt install python3-opencv, which has GStreamer"
            beside = f" (on a Jetson: {jetson})" if package == "cv2" else ""
            raise MissingDependency(
                f"{needs} is not importable ({error})",
                fix=fix or f"Install it: {install(extra)}{beside}.",
            ) from error
        told = " ".join(str(error).split())
        again = f"the package again: pip install --force-reinstall {_AGAIN.get(package, package)}."
        fix = f"Install what is named there, or {again}"
        if _is_for_numpy_1(told):
            # JetPack's own packages are: python3-opencv, and TensorRT's and pycuda's builds.
            fix = f"It was built for numpy 1: pip install 'numpy<2'. Or install {again}"
        raise MissingDependency(
            f"{needs} is installed but does not load ({type(error).__name__}: {told})", fix=fix
        ) from error


def install(extra: str, *, root: Path = _ROOT) -> str:
    """Give the pip command that adds an extra, the way this package was installed.

    There is no project of this name on PyPI, and anybody could take it. ``root`` is the folder
    that the package lies in: a clone, or where packages are.
    """
    if (root / "setup.py").is_file():
        return f"pip install -e {quote(f'{root}[{extra}]')}"
    origin = _origin()
    url = without_password(origin.get("url", ""))
    place = unquote(urlsplit(url).path) if url.startswith("file:") else ""
    if place and "vcs_info" not in origin:
        return f"pip install {quote(f'{place}[{extra}]')}"
    if url:
        vcs = origin.get("vcs_info", {})
        where = f"{vcs['vcs']}+{url}@{vcs['commit_id']}" if vcs else url
        return f"pip install {quote(f'aeseg_edge[{extra}] @ {where}')}"
    wheel = f"aeseg_edge-{__version__}-py3-none-any.whl[{extra}]"
    return f"pip install {quote(wheel)} (the wheel, or the clone, that it was installed from)"


def _origin() -> dict[str, Any]:
    """Give what pip noted of where this package came from (PEP 610); nothing of an index."""
    from importlib import metadata

    try:
        text = metadata.distribution("aeseg_edge").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        text = None
    found: dict[str, Any] = json.loads(text) if text else {}
    return found


def _is_there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def optional(module: str) -> Any | None:
    """Import a package that is done without where it is missing or broken: None there."""
    try:
        return require(module)
    except MissingDependency:
        return None


def whole(module: Any, *names: str) -> Any:
    """Give a module that has these names.

    MissingDependency for what is left of a package, an empty folder for instance, which Python
    imports without a word.
    """
    if missing := [name for name in names if not hasattr(module, name)]:
        package = module.__name__.partition(".")[0]
        where = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), "")
        raise MissingDependency(
            f"{_TITLES.get(package, package)} is installed but not whole: {module.__name__} "
            f"({where}) has no {missing[0]}",
            fix=f"Install it again: pip install --force-reinstall {_AGAIN.get(package, package)}.",
        )
    return module


def _is_for_numpy_1(told: str) -> bool:
    """Whether an error of loading is what a package built for numpy 1 meets beside numpy 2."""
    numpy = sys.modules.get("numpy")
    version = getattr(numpy, "__version__", "")
    signs = ("numpy.core", "_ARRAY_API", "NumPy 1.x", "numpy.dtype size changed")
    return not version.startswith("1.") and any(sign in told for sign in signs)


def import_scipy(part: str) -> Any:
    """Import a part of scipy, such as ``optimize``; see ``require``."""
    return require(f"scipy.{part}")


def import_cv2() -> Any:
    """Import OpenCV when it is first needed; see ``require``."""
    return whole(require("cv2"), "__version__", "imread")
