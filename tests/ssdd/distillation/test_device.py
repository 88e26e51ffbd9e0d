"""The loop on another device, tested without one: tensors are on the device, nothing blocks, the numbers are the same.

A :class:`Remote` tensor claims to be on the meta device and computes its real values in main memory. Errors on a GPU,
and operations that block the host, raise here: a tensor in main memory together with a remote one (a single number is
allowed), reading a remote value, and a copy in either direction that is not non-blocking.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

import ssdd_ext
from ssdd.config import AugmentConfig, ClpDdConfig, InputError
from ssdd.data import ImageSet, augment, choose_device, crop_and_flip, gather, keep_on_device, to_device
from ssdd.distillation import Job, target_size
from ssdd.distillation.loop import begin, inputs, run

ELSEWHERE = torch.device("meta")
aten = torch.ops.aten
READS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero, aten._unique2}
COPIES = {aten._to_copy, aten.copy_}


class Waits(AssertionError):
    """The host would block for the device, or the device would read memory that it cannot reach."""


class Remote(torch.Tensor):
    """A tensor on the pretended device; ``held`` has its values."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "Remote":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=ELSEWHERE,
            requires_grad=held.requires_grad,
        )
        made.held = held
        return made

    def __repr__(self) -> str:
        return f"Remote({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return call(func, args, kwargs or {})


waiting_allowed = True


def call(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    flat = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    remote = [x for x in flat if isinstance(x, Remote)]
    local = [x for x in flat if not isinstance(x, Remote)]
    op = func.overloadpacket
    to = kwargs.get("device")
    away = ELSEWHERE if to is not None and torch.device(to) == ELSEWHERE else None
    if op in COPIES:
        crosses = bool(remote and local) if op is aten.copy_ else bool(remote) != (away is not None) and to is not None
        waits = not (kwargs.get("non_blocking") or (op is aten.copy_ and len(args) > 2 and args[2]))
        if crosses and waits and not waiting_allowed:
            raise Waits(f"{func}: a copy that the host waits for")
    else:
        counted = op in (aten.index, aten.index_put_) and any(x.dtype == torch.bool for x in remote if x is not args[0])
        if (counted or op in READS) and remote and not waiting_allowed:
            raise Waits(f"{func}: reads a value of the device")
        if remote and any(x.dim() for x in local):
            raise Waits(f"{func}: a tensor of main memory, {[list(x.shape) for x in local]}, beside one of the device")
        if away is not None and op is aten.lift_fresh:
            raise Waits(f"{func}: Python's numbers sent to the device")
    unwrap = lambda x: tree_map_only(Remote, lambda t: t.held, x)  # noqa: E731
    inner = dict(unwrap(kwargs))
    if to is not None:
        inner["device"] = "cpu"
    out = func(*unwrap(args), **inner)
    gone = away is not None or (bool(remote) and not (op is aten._to_copy and to is not None))
    if op is aten.copy_:
        return args[0]
    wrapped = tree_map_only(torch.Tensor, Remote, out) if gone else out
    if not remote or not gone:
        return wrapped
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


class _Factories(TorchDispatchMode):
    """Redirects tensors that are created on the device, which have no remote argument: only a mode sees them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        to = kwargs.get("device")
        if to is not None and torch.device(to) == ELSEWHERE:
            return call(func, args, kwargs)
        return func(*args, **kwargs)


@contextmanager
def pretended() -> Iterator[torch.device]:
    """Provide the pretended device for the time of the context."""
    with _Factories():
        yield ELSEWHERE


@contextmanager
def no_waiting() -> Iterator[None]:
    """Raise :class:`Waits` for operations that block the host, for the time of the context."""
    global waiting_allowed
    waiting_allowed = False
    try:
        yield
    finally:
        waiting_allowed = True


VARIANTS = [
    {},
    {"support_input": "raw", "real_view": "augmented", "teacher_in_loop": "recomputed", "pool_counter": "stuck"},
    {"networks": 2, "tv_weight": 0.1, "init_weight": 1.0, "support_view": "augmented"},
    {"targets": "tied"},
    {"loss": "cross-entropy", "temperature": 0.5},
    {"loss": "cosine", "targets": "fixed", "initial": "k-means"},
    {"storage": "bases", "transforms": "rotations"},
    {"storage": "pyramid"},
    {"method": "frepo"},
    {"method": "dm"},
    {"method": "rfad"},
    {"method": "kip"},
    {"method": "clp-dd"},
    {"method": "clp-dd", "clp_dd": ClpDdConfig(targets="prototypes", prototypes=8)},
]


@pytest.fixture
def native_everywhere(monkeypatch):
    """Run the core's own ops also for the pretended device, as a build with CUDA does."""
    own = "linear", "rbf"  # kernels of an angle may run in planned PyTorch
    monkeypatch.setattr(ssdd_ext.ops, "unavailable", lambda device, kernel: None if kernel.name in own else "no code")


class _Counts(TorchDispatchMode):
    """Counts the values that the host reads."""

    reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.reads += func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.is_nonzero)
        return func(*args, **(kwargs or {}))


