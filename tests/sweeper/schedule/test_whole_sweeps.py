"""Whole sweeps, played through: slots on nodes with GPUs of several kinds, some of them bad."""

from collections import Counter
from dataclasses import dataclass, replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.attempt import Order, Outcome, Progress
from sweeper.schedule.executor import Avoided, Halt, Packed, Retry
from sweeper.schedule.leases import NODE_IS_GONE, Leases
from sweeper.schedule.nodes import Site
from sweeper.schedule.packing import Devices, Share, missing_slots
from sweeper.schedule.retry import BREAK_AFTER, Failure
from sweeper.schedule.rules import Rules
from sweeper.schedule.suspects import TRIALS

GIB = 1 << 30
MEMORY = {"": 80, "A": 40, "B": 80}  # GiB of a GPU of each kind
NEEDS = {"fat": 30, "huge": 50, "new": 6, "slim": 15, "whole": 70}  # GiB that a trial takes
PACKED = {"slim": {"": 4, "A": 2, "B": 4}, "fat": {"": 4, "A": 4, "B": 4}}


@dataclass(frozen=True)
class Node:
    kind: str
    n_gpus: int
    n_cpus: int
    is_bad: bool = False  # and fails at once whatever it is given
    joins: int = 0  # in which round


@dataclass
class Slot:
    """A slot, where it is placed, and what it runs; its process is another after a failure."""

    share: Share
    away: frozenset
    gpu: tuple | None = None
    process: int = 0
    order: Order | None = None


class Cluster:
    """GPUs on which slots are placed as Tune does: first come, first served, where there is room.

    Trials of shape `fat` need more than they are taken to, and say so when they run out of it;
    those of `huge` and `whole` need a GPU of 80 GiB; nothing is known of `new`.

    Parameters
    ----------
    pace : how likely it is that a trial ends in a round.
    broken : trials that fail wherever they run.
    """

    def __init__(self, orders, nodes, packed, pace=0.5, broken=()):
        self.now, self.pace, self.broken = 0.0, pace, broken
        self.leases = Leases(orders, Rules(packed=packed), has_gpus=True, clock=lambda: self.now)
        self.later, self.nodes, self.free = nodes, {}, {}
        self.slots, self.names, self.events = {}, iter(range(10**6)), []
        self.join()

    def join(self):
        for name, node in self.later.items():
            if node.joins <= self.now:
                self.nodes[name] = node
                self.free |= {(name, g): 1.0 for g in range(node.n_gpus)}
        self.later = {name: node for name, node in self.later.items() if name not in self.nodes}

    def lose(self, name):
        """A node goes, and its slots wait for a place elsewhere, as Tune has it."""
        node = self.nodes.pop(name)
        self.free = {gpu: free for gpu, free in self.free.items() if gpu[0] != name}
        for number, slot in self.slots.items():
            if slot.gpu is not None and slot.gpu[0] == name:
                slot.gpu, slot.order, slot.process = None, None, slot.process + 1
                self.leases.died(number, NODE_IS_GONE, name)
        return node

    @property
    def sites(self):
        return {name: Site(name, node.kind) for name, node in self.nodes.items()}

    def devices(self, avoided):
        gpus, slots = Counter(), Counter()
        for name, node in self.nodes.items():
            if name not in avoided:
                gpus[node.kind] += node.n_gpus
                slots[node.kind] += node.n_cpus
        return Devices(slots, gpus)

    def want(self):
        polled = self.leases.poll(False, self.sites)
        assert polled.condemned == []
        self.events += polled.events
        assert polled.barren == polled.stranded == ""
        devices = self.devices(polled.avoided)
        asked = Counter(
            slot.share
            for name, slot in self.slots.items()
            if name not in polled.astray
            if slot.gpu is not None or slot.share.kind in devices.slots
        )
        added = missing_slots(polled.demands, asked, polled.running, devices)
        self.slots |= {next(self.names): Slot(share, polled.avoided) for share in added}
        return polled.is_done

    def place(self):
        for slot in self.slots.values():
            if slot.gpu is None:
                size = 1 / slot.share.per_gpu
                fit = [g for g, free in self.free.items() if free >= size - 1e-9]
                slot.gpu = next((g for g in fit if self.is_for(slot, g[0])), None)
                if slot.gpu is not None:
                    self.free[slot.gpu] -= size
        assert all(free > -1e-9 for free in self.free.values())

    def is_for(self, slot, name):
        n_there = sum(s.gpu is not None and s.gpu[0] == name for s in self.slots.values())
        node = self.nodes[name]
        return node.kind == slot.share.kind and name not in slot.away and n_there < node.n_cpus

    def ask(self, name):
        slot = self.slots[name]
        answer = self.leases.lease(name, f"{slot.process}", slot.share.per_gpu, slot.gpu[0])
        if answer == "leave":
            self.free[slot.gpu] += 1 / slot.share.per_gpu
            del self.slots[name]
        elif answer != "wait":
            assert answer.per_gpu == slot.share.per_gpu
            slot.order = answer

    def end(self, name):
        slot = self.slots[name]
        order, slot.order = slot.order, None
        trial, need = order.trial_id, NEEDS[order.shape]
        node, there = self.nodes[slot.gpu[0]], MEMORY[slot.share.kind]
        if node.is_bad or trial in self.broken:
            slot.process += 1
            self.leases.report(name, Failure(trial, "bug", "RuntimeError", "a bad node", "bad"))
        elif need > there / order.per_gpu:
            slot.process += 1
            self.leases.report(name, Failure(trial, "oom", "OutOfMemoryError", "too little"))
        else:
            said = Progress(trial, 1, 9, 9, "h", "gpu", 1.0, 1, need * GIB, there * GIB)
            self.leases.report(name, said)
            self.leases.report(name, Outcome(trial, 1, "complete", 1.0))

    def go_on(self, name, random):
        slot = self.slots[name]
        if slot.order is None:
            return
        self.leases.beat(name, f"{slot.process}", slot.order.trial_id)
        if self.nodes[slot.gpu[0]].is_bad or random.random() < self.pace:
            self.end(name)

    def play(self, random, n_rounds=600):
        """Until all is done and every slot has left that has a place."""
        for _ in range(n_rounds):
            self.join()
            is_done = self.want()
            self.place()
            for name in random.sample(sorted(self.slots), len(self.slots)):
                if self.slots[name].gpu is not None and self.slots[name].order is None:
                    self.ask(name)
            for name in sorted(self.slots):
                self.go_on(name, random)
            self.now += 1
            if is_done and all(slot.gpu is None for slot in self.slots.values()):
                return
        pytest.fail("slots and orders wait for one another")


