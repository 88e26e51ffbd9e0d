"""What lets a run stop and go on: its checkpoints, and Ctrl-C as a request to stop."""

from .files import Checkpoints, Stopped, environment, fingerprint
from .stopping import StopRequest, interruptible

__all__ = ["Checkpoints", "StopRequest", "Stopped", "environment", "fingerprint", "interruptible"]
