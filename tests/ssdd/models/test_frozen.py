"""Features as a function of the images alone: the same numbers and gradients, nothing to the weights."""

import pytest
import torch
import torch.nn.functional as F

from ssdd.models import build, frozen, in_chunks, seeded


def trained(name, channels_last):
    """A network whose BatchNorm statistics are no longer those of its start."""
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
    wanted, got = network.features(a), frozen(network)(b)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    (da,) = torch.autograd.grad(wanted.square().sum(), a)
    got.square().sum().backward()
    torch.testing.assert_close(b.grad, da, rtol=1e-3, atol=1e-4)
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    torch.testing.assert_close(in_chunks(frozen(network), x.repeat(4, 1, 1, 1)), got.detach().repeat(4, 1))


def test_weights_are_read_when_it_is_called():
    network = trained("convnet-8-12", False)
    x = torch.ones(2, 3, 16, 16)
    before = frozen(network)(x)
    with torch.no_grad():
        network.backbone.blocks[0].weight.mul_(2)
    assert not torch.allclose(frozen(network)(x), before)
