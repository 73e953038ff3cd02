"""Measure windowed attention, models and sampling next to dense attention and other libraries."""
