"""The U-Net: shapes, a fresh one that answers zero, and a condition that counts once something was learnt."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from UADBenchLib.networks.unet import ResidualBlock, UNet, sinusoidal_embedding

WIDTHS = (8, 16, 24)


def trained(network: UNet, steps: int = 1, condition: torch.Tensor | None = None) -> UNet:
    """The network after a few large steps towards a fixed random target."""
    generator = torch.Generator().manual_seed(0)
    images, target = (torch.randn(2, 1, 32, 48, generator=generator) for _ in range(2))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.5)
    for _ in range(steps):
        optimiser.zero_grad()
        F.mse_loss(network(images, condition), target).backward()
        optimiser.step()
    return network


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("stem", [1, 2])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(32, 48), (80, 96)])
def test_shapes(stem: int, channels: int, size: tuple[int, int]) -> None:
    out = UNet(WIDTHS, stem, channels=channels)(torch.randn(2, channels, *size))
    assert out.shape == (2, 1, *size)


@pytest.mark.parametrize("stem", [1, 2])
@pytest.mark.parametrize("conditioned", [False, True])
def test_a_fresh_network_answers_zero_and_then_learns(stem: int, conditioned: bool) -> None:
    network = UNet(WIDTHS, stem, conditioned)
    condition = torch.tensor([10.0, 900.0]) if conditioned else None
    images = torch.randn(2, 1, 32, 48)
    assert not network(images, condition).any()
    assert trained(network, 1, condition)(images, condition).any()


@pytest.mark.parametrize("stem", [1, 2])
def test_the_condition_counts_after_some_steps(stem: int) -> None:
    network = trained(UNet(WIDTHS, stem, conditioned=True), 4, torch.tensor([10.0, 900.0])).eval()
    images = torch.randn(1, 1, 32, 48).repeat(2, 1, 1, 1)
    with torch.no_grad():
        same, different = (network(images, torch.tensor(values)) for values in ([50.0, 50.0], [50.0, 800.0]))
    torch.testing.assert_close(same[0], same[1])
    assert (different[0] - different[1]).abs().max() > 1e-6


def test_slices_of_a_batch_do_not_see_each_other() -> None:
    network = trained(UNet(WIDTHS, 2), 3).eval()
    images = torch.randn(3, 1, 32, 48)
    with torch.no_grad():
        torch.testing.assert_close(network(images)[1:2], network(images[1:2]), atol=1e-6, rtol=1e-4)


def test_a_size_that_does_not_divide_is_an_error() -> None:
    with pytest.raises(RuntimeError):
        UNet(WIDTHS, 2)(torch.randn(1, 1, 33, 48))


def test_every_weight_has_a_share_in_the_answer() -> None:
    network = trained(UNet(WIDTHS, 2, conditioned=True), 3, torch.tensor([10.0, 900.0]))
    network.zero_grad()
    network(torch.randn(2, 1, 32, 48), torch.tensor([1.0, 500.0])).square().sum().backward()
    silent = [name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert silent == []


def test_a_block_starts_as_its_skip() -> None:
    block = ResidualBlock(16, 16, None)
    x = torch.randn(1, 16, 8, 8)
    assert torch.equal(block(x, None), x)


def test_embedding_tells_scalars_apart() -> None:
    embedded = sinusoidal_embedding(torch.tensor([0.0, 1.0, 1000.0]), 16)
    assert embedded.shape == (3, 16)
    assert torch.equal(embedded[0], torch.tensor([0.0] * 8 + [1.0] * 8))
    assert (embedded[1] - embedded[2]).abs().max() > 0.5
