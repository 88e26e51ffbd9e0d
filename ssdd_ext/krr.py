"""The public calls: they name and check their arguments, pick a backend, and return what was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import checks, ops, reference
from .kernels import Kernel, Linear
from .ridge import Ridge

_NO_KERNEL = Linear()


class Info(NamedTuple):
    """What happened, one entry a problem, as tensors on the inputs' device.

    status: int32 [...]; 0 success, k > 0 the 1-based pivot that failed, -1 a hyper-parameter out of range.
    jitter: [...]; what was added to the diagonal beside the ridge (0 where the first factorisation succeeded).
    """

    status: Tensor
    jitter: Tensor


@dataclass(frozen=True)
class _Call:
    """The keywords common to all calls, checked, and the hyper-parameters as the backends take them."""

    op: str
    kernel: Kernel
    ridge: Ridge | None
    batch: torch.Size
    work: torch.dtype
    result: torch.dtype
    hyper: Tensor | None
    values: list[float]
    on_failure: str
    native: bool

    def cast(self, value: Tensor) -> Tensor:
        """``value`` in the dtype of the computation, with the common batch shape (no copy where it has both)."""
        if value.dtype != self.work:
            value = value.to(self.work)
        return value if value.shape[:-2] == self.batch else value.expand(*self.batch, *value.shape[-2:])

    def finish(self, result: Tensor, status: Tensor, jitter: Tensor, order: int, return_info: bool) -> Any:
        # The native ops raise by themselves, also inside a compiled graph.
        if self.on_failure == "raise" and not self.native:
            checks.raise_on_failure(self.op, status, order, self.ridge)
        if result.dtype != self.result:
            result = result.to(self.result)
        return (result, Info(status, jitter)) if return_info else result


def _hyper(
    kernel: Kernel, ridge: Ridge | None, batch: torch.Size, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor | None, list[float], torch.Size]:
    """(hyper [..., H] or None where all are numbers, the numbers, the batch shape with the tensors' in it)."""
    parameters = (*kernel.parameters, 0.0 if ridge is None else ridge.value)
    tensors = [p for p in parameters if isinstance(p, Tensor)]
    if not tensors:
        return None, [float(p) for p in parameters], batch
    for p in tensors:
        if p.device != device and p.dim() > 0:
            raise ValueError(f"hyper-parameters: expected device {device}, where the inputs are, got {p.device}")
    shapes = {f"hyper-parameter {i}": p.shape for i, p in enumerate(tensors)}
    batch = checks.batch_shape(inputs=batch, **shapes)
    columns = [
        p.to(device=device, dtype=dtype).expand(batch)
        if isinstance(p, Tensor)
        else torch.full(batch, float(p), dtype=dtype, device=device)
        for p in parameters
    ]
    return torch.stack(columns, -1), [0.0] * len(parameters), batch


def _prepare(
    op: str,
    tensors: dict[str, Tensor],
    kernel: Kernel,
    ridge: Ridge | None,
    on_failure: str,
    check_finite: bool,
    backend: str,
    solve_dtype: torch.dtype | None,
) -> _Call:
    checks.choice("on_failure", on_failure, checks.ON_FAILURE)
    checks.choice("backend", backend, checks.BACKENDS)
    if not isinstance(kernel, Kernel):
        raise TypeError(f"kernel: expected a kernel object such as Linear() or RBF(1.0), got {checks.describe(kernel)}")
    if ridge is not None and not isinstance(ridge, Ridge):
        raise TypeError(
            f"ridge: expected Ridge.absolute(v), Ridge.trace(v) or Ridge.mean_trace(v), got {checks.describe(ridge)}; "
            f"the conventions differ by orders of magnitude, so a bare number is refused"
        )
    device = checks.same_device(**tensors)
    work, result = checks.work_dtype(solve_dtype, **tensors)
    if check_finite:
        checks.finite(**tensors)
    batch = checks.batch_shape(**{n: t.shape[:-2] for n, t in tensors.items()})
    hyper, values, batch = _hyper(kernel, ridge, batch, work, device)
    native = backend != "torch"
    reason = ops.unavailable(device, kernel) if native else None
    if reason is not None:
        if backend == "native":
            raise ValueError(f"backend: 'native' cannot run {op} here: {reason}; use backend='torch'")
        native = False
    return _Call(op, kernel, ridge, batch, work, result, hyper, values, on_failure, native)


def gram(
    x: Tensor,
    z: Tensor | None = None,
    *,
    kernel: Kernel = _NO_KERNEL,
    check_finite: bool = False,
    backend: str = "auto",
    solve_dtype: torch.dtype | None = None,
) -> Tensor:
    """Gram matrix K = k(x, z).

    Args:
        x: features [..., S, D]; float32 or float64, or bfloat16/float16 (accumulated and returned in float32).
        z: features [..., Q, D]; None means x itself, computed as one triangle and mirrored.
        kernel: ``Linear(scale, bias)`` or ``RBF(lengthscale)``.
        check_finite: refuse NaN and Inf in the inputs (one synchronisation on CUDA).
        backend: "auto", "native", or "torch" (the plain reference).
        solve_dtype: torch.float64 to accumulate in float64 and return the inputs' precision.

    Returns:
        [..., S, S], or [..., S, Q] with ``z``. Differentiable in x, z and tensor hyper-parameters.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    tensors = {"x": checks.tensor("x", x)}
    if z is not None:
        tensors["z"] = checks.tensor("z", z)
        checks.size("z", z, -1, x.shape[-1], "x")
    other = x if z is None else z
    checks.product_fits(S=max(1, x.shape[-2]), Q=max(1, other.shape[-2]), batch=max(1, x.shape[:-2].numel()))
    call = _prepare("gram", tensors, kernel, None, "nan", check_finite, backend, solve_dtype)
    x_work = call.cast(x)
    z_work = None if z is None else call.cast(z)
    if call.native:
        k = ops.gram(x_work, z_work, call.hyper, call.values, kernel.name)
    else:
        k = reference.gram(x_work, z_work, kernel, call.hyper, call.values)
    return k if k.dtype == call.result else k.to(call.result)


def cholesky(
    a: Tensor,
    *,
    on_failure: str = "raise",
    return_info: bool = False,
    check_finite: bool = False,
    backend: str = "auto",
    solve_dtype: torch.dtype | None = None,
) -> Any:
    """Lower Cholesky factor L with L L^T = A.

    Args:
        a: symmetric positive definite [..., S, S]; only the lower triangle is read, and the gradient is that of
            the symmetric matrix it stands for.
        on_failure: "raise" a FactorizationError (one synchronisation on CUDA); "jitter" adds a growing multiple of
            the mean diagonal to the problems that failed, a constant for the gradient; "nan" fills those with NaN.
        return_info: return (L, Info(status, jitter)).

    Returns:
        [..., S, S], zero above the diagonal.
    """
    tensors = {"a": checks.tensor("a", a)}
    checks.square("a", a)
    call = _prepare("cholesky", tensors, _NO_KERNEL, None, on_failure, check_finite, backend, solve_dtype)
    if call.native:
        factor, status, jitter = ops.cholesky(call.cast(a), on_failure)
    else:
        factor, status, jitter = reference.cholesky(call.cast(a), on_failure)
    return call.finish(factor, status, jitter, a.shape[-1], return_info)


def cholesky_solve(
    a: Tensor,
    y: Tensor,
    *,
    ridge: Ridge | None = None,
    on_failure: str = "raise",
    return_info: bool = False,
    check_finite: bool = False,
    backend: str = "auto",
    solve_dtype: torch.dtype | None = None,
) -> Any:
    """(A + lambda I)^-1 Y for a Gram matrix A [..., S, S] (its lower triangle is read) and Y [..., S, C].

    ``ridge=None`` means lambda = 0. Differentiable in a, y and a tensor ridge, from one factorisation. The other
    keywords are those of :func:`cholesky`.

    Returns:
        [..., S, C], or (that, Info(status, jitter)).
    """
    tensors = {"a": checks.tensor("a", a), "y": checks.tensor("y", y)}
    checks.square("a", a)
    checks.not_empty("a", a, -1, "row")
    checks.size("y", y, -2, a.shape[-1], "a")
    call = _prepare("cholesky_solve", tensors, _NO_KERNEL, ridge, on_failure, check_finite, backend, solve_dtype)
    return _solve(call, call.cast(a), call.cast(y), return_info)


def _solve(call: _Call, a: Tensor, y: Tensor, return_info: bool) -> Any:
    hyper, values = call.hyper, call.values
    if call.native:
        x, _, status, jitter = ops.solve(a, y, hyper, values, call.ridge, call.on_failure)
    else:
        x, status, jitter = reference.cholesky_solve(a, y, call.ridge, hyper, values, call.on_failure)
    return call.finish(x, status, jitter, a.shape[-1], return_info)


def _check_problem(x_s: Tensor, y_s: Tensor, x_q: Tensor, y_q: Tensor | None = None) -> dict[str, Tensor]:
    """The shapes of one KRR problem: x_s [..., S, D], y_s [..., S, C], x_q [..., Q, D], y_q [..., Q, C]."""
    tensors = {"x_s": checks.tensor("x_s", x_s), "y_s": checks.tensor("y_s", y_s), "x_q": checks.tensor("x_q", x_q)}
    checks.not_empty("x_s", x_s, -2, "support point")
    checks.size("y_s", y_s, -2, x_s.shape[-2], "x_s")
    checks.size("x_q", x_q, -1, x_s.shape[-1], "x_s")
    if y_q is not None:
        tensors["y_q"] = checks.tensor("y_q", y_q)
        checks.size("y_q", y_q, -2, x_q.shape[-2], "x_q")
        checks.size("y_q", y_q, -1, y_s.shape[-1], "y_s")
        checks.not_empty("x_q", x_q, -2, "query point (the mean over none is undefined)")
        checks.not_empty("y_s", y_s, -1, "target (the mean over none is undefined)")
    checks.product_fits(S=x_s.shape[-2], D=max(1, x_s.shape[-1]), batch=max(1, x_s.shape[:-2].numel()))
    checks.product_fits(S=x_s.shape[-2], Q=max(1, x_q.shape[-2]), batch=max(1, x_s.shape[:-2].numel()))
    return tensors


def krr(
    x_s: Tensor,
    y_s: Tensor,
    x_q: Tensor,
    *,
    kernel: Kernel = _NO_KERNEL,
    ridge: Ridge | None = None,
    on_failure: str = "raise",
    return_info: bool = False,
    check_finite: bool = False,
    backend: str = "auto",
    solve_dtype: torch.dtype | None = None,
) -> Any:
    """Kernel ridge regression: P = K_qs (K_ss + lambda I)^-1 Y_s.

    Args:
        x_s: support features [..., S, D]. y_s: targets [..., S, C]. x_q: query features [..., Q, D]. Batch
            dimensions broadcast. float32 or float64; bfloat16/float16 also beside float32, computed in float32.
        kernel: ``Linear(scale, bias)`` (default) or ``RBF(lengthscale)``; numbers, or tensors with gradients that
            broadcast over the batch dimensions.
        ridge: default ``Ridge.trace(1e-6)``, KRR-ST's; see :class:`Ridge` for the others.
        on_failure: "raise" a FactorizationError (one synchronisation on CUDA, refused under graph capture);
            "jitter" retries the problems that failed with a growing multiple of their mean diagonal, a constant
            for the gradient; "nan" fills their results with NaN. The last two never synchronise.
        return_info: return (P, Info(status, jitter)).
        check_finite: refuse NaN and Inf in the inputs.
        backend: "auto" (native where it can run), "native" (an error says why it cannot), "torch" (reference).
        solve_dtype: torch.float64 computes float32 features in float64 and returns float32.

    Returns:
        Predictions [..., Q, C]; an empty result for Q = 0. Each gradient has its input's dtype. Double backward
        and forward mode: backend="torch".
    """
    ridge = Ridge.trace(1e-6) if ridge is None else ridge
    tensors = _check_problem(x_s, y_s, x_q)
    call = _prepare("krr", tensors, kernel, ridge, on_failure, check_finite, backend, solve_dtype)
    a, b, c = call.cast(x_s), call.cast(y_s), call.cast(x_q)
    if call.native:
        p, status, jitter = ops.krr(a, b, c, call.hyper, call.values, kernel.name, ridge, on_failure)
    else:
        p, status, jitter = reference.krr(a, b, c, kernel, ridge, call.hyper, call.values, on_failure)
    return call.finish(p, status, jitter, x_s.shape[-2], return_info)


def krr_mse(
    x_s: Tensor,
    y_s: Tensor,
    x_q: Tensor,
    y_q: Tensor,
    *,
    kernel: Kernel = _NO_KERNEL,
    ridge: Ridge | None = None,
    on_failure: str = "raise",
    return_info: bool = False,
    check_finite: bool = False,
    backend: str = "auto",
    solve_dtype: torch.dtype | None = None,
) -> Any:
    """Mean over Q and C of (P - Y_q)^2 with P of :func:`krr`: the outer loss of KRR-ST (arXiv 2310.06511, eq. 5).

    Args:
        y_q: query targets [..., Q, C]. All others as in :func:`krr`.

    Returns:
        One number a problem, [...]. Q = 0 is an error.
    """
    ridge = Ridge.trace(1e-6) if ridge is None else ridge
    tensors = _check_problem(x_s, y_s, x_q, checks.tensor("y_q", y_q))
    call = _prepare("krr_mse", tensors, kernel, ridge, on_failure, check_finite, backend, solve_dtype)
    a, b, c, d = call.cast(x_s), call.cast(y_s), call.cast(x_q), call.cast(y_q)
    if call.native:
        loss, status, jitter = ops.krr_mse(a, b, c, d, call.hyper, call.values, kernel.name, ridge, on_failure)
    else:
        loss, status, jitter = reference.krr_mse(a, b, c, d, kernel, ridge, call.hyper, call.values, on_failure)
    return call.finish(loss, status, jitter, x_s.shape[-2], return_info)


def krr_from_gram(
    k_ss: Tensor,
    y_s: Tensor,
    k_qs: Tensor,
    *,
    ridge: Ridge | None = None,
    on_failure: str = "raise",
    return_info: bool = False,
    check_finite: bool = False,
    backend: str = "auto",
    solve_dtype: torch.dtype | None = None,
) -> Any:
    """:func:`krr` on Gram matrices somebody else computed (KIP's infinite-width kernels).

    Args:
        k_ss: [..., S, S], symmetric, its lower triangle is read. y_s: [..., S, C]. k_qs: [..., Q, S].

    Returns:
        Predictions [..., Q, C]. The keywords are those of :func:`krr`.
    """
    ridge = Ridge.trace(1e-6) if ridge is None else ridge
    tensors = {
        "k_ss": checks.tensor("k_ss", k_ss),
        "y_s": checks.tensor("y_s", y_s),
        "k_qs": checks.tensor("k_qs", k_qs),
    }
    checks.square("k_ss", k_ss)
    checks.not_empty("k_ss", k_ss, -1, "support point")
    checks.size("y_s", y_s, -2, k_ss.shape[-1], "k_ss")
    checks.size("k_qs", k_qs, -1, k_ss.shape[-1], "k_ss")
    call = _prepare("krr_from_gram", tensors, _NO_KERNEL, ridge, on_failure, check_finite, backend, solve_dtype)
    # K_qs bar = P bar alpha^T is dense whatever the plan: torch's product is the right tool.
    alpha, info = _solve(call, call.cast(k_ss), call.cast(y_s), True)
    p = (call.cast(k_qs) @ alpha.to(call.work)).to(call.result)
    return (p, info) if return_info else p


def krr_mse_from_gram(
    k_ss: Tensor,
    y_s: Tensor,
    k_qs: Tensor,
    y_q: Tensor,
    *,
    ridge: Ridge | None = None,
    on_failure: str = "raise",
    return_info: bool = False,
    check_finite: bool = False,
    backend: str = "auto",
    solve_dtype: torch.dtype | None = None,
) -> Any:
    """:func:`krr_mse` on Gram matrices somebody else computed; shapes as in :func:`krr_from_gram`, y_q [..., Q, C]."""
    tensors = {n: checks.tensor(n, t) for n, t in (("k_ss", k_ss), ("y_s", y_s), ("k_qs", k_qs), ("y_q", y_q))}
    checks.size("y_q", y_q, -2, k_qs.shape[-2], "k_qs")
    checks.not_empty("k_qs", k_qs, -2, "query point (the mean over none is undefined)")
    checks.size("y_q", y_q, -1, y_s.shape[-1], "y_s")
    checks.not_empty("y_s", y_s, -1, "target (the mean over none is undefined)")
    checks.same_device(k_ss=k_ss, y_q=y_q)
    checks.batch_shape(**{n: t.shape[:-2] for n, t in tensors.items()})
    if check_finite:
        checks.finite(y_q=y_q)
    checks.work_dtype(solve_dtype, k_qs=k_qs, y_q=y_q)
    p, info = krr_from_gram(
        k_ss,
        y_s,
        k_qs,
        ridge=ridge,
        on_failure=on_failure,
        return_info=True,
        check_finite=check_finite,
        backend=backend,
        solve_dtype=solve_dtype,
    )
    loss = (p - y_q.to(p.dtype)).square().mean((-2, -1))
    return (loss, info) if return_info else loss


@dataclass(frozen=True)
class Fit:
    """A fitted kernel ridge regression: predicts for any number of query sets from one factorisation.

    alpha: [..., S, C] dual coefficients (K_ss + lambda I)^-1 Y_s. x_s: [..., S, D]. kernel: as given to fit.
    info: Info(status, jitter).
    """

    alpha: Tensor
    x_s: Tensor
    kernel: Kernel
    info: Info
    backend: str
    result_dtype: torch.dtype

    def predict(self, x_q: Tensor) -> Tensor:
        """Predictions [..., Q, C] for x_q [..., Q, D]; differentiable in x_q and in what fit was given."""
        checks.tensor("x_q", x_q)
        checks.size("x_q", x_q, -1, self.x_s.shape[-1], "x_s of the fit")
        checks.same_device(x_s=self.x_s, x_q=x_q)
        query = x_q.to(self.alpha.dtype)
        if isinstance(self.kernel, Linear):
            # Low rank: K_qs is never formed. s X_q (X_s^T alpha) + b (1^T alpha)
            scale, bias = (
                p.to(query.dtype)[..., None, None] if isinstance(p, Tensor) else p for p in self.kernel.parameters
            )
            p = scale * (query @ (self.x_s.mT @ self.alpha)) + bias * self.alpha.sum(-2, keepdim=True)
        else:
            p = gram(query, self.x_s, kernel=self.kernel, backend=self.backend) @ self.alpha
        return p.to(self.result_dtype)


def fit(
    x_s: Tensor,
    y_s: Tensor,
    *,
    kernel: Kernel = _NO_KERNEL,
    ridge: Ridge | None = None,
    on_failure: str = "raise",
    check_finite: bool = False,
    backend: str = "auto",
    solve_dtype: torch.dtype | None = None,
) -> Fit:
    """Factor once, predict often: ``fit(x_s, y_s).predict(x_q)`` equals ``krr(x_s, y_s, x_q)``.

    Arguments as in :func:`krr`. Returns a :class:`Fit`, differentiable like :func:`krr`.
    """
    ridge = Ridge.trace(1e-6) if ridge is None else ridge
    tensors = _check_problem(x_s, y_s, x_s)
    tensors = {"x_s": tensors["x_s"], "y_s": tensors["y_s"]}
    call = _prepare("fit", tensors, kernel, ridge, on_failure, check_finite, backend, solve_dtype)
    x, y = call.cast(x_s), call.cast(y_s)
    if call.native:
        k_ss = ops.gram(x, None, call.hyper, call.values, kernel.name)
    else:
        k_ss = reference.gram(x, None, kernel, call.hyper, call.values)
    alpha, info = _solve(call, k_ss, y, True)
    return Fit(alpha.to(call.work), x, kernel, info, backend, call.result)


def explain(
    x_s: Tensor,
    y_s: Tensor,
    x_q: Tensor,
    *,
    kernel: Kernel = _NO_KERNEL,
    backend: str = "auto",
) -> str:
    """What :func:`krr` would run on these tensors, and the costs that it was picked from. Computes nothing.

    Returns:
        The backend (and, where it is the reference, why), the plan of each pass, its order of the factor, and the
        modelled multiply-adds of every legal order of the products.
    """
    tensors = _check_problem(x_s, y_s, x_q)
    call = _prepare("explain", tensors, kernel, None, "nan", False, backend, None)
    if not call.native:
        return f"torch reference ({ops.unavailable(x_s.device, kernel) or 'asked for'}): dual, dense"
    return ops.explain(x_s, y_s, x_q, call.hyper, call.values, kernel.name)


def build_info() -> dict[str, Any]:
    """What this build holds and what this machine runs: version, cuda (bool), instruction_sets (built and supported
    here), instruction_set (in force), compiler, threads."""
    return {**ops.build_info(), "threads": torch.get_num_threads(), "torch": torch.__version__}
