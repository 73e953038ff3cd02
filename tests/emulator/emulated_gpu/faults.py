"""What stops the emulated GPU."""

from __future__ import annotations


class Fault(Exception):
    """A trap of the GPU, or a race or an undefined value that a GPU would pass over in silence."""


class NotEmulated(Exception):
    """A kernel asks for something that the emulated GPU does not know; the message names it."""
