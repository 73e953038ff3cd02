"""Checkpoints: located, opened, loaded, saved and uploaded."""
