"""One KRR problem to measure: its sizes, settings and inputs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..kernels import RBF, Kernel, Linear
from ..ridge import Ridge

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
INPUTS = ("x_s", "y_s", "x_q", "y_q")


@dataclass(frozen=True)
class Problem:
    """B problems of S support points, Q query points, D features and C targets, and what is computed for them.

    dtype: of the features; targets of half-precision features are float32. backward: the inputs that get a gradient,
    among x_s, y_s, x_q, y_q; empty means forward only.
    """

    s: int
    q: int
    d: int
    c: int
    b: int = 1
    kernel: str = "linear"
    bias: float = 0.0
    lengthscale: float | None = None
    ridge_kind: str = "trace"
    ridge: float = 1e-6
    dtype: str = "float32"
    device: str = "cpu"
    backward: tuple[str, ...] = ("x_s", "y_s")

    @property
    def length(self) -> float:
        """The RBF's lengthscale; by default sqrt(D), the order of the distances between these inputs."""
        return self.lengthscale if self.lengthscale is not None else float(self.d) ** 0.5

    @property
    def detached(self) -> bool:
        """True if the trace in the ridge is a constant for the gradient, as each convention has it."""
        return self.ridge_kind == "trace"

    @cached_property
    def kernel_object(self) -> Kernel:
        return Linear(bias=self.bias) if self.kernel == "linear" else RBF(self.length)

    @cached_property
    def ridge_object(self) -> Ridge:
        return Ridge(self.ridge_kind, self.ridge, self.ridge_kind == "trace")

    def inputs(self) -> dict[str, Tensor]:
        """Return x_s [(B,) S, D], y_s [(B,) S, C], x_q [(B,) Q, D], y_q [(B,) Q, C]: standard normal, always the
        same."""
        generator = torch.Generator().manual_seed(8)
        batch = () if self.b == 1 else (self.b,)
        shapes = {"x_s": (self.s, self.d), "y_s": (self.s, self.c), "x_q": (self.q, self.d), "y_q": (self.q, self.c)}
        features = DTYPES[self.dtype]
        targets = torch.float64 if features == torch.float64 else torch.float32
        tensors = {}
        for name, shape in shapes.items():
            value = torch.randn(*batch, *shape, generator=generator)
            value = value.to(self.device, features if name.startswith("x") else targets)
            tensors[name] = value.requires_grad_(name in self.backward)
        return tensors

    def describe(self) -> str:
        kernel = f"linear, bias {self.bias:g}" if self.kernel == "linear" else f"rbf, lengthscale {self.length:.4g}"
        trace = {"absolute": "", "trace": " of the trace, detached", "mean_trace": " of the mean of the diagonal"}
        does = f"forward + backward to {', '.join(self.backward)}" if self.backward else "forward"
        return (
            f"S={self.s} Q={self.q} D={self.d} C={self.c} B={self.b}; {kernel}; "
            f"ridge {self.ridge:g}{trace[self.ridge_kind]}; {self.dtype} on {self.device}; {does}"
        )
