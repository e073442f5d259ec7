"""Subsets and labels: stratified, seeded, nested, exact."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.errors import ConfigError
from sweeper.sections import DataConfig
from sweeper.train.data import describe, load
from sweeper.train.subset import noisy, permuted, stratified

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(torch.tensor)


@given(LABELS, st.integers(0, 2**63 - 1), st.data())
@settings(max_examples=100)
def test_a_smaller_subset_is_within_a_larger_one_of_its_seed(labels, seed, data):
    n = data.draw(st.integers(1, len(labels)))
    smaller, larger = stratified(labels, n - 1, seed), stratified(labels, n, seed)
    assert len(larger) == n
    assert set(smaller.tolist()) < set(larger.tolist())
    assert larger.tolist() == sorted(larger.tolist())


@given(LABELS, st.integers(0, 100), st.data())
@settings(max_examples=100)
def test_shares_are_those_of_the_whole_by_websters_method(labels, seed, data):
    n = data.draw(st.integers(1, len(labels)))
    sizes = torch.bincount(labels, minlength=5).tolist()
    taken = [0] * 5
    for _ in range(n):  # the next seat goes to the largest size / (2 seats + 1)
        open_ = [c for c in range(5) if taken[c] < sizes[c]]
        best = max(open_, key=lambda c: (sizes[c] / (2 * taken[c] + 1), -c))
        taken[best] += 1
    found = torch.bincount(labels[stratified(labels, n, seed)], minlength=5)
    assert found.tolist() == taken


def test_equal_classes_have_equal_shares():
    labels = torch.arange(1000) % 10
    assert torch.bincount(labels[stratified(labels, 250, 0)]).tolist() == [25] * 10


def test_the_seed_draws_the_subset():
    labels = torch.arange(1000) % 10
    first, again, other = (stratified(labels, 100, seed).tolist() for seed in (0, 0, 1))
    assert first == again
    assert len(set(first) & set(other)) < 30
    assert first != list(range(100))


def test_the_whole_is_everything():
    labels = torch.tensor([2, 0, 0, 1])
    assert stratified(labels, 4, 0).tolist() == [0, 1, 2, 3]


@given(LABELS, st.floats(0, 1), st.integers(0, 100))
@settings(max_examples=100)
def test_noise_changes_exactly_its_fraction_to_another_class(labels, fraction, seed):
    found = noisy(labels, fraction, 5, seed)
    assert int((found != labels).sum()) == round(fraction * len(labels))
    assert found.dtype == torch.int64
    assert 0 <= int(found.min()) <= int(found.max()) < 5


def test_noise_goes_to_all_other_classes_alike():
    labels = torch.zeros(10_000, dtype=torch.int64)
    counts = torch.bincount(noisy(labels, 1.0, 5, 0), minlength=5)
    assert counts[0] == 0
    assert ((counts[1:] - 2500).abs() < 200).all()  # 4.6 standard deviations


def test_more_noise_of_a_seed_spoils_the_same_samples_and_more():
    labels = torch.arange(1000) % 10
    little, much = noisy(labels, 0.1, 10, 3), noisy(labels, 0.3, 10, 3)
    spoilt = little != labels
    assert torch.equal(much[spoilt], little[spoilt])


def test_a_permutation_keeps_the_labels_and_forgets_the_samples():
    labels = torch.arange(1000) % 10
    found = permuted(labels, 0)
    assert torch.equal(found.sort().values, labels.sort().values)
    assert abs(int((found == labels).sum()) - 100) < 40
    assert not torch.equal(found, permuted(labels, 1))


def test_subset_noise_and_permutation_of_one_seed_are_independent():
    labels = torch.zeros(1000, dtype=torch.int64)
    subset = torch.zeros(1000, dtype=torch.bool)
    subset[stratified(labels, 500, 0)] = True
    spoilt = noisy(labels, 0.5, 2, 0) == 1
    first = permuted(torch.arange(1000), 0) < 500
    for a, b in ((subset, spoilt), (subset, first), (spoilt, first)):
        assert abs(int((a & b).sum()) - 250) < 40  # 5 standard deviations of 7.9


def test_draws_never_change():
    labels = torch.arange(40) % 4
    assert stratified(labels, 5, 0).tolist() == PINNED_SUBSET
    assert np.flatnonzero(noisy(labels, 0.1, 4, 0) != labels).tolist() == PINNED_NOISE
    assert permuted(torch.arange(8), 0).tolist() == PINNED_PERMUTATION


PINNED_SUBSET = [2, 11, 13, 20, 32]
PINNED_NOISE = [9, 31, 36, 39]
PINNED_PERMUTATION = [7, 3, 6, 0, 1, 4, 5, 2]


# --- as options of a data set ---------------------------------------------------------------


def digits(**options):
    return DataConfig(name="digits", **options)


@pytest.mark.parametrize(("asked", "n"), [(100, 100), (0.1, 144), (0.5, 718), (1437, 1437)])
def test_a_subset_is_a_number_or_a_fraction(asked, n):
    splits = load(digits(subset=asked))
    assert describe(digits(subset=asked)).n_train == len(splits.train_y) == n
    assert len(splits.test_y) == 360


def test_a_subset_has_the_samples_of_its_ids():
    whole, splits = load(digits()), load(digits(subset=100))
    at = torch.searchsorted(whole.train_ids, splits.train_ids)
    assert torch.equal(whole.train_ids[at], splits.train_ids)
    assert torch.equal(whole.train_x[at], splits.train_x)
    assert torch.equal(whole.train_y[at], splits.train_y)


def test_the_whole_as_a_subset_changes_nothing():
    whole, splits = load(digits()), load(digits(subset=1437, test_subset=360))
    for name in ("train_x", "train_y", "train_ids", "test_x", "test_y", "test_ids"):
        assert torch.equal(getattr(whole, name), getattr(splits, name))


def test_the_test_subset_is_the_same_for_every_seed_and_stratified():
    ids = [load(digits(test_subset=50, subset=100, seed=seed)).test_ids for seed in (0, 1)]
    assert torch.equal(*ids)
    splits = load(digits(test_subset=50))
    assert torch.equal(splits.test_ids, ids[0])
    assert torch.bincount(splits.test_y).tolist() == [5] * 10
    whole = load(digits())
    at = torch.searchsorted(whole.test_ids, splits.test_ids)
    assert torch.equal(whole.test_x[at], splits.test_x)


@pytest.mark.parametrize("asked", [9, 1438, 1.0, 0.001])
def test_a_subset_out_of_range_is_refused(asked):
    with pytest.raises(
        ConfigError, match="a whole number from 10 to 1437, or a fraction"
    ) as caught:
        describe(digits(subset=asked))
    assert caught.value.where == "data.subset"


@pytest.mark.parametrize("asked", [361, 1, 1.0, 0.001])
def test_a_test_subset_out_of_range_is_refused(asked):
    with pytest.raises(ConfigError, match="from 2 to 360") as caught:
        describe(digits(test_subset=asked))
    assert caught.value.where == "data.test_subset"


def test_noise_and_permutation_leave_the_clean_labels():
    clean = load(digits())
    for options in ({"label_noise": 0.2}, {"shuffle_labels": True}):
        splits = load(digits(**options))
        assert torch.equal(splits.train_y, clean.train_y)
        assert torch.equal(splits.test_y, clean.test_y)
        assert splits.train_targets is splits.targets
    assert clean.targets is None
    assert clean.train_targets is clean.train_y


def test_noise_of_a_data_set_is_that_of_its_seed():
    clean = load(digits()).train_y
    for seed in (0, 1):
        found = load(digits(label_noise=0.2, seed=seed)).train_targets
        assert torch.equal(found, noisy(clean, 0.2, 10, seed))
        assert int((found != clean).sum()) == round(0.2 * 1437)
