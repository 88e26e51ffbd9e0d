"""krr_cross_entropy: values and gradients against torch's cross_entropy of the formula's predictions."""

import pytest
import torch
from torch.nn.functional import cross_entropy

import ssdd_ext
from ssdd_ext import RBF, Linear, Matern, Ridge
from ssdd_ext.testing import Problem, draw, predictions, relative_error

ROWS = {
    "dual": Problem("dual", 9, 7, 20, 4, Linear(1.5, 0.5), Ridge.mean_trace(1e-2)),
    "primal": Problem("primal", 20, 7, 5, 4, Linear(1.5), Ridge.trace(1e-2)),
    "batch": Problem("batch", 9, 7, 20, 4, RBF(4.0), Ridge.absolute(0.1), batch=(2, 3), hyper="batch"),
    "planned": Problem("planned", 9, 7, 5, 4, Matern(2.0, 1.5), Ridge.absolute(0.1), batch=(2,), hyper="scalar"),
}


def formula(p, y_q, scale, temperature):
    """Compute the loss with torch's own function, one problem at a time."""
    batch = p.shape[:-2]
    logits = p * scale[..., None, None] / temperature[..., None, None]
    targets = y_q.expand(*batch, *y_q.shape[-2 if y_q.is_floating_point() else -1 :])
    pairs = zip(logits.reshape(-1, *p.shape[-2:]), targets.reshape(-1, *targets.shape[len(batch) :]), strict=True)
    return torch.stack([cross_entropy(one, target) for one, target in pairs]).reshape(batch)


def call(i, y_q, **keywords):
    return ssdd_ext.krr_cross_entropy(i.x_s, i.y_s, i.x_q, y_q, kernel=i.kernel, ridge=i.ridge, **keywords)


@pytest.mark.parametrize("labels", ["numbers", "int32", "probabilities"])
@pytest.mark.parametrize("name", ROWS)
def test_is_the_cross_entropy_of_the_predictions(name, labels, backend):
    if backend == "native" and name == "planned":
        backend = "auto"
    i = draw(ROWS[name], requires_grad=("x_s", "y_s", "x_q"))
    numbers = i.y_q.argmax(-1)
    y_q = i.y_q.detach().softmax(-1).requires_grad_() if labels == "probabilities" else numbers
    factors = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (3.0, 0.7)]
    targets = y_q.int() if labels == "int32" else y_q
    got = call(i, targets, scale=factors[0], temperature=factors[1], backend=backend)
    expected = formula(predictions(i), y_q, *factors)
    assert got.shape == i.x_s.shape[:-2] and relative_error(got, expected) < 1e-11
    leaves = [*i.leaves().values(), *factors, *([y_q] if labels == "probabilities" else [])]
    weight = torch.linspace(0.5, 1.5, max(1, got.numel()), dtype=torch.float64).reshape(got.shape)
    for a, b in zip(*(torch.autograd.grad((t * weight).sum(), leaves) for t in (got, expected)), strict=True):
        assert relative_error(a, b) < 1e-9


def test_numbers_batches_and_dtypes(random):
    x_s, y_s, x_q = random(2, 6, 5), random(6, 3), random(4, 5)
    y_q = torch.tensor([0, 2, 1, 1])
    options = {"ridge": Ridge.absolute(0.3)}
    p = ssdd_ext.krr(x_s, y_s, x_q, **options)
    got = ssdd_ext.krr_cross_entropy(x_s, y_s, x_q, y_q, scale=2.0, temperature=torch.tensor([0.5, 2.0]), **options)
    torch.testing.assert_close(got[0], cross_entropy(4.0 * p[0], y_q))
    torch.testing.assert_close(got[1], cross_entropy(p[1], y_q))
    # Labels with a batch of their own.
    many = torch.stack((y_q, y_q.flip(0), y_q))[:, None]
    got = ssdd_ext.krr_cross_entropy(x_s, y_s, x_q, many, **options)
    assert got.shape == (3, 2)
    torch.testing.assert_close(got[1, 0], cross_entropy(p[0], y_q.flip(0)))
    half = [t.to(torch.bfloat16) for t in (x_s, y_s, x_q)]
    assert ssdd_ext.krr_cross_entropy(*half, y_q, **options).dtype == torch.float32
    loss, info = ssdd_ext.krr_cross_entropy(x_s, y_s, x_q, y_q, return_info=True, on_failure="nan", **options)
    assert loss.shape == info.status.shape == (2,)


