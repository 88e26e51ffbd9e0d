"""Hostile calls of the bindings, with arguments that no checked call gives them.

A case records the calls of the core that some right calls of the public API make, forward and backward, and makes them
again and again with arguments replaced: tensors by kin (other strides, types, sizes, contents, devices, another
argument of the same call) and by strangers, sizes and codes by numbers up to 2^64, headers of DLPack by forged ones.
Under the sanitizers (``make torture`` builds a core with them) an access outside of a tensor ends the process.
"""

from __future__ import annotations

import ctypes
import mmap
import random
import sys
from functools import cache, partial
from pathlib import Path
from typing import Any

import formula
import torch
from formula import REFUSALS

import ssdd_ext
from ssdd_ext import _C as core
from ssdd_ext import RBF, Linear, Ridge
from ssdd_ext.ops.native import to_capsule

PROBLEMS, CALLS, MIDWAY, WRONG = 8, 3000, 8, 8
"""Per case: problems whose calls are recorded, hostile calls made of these, public calls with arguments that change on
their way to the core, and public calls with a wrong argument."""
INTEGERS = (*(-1, 0, 1, 2, 3, 7, 64, 1000, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1), -(2**63), 2**64, 3.5, None, "x")
NUMBERS = (0.0, -1.0, 1e-300, 1e300, float("nan"), float("inf"), -float("inf"))
MOST_THREADS = 9
SIZES = ("batch", "s", "q", "d", "c", "n", "kernel", "ridge", "plan", "chunk", "order", "parts")
FLAGS = ("detach", "bordered", "fused_gram", "lanes", "keeps", "halves", "products")
SHAPES = ("KrrShape", "FromGramShape")
NATIVE = (
    "gram",
    "gram_workspace",
    "gram_backward",
    "gram_backward_workspace",
    "solve",
    "solve_backward",
    "cholesky_workspace",
    "krr_forward",
    "krr_backward",
    "krr_workspace",
    "krr_evaluate",
    "krr_evaluate_workspace",
    "krr_value_and_gradient",
    "krr_value_and_gradient_workspace",
    "krr_fuses",
    "krr_record",
    "krr_replay",
    "krr_saved",
    "krr_fit",
    "krr_fit_backward",
    "krr_fit_saved",
    "krr_from_gram",
    "krr_from_gram_backward",
    "krr_from_gram_saved",
    "krr_from_gram_workspace",
    "tridiagonal",
    "tridiagonal_rotate",
    "tridiagonal_solve",
    "tridiagonal_workspace",
)


class Recorder:
    """Replaces the functions of the core by ones that keep their arguments, with tensors in place of capsules."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[Any]]] = []
        self.shapes: dict[int, tuple[str, dict[str, Any], Any]] = {}
        self.kept = {name: getattr(core, name) for name in (*NATIVE, *SHAPES)}

    def __enter__(self) -> Recorder:
        for name in NATIVE:
            setattr(core, name, partial(self._call, name))
        for name in SHAPES:
            setattr(core, name, partial(self._shape, name))
        return self

    def __exit__(self, *_: Any) -> None:
        for name, function in self.kept.items():
            setattr(core, name, function)

    def _shape(self, name: str, **sizes: Any) -> Any:
        made = self.kept[name](**sizes)
        self.shapes[id(made)] = name, sizes, made
        return made

    def _call(self, name: str, *arguments: Any) -> Any:
        given = [torch.from_dlpack(a) if type(a).__name__ == "PyCapsule" else a for a in arguments]
        self.calls.append((name, given))
        return self.kept[name](*(to_capsule(a) if isinstance(a, torch.Tensor) else a for a in given))


class Hostile:
    """Replaces the functions of the core by ones that change an argument with some probability."""

    def __init__(self, rng: random.Random, share: float) -> None:
        self.rng, self.share, self.mutated, self.calls = rng, share, 0, 0
        self.kept = {name: getattr(core, name) for name in (*NATIVE, *SHAPES)}

    def __enter__(self) -> Hostile:
        for name in NATIVE:
            setattr(core, name, partial(self._call, self.kept[name]))
        for name in SHAPES:
            setattr(core, name, partial(self._shape, self.kept[name]))
        return self

    def __exit__(self, *_: Any) -> None:
        for name, function in self.kept.items():
            setattr(core, name, function)

    def _shape(self, made: Any, **sizes: Any) -> Any:
        self.mutated += other_shape(self.rng, sizes, self.share / 8)
        return made(**sizes)

    def _call(self, function: Any, *arguments: Any) -> Any:
        self.calls += 1
        given = list(arguments)
        while self.rng.random() < self.share and given:
            self.mutated += 1
            i = self.rng.randrange(len(given))
            if type(given[i]).__name__ == "PyCapsule" or given[i] is None:
                given[i] = self.rng.choice((draw_stranger, draw_stranger, draw_stranger, lambda _: None, lambda _: 5))(
                    self.rng
                )
            else:
                given[i] = other_value(self.rng, given[i])
        return function(*given)


def other_shape(rng: random.Random, sizes: dict[str, Any], share: float) -> int:
    """Change some sizes, codes and flags in place; return how many."""
    changed = 0
    for name in SIZES:
        if name in sizes and rng.random() < share:
            near = sizes[name] + rng.choice((-1, 1, 2))
            sizes[name] = rng.choice((near, near, *INTEGERS))
            changed += 1
    for name in FLAGS:
        if name in sizes and rng.random() < share:
            sizes[name] = not sizes[name]
            changed += 1
    return changed


def other_value(rng: random.Random, value: Any) -> Any:
    """Return what stands in place of a number, a flag or a list."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        # Many threads would only test the machine.
        other = rng.choice((value + 1, max(0, value - 1), *INTEGERS))
        return other if not isinstance(other, int) or value > 4 or other <= MOST_THREADS else value
    if isinstance(value, list):
        return [rng.choice(NUMBERS) for _ in range(rng.choice((0, 1, 2, len(value), len(value), 40)))]
    return rng.choice((value, None, 7))


