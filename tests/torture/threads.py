"""Eight threads that call at the same time, and forks between the calls: every result has the bits of a single call."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path
from typing import Any

import torch

import ssdd_ext
from ssdd_ext import RBF, Linear, Ridge

THREADS, CALLS = 8, 40


def problem(rng: random.Random) -> Any:
    """Return a call without arguments whose result is a list of tensors."""
    g = torch.Generator().manual_seed(rng.randrange(1 << 30))
    s, q, d, c = (rng.choice(sizes) for sizes in ((3, 20, 70, 130), (1, 33), (4, 40, 90), (1, 5)))
    batch = rng.choice(((), (), (3,), (40,)))
    dtype = rng.choice((torch.float32, torch.float64))
    x, z = (torch.randn(*batch, n, d, generator=g, dtype=dtype) for n in (s, q))
    y, t = (torch.randn(*batch, n, c, generator=g, dtype=dtype) for n in (s, q))
    options = {"kernel": rng.choice((Linear(bias=1.0), RBF(2.0))), "ridge": Ridge.mean_trace(1e-2)}
    kind = rng.choice(("krr", "gradients", "solve", "gram", "fit"))

    def call() -> list[torch.Tensor]:
        if kind == "krr":
            return [ssdd_ext.krr(x, y, z, **options)]
        if kind == "gradients":
            leaves = [v.clone().requires_grad_() for v in (x, y, z)]
            loss = ssdd_ext.krr_mse(*leaves, t, **options).sum()
            return [loss.detach(), *torch.autograd.grad(loss, leaves)]
        if kind == "gram":
            return [ssdd_ext.gram(x, z, kernel=options["kernel"])]
        if kind == "fit":
            return [ssdd_ext.fit(x, y, **options).predict(z)]
        return [ssdd_ext.cholesky_solve(ssdd_ext.gram(x), y, ridge=options["ridge"])]

    return call


def prepare(place: Path) -> Any:
    return None


def case(rng: random.Random, shared: Any, folder: Path) -> dict[str, Any]:
    calls = [problem(rng) for _ in range(6)]
    expected = [call() for call in calls]
    wrong: list[str] = []
    barrier = threading.Barrier(THREADS)

    def work(seed: int) -> None:
        own = random.Random(seed)
        barrier.wait()
        for _ in range(CALLS):
            i = own.randrange(len(calls))
            try:
                if not all(map(torch.equal, calls[i](), expected[i])):
                    wrong.append(f"call {i}: other bits")
            except Exception as error:  # noqa: BLE001
                wrong.append(f"call {i}: {type(error).__name__}: {error}")

    threads = [threading.Thread(target=work, args=(rng.randrange(1 << 30),)) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:5]
    # PyTorch's own loops hang in a forked child if they used several threads before, as libgomp does. A child that sets
    # one thread, as a DataLoader's worker does, must work.
    threads_before = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = [call() for call in calls]
    torch.set_num_threads(threads_before)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            code = 0 if all(all(map(torch.equal, c(), e)) for c, e in zip(calls, expected, strict=True)) else 2
        finally:
            os._exit(code)
    code = wait(pid, 120)
    assert code == 0, f"the forked child ended with {code}"
    return {"counts": {"calls from 8 threads": THREADS * CALLS, "forks": 1}}


def wait(pid: int, seconds: float) -> int | None:
    """Return the exit code of a child; None, after killing it, if it hangs."""
    import signal
    import time

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None
