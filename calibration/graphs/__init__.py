"""Deployed graphs, made with onnx alone."""
