"""What KIP, RFAD and FRePo share: label codes as targets."""

from __future__ import annotations

from functools import cached_property

from torch import Tensor

from ._base import LabelMethod


class CodeMethod(LabelMethod):
    """A method whose targets are label codes: the one-hot label less 1 / classes, so that they sum to 0."""

    @cached_property
    def targets(self) -> Tensor:
        one_hot = self.job.data.one_hot()
        return one_hot - 1 / one_hot.shape[1]
