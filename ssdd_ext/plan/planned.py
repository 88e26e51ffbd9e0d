"""The orders of planned PyTorch's products, by multiply-adds alone.

Plain comparisons of sizes: torch.compile traces them with symbolic sizes.
"""

from __future__ import annotations

from typing import Any

from .problem import Problem, is_primal


def predict_costs(s: Any, q: Any, d: Any, c: Any) -> dict[str, Any]:
    """Return multiply-adds of P = K_qs alpha of a linear kernel: with K_qs, or as X_q (X_s^T alpha)."""
    return {"dense": q * s * (d + c), "low_rank": c * d * (s + q)}


def gradient_costs(s: Any, d: Any, c: Any) -> dict[str, Any]:
    """Return multiply-adds of Kbar_ss X_s of a linear kernel: with Kbar_ss, or with its two factors of rank C."""
    return {"dense": s * s * (c + d), "low_rank": 4 * c * d * s}


def predicts_low_rank(s: Any, q: Any, d: Any, c: Any) -> bool:
    """Return True if the predictions of a linear kernel take fewer multiply-adds without K_qs."""
    costs = predict_costs(s, q, d, c)
    return costs["low_rank"] < costs["dense"]


def pulls_back_low_rank(s: Any, d: Any, c: Any) -> bool:
    """Return True if the gradient through K_ss of a linear kernel takes fewer multiply-adds without Kbar_ss."""
    costs = gradient_costs(s, d, c)
    return costs["low_rank"] < costs["dense"]


def describe(p: Problem) -> str:
    """Describe the orders for one problem, with the costs they were chosen by."""
    if is_primal(p):
        return f"primal, factor of order {p.d + p.bordered}"
    if not p.linear:
        return f"dual, dense, factor of order {p.s}"
    predict, gradient = predict_costs(p.s, p.q, p.d, p.c), gradient_costs(p.s, p.d, p.c)
    lines = [
        f"dual, factor of order {p.s}; predictions {min(predict, key=predict.__getitem__)}, "
        f"gradient through K_ss {min(gradient, key=gradient.__getitem__)}"
    ]
    for name, table in (("predictions", predict), ("gradient through K_ss", gradient)):
        ranked = ", ".join(f"{order} {cost:.3g}" for order, cost in sorted(table.items(), key=lambda i: i[1]))
        lines.append(f"  {name} (multiply-adds): {ranked}")
    return "\n".join(lines)