def orders_of(counts):
    return [
        Order(f"{shape}-{i}", {}, "runs/x", shape=shape)
        for shape, n in counts.items()
        for i in range(n)
    ]


@st.composite
def clusters(draw):
    """Nodes whose GPUs are of one kind, or of two; on one of these every trial fits."""
    kinds = draw(st.sampled_from([[""], ["B"], ["A", "B"]]))
    more = draw(st.lists(st.sampled_from(kinds), max_size=2))
    names = (f"node{i}" for i in range(9))
    return {
        name: Node(kind, draw(st.integers(1, 2)), draw(st.integers(1, 9)))
        for name, kind in zip(names, [*kinds, *more], strict=False)
    }


CHANCE = st.integers(0, 10**6).map(Random)
COUNTS = st.dictionaries(st.sampled_from(sorted(NEEDS)), st.integers(1, 7), min_size=1)


@settings(max_examples=80)
@given(COUNTS, clusters(), st.randoms(use_true_random=False))
def test_a_sweep_of_many_shapes_ends_wherever_its_slots_are(counts, nodes, random):
    orders = orders_of(counts)
    cluster = Cluster(orders, nodes, PACKED)
    cluster.play(random)

    ends = Counter(e.trial_id for e in cluster.events if isinstance(e, Outcome))
    assert ends == Counter(order.trial_id for order in orders)
    assert not any(isinstance(e, (Failure, Avoided)) for e in cluster.events)
    assert list(cluster.free.values()) == pytest.approx([1.0] * len(cluster.free))
    demoted = [e for e in cluster.events if isinstance(e, Packed) and e.reason == "out of memory"]
    for event in demoted:  # one by one, and only for want of memory
        assert NEEDS[event.shape] * (event.per_gpu + 1) > MEMORY[event.kind]
    n_told = Counter((event.shape, event.kind, event.per_gpu) for event in demoted)
    assert set(n_told.values()) <= {1}


