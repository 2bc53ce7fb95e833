"""Bounds on latency, and reports."""