def test_torch_machinery(random):
    x_s, y_s, x_q = random(6, 4, grad=True), random(6, 3, grad=True), random(5, 4, grad=True)
    y_q, scale = torch.tensor([0, 2, 1, 1, 0]), torch.tensor(2.0, dtype=torch.float64, requires_grad=True)

    def loss(x_s, y_s, x_q, scale, backend="auto"):
        options = {"kernel": Linear(bias=1.0), "ridge": Ridge.mean_trace(0.1), "backend": backend, "on_failure": "nan"}
        return ssdd_ext.krr_cross_entropy(x_s, y_s, x_q, y_q, scale=scale, **options)

    leaves = (x_s, y_s, x_q, scale)
    assert torch.autograd.gradcheck(loss, leaves)
    mapped = torch.func.vmap(loss, in_dims=(0, None, None, None))(torch.stack((x_s, 2 * x_s)), y_s, x_q, scale)
    torch.testing.assert_close(mapped, torch.stack((loss(*leaves), loss(2 * x_s, y_s, x_q, scale))))
    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)(*leaves)
    torch.testing.assert_close(compiled, loss(*leaves))
    for a, b in zip(*(torch.autograd.grad(t, leaves) for t in (compiled, loss(*leaves))), strict=True):
        torch.testing.assert_close(a, b)


def test_class_numbers_of_problems_that_share_the_queries(random):
    """Their shape [B, Q] is also that of one-hot labels [Q, C] if B = Q = C."""
    x_s, y_s, x_q, labels = random(2, 6, 4), random(2, 6, 2), random(2, 4), torch.tensor([[0, 1], [1, 1]])
    got = ssdd_ext.krr_cross_entropy(x_s, y_s, x_q, labels)
    for b in range(2):
        torch.testing.assert_close(got[b], ssdd_ext.krr_cross_entropy(x_s[b], y_s[b], x_q, labels[b]))


BAD = {
    "y_q: expected a tensor of class numbers .*got list": {"y_q": [0, 1]},
    "y_q: expected class numbers from 0 to 2, the columns of y_s, got 3": {"y_q": torch.tensor([0, 3])},
    "y_q: expected class numbers from 0 to 2, the columns of y_s, got -1": {"y_q": torch.tensor([-1, 2])},
    r"y_q: expected class numbers \[..., Q\] of an integer dtype, got a bool": {"y_q": torch.tensor([True, False])},
    "y_q: expected 2 along dimension -1 to match x_q": {"y_q": torch.tensor([0, 1, 1])},
    "y_q: expected 3 along dimension -1 to match y_s": {"y_q": torch.ones(2, 2)},
    "y_q: expected class numbers .*convert one-hot labels": {"y_q": torch.eye(2, 3).long()},
    r"y_q: expected probabilities .*y_q.long\(\)": {"y_q": torch.ones(2)},
    r"scale: .*at most 0 dim.*got shape \(3,\).*one per class by .*\(v \*": {"scale": torch.ones(3)},
    r"temperature: .*at most 0 dim.*v.squeeze\(\).*x_s.expand\(1, ": {"temperature": torch.ones(1)},
    "temperature: expected a finite number > 0": {"temperature": 0.0},
    "scale: expected a finite number > 0": {"scale": -1.0},
    "batch dimensions .* must broadcast": {"scale": torch.ones(3), "x_q": torch.ones(2, 2, 5)},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_named(message):
    arguments = {"x_s": torch.eye(4, 5), "y_s": torch.eye(4, 3), "x_q": torch.ones(2, 5), "y_q": torch.tensor([0, 1])}
    with pytest.raises((ValueError, TypeError), match=message):
        ssdd_ext.krr_cross_entropy(**arguments | BAD[message])


def test_a_failure_names_the_call():
    x, y = torch.ones(3, 2), torch.ones(3, 2)
    for backend in ("native", "planned"):
        with pytest.raises(ssdd_ext.FactorizationError, match="^krr_cross_entropy: the matrix .* not positive"):
            ssdd_ext.krr_cross_entropy(x, y, x, torch.tensor([0, 1, 0]), ridge=Ridge.absolute(0.0), backend=backend)