def settings(small, **changes):
    quick = {"steps": 8, "log_every": 4, "batch": 32, "pool_steps": 4}
    return dataclasses.replace(small.distill, **quick | changes)


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_no_step_synchronises_and_the_numbers_are_those_of_the_cpu(
    changes, make, few, representations, teacher, small, native_everywhere
):
    config, r = settings(small, **changes), representations.train

    def student():
        return make(target_size(config, few, representations.dimension))

    job = Job(few, r, student, config, teacher=teacher)
    here, batches = begin(job)
    here.pool.fill(inputs(job, here).detach(), here.y_s.detach())
    run(job, here, batches)
    with pretended() as device:
        wide = {name: to_device(x, device) for name, x in teacher.module.state_dict().items()}

        def ask(x):
            return torch.func.functional_call(teacher.module, wide, (x,))

        job = Job(few, r, student, config, teacher=ask, device=device)
        there, batches = begin(job)
        there.pool.fill(inputs(job, there).detach(), there.y_s.detach())
        for until in (3, 7):  # no log line, which would read the loss
            with no_waiting():
                run(job, there, batches, until=until)
            run(job, there, batches, until=until + 1)
        assert isinstance(there.x_s, Remote) and isinstance(there.loss_sum, Remote)
        assert all(isinstance(p, Remote) for m in there.pool.members for p in m.network.parameters())
        saved = there.state_dict()
    assert torch.allclose(there.x_s.held, here.x_s, atol=1e-5) and torch.allclose(there.y_s.held, here.y_s, atol=1e-5)
    assert [step for step, _ in there.losses] == [4, 8]
    assert [loss for _, loss in there.losses] == pytest.approx([loss for _, loss in here.losses], rel=1e-4)
    assert torch.equal(saved["generator"], here.generator.get_state())  # the same draws on every device


def test_the_pretended_device_notices_what_it_is_for(few):
    with pretended() as device, no_waiting():
        x = to_device(torch.ones(3), device)
        assert isinstance(x, Remote) and isinstance(x + 1, Remote) and isinstance(x * torch.tensor(2.0), Remote)
        assert isinstance(torch.zeros(3, device=device), Remote)
        for wrong in (
            lambda: float(x.sum()),
            lambda: x[0].item(),
            lambda: bool((x > 0).all()),
            lambda: x[x > 0],
            lambda: x + torch.ones(3),
            lambda: x[torch.tensor([0])],
            lambda: x.cpu(),
            lambda: torch.ones(3).to(device),
        ):
            with pytest.raises(Waits):
                wrong()
        data = few.on(torch.device("cpu"))
        assert data is few


def test_a_step_on_the_cpu_reads_no_value_of_the_computation(make, few, representations, small):
    """Draws are read once per step, and optimizers read their own counters; the number does not depend on images and
    networks."""
    config, found = settings(small), []
    for images in (4, 12):
        c = dataclasses.replace(config, images=images, steps=4, log_every=100)
        job = Job(few, representations.train, lambda: make(representations.dimension), c)
        state, batches = begin(job)
        state.pool.fill(inputs(job, state).detach(), state.y_s.detach())
        run(job, state, batches, until=1)
        with _Counts() as counts:
            run(job, state, batches, until=2)
        found.append(counts.reads)
    assert found[0] == found[1] <= 3  # the network drawn; AdamW's counters of X_s and Y_s


def test_images_go_to_the_device_once_if_they_fit_and_batch_by_batch_if_not(few):
    rows = torch.tensor([5, 3, 3])
    with pretended() as device, no_waiting():
        for memory in (1 << 30, 1):
            waiting = few.x_train
            stored = Remote(waiting) if memory > 1 else keep_on_device(waiting, device, memory)
            found = gather(stored, rows, device)
            assert isinstance(found, Remote) and found.dtype == torch.uint8
            assert torch.equal(found.held, few.x_train[rows])
            assert isinstance(stored, Remote) == (memory > 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_views_are_drawn_here_and_computed_there(channels):
    g = torch.Generator().manual_seed(3)
    pixels = torch.rand(6, channels, 8, 8, generator=g)
    every = AugmentConfig(rotate=10.0, noise=0.1)
    views = [lambda x, g: augment(x, every, g), lambda x, g: crop_and_flip(x, 2, g)]
    for view in views:
        here = view(pixels, torch.Generator().manual_seed(1))
        with pretended(), no_waiting():
            there = view(Remote(pixels), torch.Generator().manual_seed(1))
        assert isinstance(there, Remote) and torch.equal(there.held, here)


def test_normalisation_sends_its_numbers_once(few):
    pixels = torch.rand(2, 1, 8, 8)
    with pretended() as device:
        first = few.preprocessing.normalise(Remote(pixels))
        with no_waiting():
            again = few.preprocessing.normalise(Remote(pixels))
            assert torch.zeros(1, device=device).shape == (1,)
    assert torch.equal(first.held, again.held) and torch.equal(first.held, few.preprocessing.normalise(pixels))


def test_the_set_on_a_device_is_the_same_set(few):
    with pretended() as device:
        moved = few.on(device)
        assert isinstance(moved, ImageSet) and isinstance(moved.x_train, Remote)
        assert moved.fingerprint == few.fingerprint and moved.preprocessing == few.preprocessing


def test_the_name_of_a_device():
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match="expected one of cpu, cuda"):
        choose_device("tpu")
    if not torch.cuda.is_available():
        assert choose_device() == torch.device("cpu")
        with pytest.raises(InputError, match="sees no CUDA device"):
            choose_device("cuda")