def draw_stranger(rng: random.Random) -> Any:
    """Return a capsule of a tensor of any shape, strides and type."""
    return to_capsule(formula.any_tensor(rng))


# --- kin of a tensor -----------------------------------------------------------------------------------


def draw_kin(rng: random.Random, t: torch.Tensor) -> Any:
    """Return a capsule of a tensor that differs from this one in a single respect; its memory is as large as it
    says."""
    return rng.choice(KIN)(rng, t)


def change_strides(rng: random.Random, t: torch.Tensor) -> Any:
    """The same shape in other memory: with gaps, transposed, the same row or problem again and again."""
    if t.dim() == 0:
        return to_capsule(t)
    sizes, kind = list(t.shape), rng.randrange(4)
    if kind == 0:
        sizes[-1] = 2 * sizes[-1] + 1
        return to_capsule(draw_content(rng, sizes, t.dtype)[..., 1::2][..., : t.shape[-1]])
    if kind == 1 and t.dim() > 1:
        return to_capsule(draw_content(rng, [*sizes[:-2], sizes[-1], sizes[-2]], t.dtype).mT)
    dim = rng.randrange(t.dim())
    if kind == 2 and sizes[dim]:
        return to_capsule(
            draw_content(rng, [1 if i == dim else n for i, n in enumerate(sizes)], t.dtype).expand(t.shape)
        )
    return to_capsule(draw_content(rng, [n + 1 for n in sizes], t.dtype)[tuple(slice(1, None) for _ in sizes)])


def change_size(rng: random.Random, t: torch.Tensor) -> Any:
    sizes = list(t.shape) or [1]
    dim = rng.randrange(len(sizes))
    sizes[dim] = max(0, rng.choice((sizes[dim] - 1, sizes[dim] + 1, 0, 1, 2 * sizes[dim])))
    if rng.random() < 0.2:
        sizes.insert(rng.randrange(len(sizes) + 1), 1)
    if rng.random() < 0.1:
        sizes[dim] = rng.choice((2**31 - 1, 2**31, 2**33))
        return to_capsule(torch.zeros([1] * len(sizes), dtype=t.dtype).expand(sizes))
    return to_capsule(draw_content(rng, sizes, t.dtype))


def change_type(rng: random.Random, t: torch.Tensor) -> Any:
    return to_capsule(torch.zeros(t.shape, dtype=rng.choice(formula.DTYPES)))


def change_content(rng: random.Random, t: torch.Tensor) -> Any:
    return to_capsule(draw_content(rng, list(t.shape), t.dtype))


def draw_content(rng: random.Random, sizes: list[int], dtype: torch.dtype) -> torch.Tensor:
    """Return new memory, as much as the sizes need, of zeros, random, huge or tiny numbers, infinities or NaN."""
    kind = rng.randrange(6)
    if kind == 0 or not dtype.is_floating_point:
        return torch.zeros(sizes, dtype=dtype)
    if kind < 3:
        return torch.randn(sizes, dtype=torch.float32).to(dtype)
    return torch.full(sizes, rng.choice((1e30, 1e-42, -1.0, float("inf"), float("nan"))), dtype=dtype)


