"""The alternative ways to compute one KRR loss, which are measured against each other.

Each takes a Problem and its inputs and returns the loss, summed over the batch. All compute the same number.
:func:`why_not` and ``FORWARD_ONLY`` say what an alternative does not support.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor

from ..api import explain, krr_mse
from .problem import Problem

Loss = Callable[[Problem, dict[str, Tensor]], Tensor]


def _features(problem: Problem, t: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Prepare features as published loops do: in the solver's dtype, with the ones column if there is a bias."""
    x_s, x_q = t["x_s"].to(t["y_s"].dtype), t["x_q"].to(t["y_s"].dtype)
    if problem.kernel == "linear" and problem.bias:
        value = problem.bias**0.5
        x_s = torch.cat((x_s, x_s.new_full((*x_s.shape[:-1], 1), value)), -1)
        x_q = torch.cat((x_q, x_q.new_full((*x_q.shape[:-1], 1), value)), -1)
    return x_s, x_q


def _gram(problem: Problem, x: Tensor, z: Tensor) -> Tensor:
    if problem.kernel == "linear":
        return x @ z.mT
    return torch.exp(-(torch.cdist(x, z) ** 2) / (2 * problem.length**2))


def _ridge(problem: Problem, k_ss: Tensor) -> Tensor:
    trace = k_ss.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    if problem.ridge_kind == "absolute":
        return torch.full_like(trace, problem.ridge)
    return problem.ridge * (trace.detach() if problem.ridge_kind == "trace" else trace / problem.s)


def _regularised(problem: Problem, k_ss: Tensor) -> Tensor:
    return k_ss + _ridge(problem, k_ss) * torch.eye(problem.s, dtype=k_ss.dtype, device=k_ss.device)


def _capturing(t: Tensor) -> bool:
    """Return True during the capture of a CUDA graph, when no status can be read."""
    return t.is_cuda and torch.cuda.is_current_stream_capturing()


def usual(problem: Problem, t: dict[str, Tensor]) -> Tensor:
    """Compute the usual PyTorch formulation: two products, torch.linalg.solve, mse_loss, autograd."""
    x_s, x_q = _features(problem, t)
    k_ss = _gram(problem, x_s, x_s)
    k_qs = _gram(problem, x_q, x_s)
    solve = torch.linalg.solve if not _capturing(k_ss) else lambda a, b: torch.linalg.solve_ex(a, b).result
    alpha = solve(_regularised(problem, k_ss), t["y_s"])
    return torch.nn.functional.mse_loss(k_qs @ alpha, t["y_q"]) * problem.b


def with_cholesky(problem: Problem, t: dict[str, Tensor]) -> Tensor:
    """Compute it by torch.linalg.cholesky and torch.cholesky_solve, with autograd through both."""
    x_s, x_q = _features(problem, t)
    k_ss = _gram(problem, x_s, x_s)
    k_qs = _gram(problem, x_q, x_s)
    cholesky = torch.linalg.cholesky if not _capturing(k_ss) else lambda a: torch.linalg.cholesky_ex(a).L
    alpha = torch.cholesky_solve(t["y_s"], cholesky(_regularised(problem, k_ss)))
    return torch.nn.functional.mse_loss(k_qs @ alpha, t["y_q"]) * problem.b


def planned(problem: Problem, t: dict[str, Tensor]) -> Tensor:
    """Compute it by PyTorch written as well as we can, ``backend="planned"``, without reading the status."""
    loss: Tensor = krr_mse(
        t["x_s"],
        t["y_s"],
        t["x_q"],
        t["y_q"],
        kernel=problem.kernel_object,
        ridge=problem.ridge_object,
        on_failure="nan",
        backend="planned",
    )
    return loss if problem.b == 1 else loss.sum()


