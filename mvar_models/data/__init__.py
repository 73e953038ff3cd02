"""Labelled images from wherever they lie."""
