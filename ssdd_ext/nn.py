"""Modules for networks: a ridge regression as the last layer of a few-shot learner."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace

import torch
from torch import Tensor

from . import checks
from .api import krr
from .kernels import Kernel, Linear
from .ridge import Ridge

__all__ = ["RidgeHead"]

DEFAULT_KERNEL = Linear()
DEFAULT_RIDGE = Ridge.absolute(1.0)


class RidgeHead(torch.nn.Module):
    """Classify queries by a ridge regression on the support points of their episode.

    The logits are ``scale * P + bias``, with the predictions P of :func:`krr` for one-hot labels. Ridge, scale and bias
    are one learnable number each; the ridge is stored as its logarithm, so it stays positive. The loss is that of your
    choice, for example ``torch.nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())``.
    Equivalent to ``scale * krr(support, one_hot(labels, num_classes), queries, kernel=kernel, ridge=ridge) + bias``.

    Published heads with a ridge regression inside, for n support points:

    ================================ ======================================================= ======================
    head                             settings                                                learned
    ================================ ======================================================= ======================
    R2-D2, formula of the paper      ridge=Ridge.absolute(v)                                 ridge, scale, bias
    R2-D2, its published code        ridge=Ridge.absolute(n * v), kernel=Linear(bias=1.0)    ridge, scale, bias
    R2D2 head of MetaOptNet          ridge=Ridge.absolute(50.0)                              scale
    ================================ ======================================================= ======================

    Sources: Bertinetto et al., ICLR 2019 (arXiv 1805.08136); Lee et al., CVPR 2019 (arXiv 1904.03758).

    Args:
        num_classes: number of classes C. Needed if labels are class numbers. Default None.
        ridge: how lambda follows from the Gram matrix, with its first value, a number; see :class:`Ridge`.
            Default ``Ridge.absolute(1.0)``.
        scale: first value of the factor of the logits. Default 1.
        bias: first value of the number that is added to all logits. Default 0. Softmax does not depend on it.
        kernel: any kernel. Its own tensors are not registered in this module. Default ``Linear()``.
        learn_ridge: learn the ridge. False keeps the number. Default True.
        learn_scale: learn the scale. Default True.
        learn_bias: learn the bias. Default True.
        on_failure: as in :func:`krr`. Default "raise".
        backend: as in :func:`krr`. Default "auto".
        solve_dtype: as in :func:`krr`. Default None.
        device: device of the learned numbers. Default None: torch's.
        dtype: dtype of the learned numbers. Default None: torch's. For float64 features use torch.float64, or
            ``head.double()`` before training: a float32 ridge has seven digits.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """

    log_ridge: Tensor | None
    scale: Tensor | float
    bias: Tensor | float

    def __init__(
        self,
        num_classes: int | None = None,
        *,
        ridge: Ridge = DEFAULT_RIDGE,
        scale: float = 1.0,
        bias: float = 0.0,
        kernel: Kernel = DEFAULT_KERNEL,
        learn_ridge: bool = True,
        learn_scale: bool = True,
        learn_bias: bool = True,
        on_failure: str = "raise",
        backend: str = "auto",
        solve_dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_classes is not None and (isinstance(num_classes, bool) or not isinstance(num_classes, int)):
            raise TypeError(f"num_classes: expected a whole number or None, got {checks.describe(num_classes)}")
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"num_classes: expected at least 1, got {num_classes}")
        if not isinstance(ridge, Ridge):
            raise TypeError(f"ridge: expected a Ridge such as Ridge.absolute(50.0), got {checks.describe(ridge)}")
        if isinstance(ridge.value, Tensor):
            raise TypeError(
                f"ridge: expected a Ridge whose value is a number, got {checks.describe(ridge.value)}; "
                f"the head makes its own parameter from the number"
            )
        if learn_ridge and ridge.value == 0:
            raise ValueError("ridge: expected a value > 0, whose logarithm is learned, got 0; or use learn_ridge=False")
        self.num_classes, self.ridge, self.kernel = num_classes, ridge, kernel
        self.on_failure, self.backend, self.solve_dtype = on_failure, backend, solve_dtype

        def learned(value: float) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.tensor(value, device=device, dtype=dtype or torch.get_default_dtype()))

        self.log_ridge = learned(math.log(ridge.value)) if learn_ridge else None
        self.scale = learned(_number("scale", scale)) if learn_scale else _number("scale", scale)
        self.bias = learned(_number("bias", bias)) if learn_bias else _number("bias", bias)

    def forward(self, support: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
        """Return the logits of the queries.

        Args:
            support: features of the support points [..., S, D]; the leading dimensions are episodes.
            labels: class numbers [..., S] of an integer dtype, or one-hot or other targets [..., S, C] of a
                floating-point dtype. A class number out of range is an error on the CPU. On a GPU, whose check would
                cost a synchronisation, and under ``torch.compile``, the logits of its episode are NaN.
            queries: features of the queries [..., Q, D].

        Returns:
            Logits [..., Q, C], with gradients to the three inputs (not to class numbers) and to the learned numbers.
            16-bit features give float32 logits, also under autocast.

        Raises:
            TypeError, ValueError: naming the argument, what was expected and what came.
            FactorizationError: as :func:`krr`.
        """
        checks.tensor("support", support)
        checks.tensor("queries", queries)
        checks.size("queries", queries, -1, support.shape[-1], "support")
        targets = self._targets(labels, support)
        checks.same_device(support=support, labels=targets, queries=queries)
        checks.work_dtype(self.solve_dtype, support=support, labels=targets, queries=queries)
        batches = {"support": support, "labels": targets, "queries": queries}
        checks.batch_shape(**{name: value.shape[:-2] for name, value in batches.items()})
        p = krr(
            support,
            targets,
            queries,
            kernel=self.kernel,
            ridge=self.current_ridge(),
            on_failure=self.on_failure,
            backend=self.backend,
            solve_dtype=self.solve_dtype,
        )
        with checks.full_precision(p):
            return p * self.scale + self.bias

    def current_ridge(self) -> Ridge:
        """Return the ridge with its current value.

        Equivalent to ``Ridge(ridge.kind, log_ridge.exp(), ridge.detach)``.
        """
        return self.ridge if self.log_ridge is None else replace(self.ridge, value=self.log_ridge.exp())

    def _targets(self, labels: Tensor, support: Tensor) -> Tensor:
        if not isinstance(labels, Tensor):
            raise TypeError(
                f"labels: expected a tensor of class numbers [..., S] or of targets [..., S, C], got "
                f"{checks.describe(labels)}; convert it with torch.as_tensor(labels)"
            )
        points = support.shape[-2]
        if labels.dtype.is_floating_point:
            checks.tensor("labels", labels)
            checks.size("labels", labels, -2, points, "support")
            if self.num_classes is not None:
                checks.size("labels", labels, -1, self.num_classes, "num_classes")
            return labels
        if labels.dtype == torch.bool or labels.dtype.is_complex:
            raise TypeError(
                f"labels: expected class numbers of an integer dtype or floating-point targets, got "
                f"{checks.describe(labels)}; convert one-hot labels with labels.float()"
            )
        if not 1 <= labels.dim() < support.dim() or labels.shape[-1] != points:
            at = labels.dim()
            if 0 < at < support.dim() - 2 and labels.shape == support.shape[:at]:
                raise ValueError(
                    f"support: expected features [..., S, D], one row per point, got {checks.describe(support)} beside "
                    f"class numbers of shape {tuple(labels.shape)}; if each point has several dimensions, such as an "
                    f"image, pass support.flatten({at}) and queries.flatten({at})"
                )
            raise ValueError(
                f"labels: expected class numbers [..., {points}], one per support point, got "
                f"{checks.describe(labels)}; convert one-hot labels with labels.to(support.dtype)"
            )
        if self.num_classes is None:
            raise ValueError("num_classes: expected the number of classes, as labels are class numbers; got None")
        return one_hot(labels, self.num_classes, torch.float64 if support.dtype == torch.float64 else torch.float32)

    def extra_repr(self) -> str:
        """Return the settings that torch prints.

        Returns:
            The number of classes, the ridge, the kernel and which numbers are learned.
        """
        named = {"ridge": self.log_ridge, "scale": self.scale, "bias": self.bias}
        learned = ", ".join(name for name, value in named.items() if isinstance(value, Tensor))
        ridge = f"Ridge.{self.ridge.kind}({self.ridge.value})"
        return f"num_classes={self.num_classes}, ridge={ridge}, kernel={self.kernel}, learned: {learned or 'nothing'}"


def one_hot(labels: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """Return class numbers [...] as rows [..., num_classes]; the row of a number out of range is NaN."""
    in_range = (labels >= 0) & (labels < num_classes)
    if labels.is_cpu and not torch.compiler.is_compiling():
        with contextlib.suppress(RuntimeError):  # no value can be read under a transform such as vmap
            if not bool(in_range.all()):
                worst = int(labels.min()) if int(labels.min()) < 0 else int(labels.max())
                raise ValueError(f"labels: expected class numbers from 0 to {num_classes - 1}, got {worst}")
    rows = (labels.unsqueeze(-1) == torch.arange(num_classes, device=labels.device)).to(dtype)
    return rows.masked_fill(~in_range.unsqueeze(-1), math.nan)


def _number(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected a number, got {checks.describe(value)}")
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value}")
    return float(value)
