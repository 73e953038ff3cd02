"""Figures computed rather than measured."""
