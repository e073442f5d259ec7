"""How many trials share a GPU, and which slots are asked for; a whole sweep is played through."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.attempt import CONTEXT_BYTES, Order, Outcome, Progress
from sweeper.schedule.executor import Packed
from sweeper.schedule.leases import Leases
from sweeper.schedule.packing import (
    CHOICES,
    HEADROOM,
    Demand,
    Devices,
    Packing,
    fitting,
    missing_slots,
)
from sweeper.schedule.retry import Failure
from sweeper.schedule.rules import Rules

GIB = 1 << 30
BYTES = st.integers(0, 200 * GIB)

# --- by memory ------------------------------------------------------------------------------


@given(BYTES, BYTES)
def test_as_many_share_a_gpu_as_fit_with_headroom_and_their_contexts(peak, device):
    each = HEADROOM * peak + CONTEXT_BYTES
    found = fitting(peak, device)
    assert found in CHOICES
    assert found == 1 or found * each <= device
    assert all(k * each > device for k in CHOICES if k > found)


@given(BYTES, BYTES, BYTES, BYTES)
def test_more_memory_never_fits_less_and_a_larger_trial_never_fits_more(peak, more, device, larger):
    assert fitting(peak + more, device) <= fitting(peak, device) <= fitting(peak, device + larger)


@pytest.mark.parametrize(
    ("peak_gib", "expected"), [(0, 8), (7, 8), (8, 4), (15, 4), (16, 2), (31, 2), (32, 1), (500, 1)]
)
def test_on_a_gpu_of_80_gib(peak_gib, expected):
    assert fitting(peak_gib * GIB, 80 * GIB) == expected


def test_what_fits_to_the_last_byte_fits():
    assert [fitting(0, n * CONTEXT_BYTES - lack) for n in (8, 4) for lack in (0, 1)] == [8, 4, 4, 2]


# --- by shape -------------------------------------------------------------------------------


def test_a_shape_that_nothing_is_known_of_is_alone_until_it_is_measured():
    packing = Packing(Rules())
    assert packing.per_gpu("a") == 1
    assert packing.measured("a", 8 * GIB, 80 * GIB) == 4
    assert (packing.per_gpu("a"), packing.per_gpu("b")) == (4, 1)


def test_what_is_measured_later_can_only_lower_the_number():
    packing = Packing(Rules())
    packing.measured("a", 8 * GIB, 80 * GIB)
    assert packing.measured("a", 7 * GIB, 80 * GIB) is None
    assert packing.measured("a", 9 * GIB, 80 * GIB) is None
    assert packing.measured("a", 9 * GIB, 640 * GIB) is None  # larger GPUs elsewhere
    assert packing.measured("a", 20 * GIB, 80 * GIB) == 2
    assert packing.per_gpu("a") == 2


def test_nothing_is_measured_on_a_processor():
    assert Packing(Rules()).measured("a", 0, 0) is None


def test_a_shape_too_large_for_a_gpu_is_known_to_be_alone():
    packing = Packing(Rules())
    assert packing.measured("a", 70 * GIB, 80 * GIB) == 1
    assert packing.measured("a", 71 * GIB, 800 * GIB) is None


@pytest.mark.parametrize("known", [4, 8])
def test_too_little_memory_demotes_its_shape_alone_step_by_step(known):
    packing = Packing(Rules(packed={"a": known, "b": 4}))
    seen = []
    while packing.per_gpu("a") > 1:
        seen.append(packing.out_of_memory("a", packing.per_gpu("a")))
    assert seen == [k for k in (4, 2, 1) if k < known]
    assert packing.out_of_memory("a", 1) is None
    assert packing.per_gpu("b") == 4


def test_a_late_out_of_memory_in_a_smaller_share_demotes_no_further():
    packing = Packing(Rules(packed={"a": 2}))
    assert packing.out_of_memory("a", 8) is None
    assert packing.out_of_memory("a", 4) is None
    assert packing.per_gpu("a") == 2


def test_a_number_that_was_asked_for_holds_for_all_until_memory_says_no():
    packing = Packing(Rules(per_gpu=3, packed={"a": 8}))
    assert packing.per_gpu("a") == packing.per_gpu("b") == 3
    assert packing.measured("a", 1, 80 * GIB) is None
    assert packing.out_of_memory("a", 3) == 1
    assert (packing.per_gpu("a"), packing.per_gpu("b")) == (1, 3)


@given(
    st.sampled_from([{}, {"a": 4}]),
    st.lists(
        st.one_of(
            st.tuples(st.just("measured"), BYTES, BYTES),
            st.tuples(st.just("oom"), st.sampled_from(CHOICES), st.just(0)),
        ),
        max_size=20,
    ),
)
def test_a_number_once_known_only_falls_and_is_told_when_it_does(packed, events):
    packing = Packing(Rules(packed=packed))
    is_known = bool(packed)
    for kind, first, second in events:
        before = packing.per_gpu("a")
        found = (
            packing.measured("a", first, second)
            if kind == "measured"
            else packing.out_of_memory("a", first)
        )
        after = packing.per_gpu("a")
        assert after == (before if found is None else found)
        assert found is None or found in CHOICES
        if is_known:
            assert after <= before
        is_known = is_known or found is not None


# --- which slots are missing ----------------------------------------------------------------


def gpus_of(asked):
    """How many GPUs slots take up that fill them one after another."""
    return sum(-(-n // k) for k, n in asked.items())


PER_GPU = st.sampled_from(CHOICES)
SOME = st.integers(0, 20)


@st.composite
def situations(draw):
    """Demands, what is asked for already, and devices that hold at least this."""
    kinds = draw(st.lists(PER_GPU, unique=True, max_size=4))
    demands = [Demand(k, draw(SOME), draw(SOME)) for k in kinds]
    asked = draw(st.dictionaries(PER_GPU, st.integers(1, 12), max_size=3))
    n_gpus = max(1, gpus_of(asked) + draw(st.integers(0, 6)))
    n_slots = sum(asked.values()) + draw(st.integers(0, 40))
    return demands, asked, Devices(n_gpus, n_slots)


@settings(max_examples=500)
@given(situations())
def test_what_is_missing_is_added_as_far_as_there_is_room(situation):
    demands, asked, devices = situation
    added = Counter(missing_slots(demands, asked, devices))
    there = Counter(asked) + added
    wanted = {demand.per_gpu: demand.n_ready + demand.n_running for demand in demands}

    assert gpus_of(there) <= devices.n_gpus
    assert there.total() <= devices.n_slots
    assert all(there[k] <= wanted.get(k, 0) for k in added)
    if there.total() < devices.n_slots:
        for k, n in wanted.items():
            is_met, is_full = there[k] >= n, gpus_of(there) == devices.n_gpus
            assert is_met or (is_full and there[k] % k == 0), "room is left idle"
    assert missing_slots(demands, there, devices) == []


@given(situations())
def test_demand_is_met_in_the_order_in_which_it_comes(situation):
    demands, asked, devices = situation
    added = missing_slots(demands, asked, devices)
    assert added == sorted(added, key=[demand.per_gpu for demand in demands].index)
    assert added[: len(first := missing_slots(demands[:1], asked, devices))] == first


@given(situations(), st.integers(0, 4), st.integers(-20, 20))
def test_where_a_node_is_gone_no_more_is_asked_for_than_there_was(situation, gone, more):
    """Tune still waits for a place for the slots that were there."""
    demands, asked, _ = situation
    devices = Devices(max(1, gpus_of(asked) - gone), max(0, sum(asked.values()) + more))
    there = Counter(asked) + Counter(missing_slots(demands, asked, devices))
    assert gpus_of(there) <= max(devices.n_gpus, gpus_of(asked))
    assert there.total() <= max(devices.n_slots, sum(asked.values()))


@given(SOME, SOME, SOME, SOME)
def test_without_gpus_there_are_as_many_slots_as_trials_or_processors(ready, running, asked, slots):
    running = min(running, asked)
    found = missing_slots([Demand(1, ready, running)], {1: asked}, Devices(None, slots))
    assert found == [1] * max(0, min(ready + running, slots) - asked)


# --- a whole sweep --------------------------------------------------------------------------


NEEDS = {"fat": 0.4, "new": 0.1, "slim": 0.2, "whole": 0.9}  # GPUs that a trial of a shape fills


class Cluster:
    """GPUs on which slots are placed as Tune does: first come, first served, where there is room.

    Trials of shape `fat` need more than a quarter of a GPU, and say so when they run out of it;
    nothing is known of `new`; those of `slim` fit four times.
    """

    def __init__(self, orders, devices, packed):
        self.now = 0.0
        self.leases = Leases(orders, Rules(packed=packed), has_gpus=True, clock=lambda: self.now)
        self.devices = devices
        self.free = [1.0] * devices.n_gpus
        self.pending, self.placed = [], {}  # slot and its size; slot: size, GPU
        self.running = {}
        self.names, self.events = iter(range(10**6)), []

    def want(self):
        polled = self.leases.poll(drain=False)
        assert polled.condemned == []
        self.events += polled.events
        sizes = Counter(k for k, _ in self.placed.values()) + Counter(k for _, k in self.pending)
        added = missing_slots(polled.demands, sizes, self.devices)
        self.pending += [(next(self.names), k) for k in added]
        assert len(self.pending) + len(self.placed) <= self.devices.n_slots
        return polled.is_done

    def place(self):
        for slot, k in list(self.pending):
            gpu = next((g for g, free in enumerate(self.free) if free >= 1 / k - 1e-9), None)
            if gpu is not None:
                self.pending.remove((slot, k))
                self.placed[slot] = k, gpu
                self.free[gpu] -= 1 / k
        assert all(free > -1e-9 for free in self.free)

    def ask(self, slot):
        k, gpu = self.placed[slot]
        answer = self.leases.lease(slot, "p", k)
        if answer == "leave":
            del self.placed[slot]
            self.free[gpu] += 1 / k
        elif answer != "wait":
            assert answer.per_gpu == k
            self.running[slot] = answer

    def end(self, slot):
        order = self.running.pop(slot)
        trial, need, room = order.trial_id, NEEDS[order.shape], 1 / order.per_gpu
        if need > room:
            assert room < 1
            self.leases.report(slot, Failure(trial, "oom", "OutOfMemoryError", "too little"))
            return
        said = Progress(trial, 1, 9, 9, "h", "gpu", 1.0, 1, int(need * 50 * GIB), 80 * GIB)
        self.leases.report(slot, said)
        self.leases.report(slot, Outcome(trial, 1, "complete", 1.0))


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.sampled_from(sorted(NEEDS)), st.integers(1, 9), min_size=1),
    st.integers(1, 4),
    st.integers(1, 24),
    st.randoms(use_true_random=False),
)
def test_a_sweep_of_many_shapes_ends_wherever_its_slots_are(counts, n_gpus, n_slots, random):
    orders = [
        Order(f"{shape}-{i}", {}, "runs/x", shape=shape)
        for shape, n in counts.items()
        for i in range(n)
    ]
    cluster = Cluster(orders, Devices(n_gpus, n_slots), {"slim": 4, "fat": 4})
    for _ in range(500):
        is_done = cluster.want()
        cluster.place()
        for slot in random.sample(sorted(cluster.placed), len(cluster.placed)):
            if slot not in cluster.running:
                cluster.ask(slot)
        for slot in sorted(cluster.running):
            if random.random() < 0.5:
                cluster.end(slot)
        cluster.now += 1
        if is_done and not cluster.placed:
            break
    else:
        pytest.fail("slots and orders wait for one another")

    ends = Counter(e.trial_id for e in cluster.events if isinstance(e, Outcome))
    assert ends == Counter(order.trial_id for order in orders)
    demoted = [e for e in cluster.events if isinstance(e, Packed) and e.reason == "out of memory"]
    found = [(event.shape, event.per_gpu) for event in demoted]
    assert found == [("fat", 2)] * len(found[:1])  # of those that ran out of it only the first
    assert found or counts.get("fat", 0) < 2  # a single one may be given a larger slot
    assert not any(isinstance(e, Failure) for e in cluster.events)
    assert cluster.free == pytest.approx([1.0] * n_gpus)


def test_no_gpu_is_left_idle_while_trials_that_fit_on_it_wait():
    orders = [Order(f"slim-{i}", {}, "runs/x", shape="slim") for i in range(64)]
    cluster = Cluster(orders, Devices(2, 16), {"slim": 4})
    n_rounds = 0
    while not cluster.want():
        cluster.place()
        for slot in sorted(cluster.placed):
            cluster.ask(slot)
        assert len(cluster.running) in (8, 0)
        for slot in sorted(cluster.running):
            cluster.end(slot)
        n_rounds += 1
    assert n_rounds == 8  # 64 trials, eight at a time
