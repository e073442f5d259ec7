"""Squares of tiles: whatever the memory, each distance is computed once, and is the same."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from analysis import blocks, squares
from analysis.ahead import Rows, spans
from analysis.bhattacharyya import local_kernels
from analysis.blocks import DistanceBlocks
from analysis.fill import fill
from analysis.memory import parse_size
from analysis.select import select
from analysis.squares import Cost, Layout, plan
from analysis.tiles import Tiling, open_distances
from analysis.union import open_union
from sweeper.errors import AnalysisError, HoleError, StoreError
from sweeper.store import codec, open_store
from tests.analysis.conftest import _write_trial, watched_runs

N_SAMPLES = 1000  # three steps of the C kernel, which is exact to the bit
HUGE = 1 << 40
ABOUT = {"fingerprint": "one"}


@pytest.fixture(scope="module")
def _store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("squares")
    for trial, n in (("t0", 5), ("t1", 9), ("t2", 4), ("t3", 6)):
        _write_trial(folder, trial, n_snapshots=n, n_samples=N_SAMPLES)
    return folder


@pytest.fixture
def store(_store: Path, tmp_path: Path) -> Path:
    """24 snapshots of 4 trials, 1,000 samples of 4 classes."""
    return Path(shutil.copytree(_store, tmp_path / "store"))


def made(folder: Path, memory: int = HUGE, **options) -> DistanceBlocks:
    selection = select(open_union([folder]))
    homes = {trial_id: home.store.location for trial_id, home in selection.homes.items()}
    bytes_there = functools.partial(int, memory)
    return DistanceBlocks(homes, selection.rows, "test", bytes_there, **options)


def computed(folder: Path, to: Path, tile: int, **options) -> np.ndarray:
    source = made(folder, **options)
    fill(to, source, Tiling(len(source.rows), tile), ABOUT)
    return open_distances(to)[:, :]


def by_formula(folder: Path) -> np.ndarray:
    store = open_store(folder)
    p = np.concatenate([store.log_probs(t, "test") for t in store.complete_ids()]).astype(float)
    return -logsumexp((p[:, None] + p[None]) / 2, axis=-1).mean(axis=-1)


class Watched:
    """A kernel that counts pairs, and the bytes that operands and sums hold."""

    def __init__(self, kernel) -> None:
        self.kernel, self.n_pairs, self.held = kernel, 0, 0

    def __getattr__(self, name):
        return getattr(self.kernel, name)

    def pack(self, log_p, before):
        packed = self.kernel.pack(log_p, before)
        if before.run is None:
            self.held += packed.run.nbytes
        return packed

    def sums(self, n_p, n_q):
        self.n_pairs += n_p * n_q
        sums = self.kernel.sums(n_p, n_q)
        self.held += sums.nbytes
        return sums


class Watching:
    """Gives watched kernels, a new one each time, and keeps them."""

    def __init__(self, n: int = 1) -> None:
        self.n, self.seen = n, []

    @contextlib.contextmanager
    def __call__(self, n_samples: int, n_classes: int) -> Iterator[list[Watched]]:
        with local_kernels(n_samples, n_classes) as kernels:
            self.seen += (found := [Watched(kernels[0]) for _ in range(self.n)])
            yield found

    @property
    def n_pairs(self) -> int:
        """Pairs of snapshots, without those with ignorance."""
        return sum(kernel.n_pairs for kernel in self.seen)


# --- planning -------------------------------------------------------------------------------


@st.composite
def tasks(draw) -> tuple[list, Layout, Cost]:
    tiling = Tiling(draw(st.integers(1, 90)), draw(st.integers(1, 20)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tiles = list(tiling.upper())
    missing = [tile for tile in tiles if rng.random() < draw(st.sampled_from([0.3, 1]))] or tiles
    known = rng.random(tiling.M) < draw(st.sampled_from([0, 0.5, 0.9]))
    reusable = frozenset(tile for tile in tiles if rng.random() < 0.7) if known.any() else ()
    n_samples, step = draw(st.integers(1, 5000)), draw(st.sampled_from([4, 128]))
    cost = Cost(
        memory=draw(st.integers(10_000, 20_000_000)),
        on_device=draw(st.sampled_from([None, 100_000, 10_000_000])),
        n_devices=1,
        packed=40,
        pair=8,
        rate=draw(st.sampled_from([1e3, 1e10])),
        n_samples=n_samples,
        n_classes=10,
        step=min(step, n_samples),
        run=draw(st.integers(1, n_samples)),
    )
    return missing, Layout(tiling, known, frozenset(reusable)), cost


@settings(max_examples=200)
@given(tasks(), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_squares_share_out_the_missing_tiles_and_each_fits(task, n_begun, seed):
    missing, layout, cost = task
    numbers = np.random.default_rng(seed).integers(n_begun + 1, size=len(missing))
    parts = [[missing[place] for place in np.flatnonzero(numbers == n)] for n in range(n_begun + 1)]
    begun = [tuple(part) for part in parts[1:] if part]
    try:
        found = plan(missing, layout, [cost], begun)
    except AnalysisError:
        assert not all(cost.fits(layout.size((tile,)), cost.step) for tile in missing)
        return
    assert sorted(itertools.chain(*found.squares)) == sorted(missing)
    assert all(any(set(square) <= set(part) for part in parts) for square in found.squares)
    assert all(cost.fits(layout.size(square), found.run) for square in found.squares)
    assert 1 <= found.run <= cost.run
    assert found.run == cost.run or found.run % cost.step == 0


@settings(max_examples=50)
@given(tasks())
def test_pairs_of_a_layout_are_all_but_those_that_are_known(task):
    _, layout, _ = task
    for tile in layout.tiling.upper():
        rows, columns = map(layout.tiling.span, tile)
        seen = np.zeros((layout.tiling.M, layout.tiling.M), int)
        for p, q in layout.pairs(tile):
            seen[np.ix_(p.rows, q.rows)] += 1
            if tile[0] == tile[1] and p is not q:
                seen[np.ix_(q.rows, p.rows)] += 1
        here = seen[rows, columns]
        assert seen.sum() == here.sum()
        upper = np.triu(here, 1) if tile[0] == tile[1] else here
        assert here.max(initial=0) <= 1
        assert (upper == 0).sum() - (here.size - upper.size) >= 0
        n = here.size if tile[0] < tile[1] else here.shape[0] * (here.shape[0] - 1) // 2
        assert upper.sum() == n - layout.n_known(tile)


@given(st.integers(1, 3000), st.integers(1, 700), st.integers(1, 300))
def test_runs_are_read_once_and_worked_on_in_whole_steps(n_samples, run, step):
    found = list(spans(n_samples, run, step))
    assert [s.start for s in found] == list(range(0, n_samples, run))
    assert found[-1].stop == found[-1].last == n_samples
    first = 0
    for span in found:
        assert span.first == first
        assert span.first <= span.start < span.stop
        assert span.first <= span.last <= span.stop
        assert span.stop - span.last < step
        assert (span.last - span.first) % step == 0 or span is found[-1]
        assert span.stop - span.first < (span.stop - span.start) + step
        first = span.last


def test_a_square_takes_minutes_unless_reading_would_matter():
    layout = Layout(Tiling(200 * 1024, 1024))
    missing = list(layout.tiling.upper())
    common = {"on_device": None, "n_devices": 1, "packed": 40, "pair": 8, "step": 4, "run": 8}
    slow = Cost(memory=HUGE, rate=8e10, n_samples=10_000, n_classes=10, **common)
    found = plan(missing, layout, [slow])
    seconds = [layout.size(s).n_pairs * 1e5 / slow.rate for s in found.squares]
    assert 60 < max(seconds) <= squares.SECONDS
    # Where a square would be small for that, as with many samples and classes, it is larger.
    large = Cost(memory=HUGE, rate=8e10, n_samples=50_000, n_classes=1000, **common)
    sizes = [layout.size(s) for s in plan(missing, layout, [large]).squares]
    reading = [size.n_rows / squares.READING for size in sizes]
    computing = [size.n_pairs / large.rate for size in sizes]
    assert max(c / r for c, r in zip(computing, reading, strict=True)) > squares.COMPUTING / 2
    fast = Cost(memory=HUGE, rate=1e14, n_samples=50_000, n_classes=1000, **common)
    assert len(plan(missing, layout, [fast]).squares) == 1


# --- machines that are not alike --------------------------------------------------------------

OF_10_CLASSES = {"pair": 8, "n_samples": 10_000, "n_classes": 10, "run": 800}
GIB = 1 << 30
CPU = Cost(  # 32 cores
    memory=64 * GIB, on_device=None, n_devices=1, packed=40, rate=1.28e12, step=128, **OF_10_CLASSES
)
GPUS = Cost(  # 8 of 80 GB
    memory=512 * GIB, on_device=56 * GIB, n_devices=8, packed=64, rate=1.6e14, step=1024,
    **OF_10_CLASSES,
)  # fmt: skip
HEAD = dataclasses.replace(CPU, memory=4 * GIB, rate=3.2e11)  # 8 cores, 8 GiB of memory
LAYOUT = Layout(Tiling(100 * 1024, 1024))
MISSING = list(LAYOUT.tiling.upper())


def sooner(found, costs) -> float:
    """When the last square is done; who has none takes the next, the slowest at first."""
    fit = [cost for cost in costs if not found.unfit(cost)]
    free = dict.fromkeys(range(len(fit)), 0.0)
    for square in found.squares:
        k = min(free, key=lambda k: (free[k], fit[k].rate))
        free[k] += fit[k].seconds(LAYOUT.size(square), found.run)
    return max(free.values())


def test_like_machines_have_several_squares_each_where_computing_binds():
    found = plan(MISSING, LAYOUT, [CPU] * 5)
    assert not found.unfit(CPU)
    assert len(found.squares) >= 4 * 5
    assert 5 * sooner(found, [CPU] * 5) < 1.3 * sooner(plan(MISSING, LAYOUT, [CPU]), [CPU])


def test_machines_that_would_hold_up_the_others_have_no_squares():
    found = plan(MISSING, LAYOUT, [HEAD, GPUS, GPUS])
    assert found == plan(MISSING, LAYOUT, [GPUS, GPUS])
    assert not found.unfit(GPUS)
    assert found.unfit(dataclasses.replace(HEAD, memory=HUGE)) == "too slow"
    assert found.unfit(HEAD) == "too little memory"  # which is the case, too
    slow = dataclasses.replace(HEAD, memory=GPUS.memory)
    found = plan(MISSING, LAYOUT, [*[slow] * 4, GPUS, GPUS])
    assert found == plan(MISSING, LAYOUT, [GPUS, GPUS])
    assert found.unfit(slow) == "too slow"
    # Three squares, so that both have the same to read: more, and reading would take longer.
    assert sooner(found, [GPUS, GPUS]) <= sooner(plan(MISSING, LAYOUT, [GPUS]), [GPUS])


def test_machines_whose_memory_would_make_all_squares_small_have_none():
    small = dataclasses.replace(CPU, memory=GIB // 4)
    found = plan(MISSING, LAYOUT, [CPU, small, CPU, CPU, CPU])
    assert found == plan(MISSING, LAYOUT, [CPU] * 4)
    assert found.unfit(small) == "too little memory"
    # Of many of them and one that has more, they are those that compute.
    found = plan(MISSING, LAYOUT, [CPU, *[small] * 20])
    assert not found.unfit(small)
    assert not found.unfit(CPU)


def test_slower_machines_that_are_of_use_have_squares_that_fit_them():
    slow = dataclasses.replace(CPU, rate=CPU.rate / 3, memory=CPU.memory // 8)
    found = plan(MISSING, LAYOUT, [CPU, slow, slow, slow])
    assert not found.unfit(slow)
    assert sooner(found, [CPU, slow, slow, slow]) < 0.7 * sooner(
        plan(MISSING, LAYOUT, [CPU]), [CPU]
    )


def test_runs_need_no_multiple_of_what_kernels_of_different_machines_work_on_at_once():
    c_kernel = dataclasses.replace(CPU, memory=GIB // 8, step=424)
    portable = dataclasses.replace(c_kernel, step=256)
    [tile] = Layout(Tiling(1024, 1024)).tiling.upper()
    found = plan([tile], Layout(Tiling(1024, 1024)), [c_kernel, portable])
    assert not found.unfit(c_kernel)
    assert not found.unfit(portable)


def test_of_machines_of_which_none_holds_a_tile_the_largest_is_told():
    tiny = dataclasses.replace(CPU, memory=1 << 20)
    with pytest.raises(AnalysisError, match="2 MiB are left for distances; at least"):
        plan(MISSING, LAYOUT, [tiny, dataclasses.replace(tiny, memory=2 << 20)])


@settings(max_examples=200)
@given(tasks(), st.data())
def test_what_is_planned_for_unlike_machines_fits_those_that_are_to_compute(task, data):
    missing, layout, cost = task
    costs = [
        dataclasses.replace(
            cost,
            memory=data.draw(st.integers(10_000, 20_000_000)),
            rate=data.draw(st.sampled_from([1e3, 3e3, 1e10])),
            step=min(data.draw(st.sampled_from([4, 128, 424])), cost.n_samples),
        )
        for _ in range(data.draw(st.integers(1, 5)))
    ]
    try:
        found = plan(missing, layout, costs)
    except AnalysisError:
        largest = max(costs, key=lambda cost: cost.memory)
        assert not all(largest.fits(layout.size((tile,)), largest.step) for tile in missing)
        return
    assert sorted(itertools.chain(*found.squares)) == sorted(missing)
    fit = [cost for cost in costs if not found.unfit(cost)]
    assert fit
    for cost in fit:
        assert all(cost.fits(layout.size(square), found.run) for square in found.squares)
    assert all(
        "memory" in found.unfit(c) or c.rate < min(f.rate for f in fit)
        for c in costs
        if c not in fit
    )


def test_machines_are_asked_and_those_without_squares_are_named(store, tmp_path):
    source = made(store, 2_500_000)

    def ask(question):
        cost = question()
        less = dataclasses.replace(cost, memory=0)
        return [("a", cost), *((f"b{i}", less) for i in range(5))]

    said: list[str] = []
    fill(tmp_path / "d", source, Tiling(24, 6), ABOUT, say=said.append, ask=ask)
    assert said[0].endswith("; not used, too little memory: b0, b1, b2 and 2 more")
    expected = computed(store, tmp_path / "alone", 6)
    assert np.array_equal(open_distances(tmp_path / "d")[:, :], expected)


def test_kernels_of_one_machine_that_work_on_unlike_runs_share_one_plan(store, tmp_path):
    class Longer(Watched):
        def step(self, n_classes):
            return 192  # and the other 320

    @contextlib.contextmanager
    def kernels(n_samples, n_classes):
        with local_kernels(n_samples, n_classes) as [kernel]:
            yield [kernel, Longer(kernel)]

    with watched_runs() as seen:
        computed(store, tmp_path / "d", 6, kernels=kernels)
    assert {step % 192 for step, _ in seen} == {step % 320 for step, _ in seen} == {0}


# --- computing ------------------------------------------------------------------------------


def test_distances_are_those_of_the_formula_to_the_bit_whatever_the_memory(store, tmp_path):
    expected = computed(store, tmp_path / "whole", 24)
    assert np.abs(expected - by_formula(store)).max() < 1e-7
    references = open_distances(tmp_path / "whole").references
    n_checked: list[int] = []

    @settings(max_examples=20)
    @given(st.integers(1, 24), st.integers(19, 24), st.integers(1, 2))
    def check(tile, log_memory, n_kernels):
        to = tmp_path / "d"
        shutil.rmtree(to, ignore_errors=True)
        with contextlib.suppress(AnalysisError):  # where even one tile is too large
            found = computed(store, to, tile, memory=2**log_memory, kernels=Watching(n_kernels))
            n_checked.append(tile)
            assert np.array_equal(found, expected)
            assert np.array_equal(open_distances(to).references, references)

    check()
    assert len(n_checked) > 5


def test_each_prediction_is_decoded_once_where_memory_allows_and_else_as_said(
    store, tmp_path, monkeypatch
):
    decoded: list[int] = []
    decode = codec.decode

    def counting(data, values):
        decoded.append(values.ndim == 3)
        decode(data, values)

    monkeypatch.setattr(codec, "decode", counting)
    for name, memory in (("large", HUGE), ("small", 1_700_000)):
        decoded.clear()
        said: list[str] = []
        source = made(store, memory)
        fill(tmp_path / name, source, Tiling(24, 6), ABOUT, say=said.append)
        # Trials of one chunk each, of unequal numbers of snapshots: count snapshots.
        assert len(said) == 1
        if name == "large":
            assert said == ["each snapshot is decoded once"]
            assert sum(decoded) == 4
        else:
            assert float(said[0].split()[-2]) > 1
            assert sum(decoded) > 4


def test_more_memory_means_fewer_squares(store, tmp_path):
    seen = []
    for memory in (1_700_000, 2_500_000, 3_500_000, HUGE):
        kernels = Watching()
        computed(store, tmp_path / str(memory), 6, memory=memory, kernels=kernels)
        seen.append(len(kernels.seen))
    assert seen == sorted(seen, reverse=True)
    assert seen[0] > seen[-1] == 2  # one plans, one computes


@pytest.mark.parametrize("tile", [6, 24])
def test_too_little_memory_is_refused_and_the_least_that_works_is_kept_to(
    store, tmp_path, tile, monkeypatch
):
    with pytest.raises(AnalysisError) as caught:
        computed(store, tmp_path / "d", tile, memory=20_000)
    assert caught.value.where == "--memory"
    assert "19.5 KiB are left for distances; at least " in str(caught.value)
    number, unit = str(caught.value).split("at least ")[1].split()[:2]
    least = parse_size(f"{number}{unit}", "") + parse_size(f"0.1{unit}", "")
    buffers: list[torch.Tensor] = []
    empty = torch.empty

    def keeping(*shape, **options):
        made = empty(*shape, **options)
        if made.dtype == torch.float16:
            buffers.append(made)
        return made

    monkeypatch.setattr(torch, "empty", keeping)
    for memory in (least, 2 * least):
        buffers.clear()
        kernels = Watching()
        computed(store, tmp_path / f"{memory}", tile, memory=memory, kernels=kernels)
        read = 2 * max(buffer.nbytes for buffer in buffers)
        assert max(kernel.held for kernel in kernels.seen) + read <= memory


@pytest.mark.parametrize("run", [100, 333, 640])
def test_how_many_samples_are_read_at_once_changes_no_bit(store, run):
    source, layout = made(store), Layout(Tiling(24, 24))
    [*_, expected] = source.compute(((0, 0),), layout, N_SAMPLES)
    [*shares, found] = source.compute(((0, 0),), layout, run)
    assert np.array_equal(found.pieces[0].D, expected.pieces[0].D)
    assert np.array_equal(found.references[0][1], expected.references[0][1])
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_the_next_run_is_read_while_one_is_worked_on(store):
    source = made(store)
    runs = Rows(source.homes, source.rows, "test").runs((N_SAMPLES, 4), 400, 4)
    found = [(samples, log_p.numpy().copy()) for samples, log_p in runs]
    assert [samples.stop for samples, _ in found] == [400, 800, 1000]
    whole = open_store(store)
    expected = np.concatenate(
        [whole.log_probs(t, "test", dtype="float16") for t in ("t0", "t1", "t2", "t3")]
    )
    assert np.array_equal(np.concatenate([log_p for _, log_p in found], axis=1), expected)


def test_rows_in_any_order_are_put_in_their_places(store):
    source = made(store)
    order = np.random.default_rng(0).permutation(24)
    table = source.rows.iloc[order]
    runs = Rows(source.homes, table, "test").runs((N_SAMPLES, 4), 77, 8)
    found = np.concatenate([log_p.numpy().copy() for _, log_p in runs], axis=1)
    whole = open_store(store)
    expected = np.concatenate(
        [whole.log_probs(t, "test", dtype="float16") for t in ("t0", "t1", "t2", "t3")]
    )
    assert np.array_equal(found, expected[order])


def damage(folder: Path, trial: str, change) -> None:
    [chunk] = (folder / "predictions.zarr" / "trials" / trial).rglob("log_probs/c.*")
    change(chunk)


def test_an_error_of_the_thread_that_reads_ahead_is_raised_and_names_the_trial(store, tmp_path):
    def flip(chunk: Path) -> None:
        data = bytearray(chunk.read_bytes())
        data[100] ^= 4
        chunk.write_bytes(data)

    damage(store, "t2", flip)
    with pytest.raises(StoreError, match="t2"):
        computed(store, tmp_path / "d", 6)
    with pytest.raises(AnalysisError, match="no distances here"):
        open_distances(tmp_path / "d")


def test_a_hole_is_refused(store, tmp_path):
    damage(store, "t1", Path.unlink)
    with pytest.raises(HoleError, match="t1"):
        computed(store, tmp_path / "d", 6)


def test_rows_that_are_no_distributions_are_named(store, tmp_path, monkeypatch):
    read = blocks.Rows._read

    def wrong(self, store, trial_id, snapshots, places, span, into):
        read(self, store, trial_id, snapshots, places, span, into)
        if trial_id == "t3":
            into.numpy()[places][2, 17, 1] = 1.0 if isinstance(places, slice) else 0

    monkeypatch.setattr(blocks.Rows, "_read", wrong)
    with pytest.raises(StoreError) as caught:
        computed(store, tmp_path / "d", 24)
    assert str(caught.value).startswith("trial t3, snapshot 2, sample 17: probabilities that sum")


def test_a_source_can_be_sent_to_another_process(store):
    source = pickle.loads(pickle.dumps(made(store)))
    layout = Layout(Tiling(24, 24))
    [*_, part] = source.compute(((0, 0),), layout, 100)
    assert part.tile == (0, 0)