def this_backend(problem: Problem, t: dict[str, Tensor]) -> Tensor:
    """Compute it by ssdd_ext's public call. On a GPU the status is not read, as that would synchronise."""
    loss: Tensor = krr_mse(
        t["x_s"],
        t["y_s"],
        t["x_q"],
        t["y_q"],
        kernel=problem.kernel_object,
        ridge=problem.ridge_object,
        on_failure="nan" if t["x_s"].is_cuda else "raise",
    )
    return loss if problem.b == 1 else loss.sum()


def resolved_ridge(problem: Problem, x_s: Tensor) -> float:
    """Return lambda as a number, for libraries with an absolute ridge only; x_s [S, D]."""
    diagonal = 1.0 if problem.kernel == "rbf" else float(x_s.square().sum(-1).mean()) + problem.bias
    return problem.ridge * {"absolute": 1.0, "trace": problem.s * diagonal}.get(problem.ridge_kind, diagonal)


def sklearn_kernel_ridge(problem: Problem, t: dict[str, Tensor]) -> Tensor:
    """Compute it by sklearn.kernel_ridge.KernelRidge: fit and predict, one problem at a time, without gradients."""
    from sklearn.kernel_ridge import KernelRidge

    settings: dict[str, object] = {"kernel": "linear"}
    if problem.kernel == "rbf":
        settings = {"kernel": "rbf", "gamma": 0.5 / problem.length**2}
    elif problem.bias:
        settings = {"kernel": "poly", "degree": 1, "gamma": 1.0, "coef0": problem.bias}
    total = torch.zeros(())
    names = ("x_s", "y_s", "x_q", "y_q")
    batched = {n: (t[n].detach().float() if t[n].element_size() == 2 else t[n].detach()) for n in names}
    for i in range(problem.b):
        x_s, y_s, x_q, y_q = (batched[n] if problem.b == 1 else batched[n][i] for n in names)
        model = KernelRidge(alpha=resolved_ridge(problem, x_s), **settings).fit(x_s.numpy(), y_s.numpy())
        total = total + (torch.from_numpy(model.predict(x_q.numpy())) - y_q).square().mean()
    return total


def gpytorch_posterior(problem: Problem, t: dict[str, Tensor]) -> Tensor:
    """Compute it by GPyTorch's operators: (K + noise I) is solved by its Cholesky factor, for all C targets at once."""
    import gpytorch
    from linear_operator import to_linear_operator

    x_s, x_q = _features(problem, t)
    k_ss = _gram(problem, x_s, x_s)
    noise = _ridge(problem, k_ss).expand(*k_ss.shape[:-1], 1)[..., 0]
    with gpytorch.settings.max_cholesky_size(problem.s + 1):
        alpha = to_linear_operator(k_ss).add_diagonal(noise).solve(t["y_s"])
    return torch.nn.functional.mse_loss(_gram(problem, x_q, x_s) @ alpha, t["y_q"]) * problem.b


USUAL = "PyTorch, usual"
THIS = "ssdd_ext"
ALTERNATIVES: dict[str, Loss] = {
    THIS: this_backend,
    USUAL: usual,
    "PyTorch, Cholesky": with_cholesky,
    "PyTorch, planned": planned,
    "scikit-learn": sklearn_kernel_ridge,
    "GPyTorch": gpytorch_posterior,
}
FORWARD_ONLY = {"scikit-learn"}
_NEEDS = {"scikit-learn": "sklearn", "GPyTorch": "gpytorch"}


def why_not(name: str, problem: Problem) -> str | None:
    """Say why this alternative cannot be measured on this problem here; None if it can."""
    module = _NEEDS.get(name)
    if module is not None and find_spec(module) is None:
        return "not installed"
    if name in FORWARD_ONLY and problem.device != "cpu":
        return "runs on the CPU only"
    return None


def plan_of(name: str, problem: Problem, t: dict[str, Tensor]) -> str | None:
    """Return the plan of this alternative, in words; None if it has none."""
    backend = {"PyTorch, planned": "planned", THIS: "auto"}.get(name)
    if backend is None:
        return None
    return explain(t["x_s"], t["y_s"], t["x_q"], kernel=problem.kernel_object, backend=backend)
