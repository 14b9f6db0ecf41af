"""The networks: shapes, a fresh one that answers zero, and a condition that counts once something was learnt."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from UADBenchLib.networks.denoising_unet import DenoisingUNet, StandardisedConv
from UADBenchLib.networks.diffusion_unet import DiffusionUNet, DiffusionUNetSettings, _Attention, _Block
from UADBenchLib.networks.similarity import gradient_similarity_maps, ssim_map
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


PUBLISHED = DiffusionUNetSettings((16, 16, 32), (1, 1, 2), attention=(1, 2), head=16, dropout_from=2)


class TestDiffusionUNet:
    def network(self, conditioned: bool = False, **changes: object) -> DiffusionUNet:
        torch.manual_seed(0)
        network = DiffusionUNet(replace(PUBLISHED, **changes), conditioned)
        with torch.no_grad():
            for weight in network.parameters():
                weight.add_(0.05 * torch.randn(weight.shape))
        return network.eval()

    def test_shapes_and_a_fresh_one_answers_zero(self) -> None:
        images = torch.randn(2, 2, 16, 24)
        answer = DiffusionUNet(PUBLISHED, channels=2)(images)
        assert answer.shape == (2, 1, 16, 24) and not answer.any()

    def test_every_weight_has_a_share_in_the_answer(self) -> None:
        network = self.network(conditioned=True)
        network(torch.randn(2, 1, 16, 24), torch.tensor([1.0, 500.0])).square().sum().backward()
        assert [name for name, weight in network.named_parameters() if not weight.grad.any()] == []

    def test_the_condition_counts(self) -> None:
        network, images = self.network(conditioned=True), torch.randn(1, 1, 16, 24)
        first, second = (network(images, torch.tensor([value])) for value in (10.0, 900.0))
        assert (first - second).abs().max() > 1e-4

    @pytest.mark.parametrize(
        "changes",
        [{"causal": True}, {"activate_twice": False}, {"rescale": True}, {"normalisation": "batch"}],
        ids=lambda changes: next(iter(changes)),
    )
    def test_options_change_the_answer_but_not_the_size(self, changes: dict) -> None:
        plain, other = self.network(), self.network(**changes)
        images = torch.randn(1, 1, 16, 24, generator=torch.Generator().manual_seed(1))
        assert sum(w.numel() for w in plain.parameters()) == sum(w.numel() for w in other.parameters())
        assert not torch.allclose(plain(images), other(images), atol=1e-5)

    def test_causal_attention_sees_what_comes_before_alone(self) -> None:
        for causal in (False, True):
            attention = _Attention(16, replace(PUBLISHED, causal=causal)).eval()
            torch.nn.init.ones_(attention.leave.weight)
            attention.norm = torch.nn.Identity()
            maps = torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(2), requires_grad=True)
            attention(maps)[0, :, 1, 1].sum().backward()
            seen = maps.grad[0].abs().sum(0).flatten() > 0
            assert seen.tolist() == [True] * (6 if causal else 16) + [False] * (10 if causal else 0)

    def test_dropout_works_at_coarse_levels_in_training_alone(self) -> None:
        network, images = self.network(), torch.randn(1, 1, 16, 24)
        assert torch.equal(network(images), network(images))
        network.train()
        assert not torch.equal(network(images), network(images))
        chances = [module.dropout.p for module in network.modules() if isinstance(module, _Block)]
        assert set(chances) == {0.0, 0.1}

    def test_refusals(self) -> None:
        with pytest.raises(ValueError, match="layer"):
            replace(PUBLISHED, normalisation="layer")
        with pytest.raises(ValueError, match="level"):
            replace(PUBLISHED, blocks=(1,))


class TestDenoisingUNet:
    def test_filters_are_standardised(self) -> None:
        conv, x = StandardisedConv(3, 8, 3), torch.randn(1, 3, 9, 9)
        before = conv(x)
        with torch.no_grad():
            conv.weight.mul_(7).add_(2)
        torch.testing.assert_close(conv(x), before, atol=1e-4, rtol=1e-4)

    def test_shapes(self) -> None:
        assert DenoisingUNet((8, 16, 32))(torch.randn(2, 1, 16, 24)).shape == (2, 1, 16, 24)


class TestSimilarity:
    def images(self) -> torch.Tensor:
        return torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(0))

    def test_an_image_is_like_itself(self) -> None:
        images = self.images()
        torch.testing.assert_close(ssim_map(images, images), torch.ones(2, 3, 22, 30))
        assert ssim_map(images, images, window=5, padded=True).shape == images.shape
        for part in gradient_similarity_maps(images[:, :1], images[:, :1]):
            torch.testing.assert_close(part, torch.ones_like(part))

    def test_ssim_is_that_of_its_formula(self) -> None:
        first, second = self.images()[:, :1], self.images().flip(-1)[:, :1]
        offsets = torch.arange(11.0) - 5
        profile = torch.exp(-(offsets**2) / 4.5)
        weights = profile[:, None] * profile[None] / profile.sum() ** 2
        a, b = first[0, 0, :11, :11], second[0, 0, :11, :11]
        mean = [(weights * value).sum() for value in (a, b)]
        spread = [(weights * (value - m) ** 2).sum() for value, m in zip((a, b), mean, strict=True)]
        shared = (weights * (a - mean[0]) * (b - mean[1])).sum()
        expected = (2 * mean[0] * mean[1] + 1e-4) * (2 * shared + 9e-4)
        expected /= (mean[0] ** 2 + mean[1] ** 2 + 1e-4) * (sum(spread) + 9e-4)
        torch.testing.assert_close(ssim_map(first, second)[0, 0, 0, 0], expected, atol=1e-5, rtol=1e-4)

    def test_a_missing_edge_lowers_the_gradient_similarity_there(self) -> None:
        edge = torch.zeros(1, 1, 32, 32)
        edge[..., 16:] = 1
        alike = gradient_similarity_maps(edge, torch.zeros_like(edge), scales=1)[0][0, 0, 10]
        assert alike[14:16].max() < 0.1 and alike[:12].min() > 0.9
