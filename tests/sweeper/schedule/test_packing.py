"""How many trials share a GPU, by its kind, and which slots are asked for."""

import timeit
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.attempt import CONTEXT_BYTES
from sweeper.schedule.packing import (
    CHOICES,
    HEADROOM,
    Demand,
    Devices,
    Packing,
    Share,
    fitting,
    missing_slots,
)
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
    packing = Packing(Rules(packed={"a": {"": known}, "b": {"": 4}}))
    seen = []
    while packing.per_gpu("a") > 1:
        seen.append(packing.out_of_memory("a", packing.per_gpu("a")))
    assert seen == [k for k in (4, 2, 1) if k < known]
    assert packing.out_of_memory("a", 1) is None
    assert packing.per_gpu("b") == 4


def test_a_late_out_of_memory_in_a_smaller_share_demotes_no_further():
    packing = Packing(Rules(packed={"a": {"": 2}}))
    assert packing.out_of_memory("a", 8) is None
    assert packing.out_of_memory("a", 4) is None
    assert packing.per_gpu("a") == 2


def test_a_number_that_was_asked_for_holds_for_all_until_memory_says_no():
    packing = Packing(Rules(per_gpu=3, packed={"a": {"": 8}}))
    assert packing.per_gpu("a") == packing.per_gpu("b") == 3
    assert packing.measured("a", 1, 80 * GIB) is None
    assert packing.out_of_memory("a", 3) == 1
    assert (packing.per_gpu("a"), packing.per_gpu("b")) == (1, 3)