@settings(max_examples=60)
@given(COUNTS, clusters(), st.integers(0, 3), st.randoms(use_true_random=False))
def test_a_bad_node_stops_no_sweep_and_takes_along_only_what_nobody_else_could_try(
    counts, nodes, which, random
):
    name = sorted(nodes)[which % len(nodes)]
    bad = nodes[name]
    nodes = {**nodes, name: Node(bad.kind, bad.n_gpus, bad.n_cpus, is_bad=True)}
    nodes["good"] = Node("B" if "B" in {node.kind for node in nodes.values()} else "", 2, 9)
    cluster = Cluster(orders_of(counts), nodes, PACKED)
    cluster.play(random)

    ended = [e for e in cluster.events if isinstance(e, (Outcome, Failure))]
    assert sorted(e.trial_id for e in ended) == sorted(o.trial_id for o in orders_of(counts))
    assert {e.node for e in cluster.events if isinstance(e, Avoided)} <= {name}
    failed = Counter(
        e.trial_id for e in cluster.events if isinstance(e, Retry) and e.failure.kind == "bug"
    )
    assert all(failed[e.trial_id] == 1 for e in ended if isinstance(e, Failure))


def test_no_gpu_is_left_idle_while_trials_that_fit_on_it_wait():
    nodes = {"small": Node("A", 2, 9), "large": Node("B", 2, 9)}
    cluster = Cluster(orders_of({"slim": 60}), nodes, PACKED)
    n_rounds = 0
    while not cluster.want():
        cluster.place()
        for name in sorted(cluster.slots):
            cluster.ask(name)
        running = [name for name, slot in cluster.slots.items() if slot.order]
        assert len(running) in (12, 0)  # two on each small one, four on each large one
        for name in running:
            cluster.end(name)
        n_rounds += 1
    assert n_rounds == 5


class Fair:
    """Instead of chance: every trial ends in the round in which it began."""

    @staticmethod
    def sample(found, n):
        return found

    @staticmethod
    def random():
        return 0.0


def test_a_bad_node_is_avoided_and_every_trial_completes_elsewhere():
    nodes = {"bad": Node("A", 2, 9, is_bad=True), "good": Node("B", 2, 9)}
    cluster = Cluster(orders_of({"slim": 60}), nodes, PACKED)
    cluster.play(Fair)
    ends = [e.trial_id for e in cluster.events if isinstance(e, Outcome)]
    assert sorted(ends) == sorted(order.trial_id for order in orders_of({"slim": 60}))
    [avoided] = [e for e in cluster.events if isinstance(e, Avoided)]
    assert (avoided.node, len(avoided.trial_ids), avoided.signature) == ("bad", 3, "bad")
    # What the fourth failure there was worth was seen soon, and not at the sweep's end.
    assert len([e for e in cluster.events if isinstance(e, Retry)]) <= 12


# --- several bad nodes, and trials that fail everywhere ---------------------------------------


def of(cluster, *kinds):
    return [event for event in cluster.events if isinstance(event, kinds)]


def trials(events):
    return sorted(event.trial_id for event in events)


@st.composite
def bad_and_good(draw):
    """Some nodes that fail all that they are given, and others, one of them from the start."""
    n_bad, n_good = draw(st.integers(1, 4)), draw(st.integers(1, 2))
    several = draw(st.booleans())
    return {
        f"{'bad' if i < n_bad else 'good'}{i}": Node(
            "B" if several and i % 2 else "A",
            draw(st.integers(1, 2)),
            draw(st.integers(1, 9)),
            is_bad=i < n_bad,
            joins=draw(st.integers(0, 40)) * (i != n_bad),
        )
        for i in draw(st.permutations(range(n_bad + n_good)))
    }


def n_slots(node):
    return min(node.n_gpus * PACKED["slim"][node.kind], node.n_cpus)


