"""Thin entry for tools that still call setup.py; everything is in pyproject.toml.

Nothing is compiled at install.
"""

from setuptools import setup

setup()
