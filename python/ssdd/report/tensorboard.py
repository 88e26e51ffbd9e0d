"""Live curves while a run is at work: its events as TensorBoard scalars."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from ..config import Event, InputError

FOLDER = "tensorboard"
"""The folder of the scalars, in that of the run."""

CURVES = {
    "teacher": ("loss",),
    "distill": ("loss", "lr", "mean_age", "untrained_share"),
    "readout": ("error",),
    "pretrain": ("loss",),
}
"""Event -> what is written of it, as scalars "event/quantity"."""

STAGE = {"readout": "distill"}
"""Event -> the stage whose steps it counts, if that is not its own name."""


def check_tensorboard() -> None:
    """Raise :class:`InputError` if the package is not installed."""
    if find_spec("tensorboard") is None:
        raise InputError(
            "--tensorboard: needs the package tensorboard, which is not installed; "
            "install it with: pip install 'ssdd[tensorboard]'"
        )


class TensorBoard:
    """A report that writes the numbers of each event as scalars. Use it as a context.

    Each task and stage is a run of TensorBoard's, in a folder of its own.
    """

    def __init__(self, folder: Path) -> None:
        check_tensorboard()
        self._folder = folder
        self._writers: dict[tuple[str, str], Any] = {}
        self._resumed: dict[str, int] = {}

    def __call__(self, event: Event) -> None:
        kind: str = event["event"]
        if kind == "resume":
            self._resumed[event["stage"]] = event["step"]
        for key in CURVES.get(kind, ()):
            if isinstance(event.get(key), int | float):
                self._writer(event.get("task", ""), STAGE.get(kind, kind)).add_scalar(
                    f"{kind}/{key}", event[key], event["step"]
                )

    def _writer(self, task: str, stage: str) -> Any:
        if (task, stage) not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            name = re.sub(r"[^\w.-]+", "-", task).strip("-.")
            # What the run wrote after the checkpoint that it goes on from is not shown twice.
            after = self._resumed[stage] + 1 if stage in self._resumed else None
            folder = self._folder / name / stage
            self._writers[task, stage] = SummaryWriter(str(folder), purge_step=after, flush_secs=10)
        return self._writers[task, stage]

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self._writers.values():
            writer.close()
