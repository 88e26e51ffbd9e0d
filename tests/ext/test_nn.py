"""RidgeHead equals the published ridge-regression heads, written here in plain PyTorch from their definitions."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from ssdd_ext import RBF, FactorizationError, Linear, Ridge
from ssdd_ext.nn import RidgeHead
from ssdd_ext.testing import relative_error

B, WAY, SHOT, Q, D = 3, 5, 2, 7, 24
S = WAY * SHOT


def eye(x):
    return torch.eye(x.shape[-2], dtype=x.dtype)


def r2d2_of_the_paper(x, y, z, ridge, scale, bias):
    """Compute Bertinetto et al.'s W = X^T (X X^T + lambda I)^-1 Y and the logits alpha X' W + beta."""
    w = x.mT @ torch.linalg.inv(x @ x.mT + ridge * eye(x)) @ y
    return scale * (z @ w) + bias


def r2d2_of_the_code(x, y, z, ridge, scale, bias):
    """Compute what their code does: a column of ones, rows and labels over sqrt(n), W of D + 1 rows, scale and bias."""
    n = x.shape[-2]
    x = torch.cat([x, torch.ones_like(x[..., :1])], -1) / n**0.5
    w = x.mT @ torch.linalg.inv(x @ x.mT + ridge * eye(x)) @ (y / n**0.5)
    return scale * (z @ w[..., :-1, :] + w[..., -1:, :]) + bias


def head_of_metaoptnet(x, y, z, ridge, scale, bias):
    """Compute MetaOptNet's R2D2Head, lambda 50, inside its ClassificationHead with a learned scale."""
    inverse = torch.linalg.solve(x @ x.mT + 50.0 * eye(x), eye(x).expand(*x.shape[:-2], -1, -1))
    return scale * torch.bmm(z, torch.bmm(torch.bmm(x.transpose(1, 2), inverse), y))


HEADS = {
    "paper": (r2d2_of_the_paper, {"ridge": Ridge.absolute(0.7)}),
    "code": (r2d2_of_the_code, {"ridge": Ridge.absolute(0.7 * S), "kernel": Linear(bias=1.0)}),
    "MetaOptNet": (head_of_metaoptnet, {"ridge": Ridge.absolute(50.0), "learn_ridge": False, "learn_bias": False}),
}


@pytest.fixture
def episode(random):
    """Return support features, class numbers, query features and labels of the queries."""
    labels = torch.arange(WAY).repeat(SHOT).expand(B, S)
    return random(B, S, D, grad=True), labels, random(B, Q, D, grad=True), torch.randint(0, WAY, (B, Q))


@pytest.mark.parametrize("name", HEADS)
def test_published_heads(name, episode, backend):
    formula, settings = HEADS[name]
    support, labels, queries, answers = episode
    bias = 0.3 if settings.get("learn_bias", True) else 0.0
    head = RidgeHead(WAY, scale=1.7, bias=bias, backend=backend, dtype=torch.float64, **settings)
    ridge = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    expected = formula(support, one_hot(labels, WAY).double(), queries, ridge, scale, bias)
    logits = head(support, labels, queries)
    assert logits.shape == (B, Q, WAY)
    assert relative_error(logits, expected) < 1e-11

    def gradients(logits, tensors):
        # The square depends on the bias, which softmax cancels.
        loss = cross_entropy(logits.flatten(0, 1), answers.flatten()) + logits.square().mean()
        return torch.autograd.grad(loss, tensors)

    got = gradients(logits, [support, queries, *head.parameters()])
    learned = ["log_ridge", "scale", "bias"] if head.log_ridge is not None else ["scale"]
    assert [n for n, _ in head.named_parameters()] == learned
    exact = gradients(expected, [support, queries, scale])
    for found, reference in zip([got[0], got[1], got[2 + learned.index("scale")]], exact, strict=True):
        assert relative_error(found, reference) < 1e-10
    if head.log_ridge is not None:
        (of_ridge,) = gradients(formula(support, one_hot(labels, WAY).double(), queries, ridge, 1.7, bias), [ridge])
        assert relative_error(got[2], 0.7 * of_ridge) < 1e-9  # d/d log r = r d/dr


def test_the_published_heads_differ(episode):
    support, labels, queries, _ = episode
    results = [
        RidgeHead(WAY, dtype=torch.float64, **settings)(support, labels, queries) for _, settings in HEADS.values()
    ]
    assert min(relative_error(a, b) for i, a in enumerate(results) for b in results[:i]) > 1e-3


def test_gradcheck(random):
    head = RidgeHead(2, ridge=Ridge.mean_trace(0.1), kernel=RBF(2.0), dtype=torch.float64)
    names = [name for name, _ in head.named_parameters()]
    y = random(2, 4, 2, grad=True)

    def call(support, y, queries, *learned):
        return torch.func.functional_call(head, dict(zip(names, learned, strict=True)), (support, y, queries))

    assert torch.autograd.gradcheck(
        call, [random(2, 4, 3, grad=True), y, random(2, 3, 3, grad=True), *head.parameters()]
    )


def test_class_numbers_and_one_hot_labels_agree(episode):
    support, labels, queries, _ = episode
    head = RidgeHead(WAY).double()
    logits = head(support, labels, queries)
    assert torch.equal(logits, RidgeHead().double()(support, one_hot(labels, WAY).double(), queries))
    assert torch.equal(logits, head(support, labels[0], queries))  # the labels of all episodes
    assert relative_error(logits[1], head(support[1], labels[1].int(), queries[1])) < 1e-12


