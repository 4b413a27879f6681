"""Progress by a clock that nobody moves."""

import time

from tqdm import tqdm


class Bar(tqdm):
    """tqdm, but for its clock, the system's: put back by a day, that one lets a bar stand still for a day."""

    @property
    def _time(self):
        return time.monotonic

    @_time.setter
    def _time(self, clock):  # tqdm sets it first of all that needs it
        pass
