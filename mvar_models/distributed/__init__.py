"""The processes of a run, on one host or several, and what ends them together."""

from mvar_models.distributed.heartbeat import Heartbeat
from mvar_models.distributed.processes import (
    COLLECTIVE_TIMEOUT,
    Processes,
    RunStopped,
    lost_process,
)

__all__ = ["COLLECTIVE_TIMEOUT", "Heartbeat", "Processes", "RunStopped", "lost_process"]
