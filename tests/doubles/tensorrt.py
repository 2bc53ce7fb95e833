"""A stand-in for the runtime half of the `tensorrt` module, over ONNX Runtime.

Its engine is ONNX Runtime on the graph the plan was made from. Its tensors live in the
memory of a `doubles.cuda.Gpu`, at the addresses it was given, and are read and written when
the stream gets to it. It has no name that NVIDIA's bindings lack (a test checks that).
"""

from __future__ import annotations

import enum
import json
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from aeseg_edge.bundle.contract import INPUTS, OUTPUTS, GraphSpec

if TYPE_CHECKING:
    from tests.doubles.cuda import Gpu

MAGIC = b"ftrt"


class DataType(enum.Enum):
    FLOAT = 0
    UINT8 = 5


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class ILogger:
    """Base class that the project's logger derives from."""


def make_plan(graph: bytes, spec: GraphSpec, clusters: int) -> bytes:
    """A plan for the stand-in: the graph and the sizes it is for."""
    header = json.dumps({"clusters": clusters, **vars(spec)}).encode()
    return MAGIC + len(header).to_bytes(4, "little") + header + graph


def make_module(gpu: Gpu, *, version: str = "10.16.2.3", refuse: str = "") -> ModuleType:
    """The module.

    Args:
        gpu: Whose memory and streams the engine uses.
        version: What it says of itself.
        refuse: One call that answers as TensorRT does when it cannot: "Runtime",
            "deserialize_cuda_engine", "create_execution_context", "set_tensor_address",
            "execute_async_v3".
    """

    class Runtime:
        def __init__(self, logger: Any) -> None:
            gpu.call("trt.Runtime")
            if refuse == "Runtime":
                logger.log(1, "CUDA initialization failure with error: 35")
                raise TypeError("pybind11::init(): factory function returned nullptr")
            self.logger = logger

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
            gpu.call("trt.deserialize_cuda_engine")
            plan = bytes(serialized_engine)
            if refuse == "deserialize_cuda_engine" or plan[:4] != MAGIC:
                self.logger.log(1, "Serialization assertion stdVersionRead == kVERSION failed.")
                return None
            size = int.from_bytes(plan[4:8], "little")
            header = json.loads(plan[8 : 8 + size])
            clusters = header.pop("clusters")
            return ICudaEngine(plan[8 + size :], GraphSpec(**header), clusters)

    class ICudaEngine:
        def __init__(self, graph: bytes, spec: GraphSpec, clusters: int) -> None:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            options.log_severity_level = 3
            self._session = onnxruntime.InferenceSession(
                graph, options, providers=["CPUExecutionProvider"]
            )
            self._inputs = spec.fixed(INPUTS, clusters)
            self._outputs = spec.fixed(OUTPUTS, clusters)
            self._tensors = {**self._inputs, **self._outputs}

        @property
        def num_io_tensors(self) -> int:
            return len(self._tensors)

        def get_tensor_name(self, index: int) -> str:
            return list(self._tensors)[index]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return self._tensors[name].shape

        def get_tensor_dtype(self, name: str) -> DataType:
            return DataType.UINT8 if self._tensors[name].dtype == "uint8" else DataType.FLOAT

        def get_tensor_mode(self, name: str) -> TensorIOMode:
            return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

        def create_execution_context(self) -> IExecutionContext | None:
            gpu.call("trt.create_execution_context")
            if refuse == "create_execution_context":
                return None
            return IExecutionContext(self)

    class IExecutionContext:
        def __init__(self, engine: ICudaEngine) -> None:
            self._engine = engine
            self._addresses: dict[str, int] = {}

        def set_tensor_address(self, name: str, memory: int) -> bool:
            if name not in self._engine._tensors or refuse == "set_tensor_address":
                return False
            self._addresses[name] = memory
            return True

        def execute_async_v3(self, stream_handle: int) -> bool:
            gpu.call("trt.execute_async_v3")
            if refuse == "execute_async_v3" or set(self._addresses) != set(self._engine._tensors):
                return False
            # TensorRT takes the addresses when the work is queued, the bytes when it runs.
            addresses = dict(self._addresses)
            gpu.streams[stream_handle].queue(lambda: self._run(addresses))
            return True

        def _run(self, addresses: dict[str, int]) -> None:
            feed = {}
            for name, tensor in self._engine._inputs.items():
                nbytes = int(np.prod(tensor.shape)) * np.dtype(tensor.dtype).itemsize
                data = bytes(gpu.view(addresses[name], nbytes))
                feed[name] = np.frombuffer(data, tensor.dtype).reshape(tensor.shape)
            names = list(self._engine._outputs)
            results = self._engine._session.run(names, feed)
            for name, result in zip(names, results, strict=True):
                gpu.write(addresses[name], result.tobytes())

    module = ModuleType("tensorrt")
    module.__dict__.update(
        __version__=version,
        DataType=DataType,
        TensorIOMode=TensorIOMode,
        ILogger=ILogger,
        Runtime=Runtime,
        ICudaEngine=ICudaEngine,
        IExecutionContext=IExecutionContext,
    )
    return module
