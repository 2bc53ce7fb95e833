"""Latents to centres."""
