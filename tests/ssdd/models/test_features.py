"""Features as a function of the images alone: the same numbers and gradients, and no gradient to the weights."""

import copy
import sys

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch._dynamo.utils import counters

from ssdd.models import build, frozen, frozen_together, in_chunks, seeded

frozen_room = sys.modules["ssdd.models.features"]  # the package exports a function of that name


def trained(name, channels_last):
    """Return a network whose BatchNorm statistics differ from the initial ones."""
    network = seeded(lambda: build(name, 3, (16, 16), 5), 0)
    if channels_last:
        network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    g = torch.Generator().manual_seed(0)
    for _ in range(5):
        optimizer.zero_grad()
        F.mse_loss(network(torch.randn(32, 3, 16, 16, generator=g)), torch.randn(32, 5, generator=g)).backward()
        optimizer.step()
    optimizer.zero_grad()
    return network.eval()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", ["convnet-8-12", "resnet10"])
def test_values_and_gradients_are_those_of_the_network(name, channels_last):
    network = trained(name, channels_last)
    x = torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected, got = network.features(a), frozen(network)(b)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    (da,) = torch.autograd.grad(expected.square().sum(), a)
    got.square().sum().backward()
    torch.testing.assert_close(b.grad, da, rtol=1e-3, atol=1e-4)
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    torch.testing.assert_close(in_chunks(frozen(network), x.repeat(4, 1, 1, 1)), got.detach().repeat(4, 1))


@pytest.mark.parametrize("names", [["convnet-8-12"] * 3, ["convnet-8-12"], ["convnet-8-12", "convnet-10-12"]])
@pytest.mark.parametrize("channels_last", [False, True])
def test_several_networks_together_give_the_features_and_gradients_of_each(names, channels_last, monkeypatch):
    networks = [trained(name, channels_last).double() for name in names]
    with torch.no_grad():
        for i, network in enumerate(networks):  # no two networks are equal
            network.backbone.blocks[1].running_mean.add_(0.3 * i)
            network.backbone.blocks[4].weight.mul_(1 + 0.2 * i)
    x = torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(1)).double()
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected, got = torch.stack([n.features(a) for n in networks], 1), frozen_together(networks)(b)
    torch.testing.assert_close(got, expected)
    weights = torch.randn(got.shape, generator=torch.Generator().manual_seed(2)).double()
    (da,) = torch.autograd.grad((expected * weights).sum(), a)
    (got * weights).sum().backward()
    torch.testing.assert_close(b.grad, da)
    assert all(p.grad is None for network in networks for p in network.parameters())
    monkeypatch.setattr(frozen_room, "CHUNK_BYTES", 1)  # eight images per chunk
    with torch.no_grad():
        torch.testing.assert_close(frozen_together(networks)(x), expected.detach())


def test_weights_are_read_when_it_is_called():
    network = trained("convnet-8-12", False)
    x = torch.ones(2, 3, 16, 16)
    before = frozen(network)(x)
    with torch.no_grad():
        network.backbone.blocks[0].weight.mul_(2)
    assert not torch.allclose(frozen(network)(x), before)


def test_compiled_networks_give_the_same_numbers_and_one_program_serves_all_of_a_pool(monkeypatch):
    program = torch.compile(frozen_room._run_layers, backend="eager")
    monkeypatch.setattr(frozen_room, "_compile_layers", lambda: program)
    torch._dynamo.reset()
    counters.clear()
    x = torch.rand(5, 3, 16, 16)
    programs = []
    for seed in range(4):  # a pool's networks, one after the other
        torch.manual_seed(seed)
        plain = build("convnet-4-8", 3, (16, 16), 7)
        fast = copy.deepcopy(plain).faster(compiled=True)
        fast.compile(backend="eager")  # the compiler's own code is not tested here
        seen = frozen(fast)(x.clone().requires_grad_())
        assert torch.equal(seen, frozen(plain)(x.clone().requires_grad_()))
        for network in (plain, fast):
            F.mse_loss(network.train()(x), torch.zeros(5, 7)).backward()
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), fast.parameters(), strict=True))
        programs.append(counters["stats"]["unique_graphs"])
    assert programs[0] > 0 and programs[-1] == programs[0]
    assert "compiled" in str(fast) and str(plain) == str(build("convnet-4-8", 3, (16, 16), 7))


def test_training_in_bf16_leaves_features_and_weights_in_32_bits():
    torch.manual_seed(0)
    plain = build("convnet-4-8", 3, (16, 16), 7)
    half = copy.deepcopy(plain).faster(half_training=True)
    x, y = torch.rand(64, 3, 16, 16), torch.rand(64, 7)
    assert torch.equal(frozen(half)(x), frozen(plain)(x)) and torch.equal(half.eval()(x), plain.eval()(x))
    for network in (plain, half):
        F.mse_loss(network.train()(x), y).backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in half.parameters())
    a, b = (torch.cat([p.grad.flatten() for p in n.parameters()]) for n in (plain, half))
    assert 0 < float((a - b).norm() / a.norm()) < 0.05
