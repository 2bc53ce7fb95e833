"""Footage: reading, sampling, masks."""