@given(
    st.sampled_from([{}, {"a": {"": 4}}]),
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


# --- by kind --------------------------------------------------------------------------------


def two_kinds(**rules):
    packing = Packing(Rules(**rules))
    packing.sees(["A", "B"])
    return packing


def test_what_is_known_of_one_kind_of_gpu_is_not_of_another():
    packing = two_kinds()
    assert packing.measured("a", 8 * GIB, 24 * GIB, "A") == 2
    assert packing.shares("a") == (Share("A", 2), Share("B", 1))
    assert packing.measured("a", 8 * GIB, 80 * GIB, "B") == 4
    assert packing.out_of_memory("a", 2, "A") == 1
    assert packing.shares("a") == (Share("A", 1), Share("B", 4))
    assert packing.needed("a", "B") == 4
    assert packing.needed("a", "C") == 0


def test_a_number_of_no_kind_in_particular_holds_while_there_is_one_kind():
    packing = Packing(Rules(packed={"a": {"": 4}, "b": {"A": 2}}))
    packing.sees(["A"])
    assert packing.shares("a") == (Share("A", 4),)
    assert packing.shares("b") == (Share("A", 2),)
    assert packing.measured("a", 8 * GIB, 640 * GIB, "A") is None
    packing.sees(["B"])
    assert packing.shares("a") == (Share("A", 1), Share("B", 1))
    assert packing.shares("b") == (Share("A", 2), Share("B", 1))


def test_a_number_of_another_kind_says_nothing():
    packing = Packing(Rules(packed={"a": {"A": 4}}))
    packing.sees(["B"])
    assert packing.shares("a") == (Share("B", 1),)


def test_before_any_gpu_is_there_its_kind_is_open():
    packing = Packing(Rules(packed={"a": {"A": 4}}))
    packing.sees([])
    assert packing.shares("a") == (Share("", 1),)
    packing.sees(["A"])
    assert packing.shares("a") == (Share("A", 4),)
    packing.sees([])
    assert packing.shares("a") == (Share("A", 4),)


@pytest.mark.parametrize(
    ("memory", "expected"),
    [({}, 0), ({"A": 24}, 0), ({"B": 80}, 0), ({"A": 24, "B": 80}, 0), ({"A": 80, "B": 80}, None)],
)
def test_a_whole_gpu_that_is_too_small_is_ruled_out_if_another_may_be_larger(memory, expected):
    packing = two_kinds()
    for kind, gib in memory.items():
        packing.has(kind, gib * GIB)
    assert packing.out_of_memory("a", 1, "A") == expected
    assert packing.needed("a", "A") == (0 if expected == 0 else 1)
    assert packing.out_of_memory("a", 1, "B") is None
    assert packing.needed("a", "B") == 1


def test_where_all_kinds_were_too_small_a_trial_may_try():
    packing = two_kinds(packed={"a": {"A": 0}})
    assert packing.shares("a") == (Share("B", 1),)
    packing = Packing(Rules(packed={"a": {"A": 0}}))
    packing.sees(["A"])
    assert packing.shares("a") == (Share("A", 1),)
    assert packing.out_of_memory("a", 1, "A") is None


def test_a_cluster_that_grows_is_asked_for_a_kind_that_an_earlier_launch_found_large_enough():
    rules = Rules(packed={"a": {"A": 0, "B": 2}, "b": {"A": 2}})
    growing, fixed = Packing(rules, grows=True), Packing(rules)
    growing.sees([])  # nothing is there yet
    assert growing.shares("a") == (Share("B", 2),)
    assert growing.shares("b") == growing.shares("c") == (Share("", 1),)
    for packing in (growing, fixed):
        packing.sees(["A"])
    assert growing.shares("a") == (Share("B", 2),)
    assert growing.needed("a", "A") == 0
    assert fixed.shares("a") == (Share("A", 1),)  # where none will come it may try
    [asked] = missing_slots(
        [Demand(growing.shares("a"), 1)], {}, {}, Devices({"A": 9}, {"A": 9}, 9, grows=True)
    )
    assert asked == Share("B", 2)


def test_what_is_known_of_other_shapes_takes_no_time():
    """The queue asks for the shares of every shape, five times a second and for each lease."""

    def seconds(n_shapes):
        known = {f"s{i}": {"A": 2, "B": 4} for i in range(n_shapes)}
        packing = Packing(Rules(packed=known), grows=True)
        packing.sees(["A", "B"])
        return min(timeit.repeat(lambda: packing.shares("s0"), number=20, repeat=5))

    assert seconds(10_000) < 50 * seconds(10)  # a thousand times as much, and more, if it did


def test_without_gpus_a_trial_has_a_slot():
    packing = Packing(Rules(packed={"a": {"": 4}}), has_gpus=False)
    packing.sees([""])
    assert packing.shares("a") == (Share(),)


# --- which slots are missing ----------------------------------------------------------------


def gpus_of(asked, kind=None):
    """How many GPUs slots take up that fill them one after another."""
    of_kind = {share: n for share, n in asked.items() if kind in (None, share.kind)}
    return sum(-(-n // share.per_gpu) for share, n in of_kind.items())


def n_of(asked, kind):
    return sum(n for share, n in asked.items() if share.kind == kind)


KINDS = ("A", "B")
PER_GPU = st.sampled_from(CHOICES)
SOME = st.integers(0, 20)
SHARES = st.builds(Share, st.sampled_from(KINDS), PER_GPU)


@st.composite
def situations(draw):
    """Demands, slots asked for and those that run, and devices that hold at least these."""
    some = st.lists(st.tuples(PER_GPU, PER_GPU, st.sampled_from([(0,), (1,), (0, 1)])), max_size=4)
    of = {tuple(Share(KINDS[i], both[i]) for i in which) for *both, which in draw(some)}
    demands = [Demand(shares, draw(SOME)) for shares in draw(st.permutations(sorted(of, key=str)))]
    asked = draw(st.dictionaries(SHARES, st.integers(1, 12), max_size=4))
    running = {share: draw(st.integers(0, n)) for share, n in asked.items()}
    gpus, slots = {}, {}
    for kind in KINDS:
        of_kind = {share: n for share, n in asked.items() if share.kind == kind}
        more, most = draw(st.integers(0, 6)), draw(st.integers(0, 40))
        gpus[kind], slots[kind] = gpus_of(of_kind) + more, sum(of_kind.values()) + most
    n_slots = draw(st.none() | st.integers(0, 60).map(lambda n: sum(asked.values()) + n))
    return demands, asked, running, Devices(slots, gpus, n_slots)


def unserved(demands, asked, running):
    """How many of each demand find no idle slot, those with the least choice first."""
    idle, left = Counter(asked) - Counter(running), {}
    for demand in sorted(demands, key=lambda demand: len(demand.shares)):
        left[demand] = demand.n_ready
        for share in demand.shares:
            n = min(idle[share], left[demand])
            idle[share] -= n
            left[demand] -= n
    return left


@settings(max_examples=300)
@given(situations())
def test_what_is_missing_is_added_as_far_as_there_is_room(situation):
    demands, asked, running, devices = situation
    there = Counter(asked)
    for _ in range(len(demands) + 1):  # as often as the driver asks
        added = Counter(missing_slots(demands, there, running, devices))
        there += added
        for kind in KINDS:
            assert gpus_of(there, kind) <= devices.gpus[kind]
            assert n_of(there, kind) <= devices.slots[kind]
        assert devices.n_slots is None or there.total() <= devices.n_slots
    assert not added
    n_added = there.total() - sum(asked.values())
    assert n_added <= sum(demand.n_ready for demand in demands)
    for demand, n_left in unserved(demands, there, running).items():
        for share in demand.shares if n_left and there.total() != devices.n_slots else ():
            is_full = gpus_of(there, share.kind) == devices.gpus[share.kind]
            is_whole = there[share] % share.per_gpu == 0
            is_fed = n_of(there, share.kind) == devices.slots[share.kind]
            assert (is_full and is_whole) or is_fed, "room is left idle"


@given(situations())
def test_demand_is_met_in_the_order_in_which_it_comes(situation):
    demands, asked, running, devices = situation
    added = missing_slots(demands, asked, running, devices)
    first = missing_slots(demands[:1], asked, running, devices)
    assert added[: len(first)] == first


@given(situations(), st.integers(0, 4), st.integers(-20, 20))
def test_where_a_node_is_gone_no_more_is_asked_for_than_there_was(situation, gone, more):
    """Tune still waits for a place for the slots that were there."""
    demands, asked, running, devices = situation
    gpus = {kind: max(0, gpus_of(asked, kind) - gone) for kind in KINDS}
    fewer = Devices({kind: max(0, n + more) for kind, n in devices.slots.items()}, gpus)
    there = Counter(asked) + Counter(missing_slots(demands, asked, running, fewer))
    for kind in KINDS:
        assert gpus_of(there, kind) <= max(gpus[kind], gpus_of(asked, kind))


@given(SOME, SOME, SOME, SOME)
def test_without_gpus_there_are_as_many_slots_as_trials_or_processors(ready, running, asked, slots):
    running = min(running, asked)
    demands, one = [Demand((Share(),), ready)], Share()
    found = missing_slots(demands, {one: asked}, {one: running}, Devices({"": slots}))
    assert found == [one] * max(0, min(ready + running, slots) - asked)


def test_on_nodes_without_a_gpu_there_is_no_room_for_a_share_of_one():
    """Whose processors are not counted among those beside GPUs."""
    demands = [Demand((Share("A", 8),), 100)]
    assert len(missing_slots(demands, {}, {}, Devices({"A": 3}, {"A": 4}))) == 3


def test_shapes_fill_the_kinds_one_after_another_each_at_its_own_share():
    demands = [
        Demand((Share("A", 2), Share("B", 4)), 7),
        Demand((Share("B", 2),), 3),
        Demand((Share("A", 1), Share("B", 1)), 9),
    ]
    devices = Devices({"A": 50, "B": 50}, {"A": 2, "B": 3})
    found = Counter(missing_slots(demands, {}, {}, devices))
    assert found == {Share("A", 2): 4, Share("B", 4): 3, Share("B", 2): 3}


def test_a_cluster_that_grows_is_asked_for_what_is_not_there_yet():
    a, b, any_kind = Share("A", 2), Share("B", 4), Share("", 1)
    nothing = Devices({}, {}, n_slots=3, grows=True)
    assert missing_slots([Demand((any_kind,), 9)], {}, {}, nothing) == [any_kind] * 3
    devices = Devices({"A": 9, "B": 9}, {"A": 1, "B": 1}, n_slots=8, grows=True)
    assert missing_slots([Demand((a, b), 9)], {}, {}, devices) == [a] * 2 + [b] * 4 + [a] * 2


def test_a_slot_that_waits_for_any_kind_is_there_for_what_has_as_large_a_share():
    waiting, devices = {Share("", 1): 2}, Devices({"A": 9}, {"A": 9}, n_slots=9, grows=True)
    found = missing_slots([Demand((Share("A", 1),), 3)], waiting, {}, devices)
    assert found == [Share("A", 1)]
    assert len(missing_slots([Demand((Share("A", 2),), 3)], waiting, {}, devices)) == 3
