"""See what loops count."""

import contextlib

from mvar_models.sampling.progress import Meter, showing


@contextlib.contextmanager
def recorded():
    """Yield the meters that are opened inside, each with the counts that it has `seen`."""
    meters = []

    class Recorded(Meter):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.seen = []
            meters.append(self)

        def advance(self, count=1, figures=None):
            super().advance(count, figures)
            self.seen.append(self.done)

    with showing(Recorded):
        yield meters
