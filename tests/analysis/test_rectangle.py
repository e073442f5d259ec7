"""Distances of stored snapshots to a few in memory: the same ones however much memory there is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import ahead, rectangle
from analysis.ahead import Rows
from analysis.bhattacharyya import local_kernels, pairwise
from analysis.memory import parse_size
from analysis.rectangle import Few, distances_to_few
from analysis.select import select
from analysis.union import open_union
from sweeper.errors import AnalysisError, HoleError, StoreError
from sweeper.store import codec, open_store
from tests.analysis.conftest import _write_trial

TRIALS = ("t0", "t1", "t2", "t3")
SIZES = (5, 9, 4, 6)
HUGE = 1 << 40


@pytest.fixture(scope="module", params=[1000, 100])
def store(request, tmp_path_factory) -> Path:
    """24 snapshots of 4 classes; float64 for 100 samples, three steps of the C kernel for 1,000."""
    folder = tmp_path_factory.mktemp("rectangle")
    for trial, n in zip(TRIALS, SIZES, strict=True):
        _write_trial(folder, trial, n_snapshots=n, n_samples=request.param)
    return folder


def rows_of(store: Path) -> Rows:
    selection = select(open_union([store]))
    homes = {trial_id: home.store.location for trial_id, home in selection.homes.items()}
    return Rows(homes, selection.rows, "test")


def stored(store: Path) -> np.ndarray:
    opened = open_store(store)
    return np.concatenate([opened.log_probs(t, "test", dtype="float16") for t in TRIALS])


def few_of(store: Path) -> Few:
    chosen = [0, 7, 8, 20, 23]
    names = {"trial_id": [f"q{i}" for i in range(5)], "snapshot": range(5)}
    return Few(stored(store)[chosen], pd.DataFrame(names))


def test_they_are_those_of_pairs_in_memory_and_the_same_whatever_the_memory(store):
    few, n_parts = few_of(store), set()
    expected = pairwise(stored(store), few.log_probs)
    [whole] = distances_to_few(rows_of(store), few, HUGE)
    np.testing.assert_allclose(whole, expected, rtol=1e-7, atol=1e-7)
    for memory in np.geomspace(2e4, 4e6, 40).astype(int):
        try:
            parts = list(distances_to_few(rows_of(store), few, int(memory)))
        except AnalysisError:
            assert not n_parts, "more memory is never too little"
            continue
        n_parts.add(len(parts))
        np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-13, atol=1e-13)
    assert min(n_parts) == 1
    assert max(n_parts) > 1


def test_progress_counts_snapshots_as_they_are_read(store):
    seen = []
    rows, few = rows_of(store), few_of(store)
    parts = list(distances_to_few(rows, few, 1_200_000, lambda *counts: seen.append(counts)))
    done = [n for n, _ in seen]
    assert done == sorted(done)
    assert seen[0] == (0, 24)
    assert seen[-1] == (24, 24)
    assert set(np.cumsum([len(part) for part in parts])) <= set(done)


def test_the_kernel_is_that_of_all_samples_and_classes(store, monkeypatch):
    asked = []

    def kernels(*shape):
        asked.append(shape)
        return local_kernels(*shape)

    monkeypatch.setattr(rectangle, "local_kernels", kernels)
    list(distances_to_few(rows_of(store), few_of(store), 1_200_000))
    assert asked == [stored(store).shape[1:]]


def test_each_prediction_is_decoded_once_in_whole_trials(store, monkeypatch):
    decoded, decode = [], codec.decode

    def counting(data, values):
        decoded.append(values.ndim == 3)
        decode(data, values)

    few, rows = few_of(store), rows_of(store)
    monkeypatch.setattr(codec, "decode", counting)
    n_samples, n_classes = shape = few.log_probs.shape[1:]
    with local_kernels(*shape) as [kernel, *_]:
        kept = 64 * n_samples * kernel.packed_bytes(n_classes) + 8 * 32 * 32
    parts = list(distances_to_few(rows, few, kept + 4 * 15 * n_samples * n_classes))
    assert [len(part) for part in parts] == [14, 10]  # of up to 15
    assert sum(decoded) == 4  # a trial has one chunk


def test_rows_that_are_no_distributions_are_named_wherever_they_are(store, monkeypatch):
    few, read = few_of(store), ahead.Rows._read

    def wrong(self, store, trial_id, snapshots, places, span, into):
        read(self, store, trial_id, snapshots, places, span, into)
        if trial_id == "t3" and span.start <= 17 < span.stop:
            into.numpy()[places][2, 17 - span.first, 1] = 1.0

    with monkeypatch.context() as patch:
        patch.setattr(ahead.Rows, "_read", wrong)
        with pytest.raises(StoreError) as caught:
            list(distances_to_few(rows_of(store), few, HUGE))
    assert str(caught.value).startswith("trial t3, snapshot 2, sample 17: probabilities that sum")
    few.log_probs[3, 41, 2] = np.nan
    with pytest.raises(StoreError, match="trial q3, snapshot 3, sample 41: NaN, the worst of 1"):
        list(distances_to_few(rows_of(store), few, HUGE))


def test_a_hole_is_refused(store):
    rows = rows_of(store)
    beyond = rows.table.assign(snapshot=rows.table["snapshot"].where(rows.table.index != 8, 77))
    with pytest.raises((HoleError, StoreError), match="t1"):
        list(distances_to_few(dataclasses.replace(rows, table=beyond), few_of(store), HUGE))


def test_too_little_memory_is_refused_and_as_much_more_as_said_is_enough(store):
    with pytest.raises(AnalysisError, match=r"trial t1: .* its 9 snapshots and") as caught:
        list(distances_to_few(rows_of(store), few_of(store), 5_000))
    more = parse_size(caught.value.found.removesuffix(" too little memory"), "")
    for memory in (5_000 + 0.99 * more, 5_000 + 1.01 * more):
        try:
            n = len(list(distances_to_few(rows_of(store), few_of(store), int(memory))))
        except AnalysisError:
            n = 0
        assert (n > 0) == (memory > 5_000 + more)
