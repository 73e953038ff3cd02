"""Figures that are computed rather than measured."""