class Header(ctypes.Structure):
    """DLManagedTensor of DLPack."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype, new_capsule.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
forged: list[Any] = []
"""What the forged capsules of this case point to."""


def forge(rng: random.Random, t: torch.Tensor) -> Any:
    """Return a capsule that PyTorch would not make, of the memory of a dense copy: strides that run backwards or are
    left out, an offset, no memory, devices and types that do not exist, sizes whose product overflows."""
    t = t.clone(memory_format=torch.contiguous_format)
    size, sizes, strides = t.element_size(), list(t.shape), list(t.stride())
    code = {torch.float32: 2, torch.float64: 2, torch.int32: 0}.get(t.dtype, 2)
    header = Header(t.data_ptr(), 1, 0, t.dim(), code, 8 * size, 1)
    kind = rng.randrange(8)
    if kind == 0 and t.numel():
        header.data = t.data_ptr() + size * sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))
        strides = [-s for s in strides]
    elif kind == 1:
        header.data, header.byte_offset = max(0, t.data_ptr() - 8 * size) or None, 8 * size if t.data_ptr() else 0
    elif kind == 2:
        header.data = None
    elif kind == 3:
        header.device, header.device_id = rng.choice(((2, 0), (2, 7), (1, 3), (3, 0), (13, 0), (-1, -1), (2, -(2**31))))
    elif kind == 4:  # no more bits than there are
        header.code, header.lanes = rng.randrange(8), rng.randrange(3)
        header.bits = rng.choice([bits for bits in (0, 1, 8, 16, 32, 64, 128) if bits <= 8 * size or bits == 128])
    elif kind == 5 and t.numel():
        sizes, strides = [rng.choice((0, 1, -1, 2**31, 2**40, 2**62)) for _ in sizes], [0 for _ in sizes]
    elif kind == 6:
        header.ndim = rng.choice((-(2**31), -1, 0, min(1, t.dim())))
    numbers = ctypes.c_int64 * max(1, len(sizes))
    arrays = numbers(*sizes), numbers(*strides)
    header.shape = ctypes.addressof(arrays[0])
    header.strides = ctypes.addressof(arrays[1]) if kind != 7 else None
    forged.append((header, arrays, t))
    return new_capsule(ctypes.addressof(header), b"dltensor", None)


KIN = (change_strides, change_strides, change_content, change_content, change_size, change_type, forge)


# --- a case --------------------------------------------------------------------------------------------


@cache
def plan_caches() -> list[Any]:
    """Return all caches of ssdd_ext."""
    found = [value for name, m in [*sys.modules.items()] if name.startswith("ssdd_ext") for value in vars(m).values()]
    return [value for value in found if hasattr(value, "cache_clear") and value.__module__.startswith("ssdd_ext")]


def forget_plans() -> None:
    """Empty the caches: a hostile shape in one of them would spoil later calls, and a case follows from its seed."""
    for cached in plan_caches():
        cached.cache_clear()


def public_call(rng: random.Random, inputs: Any) -> None:
    """Make a call of the public API that the core computes, and its backward."""
    options = {"kernel": inputs.kernel, "ridge": inputs.ridge, "on_failure": rng.choice(("nan", "jitter"))}
    what = rng.choice(("krr", "mse", "mse", "gram", "solve", "from gram", "fit", "path"))
    absolute = {"ridge": Ridge.absolute(1.0), "on_failure": "nan"}
    like = inputs.x_q.shape[:-2] == inputs.x_s.shape[:-2]
    if what == "gram":
        result = ssdd_ext.gram(inputs.x_s, inputs.x_q, kernel=inputs.kernel)
    elif what == "solve":
        result = ssdd_ext.cholesky_solve(ssdd_ext.gram(inputs.x_s), inputs.y_s, **absolute)
    elif what == "from gram" and like:
        k_ss, k_qs = ssdd_ext.gram(inputs.x_s), ssdd_ext.gram(inputs.x_q, inputs.x_s)
        result = ssdd_ext.krr_from_gram(k_ss, inputs.y_s, k_qs, **absolute)
    elif what == "mse" and inputs.x_q.shape[-2]:
        result = ssdd_ext.krr_mse(inputs.x_s, inputs.y_s, inputs.x_q, inputs.y_q, **options)
    elif what == "fit" and like:
        result = ssdd_ext.fit(inputs.x_s, inputs.y_s, **options).predict(inputs.x_q)
    elif what == "path" and like and isinstance(inputs.kernel, Linear | RBF):
        values = torch.tensor([1e-2, 1.0], dtype=inputs.x_s.dtype).expand(*inputs.x_s.shape[:-2], 2)
        path = ssdd_ext.krr_path(
            inputs.x_s.detach(), inputs.y_s.detach(), ridges=Ridge.mean_trace(values), kernel=inputs.kernel.map(detach)
        )
        result = path.predict(inputs.x_q.detach())
    else:
        result = ssdd_ext.krr(inputs.x_s, inputs.y_s, inputs.x_q, **options)
    if result.requires_grad:
        result.sum().backward()


def detach(value: Any) -> Any:
    return value.detach() if isinstance(value, torch.Tensor) else value


def attack_midway(rng: random.Random) -> tuple[int, int]:
    """Make a public call whose arguments change on their way to the core: wrong results go on into the backward."""
    inputs = formula.problem(rng, layouts=False)[0]
    with Hostile(rng, 0.5) as hostile:
        try:
            forget_plans()
            public_call(rng, inputs)
        except (*REFUSALS, AssertionError):
            pass
    forget_plans()
    return hostile.calls, hostile.mutated


def prepare(place: Path) -> Any:
    """Return memory that outlives this process: the number and the name of the call that is running."""
    file = place / "last"
    file.write_bytes(bytes(64))
    with open(file, "r+b") as open_file:
        return mmap.mmap(open_file.fileno(), 64)


def record(rng: random.Random) -> Recorder:
    """Record the calls of the core that some public calls make."""
    recorder = Recorder()
    for _ in range(PROBLEMS):
        inputs = formula.problem(rng, layouts=rng.random() < 0.5)[0]
        forget_plans()
        with recorder:
            public_call(rng, inputs)
    forget_plans()
    return recorder


def replace_arguments(rng: random.Random, given: list[Any], shapes: dict[int, Any]) -> tuple[list[Any], int]:
    """Return the arguments of a call, some of them hostile, and how many."""
    arguments, changed = list(given), 0
    chosen = {rng.randrange(len(given)) for _ in range(rng.choice((1, 1, 1, 2, 2, 4)))}
    for i, value in enumerate(given):
        hostile = i in chosen
        changed += hostile
        if isinstance(value, torch.Tensor):
            kind = rng.random() if hostile else 1.0
            if kind < 0.6:
                arguments[i] = draw_kin(rng, value)
            elif kind < 0.75:  # one memory under two names
                arguments[i] = to_capsule(rng.choice([v for v in given if isinstance(v, torch.Tensor)]))
            elif kind < 0.9:
                arguments[i] = draw_stranger(rng)
            else:
                arguments[i] = rng.choice((None, None, 5)) if hostile else to_capsule(value)
        elif id(value) in shapes:
            if hostile:
                name, sizes, _ = shapes[id(value)]
                sizes = dict(sizes)
                other_shape(rng, sizes, 0.15)
                arguments[i] = getattr(core, name)(**sizes)
        elif hostile:
            arguments[i] = draw_stranger(rng) if value is None else other_value(rng, value)
    return arguments, changed


def case(rng: random.Random, last: Any, folder: Path) -> dict[str, Any]:
    torch.manual_seed(rng.randrange(1 << 30))
    recorder = record(rng)
    calls = mutated = accepted = 0
    for i in range(CALLS):
        name, given = recorder.calls[rng.randrange(len(recorder.calls))]
        if last is not None:
            last[:] = f"call {i}, {name}".ljust(64).encode()
        try:
            arguments, changed = replace_arguments(rng, given, recorder.shapes)
            mutated += changed
            getattr(core, name)(*arguments)
            accepted += 1
        except REFUSALS as error:
            assert str(error).strip(), f"call {i}, {name}: an empty {type(error).__name__}"
    for i in range(MIDWAY):
        if last is not None:
            last[:] = f"midway {i}".ljust(64).encode()
        called, changed = attack_midway(rng)
        calls, mutated = calls + called, mutated + changed
    for i in range(WRONG):
        if last is not None:
            last[:] = f"wrong {i}".ljust(64).encode()
        formula.abuse(rng)
    ssdd_ext.ops.native._spare.clear()
    forged.clear()
    counts = {"binding calls": CALLS + calls, "hostile arguments": mutated, "carried out": accepted}
    return {"counts": {**counts, "wrong public calls": WRONG}}