@settings(max_examples=60)
@given(bad_and_good(), CHANCE)
def test_however_many_nodes_are_bad_all_completes_on_the_others_and_they_are_named(nodes, random):
    """A bad node fails what its slots hold when it becomes suspect, and then one now and then."""
    orders = orders_of({"slim": 300})
    n_good = sum(n_slots(node) for node in nodes.values() if not node.is_bad)
    cluster = Cluster(orders, nodes, PACKED, pace=1 / n_good)  # in all one trial a round
    cluster.play(random, n_rounds=3000)

    assert trials(of(cluster, Outcome)) == sorted(order.trial_id for order in orders)
    assert of(cluster, Failure, Halt) == []
    assert {event.node for event in of(cluster, Avoided)} == {n for n in nodes if "bad" in n}
    most = sum(n_slots(node) + TRIALS + 2 for node in nodes.values() if node.is_bad)
    assert len(of(cluster, Retry)) <= most


@settings(max_examples=30)
@given(bad_and_good(), st.integers(1, 30), CHANCE)
def test_where_everything_fails_everywhere_the_sweep_is_halted_at_once(nodes, n_trials, random):
    orders = orders_of({"slim": n_trials})
    cluster = Cluster(orders, nodes, PACKED, pace=1.0, broken={o.trial_id for o in orders})
    cluster.play(random)
    assert of(cluster, Outcome, Avoided) == []
    assert len(of(cluster, Halt)) == (n_trials >= BREAK_AFTER)
    assert len(of(cluster, Retry)) <= n_trials + len(nodes)  # twice each, and once more a node
    assert cluster.now < 40 + 60 + 2 * n_trials  # until the last has joined or is not waited for


@settings(max_examples=60)
@given(bad_and_good(), st.sets(st.integers(0, 59), max_size=9), CHANCE)
def test_a_trial_that_fails_everywhere_ends_as_failed_and_takes_no_other_along(
    nodes, numbers, random
):
    nodes = {name: Node(n.kind, n.n_gpus, n.n_cpus, joins=n.joins) for name, n in nodes.items()}
    broken = {f"slim-{i}" for i in numbers}
    orders = orders_of({"slim": 60})
    cluster = Cluster(orders, nodes, PACKED, broken=broken)
    cluster.play(random)
    assert trials(of(cluster, Failure)) == sorted(broken)
    assert trials(of(cluster, Outcome)) == sorted({o.trial_id for o in orders} - broken)
    assert of(cluster, Avoided, Halt) == []
    n_retries = Counter(event.trial_id for event in of(cluster, Retry))
    assert all(n <= len(nodes) for n in n_retries.values())


# --- nodes that go ----------------------------------------------------------------------------


class Dying(Cluster):
    """Nodes go, and some come back under another name."""

    def __init__(self, *args, deaths, **settings):
        super().__init__(*args, **settings)
        self.deaths = deaths

    def join(self):
        super().join()
        for when, which, after in getattr(self, "deaths", ()):
            if when == self.now and len(self.nodes) > 1:
                name = sorted(self.nodes)[which % len(self.nodes)]
                node = self.lose(name)
                if after is not None or not self.is_enough():
                    back = replace(node, joins=self.now + (after or 1))
                    self.later[f"{name}+"] = back

    def is_enough(self):
        """Whether what needs most has a place on what is left."""
        kinds = {node.kind for node in self.nodes.values()}
        return max(MEMORY[kind] for kind in kinds) == 80


DEATHS = st.lists(  # of nodes that have been seen: else nobody knows of a kind that is larger
    st.tuples(st.integers(1, 60), st.integers(0, 5), st.none() | st.integers(1, 50)), max_size=6
)


@settings(max_examples=80)
@given(COUNTS, clusters(), DEATHS, CHANCE)
def test_what_a_node_takes_along_is_run_by_others(counts, nodes, deaths, random):
    orders = orders_of({shape: 4 * n for shape, n in counts.items()})
    cluster = Dying(orders, nodes, PACKED, pace=0.1, deaths=deaths)
    cluster.play(random, n_rounds=4000)
    assert trials(of(cluster, Outcome)) == sorted(order.trial_id for order in orders)
    assert of(cluster, Failure, Avoided, Halt) == []
    lost = Counter(e.trial_id for e in of(cluster, Retry) if e.failure.kind == "lost")
    assert all(n <= len(deaths) for n in lost.values())
