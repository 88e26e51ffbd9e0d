"""The loss of a linear kernel by kernels that read the queries once: on a GPU, and on the CPU through the host twin.

On the CPU itself the switch changes nothing. The tests run there too: one that was only ever skipped may be wrong.
"""

import math
import random

import pytest
import torch

import ssdd_ext
from ssdd_ext import Linear, Ridge, plan
from ssdd_ext.testing import relative_error

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
H100 = plan.Gpu()
SIZES = {
    "few": ((3,), 10, 37, 50, 4),
    "one": ((), 5, 9, 33, 1),
    "many": ((64,), 33, 9, 512, 2),
}


def on_a_gpu(device):
    return device == "cuda" or ssdd_ext.build_info()["instruction_set"] == "host twin"


def draw(name, device, dtype=torch.float32):
    """Return x_s, y_s, x_q, y_q, and hyper-parameters, as leaves."""
    batch, s, q, d, c = SIZES[name]
    generator = torch.Generator().manual_seed(s)
    sizes = ((s, d), (s, c), (q, d), (q, c))
    tensors = [torch.randn(*batch, *size, generator=generator) for size in sizes]
    tensors += [torch.rand(batch, generator=generator) + 0.5 for _ in range(3)]
    return [t.to(device, dtype).requires_grad_() for t in tensors]


def loss(t, backend="native", **more):
    how = {"kernel": Linear(t[4], t[5]), "ridge": Ridge.trace(1e-2 * t[6]), "backend": backend}
    return ssdd_ext.krr_mse(*t[:4], **how, **more)


def results(t, backend="native"):
    value = loss(t, backend)
    weights = torch.arange(1.0, value.numel() + 1, device=value.device, dtype=value.dtype).view(value.shape)
    return [value.detach(), *torch.autograd.grad((value * weights).sum(), t)]


@pytest.fixture
def off(monkeypatch):
    """off(): from here on the products run."""
    return lambda: monkeypatch.setattr(plan.one_pass, "MOST_WORK", 0)


def blocks(name):
    batch, s, q, d, c = SIZES[name]
    return plan.one_pass.blocks(plan.Problem(s, q, d, c, bordered=True, batch=math.prod(batch)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", SIZES)
def test_values_and_gradients(name, device, off):
    assert blocks(name) > 0
    t = draw(name, device)
    got = results(t)
    exact = results([x.detach().double().requires_grad_() for x in t], "torch")
    off()
    assert blocks(name) == 0
    other = results(t)
    for value, right, product in zip(got, exact, other, strict=True):
        assert relative_error(value, right) <= max(2e-5, 3 * relative_error(product, right))
    assert on_a_gpu(device) != all(torch.equal(*pair) for pair in zip(got, other, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_features(dtype, device, off):
    t = draw("few", device)
    narrow = [x.detach().to(dtype) if i in (0, 2) else x.detach() for i, x in enumerate(t)]
    wide = [x.float() for x in narrow]
    for here in (narrow, wide):
        for x in here:
            x.requires_grad_()
    got, want = results(narrow), results(wide)
    assert got[1].dtype == got[3].dtype == dtype
    for value, right in zip(got, want, strict=True):
        assert relative_error(value.float(), right) <= (1e-2 if value.dtype == dtype else 1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["few", "many"])
def test_transforms_and_second_derivatives(name, device, off):
    """What the forward left serves any number of backwards, mapped ones too; the second derivative is planned."""
    t = draw(name, device)
    value = loss(t).sum() if name == "many" else loss(t)
    first = torch.autograd.grad(value.sum(), t, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(value.sum(), t, retain_graph=True)))
    if name == "few":
        rows = torch.autograd.grad(value, t[0], torch.eye(3, device=device), is_grads_batched=True, retain_graph=True)[
            0
        ]
        assert relative_error(rows.sum(0), first[0]) <= 1e-5
        alone = torch.func.vmap(lambda *one: loss(one))(*t)
        assert relative_error(alone, value) <= 1e-5
        of_x = torch.func.grad(lambda x: loss([x, *t[1:]]).sum())(t[0])
        assert relative_error(of_x, first[0]) <= 1e-5

    def second():
        slope = torch.autograd.grad(loss(t).sum(), t[0], create_graph=True)[0]
        return torch.autograd.grad(slope.square().sum(), t)

    got = second()
    off()
    assert all(relative_error(*pair) <= 1e-4 for pair in zip(got, second(), strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_without_gradients_and_with_some(device):
    t = draw("few", device)
    with torch.no_grad():
        alone = loss(t)
    assert torch.equal(alone, loss(t))
    every = torch.autograd.grad(loss(t).sum(), t)
    for i in range(7):
        some = [x if i == j else x.detach() for j, x in enumerate(t)]
        (one,) = torch.autograd.grad(loss(some).sum(), some[i])
        assert relative_error(one, every[i]) <= 1e-6
    value, info = loss(t, return_info=True, on_failure="jitter")
    assert torch.equal(value, alone) and info.status.eq(0).all() and info.condition.gt(1).all()


def test_the_rule_holds_where_the_model_expects_a_gain():
    """At least 1.2 times the speed of the products, for sizes drawn at random, with and without gradients to X_q."""
    rng, found = random.Random(3), 0

    def size(least, most):
        return round(math.exp(rng.uniform(math.log(least), math.log(most))))

    while found < 300:
        s, q, d, c = size(1, 128), size(1, 20_000), size(1, 4096), size(1, 16)
        sizes = {"batch": size(1, 5000), "bordered": True, "needs_x_q": found % 2 == 1}
        p = plan.Problem(s, q, d, c, **sizes)
        if not plan.one_pass.blocks(p):
            continue
        found += 1
        costs = plan.choose(p, H100).costs
        products = min(costs["forward"].values()) + min(costs["backward"].values())
        assert products >= 1.2 * plan.one_pass.cost(p, H100), p


def test_the_rule_of_the_speed_table():
    def of(s, q, d, c, **more):
        return plan.one_pass.blocks(plan.Problem(s, q, d, c, bordered=True, **more))

    assert of(10, 1024, 2048, 10) == 128 and of(100, 256, 512, 10, batch=64) == 4 and of(2, 2, 4, 1) == 1
    assert of(100, 1024, 4096, 512) == of(1000, 1024, 8192, 10) == of(100, 256, 512, 10) == 0
    assert of(10, 1024, 2048, 10, itemsize=8) == of(10, 1024, 5, 10) == of(10, 0, 2048, 10) == 0
    assert plan.one_pass.blocks(plan.Problem(10, 1024, 2048, 10, linear=False)) == 0
    assert "one pass" in str(plan.choose(plan.Problem(10, 1024, 2048, 10), H100))


def test_sizes_are_those_of_the_kernels(root):
    header = (root / "csrc" / "cuda" / "one_pass.cuh").read_text()
    product = (root / "csrc" / "cuda" / "product.cuh").read_text()
    rule = plan.one_pass
    for name, text, value in (
        ("kOnePassFactors", header, rule.FACTORS),
        ("kOnePassSupport", header, rule.MOST_SUPPORT),
        ("kGroup", header, rule.GROUP),
        ("kUnitRows", header, rule.ROWS),
        ("kProcessors", product, rule.PROCESSORS),
    ):
        assert f"{name} = {value}" in text, name
