"""The architectures can be listed where torch is not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from aeseg_edge.export.network.catalogue import (
    ARCHITECTURES,
    DEFAULT_ARCHITECTURE,
    starts_pretrained,
)


def test_listing_architectures_loads_no_torch(repository: Path) -> None:
    code = (
        "import sys, aeseg_edge.export.network.catalogue as c\n"
        "assert c.ARCHITECTURES and 'torch' not in sys.modules and 'cv2' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=repository, check=True, timeout=60)


def test_a_trunk_starts_from_the_weights_of_its_own_teacher_alone() -> None:
    assert DEFAULT_ARCHITECTURE in ARCHITECTURES
    for name, row in ARCHITECTURES.items():
        assert starts_pretrained(name, row.teacher) == bool(row.origin)
        assert not starts_pretrained(name, "timm:resnet18")
        assert row.help
