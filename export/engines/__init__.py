"""TensorRT engines (no torch)."""
