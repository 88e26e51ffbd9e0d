"""The cross-entropy of kernel ridge regression's predictions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..kernels import Kernel
from ..ridge import Ridge
from .call import DEFAULT_KERNEL, DEFAULT_RIDGE, check_problem, for_all, for_each_problem, mean_over_queries, prepare

Number = float | Tensor


def krr_cross_entropy(
    x_s: Tensor,
    y_s: Tensor,
    x_q: Tensor,
    y_q: Tensor,
    *,
    kernel: Kernel = DEFAULT_KERNEL,
    ridge: Ridge | None = None,
    scale: Number = 1.0,
    temperature: Number = 1.0,
    sample_weight: Tensor | None = None,
    on_failure: str = "raise",
    return_info: bool = False,
    check_finite: bool = False,
    backend: str = "auto",
    solve_dtype: torch.dtype | None = None,
) -> Any:
    """Compute the cross-entropy of the logits ``scale / temperature * P`` with P of :func:`krr`, a mean over Q.

    This is the loss of few-shot classifiers with a ridge regression inside (R2D2, MetaOptNet).
    Equivalent to ``cross_entropy(scale / temperature * krr(x_s, y_s, x_q), y_q)`` with
    ``torch.nn.functional.cross_entropy``, per problem of the batch.

    Args:
        x_s: support features [..., S, D]; float32 or float64, or bfloat16/float16, which are computed in float32.
            Batch dimensions of all inputs broadcast.
        y_s: support targets [..., S, C], one column per class; one-hot rows, or any others.
        x_q: query features [..., Q, D].
        y_q: labels of the queries: class numbers [..., Q] of an integer dtype, or probabilities [..., Q, C] of the
            features' dtype, with or without gradient.
        kernel: any kernel, such as ``Linear(scale, bias)``; its hyper-parameters are numbers, or tensors [...] with
            gradients that broadcast over the batch dimensions. Default ``Linear()``.
        ridge: how lambda follows from K_ss; see :class:`Ridge`. Default ``Ridge.trace(1e-6)``, KRR-ST's.
        scale: number > 0, or a tensor [...] with gradient that broadcasts over the batch dimensions. Default 1.
        temperature: as ``scale``; it divides. Default 1.
        sample_weight: weights [..., Q] >= 0 of the query points, with or without gradient; the mean over Q is then
            sum(w * loss) / sum(w). Default None: 1 for each.
        on_failure: "raise" (default) raises a FactorizationError (one synchronisation on CUDA, refused under graph
            capture); "jitter" retries the problems that failed with a growing multiple of their mean diagonal, a
            constant for the gradient; "nan" fills their results with NaN. The last two never synchronise.
        return_info: return (loss, Info(status, jitter, condition)). Default False.
        check_finite: refuse NaN and Inf in the inputs (one synchronisation per tensor on CUDA). Default False.
        backend: "auto" (default: native, or planned PyTorch if the native core cannot run), "native", "planned", or
            "torch" (the plain reference, whose backward inside ``torch.autocast`` rounds to 16 bits; the others keep
            their digits there). A backend that cannot run raises a ValueError that says why.
        solve_dtype: torch.float64 computes float32 inputs in float64 and returns float32. Default None.

    Returns:
        One number per problem, [...]. Q = 0 is an error. One factorisation; gradients as of :func:`krr`, and to
        probabilities, ``scale`` and ``temperature``.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
        FactorizationError: with ``on_failure="raise"``, for a problem that is not positive definite.
    """
    ridge = DEFAULT_RIDGE if ridge is None else ridge
    tensors = check_problem(x_s, y_s, x_q)
    checks.not_empty("x_q", x_q, -2, "query point (the mean over none is undefined)")
    checks.not_empty("y_s", y_s, -1, "class")
    is_soft = isinstance(y_q, Tensor) and y_q.dtype.is_floating_point
    target = _check_probabilities(y_q, tensors, x_q, y_s) if is_soft else _check_labels(y_q, tensors)
    factors = _check_factors(scale, temperature)
    if sample_weight is not None:
        tensors["sample_weight"] = checks.sample_weight(sample_weight, x_q.shape[-2], "x_q")
    call = prepare(
        "krr_cross_entropy", tensors, kernel, ridge, on_failure, check_finite, backend, solve_dtype, return_info
    )
    batch = checks.batch_shape(inputs=call.batch, y_q=target.shape[: -2 if is_soft else -1])
    _check_batch(batch, scale=factors[0], temperature=factors[1])
    with call.precision(x_s), call.name_failure():
        inputs = call.features(x_s), call.cast(y_s), call.features(x_q)
        p, status, jitter, factor = call.run.krr(*inputs, call.kernel, call.ridge, **call.krr_options)
    info = call.check_status(status, jitter, x_s.shape[-2], factor)
    with checks.full_precision(x_s):
        return call.finish(mean_over_queries(cross_entropy(p, target, *factors), tensors.get("sample_weight")), info)


def cross_entropy(p: Tensor, target: Tensor, scale: Number, temperature: Number) -> Tensor:
    """Return the cross-entropy [..., Q] of each prediction of p [..., Q, C]."""
    for factor, divides in ((scale, False), (temperature, True)):
        by = factor.to(p)[..., None, None] if isinstance(factor, Tensor) else factor
        p = p / by if divides else p * by
    log_p = torch.log_softmax(p, -1)
    if target.dtype.is_floating_point:
        return -(target.to(p.dtype) * log_p).sum(-1)
    batch = torch.broadcast_shapes(log_p.shape[:-2], target.shape[:-1])
    target = target.expand(*batch, target.shape[-1])[..., None]
    return -log_p.expand(*batch, *log_p.shape[-2:]).gather(-1, target).squeeze(-1)


def _check_factors(scale: Number, temperature: Number) -> tuple[Number, Number]:
    named = {"scale": scale, "temperature": temperature}
    values = {name: checks.parameter(name, value, positive=True) for name, value in named.items()}
    return values["scale"], values["temperature"]


def _check_batch(batch: torch.Size, **factors: Number) -> None:
    """Refuse a factor with dimensions that the inputs lack."""
    shapes = {name: factor.shape for name, factor in factors.items() if isinstance(factor, Tensor)}
    for name, shape in shapes.items():
        if len(shape) > len(batch):
            logits = f"{'v *' if name == 'scale' else '1 / v *'} krr(x_s, y_s, x_q)"
            raise ValueError(
                f"{name}: expected a number or a tensor of at most {len(batch)} dimensions, as many batch dimensions "
                f"as the inputs have, got shape {tuple(shape)}. Write {for_all(shape)}; "
                f"one per class by torch.nn.functional.cross_entropy({logits}, y_q); "
                f"{for_each_problem(shape, batch)}"
            )
    checks.batch_shape(inputs=batch, **shapes)


def _check_probabilities(y_q: Tensor, tensors: dict[str, Tensor], x_q: Tensor, y_s: Tensor) -> Tensor:
    if y_q.dim() == 1:
        raise ValueError(
            f"y_q: expected probabilities [..., Q, C], or class numbers [..., Q] of an integer dtype, got "
            f"{checks.describe(y_q)}; convert class numbers with y_q.long()"
        )
    tensors["y_q"] = checks.tensor("y_q", y_q)
    checks.size("y_q", y_q, -2, x_q.shape[-2], "x_q")
    checks.size("y_q", y_q, -1, y_s.shape[-1], "y_s")
    return y_q


def _check_labels(y_q: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    x_q, y_s = tensors["x_q"], tensors["y_s"]
    if not isinstance(y_q, Tensor):
        raise TypeError(
            f"y_q: expected a tensor of class numbers [..., Q] or of probabilities [..., Q, C], got "
            f"{checks.describe(y_q)}; convert it with torch.as_tensor(y_q)"
        )
    labels = checks.labels("y_q", y_q, y_s.shape[-1])
    # The last two sizes do not tell one-hot labels from class numbers if all problems share the queries.
    per_problem = y_q.dim() == max(t.dim() for t in tensors.values()) - 1
    if y_q.dim() >= x_q.dim() and not per_problem and y_q.shape[-2:] == (x_q.shape[-2], y_s.shape[-1]):
        raise ValueError(
            f"y_q: expected class numbers [..., {x_q.shape[-2]}], got {checks.describe(y_q)}; convert one-hot labels "
            f"with y_q.to(x_q.dtype)"
        )
    checks.size("y_q", y_q, -1, x_q.shape[-2], "x_q")
    if y_q.device != x_q.device:
        raise ValueError(f"y_q: expected device {x_q.device}, where x_q is, got {y_q.device}")
    return labels
