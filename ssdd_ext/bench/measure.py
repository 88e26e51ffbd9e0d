"""Measurements: errors first, then times, then memory.

Times: the alternatives take turns in one process, so that a disturbance of the machine affects all of them; medians and
quartiles. Memory: each alternative runs in a process of its own, because the peak of a process never goes down.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .alternatives import ALTERNATIVES, FORWARD_ONLY, Loss, usual
from .problem import Problem

# If a call is shorter than this, a sample is the mean over several calls, so that clocks and wake-ups do not matter.
SAMPLE_SECONDS = 0.01
# OpenMP and OpenBLAS threads spin after their last region, on the cores that the next call needs (OpenBLAS: measured
# up to 110 ms). So each sample starts when the process is idle.
SETTLE_SECONDS = 0.05
SETTLE_AT_MOST = 1.0
MIN_ROUNDS = 5
# About 0.2 ms of a GPU: longer than launching a graph takes on the host.
AHEAD_CYCLES = 400_000
UNIT = {"float64": 2.0**-53}


def step(loss: Loss, problem: Problem, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Compute what is timed: the loss and its gradients to ``problem.backward``, in that order."""
    value = loss(problem, inputs)
    if not value.requires_grad:
        return (value,)
    return (value.detach(), *torch.autograd.grad(value, [inputs[n] for n in problem.backward]))


def truth(problem: Problem, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Compute loss and gradients of the same inputs in float64 by the usual formulation."""
    doubles = {n: t.detach().double().requires_grad_(t.requires_grad) for n, t in inputs.items()}
    wide = dataclasses.replace(problem, dtype="float64")
    return dict(zip(("loss", *problem.backward), step(usual, wide, doubles), strict=True))


def errors(loss: Loss, problem: Problem, inputs: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    """Return the relative error of the loss and of each gradient in the Frobenius norm; forward only: of the loss."""
    got = step(loss, problem, inputs)
    named = dict(zip(("loss", *problem.backward), got, strict=False))
    return {n: float((v.double() - exact[n]).norm() / exact[n].norm()) for n, v in named.items()}


def acceptable(error: dict[str, float], of_usual: dict[str, float], problem: Problem) -> bool:
    """Return True for a result that may be timed: finite, with an error near the usual formulation's in this dtype."""
    unit = UNIT.get(problem.dtype, 2.0**-24)
    return all(math.isfinite(e) and e <= max(10 * of_usual[n], 1e3 * unit) for n, e in error.items())


def interleaved(
    calls: dict[str, Callable[[], Any]],
    device: str = "cpu",
    repeats: int = 20,
    seconds: float = 20.0,
    settle: float = SETTLE_SECONDS,
    ahead: bool = False,
) -> dict[str, list[float]]:
    """Measure seconds per call, by name, in round-robin order.

    On CUDA a sample is one call between two events, on an idle device whose L2 cache holds other data. Elsewhere it is
    the wall time of as many calls as take ten milliseconds.

    Args:
        calls: what to time, by name; each is called at least once before the first sample.
        device: "cpu" (default) or "cuda".
        repeats: largest number of samples of each. Default 20.
        seconds: time after which no new round begins; at least five rounds are run. Default 20.
        settle: on a CPU, the pause in seconds, almost without CPU use of the process, before each sample; 0: no pause.
        ahead: on CUDA, keep the device busy during the launch of the call, so that a graph's replay is timed alone.
            Default False.
    """
    timer = partial(_cuda_sample, ahead=ahead) if device.startswith("cuda") else _wall_sample
    inner = {}
    for name, call in calls.items():
        call()
        once = timer(call, 1)
        inner[name] = 1 if device.startswith("cuda") else max(1, math.ceil(SAMPLE_SECONDS / max(1e-7, once)))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    gc.freeze()  # existing objects stay; scanning them, even once, would take longer than the calls
    begin = time.perf_counter()
    try:
        for done in range(repeats):
            if done >= MIN_ROUNDS and time.perf_counter() - begin > seconds:
                break
            for name, call in calls.items():
                gc.collect()
                _rest(0.0 if device.startswith("cuda") else settle)
                if inner[name] > 1:
                    call()  # a short call is measured with warm caches, as in a loop
                gc.disable()
                samples[name].append(timer(call, inner[name]))
                gc.enable()
    finally:
        gc.enable()
        gc.unfreeze()
    return samples


def _rest(settle: float) -> None:
    """Sleep until no thread of this process was busy for ``settle`` seconds."""
    begin = time.perf_counter()
    while settle > 0:
        busy = time.process_time()
        time.sleep(settle)
        if time.process_time() - busy < 0.1 * settle or time.perf_counter() - begin > SETTLE_AT_MOST:
            return


def _wall_sample(call: Callable[[], Any], count: int) -> float:
    begin = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - begin) / count


