"""Which GPU TensorRT-RTX builds for; TensorRT itself builds for the one it runs on.

These names exist in TensorRT-RTX alone, which is why they are not beside the builder: a
test holds that file to what every TensorRT from 10.3 to 11.4 has.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from aeseg_edge.errors import EngineError


def aim(module: ModuleType, config: Any, target: str) -> None:
    """Make a `tensorrt_rtx` configuration build for a compute capability, such as "8.6".

    The GPU need not be present. EngineError where the module is TensorRT, or does not know it.
    """
    capabilities = getattr(module, "ComputeCapability", None)
    if capabilities is None:
        raise EngineError(
            "TensorRT builds for the GPU it runs on and takes no target",
            fix="Leave the target out, or build with tensorrt_rtx.",
        )
    capability = getattr(capabilities, "SM" + target.replace(".", ""), None)
    if capability is None:
        raise EngineError(
            f"TensorRT-RTX {module.__version__} does not know compute capability {target}",
            fix="Give one such as 8.6.",
        )
    config.num_compute_capabilities = 1
    if not config.set_compute_capability(capability, 0):
        raise EngineError(
            f"TensorRT-RTX {module.__version__} does not build for compute capability {target}",
            fix="Give one such as 8.6.",
        )
