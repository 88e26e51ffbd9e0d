# The native core's functions, private to ops/native.py. A _Capsule is a DLPack capsule, or None for an absent tensor.
from typing import Any

_Capsule = Any

def gram(
    x: _Capsule,
    z: _Capsule,
    hyper: _Capsule,
    values: list[float],
    kernel: int,
    order: int,
    k: _Capsule,
    work: _Capsule,
    b: int,
    s: int,
    q: int,
    d: int,
    threads: int,
    stream: tuple[int, bool],
    halves: bool,
    products: bool,
) -> None: ...
def solve(
    a: _Capsule,
    y: _Capsule,
    hyper: _Capsule,
    values: list[float],
    ridge: int,
    on_failure: int,
    factor: _Capsule,
    x: _Capsule,
    status: _Capsule,
    jitter: _Capsule,
    aux: _Capsule,
    work: _Capsule,
    b: int,
    s: int,
    c: int,
    threads: int,
    stream: tuple[int, bool],
    cluster: bool,
) -> None: ...
def solve_backward(
    grad: _Capsule,
    factor: _Capsule,
    x: _Capsule,
    aux: _Capsule,
    hyper: _Capsule,
    values: list[float],
    ridge: int,
    detach: bool,
    grad_a: _Capsule,
    grad_y: _Capsule,
    grad_v: _Capsule,
    work: _Capsule,
    b: int,
    s: int,
    c: int,
    threads: int,
    stream: tuple[int, bool],
) -> None: ...

class KrrShape:
    """KrrShape of csrc/krr.h: sizes, the order n of the factor, and codes of the kernel, the ridge and the plan."""

    def __init__(
        self,
        *,
        batch: int,
        s: int,
        q: int,
        d: int,
        c: int,
        n: int,
        kernel: int,
        ridge: int,
        detach: bool,
        bordered: bool,
        plan: int,
        chunk: int,
        threads: int,
        fused_gram: bool = False,
        lanes: bool = False,
        order: int = 0,
        halves: bool = False,
        cluster: bool = False,
        products: bool = False,
        parts: int = 0,
    ) -> None: ...
    @property
    def batch(self) -> int: ...
    @property
    def n(self) -> int: ...
    @property
    def threads(self) -> int: ...

def krr_forward(
    shape: KrrShape,
    x_s: _Capsule,
    y_s: _Capsule,
    x_q: _Capsule,
    y_q: _Capsule,
    hyper: _Capsule,
    values: list[float],
    on_failure: int,
    out: _Capsule,
    loss: _Capsule,
    factor: _Capsule,
    coef: _Capsule,
    kept: _Capsule,
    aux: _Capsule,
    jitter: _Capsule,
    status: _Capsule,
    work: _Capsule,
    stream: tuple[int, bool],
) -> None: ...
def krr_backward(
    shape: KrrShape,
    x_s: _Capsule,
    y_s: _Capsule,
    x_q: _Capsule,
    e: _Capsule,
    g: _Capsule,
    factor: _Capsule,
    coef: _Capsule,
    kept: _Capsule,
    aux: _Capsule,
    hyper: _Capsule,
    values: list[float],
    grad_x_s: _Capsule,
    grad_y_s: _Capsule,
    grad_x_q: _Capsule,
    grad_hyper: _Capsule,
    work: _Capsule,
    stream: tuple[int, bool],
) -> None: ...
def krr_evaluate(
    shape: KrrShape,
    x_s: _Capsule,
    y_s: _Capsule,
    x_q: _Capsule,
    y_q: _Capsule,
    values: list[float],
    on_failure: int,
    result: _Capsule,
    work: _Capsule,
) -> int: ...
def krr_evaluate_workspace(shape: KrrShape, predicts: bool, on_failure: int) -> int: ...
def krr_value_and_gradient(
    forward: KrrShape,
    backward_plan: int,
    x_s: _Capsule,
    y_s: _Capsule,
    x_q: _Capsule,
    y_q: _Capsule,
    values: list[float],
    on_failure: int,
    loss: _Capsule,
    grad_x_s: _Capsule,
    grad_y_s: _Capsule,
    grad_x_q: _Capsule,
    work: _Capsule,
) -> int: ...
def krr_fuses(shape: KrrShape, backward_plan: int) -> bool: ...
def krr_value_and_gradient_workspace(shape: KrrShape, backward_plan: int) -> int: ...
def krr_record(
    shape: KrrShape,
    keeps: bool,
    x_s: _Capsule,
    y_s: _Capsule,
    x_q: _Capsule,
    y_q: _Capsule,
    hyper: _Capsule,
    values: list[float],
    on_failure: int,
    out: _Capsule,
    loss: _Capsule,
    saved: _Capsule,
    work: _Capsule,
) -> int: ...
def krr_replay(
    shape: KrrShape,
    keeps: bool,
    x_s: _Capsule,
    y_s: _Capsule,
    x_q: _Capsule,
    e: _Capsule,
    g: _Capsule,
    hyper: _Capsule,
    values: list[float],
    saved: _Capsule,
    grad_x_s: _Capsule,
    grad_y_s: _Capsule,
    grad_x_q: _Capsule,
    grad_hyper: _Capsule,
    work: _Capsule,
) -> None: ...
def krr_saved(shape: KrrShape, keeps: bool) -> tuple[int, int, int, int]: ...
def krr_fit(
    shape: KrrShape,
    x_s: _Capsule,
    y_s: _Capsule,
    values: list[float],
    on_failure: int,
    coef: _Capsule,
    saved: _Capsule,
    work: _Capsule,
) -> int: ...
def krr_fit_backward(
    shape: KrrShape,
    x_s: _Capsule,
    y_s: _Capsule,
    grad: _Capsule,
    values: list[float],
    coef: _Capsule,
    saved: _Capsule,
    grad_x_s: _Capsule,
    grad_y_s: _Capsule,
    work: _Capsule,
) -> None: ...
def krr_fit_saved(shape: KrrShape) -> tuple[int, int, int, int]: ...

