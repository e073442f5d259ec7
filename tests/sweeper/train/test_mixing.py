"""Mixup and cutmix, against torchvision's own and their definitions."""

import numpy as np
import pytest
import torch
from scipy.stats import beta, binomtest, ks_2samp, kstest
from torch.nn.functional import cross_entropy
from torchvision.transforms import v2

from sweeper.errors import ConfigError
from sweeper.train.mixing import Mix, mixing
from tests.no_sync import no_syncs

SHAPE = (6, 3, 9, 12)


def images(seed=0, shape=SHAPE):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_a_mix_follows_from_its_seed_alone():
    first = [mixing(seed, SHAPE, 1.0, 1.0) for seed in range(20)]
    torch.manual_seed(9)
    assert first == [mixing(seed, SHAPE, 1.0, 1.0) for seed in range(20)]
    assert len(set(first)) == 20


@pytest.mark.parametrize("shape", [SHAPE, (5, 7), (4, 2, 3)])
def test_mixup_averages_each_sample_with_the_one_before(shape):
    x, mix = images(1, shape), mixing(3, shape, 0.4, 0.0)
    mixed = mix.apply(x)
    assert mix.box is None
    assert 0 < mix.weight < 1
    for i in range(shape[0]):
        expected = mix.weight * x[i] + (1 - mix.weight) * x[i - 1]
        torch.testing.assert_close(mixed[i], expected)


def test_cutmix_pastes_a_box_of_the_one_before_and_weighs_its_real_share():
    x = images(2)
    n_cut = 0
    for seed in range(50):
        mix = mixing(seed, SHAPE, 0.0, 1.0)
        mixed, is_own = mix.apply(x), torch.ones(SHAPE[2:], dtype=torch.bool)
        top, left, bottom, right = mix.box
        is_own[top:bottom, left:right] = False
        assert 0 <= top <= bottom <= SHAPE[2]
        assert 0 <= left <= right <= SHAPE[3]
        assert mix.weight == pytest.approx(is_own.float().mean().item(), abs=1e-7)
        assert torch.equal(mixed, torch.where(is_own, x, x.roll(1, 0)))
        n_cut += mix.weight < 1
    assert n_cut > 30


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_the_weight_of_mixup_is_of_a_beta_distribution(alpha):
    weights = [mixing(seed, (8, 5), alpha, 0.0).weight for seed in range(3000)]
    assert kstest(weights, beta(alpha, alpha).cdf).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_the_boxes_of_cutmix_are_drawn_as_torchvisions(alpha):
    n_draws, shape = 2000, (2, 1, 8, 12)
    torch.manual_seed(0)
    theirs = v2.CutMix(alpha=alpha, num_classes=2)
    x = torch.stack((torch.zeros(shape[1:]), torch.ones(shape[1:])))  # so the box shows
    expected = [theirs(x, torch.tensor([0, 1])) for _ in range(n_draws)]
    mixes = [mixing(seed, shape, 0.0, alpha) for seed in range(n_draws)]
    weights = [mix.weight for mix in mixes], [y[0, 0].item() for _, y in expected]
    assert ks_2samp(*np.round(weights, 6)).pvalue > 1e-3
    covered = torch.stack([mix.apply(x)[0] for mix in mixes]).mean(0)
    off = covered - torch.stack([mixed[0] for mixed, _ in expected]).mean(0)
    assert off.abs().max() < 5 / (2 * n_draws) ** 0.5  # of a pixel that one half of boxes cover


def test_either_kind_is_equally_likely_when_both_are_on():
    mixes = [mixing(seed, SHAPE, 1.0, 1.0) for seed in range(2000)]
    assert binomtest(sum(mix.box is None for mix in mixes), len(mixes)).pvalue > 1e-3


def test_the_loss_is_that_of_torchvisions_mixed_labels():
    labels, logits = torch.tensor([0, 3, 1, 1, 2, 0]), torch.randn(6, 4)
    for mix in (mixing(0, SHAPE, 1.0, 0.0), mixing(0, SHAPE, 0.0, 1.0)):
        own, partner = labels, mix.partner(labels)
        found = mix.weight * cross_entropy(logits, own, label_smoothing=0.1)
        found += (1 - mix.weight) * cross_entropy(logits, partner, label_smoothing=0.1)
        soft = torch.eye(4)[labels] * mix.weight + torch.eye(4)[labels].roll(1, 0) * (
            1 - mix.weight
        )
        torch.testing.assert_close(found, cross_entropy(logits, soft, label_smoothing=0.1))


@pytest.mark.parametrize(
    ("shape", "mixup", "cutmix"), [((1, 3, 8, 8), 1.0, 1.0), ((1, 5), 1.0, 0.0), (SHAPE, 0.0, 0.0)]
)
def test_a_sample_alone_and_a_mix_that_is_off_stay_as_they_are(shape, mixup, cutmix):
    x = images(0, shape)
    mix = mixing(0, shape, mixup, cutmix)
    assert mix == Mix(1.0)
    assert mix.apply(x) is x


@pytest.mark.parametrize("alpha", [1e-3, 1e3])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_the_weight_is_a_share_however_extreme_its_parameter(kind, alpha):
    amounts = {"mixup": 0.0, "cutmix": 0.0, kind: alpha}
    for seed in range(200):
        mix = mixing(seed, SHAPE, **amounts)
        assert isinstance(mix.weight, float)
        assert 0 <= mix.weight <= 1


def test_mixing_never_waits_and_leaves_its_input_alone():
    x, labels = images(3), torch.arange(6)
    before = x.clone()
    with no_syncs():
        for seed in range(10):
            mix = mixing(seed, x.shape, 1.0, 1.0)
            mix.apply(x)
            mix.partner(labels)
    assert torch.equal(x, before)


def test_vectors_cannot_be_cut():
    with pytest.raises(
        ConfigError, match="cutmix: samples of shape `\\(64,\\)`; images are needed"
    ):
        mixing(0, (4, 64), 0.0, 1.0)