def test_training_lowers_the_loss_and_state_is_restored(episode):
    support, labels, queries, answers = episode
    head = RidgeHead(WAY).double()
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        loss = cross_entropy(head(support.detach(), labels, queries.detach()).flatten(0, 1), answers.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    other = RidgeHead(WAY, ridge=Ridge.absolute(3.0)).double()
    other.load_state_dict(head.state_dict())
    assert torch.equal(other(support, labels, queries), head(support, labels, queries))
    assert torch.equal(copy.deepcopy(head)(support, labels, queries), head(support, labels, queries))
    assert "num_classes=5" in repr(head) and "learned: ridge, scale, bias" in repr(head)


def test_compile(episode):
    support, labels, queries, _ = (t.detach() for t in episode)
    head = RidgeHead(WAY).double()
    compiled = torch.compile(head, fullgraph=True, backend="eager")
    logits = compiled(support, labels, queries)
    assert relative_error(logits, head(support, labels, queries)) < 1e-12
    gradients = [
        torch.autograd.grad(m(support, labels, queries).square().sum(), list(head.parameters()))
        for m in (compiled, head)
    ]
    for a, b in zip(*gradients, strict=True):
        assert relative_error(a, b) < 1e-11


def test_autocast_and_half_precision(episode):
    """The logits of 16-bit features are those of the same numbers in float32, with or without autocast."""
    support, labels, queries, _ = (t.detach() for t in episode)
    head = RidgeHead(WAY)
    half = support.bfloat16(), labels, queries.bfloat16()
    expected = head(half[0].float(), labels, half[2].float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(*half)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, head(*half)) and relative_error(logits, expected) < 1e-6


def test_vmap_over_episodes(episode):
    support, labels, queries, _ = (t.detach() for t in episode)
    head = RidgeHead(WAY).double()
    assert relative_error(torch.vmap(head)(support, labels, queries), head(support, labels, queries)) < 1e-12


def test_a_class_number_out_of_range_is_never_silent(episode):
    support, labels, queries, _ = (t.detach() for t in episode)
    bad = labels.clone()
    bad[1, 0] = WAY
    with pytest.raises(ValueError, match="labels: expected class numbers from 0 to 4, got 5"):
        RidgeHead(WAY).double()(support, bad, queries)
    logits = torch.vmap(RidgeHead(WAY).double())(support, bad, queries)
    assert logits[1].isnan().all() and logits[0].isfinite().all()


def test_failures_reach_the_caller(episode):
    support, labels, queries, _ = (t.detach() for t in episode)
    settings = {"ridge": Ridge.absolute(0.0), "learn_ridge": False}
    support = support[:, :1].expand(-1, S, -1) * 1e3
    with pytest.raises(FactorizationError):
        RidgeHead(WAY, **settings)(support, labels, queries)
    assert RidgeHead(WAY, on_failure="nan", **settings)(support, labels, queries).isnan().all()


@pytest.mark.parametrize(
    "settings, error",
    [
        ({"num_classes": 0}, "num_classes: expected at least 1"),
        ({"num_classes": 2.0}, "num_classes: expected a whole number or None, got float"),
        ({"ridge": 50.0}, r"ridge: expected a Ridge such as Ridge.absolute\(50.0\), got float"),
        ({"ridge": Ridge.absolute(torch.tensor(1.0))}, "ridge: expected a Ridge whose value is a number"),
        ({"ridge": Ridge.absolute(0.0)}, "ridge: expected a value > 0"),
        ({"scale": float("nan")}, "scale: expected a finite number"),
        ({"bias": "0"}, "bias: expected a number, got str"),
    ],
)
def test_settings_are_checked(settings, error):
    with pytest.raises((TypeError, ValueError), match=error):
        RidgeHead(**settings)


@pytest.mark.parametrize(
    "labels, error",
    [
        (torch.zeros(S, WAY, dtype=torch.long), r"labels: expected class numbers \[..., 10\]"),
        (torch.zeros(3, dtype=torch.long), r"labels: expected class numbers \[..., 10\]"),
        (torch.zeros(S, WAY, dtype=torch.bool), "labels: expected class numbers of an integer dtype"),
        (torch.zeros(S, WAY + 1), "labels: expected 5 along dimension -1 to match num_classes"),
        (torch.zeros(S + 1, WAY), "labels: expected 10 along dimension -2 to match support"),
        (torch.zeros(S, WAY, dtype=torch.float64), "support: expected float64 like labels"),
        (torch.zeros(2, S, dtype=torch.long), r"labels \(2,\)"),
        ([0] * S, "labels: expected a tensor of class numbers"),
    ],
)
def test_labels_are_checked(labels, error, random):
    support, queries = random(3, S, D, dtype=torch.float32), random(3, Q, D, dtype=torch.float32)
    if isinstance(labels, torch.Tensor) and labels.dtype == torch.long and labels.shape == (S, WAY):
        support, queries = support[0], queries[0]
    with pytest.raises((TypeError, ValueError), match=error):
        RidgeHead(WAY)(support, labels, queries)
    with pytest.raises(ValueError, match=r"support: expected features .*support.flatten\(1\)"):
        RidgeHead(WAY)(random(S, 3, 8, 8), torch.zeros(S, dtype=torch.long), random(Q, 3, 8, 8))
    with pytest.raises(ValueError, match="num_classes: expected the number of classes"):
        RidgeHead()(support, torch.zeros(S, dtype=torch.long), queries)
