# The native core's functions, private to ops/native.py. A _Capsule is a DLPack capsule, or None: absent.
from typing import Any

_Capsule = Any

def gram(
    x: _Capsule, z: _Capsule, hyper: _Capsule, values: list[float], kernel: int, k: _Capsule, work: _Capsule,
    b: int, s: int, q: int, d: int, threads: int, stream: int,
) -> None: ...
def solve(
    a: _Capsule, y: _Capsule, hyper: _Capsule, values: list[float], ridge: int, on_failure: int, factor: _Capsule,
    x: _Capsule, status: _Capsule, jitter: _Capsule, aux: _Capsule, work: _Capsule, b: int, s: int, c: int,
    threads: int, stream: int,
) -> None: ...
def solve_backward(
    grad: _Capsule, factor: _Capsule, x: _Capsule, aux: _Capsule, hyper: _Capsule, values: list[float], ridge: int,
    detach: bool, grad_a: _Capsule, grad_y: _Capsule, grad_v: _Capsule, work: _Capsule, b: int, s: int, c: int,
    threads: int, stream: int,
) -> None: ...
def krr_forward(
    shape: list[int], x_s: _Capsule, y_s: _Capsule, x_q: _Capsule, y_q: _Capsule, hyper: _Capsule,
    values: list[float], on_failure: int, out: _Capsule, loss: _Capsule, factor: _Capsule, coef: _Capsule,
    kept: _Capsule, aux: _Capsule, jitter: _Capsule, status: _Capsule, work: _Capsule, stream: int,
) -> None: ...
def krr_backward(
    shape: list[int], x_s: _Capsule, y_s: _Capsule, x_q: _Capsule, e: _Capsule, g: _Capsule, factor: _Capsule,
    coef: _Capsule, kept: _Capsule, aux: _Capsule, hyper: _Capsule, values: list[float], grad_x_s: _Capsule,
    grad_y_s: _Capsule, grad_x_q: _Capsule, grad_hyper: _Capsule, work: _Capsule, stream: int,
) -> None: ...
def krr_value_and_gradient(
    forward: list[int], backward_plan: int, x_s: _Capsule, y_s: _Capsule, x_q: _Capsule, y_q: _Capsule,
    values: list[float], on_failure: int, loss: _Capsule, grad_x_s: _Capsule, grad_y_s: _Capsule,
    grad_x_q: _Capsule, work: _Capsule,
) -> int: ...
def krr_value_and_gradient_workspace(shape: list[int], backward_plan: int) -> int: ...
def gram_workspace(batch: int, s: int, q: int, threads: int) -> int: ...
def cholesky_workspace(batch: int, s: int, c: int, threads: int) -> int: ...
def krr_workspace(shape: list[int], backward: bool) -> int: ...
def build_info() -> dict[str, Any]: ...
def force_instruction_set(name: str) -> None: ...
