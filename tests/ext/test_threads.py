"""Threads and processes: one OpenMP pool, concurrent callers, a fork after use, BLAS' own threads unchanged.

Tests that affect a whole process run in one of their own.
"""

import textwrap
import threading
import time

import pytest
import torch

import ssdd_ext
from ssdd_ext import RBF, Linear
from ssdd_ext.testing import TABLE, Problem, draw, gradients, predictions, relative_error

PREAMBLE = """
    import os, sys
    import torch
    import ssdd_ext
    torch.set_num_threads(2)
    generator = torch.Generator().manual_seed(0)
    x, y, q = (torch.randn(*s, generator=generator, requires_grad=True) for s in ((300, 200), (300, 10), (100, 200)))
    def call():
        p = ssdd_ext.krr(x, y, q, backend="native")
        return [p, *torch.autograd.grad(p.square().sum(), (x, y, q))]
    def same(a, b):
        return all(torch.equal(s, t) for s, t in zip(a, b, strict=True))
"""


@pytest.fixture
def in_a_process(fresh):
    def run(script: str) -> None:
        done = fresh(textwrap.dedent(PREAMBLE) + textwrap.dedent(script))
        assert done.returncode == 0, done.stdout + done.stderr

    return run


def test_one_openmp_pool(in_a_process):
    """torch's libgomp is the only one, and a call starts no threads in addition to torch's."""
    in_a_process("""
        from threadpoolctl import threadpool_info
        def tasks():
            return len(os.listdir("/proc/self/task"))
        torch.ones(400, 400) @ torch.ones(400, 400)
        torch.ones(10**6).exp().sum()
        before = tasks()
        call()
        assert tasks() <= max(before, torch.get_num_threads()), (before, tasks())
        pools = [i["filepath"] for i in threadpool_info() if i["user_api"] == "openmp"]
        assert len(pools) == 1 and os.path.dirname(torch.__file__) in pools[0], pools
    """)


def test_blas_threads_of_others_are_left_alone(in_a_process):
    in_a_process("""
        import numpy, scipy.linalg
        from threadpoolctl import threadpool_info, threadpool_limits
        def blas():
            return {i["filepath"]: i["num_threads"] for i in threadpool_info() if i["user_api"] == "blas"}
        for limit in (2, 1):
            with threadpool_limits(limit, user_api="blas"):
                before = blas()
                assert before and set(before.values()) == {limit}
                call()
                assert blas() == before, (before, blas())
                try:
                    ssdd_ext.cholesky(-torch.eye(200), backend="native")
                except ssdd_ext.FactorizationError:
                    pass
                assert blas() == before, "after a failure"
    """)


def test_fork_after_use(in_a_process):
    """libgomp's threads do not survive a fork, and the child must not wait for them."""
    in_a_process("""
        expected = call()
        child = os.fork()
        if child == 0:
            got = call()
            torch.set_num_threads(1)  # torch's own parallel loops hang in a forked child; the core's do not
            os._exit(0 if same(got, expected) else 3)
        import time
        for _ in range(200):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            time.sleep(0.1)
        else:
            os.kill(child, 9)
            os.waitpid(child, 0)
            sys.exit("the child hangs")
        assert os.waitstatus_to_exitcode(status) == 0, status
        assert same(call(), expected), "the parent after the fork"
    """)


def test_multiprocessing_fork_after_use(in_a_process):
    in_a_process("""
        import multiprocessing
        expected = call()
        context = multiprocessing.get_context("fork")
        def work(queue):
            got = call()
            torch.set_num_threads(1)  # as above, for the comparison
            queue.put(same(got, expected))
        queue = context.Queue()
        workers = [context.Process(target=work, args=(queue,), daemon=True) for _ in range(2)]
        for w in workers:
            w.start()
        assert all(queue.get(timeout=20) for _ in workers)
        for w in workers:
            w.join(10)
    """)


ROWS = {
    "small": Problem("threads_small", 12, 9, 15, 3, RBF(4.0)),
    "batch": Problem("threads_batch", 20, 15, 30, 4, Linear(bias=1.0), batch=(16,)),
    "large": TABLE["large"],
}


def everything(inputs):
    i = inputs
    p = ssdd_ext.krr(i.x_s, i.y_s, i.x_q, kernel=i.kernel, ridge=i.ridge, backend="native")
    return [p, *gradients(p, inputs).values()]


def test_concurrent_callers_get_the_bits_of_a_single_one():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    inputs = [draw(row, k) for row in ROWS.values() for k in range(2)]
    reference = [everything(i) for i in inputs]
    wrong, start = [], threading.Barrier(len(inputs))

    def work(i, expected):
        torch.set_num_threads(2)  # of this thread's calls
        start.wait()
        for _ in range(10):
            got = everything(i)
            if not all(torch.equal(a, b) for a, b in zip(got, expected, strict=True)):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(inputs, reference, strict=True)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
        assert not t.is_alive(), "a caller hangs"
    torch.set_num_threads(before)
    assert not wrong


# Each order of the products, and each kernel. The other tests of this folder run on one thread in `make test`.
MORE = ["large_tall", "blocks_rbf", "krr_st", "batch_5_linear"]


@pytest.mark.parametrize("name", [*ROWS, *MORE])
def test_any_number_of_threads_is_right(name):
    before = torch.get_num_threads()
    inputs = draw(ROWS[name] if name in ROWS else TABLE[name])
    reference = predictions(inputs)
    expected = gradients(reference, inputs)
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            got = everything(inputs)
            assert all(torch.equal(a, b) for a, b in zip(got, everything(inputs), strict=True)), threads
            for a, b in zip(got, [reference, *expected.values()], strict=True):
                assert relative_error(a, b) < 1e-10, threads
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_the_interpreter_runs_on_while_the_core_works():
    row = Problem("gil", 900, 600, 900, 200)
    inputs = draw(row, requires_grad=())
    ticks, stop = [], threading.Event()

    def tick():
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(1e-3)

    thread = threading.Thread(target=tick)
    thread.start()
    start = time.perf_counter()
    while time.perf_counter() - start < 0.3:
        call_start = time.perf_counter()
        ssdd_ext.krr(inputs.x_s, inputs.y_s, inputs.x_q, backend="native")
        length = time.perf_counter() - call_start
        during = [t for t in ticks if call_start < t < call_start + length]
    stop.set()
    thread.join()
    assert len(during) >= 5, f"{len(during)} ticks during {length:.3f} s: the GIL was held"
