"""Gaussian inputs and their teacher."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from sweeper.errors import ConfigError
from sweeper.sections import DataConfig
from sweeper.train.data import describe, load
from sweeper.train.sources.synthetic import synthetic


def gaussians(stream, seed, n):
    """As the docstring of `synthetic` states them, one number at a time."""
    raw = [int(r) for r in np.random.PCG64((stream, seed)).random_raw(2 * n)]
    u = [((r >> 11) + 0.5) / 2**53 for r in raw]
    return [
        math.sqrt(-2 * math.log(u[2 * k])) * math.cos(2 * math.pi * u[2 * k + 1]) for k in range(n)
    ]


@pytest.mark.parametrize("decay", [0.0, 0.001, 0.5])
def test_inputs_and_labels_follow_from_what_is_stated(decay):
    dim, n, seed, widths = 6, 40, 3, (6, 4, 3, 5)
    splits = synthetic(dim, decay, n, 30, 5, (4, 3), seed=seed).load()
    spread = [50 * decay * math.exp(-decay * i) if decay else 1.0 for i in range(dim)]
    drawn = iter(gaussians(1, seed, n * dim))
    x = [[next(drawn) * math.sqrt(spread[i] / dim) for i in range(dim)] for _ in range(n)]
    np.testing.assert_allclose(splits.train_x.numpy(), x, rtol=1e-6)

    drawn = iter(gaussians(0, seed, 6 * 4 + 4 * 3 + 3 * 5))
    matrices = [
        [[next(drawn) / (1 if k == 0 else math.sqrt(inner)) for _ in range(outer)]
         for _ in range(inner)]
        for k, (inner, outer) in enumerate(itertools.pairwise(widths))
    ]  # fmt: skip
    for row, label in zip(x, splits.train_y.tolist(), strict=True):
        z = row
        for k, matrix in enumerate(matrices):
            z = [
                sum(a * w[j] for a, w in zip(z, matrix, strict=True)) for j in range(len(matrix[0]))
            ]
            z = z if k == len(matrices) - 1 else [math.tanh(a) for a in z]
        assert label == max(range(5), key=z.__getitem__)


def test_random_labels_are_raw_numbers_modulo_the_classes():
    splits = synthetic(n_train=50, n_test=20, labels="random", seed=2).load()
    for y, stream in ((splits.train_y, 3), (splits.test_y, 4)):
        raw = np.random.PCG64((stream, 2)).random_raw(len(y))
        assert y.tolist() == [int(r) % 5 for r in raw]


def test_the_papers_inputs_have_its_variances():
    splits = load(DataConfig(name="synthetic"))
    assert splits.train_x.shape == (5000, 200)
    assert splits.test_x.shape == (1000, 200)
    assert splits.train_x.dtype == torch.float32
    found = splits.train_x.double().var(dim=0)[:12] * 200
    expected = 25 * torch.exp(-0.5 * torch.arange(12))
    torch.testing.assert_close(found, expected.double(), rtol=0.1, atol=0)


def test_isotropic_inputs_have_one_variance():
    config = DataConfig(name="synthetic", options=(("decay", 0.0),))
    variance = load(config).train_x.var(dim=0) * 200
    assert 0.9 < float(variance.min()) < float(variance.max()) < 1.1


def test_inputs_do_not_depend_on_how_many_there_are_and_do_on_the_seed():
    small, large = synthetic(n_train=10).load(), synthetic(n_train=20, n_test=5).load()
    assert torch.equal(small.train_x, large.train_x[:10])
    assert torch.equal(small.train_y, large.train_y[:10])
    assert torch.equal(small.test_x[:5], large.test_x)
    assert not torch.equal(small.train_x, synthetic(n_train=10, seed=1).load().train_x)
    assert not torch.equal(small.train_x, small.test_x[:10])


def test_the_seed_is_that_of_the_data():
    first, other = (load(DataConfig(name="synthetic", seed=seed)) for seed in (0, 1))
    assert not torch.equal(first.train_x, other.train_x)
    assert torch.equal(other.train_x, synthetic(seed=1).load().train_x)


def test_no_class_is_nearly_everything():
    for seed in range(3):
        for decay in (0.0, 0.5):
            counts = torch.bincount(synthetic(decay=decay, seed=seed).load().train_y, minlength=5)
            assert counts.max() < 0.6 * 5000


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("dim", 0),
        ("decay", -0.1),
        ("n_train", 0),
        ("n_test", 0),
        ("n_classes", 1),
        ("teacher_widths", (5, 0)),
    ],
)
def test_an_option_out_of_range_is_named(option, value):
    with pytest.raises(ConfigError) as caught:
        describe(DataConfig(name="synthetic", options=((option, value),)))
    assert caught.value.where == f"data.{option}"


def test_samples_of_other_inputs_have_other_ids_and_those_of_the_same_the_same():
    def ids(**options):
        return synthetic(n_train=20, n_test=10, **options).load().test_ids.tolist()

    usual = ids()
    assert len(set(usual)) == 10
    assert usual[:5] == synthetic(n_test=5).load().test_ids.tolist()
    assert usual == ids(labels="random") == ids(decay=0.5)
    for other in ({"decay": 0.0}, {"dim": 100}, {"seed": 1}):
        assert not set(usual) & set(ids(**other))
    splits = synthetic(n_train=10, n_test=10).load()
    assert not set(splits.train_ids.tolist()) & set(splits.test_ids.tolist())