class FromGramShape:
    """Sizes of one call from Gram matrices; ``keeps``: the forward forms what the backward of the loss needs."""

    def __init__(
        self, *, batch: int, s: int, q: int, c: int, ridge: int, detach: bool, keeps: bool, threads: int
    ) -> None: ...

def krr_from_gram(
    shape: FromGramShape,
    k_ss: _Capsule,
    y_s: _Capsule,
    k_qs: _Capsule,
    y_q: _Capsule,
    values: list[float],
    on_failure: int,
    out: _Capsule,
    loss: _Capsule,
    saved: _Capsule,
    work: _Capsule,
) -> int: ...
def krr_from_gram_backward(
    shape: FromGramShape,
    k_qs: _Capsule,
    e: _Capsule,
    g: _Capsule,
    values: list[float],
    saved: _Capsule,
    grad_k_ss: _Capsule,
    grad_y_s: _Capsule,
    grad_k_qs: _Capsule,
    work: _Capsule,
) -> None: ...
def krr_from_gram_saved(shape: FromGramShape) -> tuple[int, int, int, int]: ...
def krr_from_gram_workspace(shape: FromGramShape) -> int: ...
def tridiagonal(
    a: _Capsule,
    reflectors: _Capsule,
    tau: _Capsule,
    diagonal: _Capsule,
    beside: _Capsule,
    bounds: _Capsule,
    work: _Capsule,
    b: int,
    n: int,
    threads: int,
) -> None: ...
def tridiagonal_rotate(
    reflectors: _Capsule,
    tau: _Capsule,
    x: _Capsule,
    transposed: bool,
    work: _Capsule,
    b: int,
    n: int,
    m: int,
    threads: int,
) -> None: ...
def tridiagonal_solve(
    diagonal: _Capsule,
    beside: _Capsule,
    shifts: _Capsule,
    y: _Capsule,
    x: _Capsule,
    work: _Capsule,
    b: int,
    n: int,
    r: int,
    c: int,
    shared_y: bool,
    shared_shift: bool,
    threads: int,
) -> None: ...
def tridiagonal_workspace(n: int, m: int, threads: int) -> int: ...
def gram_backward(
    x: _Capsule,
    z: _Capsule,
    grad: _Capsule,
    hyper: _Capsule,
    values: list[float],
    kernel: int,
    order: int,
    grad_x: _Capsule,
    grad_z: _Capsule,
    grad_hyper: _Capsule,
    work: _Capsule,
    b: int,
    s: int,
    q: int,
    d: int,
    chunk: int,
    threads: int,
) -> None: ...
def gram_backward_workspace(
    kernel: int, order: int, b: int, s: int, q: int, d: int, chunk: int, symmetric: bool, threads: int
) -> int: ...
def gram_workspace(
    kernel: int, order: int, b: int, s: int, q: int, d: int, threads: int, cuda: bool, products: bool
) -> int: ...
def cholesky_workspace(batch: int, s: int, c: int, threads: int, cuda: bool) -> int: ...
def krr_workspace(shape: KrrShape, backward: bool, cuda: bool) -> int: ...
def cuda_problem(device: int) -> str: ...
def build_info() -> dict[str, Any]: ...
def force_instruction_set(name: str) -> None: ...