def _cuda_sample(call: Callable[[], Any], count: int, ahead: bool = False) -> float:
    # Read the buffer: lines that are written would be copied back to memory while the call is timed.
    _flush_buffer(torch.cuda.current_device()).sum()
    if ahead:
        torch.cuda._sleep(AHEAD_CYCLES)
    else:
        torch.cuda.synchronize()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


@lru_cache(maxsize=8)
def _flush_buffer(device: int) -> Tensor:
    """Return a buffer twice as large as the L2 cache of the device."""
    count = 2 * torch.cuda.get_device_properties(device).L2_cache_size // 4
    return torch.zeros(count, dtype=torch.int32, device=f"cuda:{device}")


def capture(call: Callable[[], Any]) -> Callable[[], Any]:
    """Record ``call`` in a CUDA graph; return a function that replays it. Raises what the capture raises.

    torch's own solves run on cuSOLVER there: its other library, MAGMA, ends the process during a capture.
    """
    preferred = torch.backends.cuda.preferred_linalg_library()
    here, side = torch.cuda.current_stream(), torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    try:
        torch.backends.cuda.preferred_linalg_library("cusolver")
        side.wait_stream(here)
        with torch.cuda.stream(side):
            for _ in range(3):  # library handles, first loads of kernels, and the allocator's blocks
                call()
        here.wait_stream(side)
        with torch.cuda.graph(graph):
            kept = call()
    finally:
        torch.backends.cuda.preferred_linalg_library(preferred)
        torch.cuda.set_stream(here)  # a failed capture leaves its own stream as the current one

    def again() -> Any:
        graph.replay()
        return kept

    return again


def in_graphs(
    calls: dict[str, Callable[[], Any]], repeats: int, seconds: float
) -> tuple[dict[str, dict[str, float | int]], dict[str, str]]:
    """Return the :func:`summary` of each call replayed from a CUDA graph, and why others could not be captured."""
    replays: dict[str, Callable[[], Any]] = {}
    refused: dict[str, str] = {}
    for name, call in calls.items():
        try:
            replays[name] = capture(call)
        except RuntimeError as failure:
            torch.cuda.synchronize()
            refused[name] = f"no graph: {str(failure).splitlines()[0]}"
    times = interleaved(replays, "cuda", repeats, seconds, ahead=True)
    return {name: summary(samples) for name, samples in times.items()}, refused


def summary(samples: list[float]) -> dict[str, float | int]:
    """Return median and quartiles in seconds, and the number of samples."""
    lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return {"median": median, "lower": lower, "upper": upper, "repeats": len(samples)}


def peak_here(name: str, problem: Problem) -> int:
    """Measure the peak bytes above the inputs during one call, in this process, which should be a new one."""
    loss, tiny = ALTERNATIVES[name], dataclasses.replace(problem, s=8, q=8, d=16, c=2)
    step(loss, tiny, tiny.inputs())  # libraries, thread stacks and pools are not the algorithm's memory
    inputs = problem.inputs()
    if problem.device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated()
        step(loss, problem, inputs)
        return torch.cuda.max_memory_allocated() - base
    gc.collect()
    # Linux: 5 sets the high-water mark to the current size. ru_maxrss is useless here, as it survives fork and exec.
    Path("/proc/self/clear_refs").write_text("5")
    base = _status("VmHWM")
    step(loss, problem, inputs)
    return _status("VmHWM") - base


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}")


def peak_apart(name: str, problem: Problem, threads: int) -> int | None:
    """Run :func:`peak_here` in a new process; None if the system does not report it."""
    # The child must import this very package, not one in the working directory, which may have no native core.
    package = Path(__file__).resolve().parents[2]
    code = (
        f"import sys; sys.path.insert(0, {str(package)!r}); from ssdd_ext.bench.measure import peak_child; peak_child()"
    )
    request = json.dumps({"name": name, "threads": threads, "problem": dataclasses.asdict(problem)})
    done = subprocess.run([sys.executable, "-P", "-c", code], input=request, capture_output=True, text=True)
    if done.returncode != 0:
        print(f"peak memory of {name} is unknown: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    return int(done.stdout.splitlines()[-1])


def peak_child() -> None:
    """Run in the process of :func:`peak_apart`: read the request from standard input, print bytes."""
    request = json.load(sys.stdin)
    torch.set_num_threads(request["threads"])
    settings = request["problem"]
    settings["backward"] = tuple(settings["backward"])
    print(peak_here(request["name"], Problem(**settings)))


def does(name: str, problem: Problem) -> str:
    """Say what one timed call of this alternative computes."""
    return "forward" if name in FORWARD_ONLY or not problem.backward else "forward + backward"
