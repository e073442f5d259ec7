"""Who holds which order, whatever dies, is late, falls silent or fails; on a clock of its own."""

import itertools
from collections import Counter, deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from sweeper.attempt import Order, Outcome, Progress, Waiting
from sweeper.errors import DataError
from sweeper.schedule.absent import GONE_SECONDS
from sweeper.schedule.executor import Avoided, Halt, Packed, Retry, Stranded
from sweeper.schedule.leases import LEASE_SECONDS, NODE_IS_GONE, Leases
from sweeper.schedule.nodes import ELSEWHERE_SECONDS, LONGEST_REST, MOST_EXCUSED, Site
from sweeper.schedule.packing import Demand, Share
from sweeper.schedule.retry import BREAK_AFTER, BUDGETS, Failure
from sweeper.schedule.rules import Rules
from sweeper.schedule.seats import BARREN_DEATHS, SILENT_SECONDS
from sweeper.schedule.suspects import TRIALS

GIB = 1 << 30
ENDS = ["complete", "diverged", "stopped", "bug", "lost", "storage", "oom", "invalid"]
RULES = Rules()
SLOTS = {0: (1, "x"), 1: (2, "y"), 2: (4, "z"), 3: (1, "y"), 4: (2, "z")}  # share and node
PLACES = [  # of the nodes: the kinds of their GPUs, where they are told apart
    {"x": "", "y": "", "z": ""},
    {"x": "A", "y": "A", "z": "B"},
]
PACKED = {"a": {"": 4, "A": 4, "B": 1}, "b": {"": 2, "A": 2, "B": 2}}


def order(trial, shape="a"):
    return Order(trial, {}, "runs/x", shape=shape)


def ended(trial, state="complete"):
    return Outcome(trial, 1, state, 1.0)


def broken(trial, kind="bug", signature="a bug"):
    return Failure(trial, kind, "RuntimeError", "a bug", signature, "here")


def says(trial, step=5, epoch=0.0, peak=0, device=0):
    return Progress(trial, 1, step, 9, "here", "gpu", epoch, 1, peak, device)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def is_end(event):
    is_result = isinstance(event, Outcome) and event.state != "stopped"
    return is_result or isinstance(event, Failure)


class Sweep(RuleBasedStateMachine):
    """Slots' processes that work, die, fall silent and come back late, and a book kept beside.

    The book has for each slot its newest process, the trial that this slot answers for, and when
    it last spoke; for each trial whether it is ready, backs off until a time, is held or has ended,
    and on which nodes it failed, got how far, and completed.
    """

    held = Bundle("held")  # (slot, process, trial) as each process believes, dead ones too

    @initialize(
        shapes=st.lists(st.sampled_from("ab"), max_size=14),
        has_gpus=st.booleans(),
        rules=st.sampled_from([Rules(), Rules(per_gpu=2), Rules(packed=PACKED)]),
        kinds=st.sampled_from(PLACES),
        is_told=st.booleans(),
    )
    def start(self, shapes, has_gpus, rules, kinds, is_told):
        self.shapes = {f"{shape}{i}": shape for i, shape in enumerate(shapes)}
        orders = [order(trial, shape) for trial, shape in self.shapes.items()]
        self.clock = Clock()
        self.leases = Leases(orders, rules, has_gpus, self.clock)
        self.has_gpus = has_gpus
        self.kinds = kinds if has_gpus and is_told else dict.fromkeys(kinds, "")
        known = {} if rules.per_gpu else rules.packed
        self.needs = {
            (shape, kind): known.get(shape, {}).get(kind, rules.per_gpu or 1)
            for shape in "ab"
            for kind in set(self.kinds.values())
        }
        self.is_told = is_told
        if is_told:
            self.tell()
        self.names = map(str, itertools.count())
        self.newest = {slot: next(self.names) for slot in SLOTS}
        self.nodes = {slot: node for slot, (_, node) in SLOTS.items()}
        self.seats = {}  # slot: when it asked last
        self.tried = {}  # trial: the nodes on which it failed, once for each time
        self.row = {}  # node: the trials that failed there since it completed one
        self.completed = Counter()  # by node
        self.faults, self.reached, self.avoided = {}, {}, set()  # by trial and node: steps
        self.asked = {}  # slot: the newest process that the leases have heard of
        self.busy = {}  # slot: trial that its newest process works on
        self.holder = {}  # slot: (process, trial)
        self.spoke = {}
        self.ready_at = dict.fromkeys(self.shapes, 0.0)  # of what waits
        self.last_size = {}
        self.failed, self.alike = Counter(), ("", 0)
        self.ends, self.parked = Counter(), []
        self.is_drained = False

    # --- the book ------------------------------------------------------------------------

    def tell(self):
        sites = {node: Site(f"host {node}", kind) for node, kind in self.kinds.items()}
        self.leases.poll(False, sites)

    def size(self, slot):
        return SLOTS[slot][0] if slot in SLOTS else slot % 100

    def share(self, slot):
        return (self.size(slot), self.kinds[self.nodes[slot]]) if self.has_gpus else (1, "")

    def need(self, trial, kind):
        if not self.has_gpus:
            return 1
        of_kind = {k: n for (shape, k), n in self.needs.items() if shape == self.shapes[trial]}
        return of_kind[kind] if any(of_kind.values()) else 1

    def is_doubtful(self, node, but=None):
        """Whether others than this trial failed there, three in a row if it has completed any."""
        n_failed = len(self.row.get(node, set()) - {but})
        return n_failed >= (TRIALS if self.completed[node] else 1)

    def worth(self, node, trial):
        """A node that is not doubtful is better than one that is, and then one not tried."""
        return (not self.is_doubtful(node), node not in self.tried.get(trial, ()))

    def better(self, trial, slot):
        """The slots that answer, on nodes that are better for the trial than this one's."""
        here = self.worth(self.nodes[slot], trial)
        return [
            other
            for other, asked in self.seats.items()
            if other in self.holder or self.clock.now - asked <= SILENT_SECONDS
            if self.nodes[other] not in self.avoided
            if self.worth(self.nodes[other], trial) > here
        ]

    def is_to_wait(self, trial, slot):
        """Whether it failed while a slot of its size answers on a better node.

        It must be an idle one, or, if others failed here, too, on a node that is not doubtful.
        """
        if trial not in self.tried:
            return False
        better = [
            other
            for other in self.better(trial, slot)
            if self.need(trial, self.share(other)[1]) == self.size(other) or not self.has_gpus
        ]
        if any(other not in self.holder for other in better):
            return True
        is_bad = self.is_doubtful(self.nodes[slot], but=trial)
        return is_bad and any(not self.is_doubtful(self.nodes[other]) for other in better)

    def excused(self, trial):
        """The nodes whose failures say nothing, while one that is not doubtful may try it."""
        witnesses = [
            slot
            for slot, asked in self.seats.items()
            if slot in self.holder or self.clock.now - asked <= SILENT_SECONDS
            if self.nodes[slot] not in self.avoided and self.need(trial, self.share(slot)[1])
            if self.worth(self.nodes[slot], trial) == (True, True)
        ]
        unknown = {
            node
            for node in self.tried[trial]
            if not self.completed[node] or self.is_doubtful(node, but=trial)
        }
        return unknown if witnesses and len(self.tried[trial]) <= MOST_EXCUSED else set()

    def collect(self):
        """Take the events and write into the book what they say."""
        found = self.leases.take_events()
        self.note(found)
        return self.worth_a_word(found)

    def worth_a_word(self, found):
        silent = (Avoided, Packed, Progress, Waiting)
        return [event for event in found if not isinstance(event, silent)]

    def note(self, found):
        for event in found:
            if isinstance(event, Retry):
                self.ready_at[event.trial_id] = self.clock.now + event.delay
            elif isinstance(event, Packed):
                self.needs[event.shape, event.kind] = event.per_gpu
            elif isinstance(event, Avoided):
                self.take_avoided(event)
            elif isinstance(event, Halt):
                self.is_drained = True
            elif is_end(event):
                self.ends[event.trial_id] += 1
                self.ready_at.pop(event.trial_id, None)
            elif isinstance(event, Outcome) and self.is_drained:
                self.ready_at.pop(event.trial_id, None)
                self.parked.append(event.trial_id)  # for the next launch
            elif isinstance(event, Outcome):
                self.ready_at[event.trial_id] = self.clock.now

    def take_avoided(self, event):
        """For what three trials did there, and only if there is another node that answers."""
        assert event.node not in self.avoided
        self.avoided.add(event.node)
        for key in [key for key in self.failed if key[2] == event.node]:
            del self.failed[key]
        self.row.pop(event.node, None)
        self.completed.pop(event.node, None)
        if not event.trial_ids:
            return
        assert len(set(event.trial_ids)) == TRIALS
        assert set(self.kinds) - self.avoided
        for trial in event.trial_ids:
            made = self.faults[trial, event.node]
            others = [
                step
                for (t, node), step in self.reached.items()
                if (t, node) != (trial, event.node) and t == trial
            ]
            assert any(step > made for step in others)

    def expect_failure(self, slot, trial, failure, found):
        """Another attempt within the budget, else the end; ten ends alike halt the sweep."""
        kind = failure.kind
        node = self.nodes[slot]
        if kind == "oom":
            is_too_small = not self.need(trial, self.share(slot)[1])
            again = self.has_gpus and (self.last_size[trial] > 1 or is_too_small)
        else:
            excused = set()
            if kind in BUDGETS:
                self.tried.setdefault(trial, []).append(node)
                if node not in self.avoided:
                    self.row.setdefault(node, set()).add(trial)
                self.faults[trial, node] = self.reached.get((trial, node), -1)
                excused = self.excused(trial)
            self.failed[trial, kind, node] += 1
            n_failed = sum(
                n
                for (other, how, where), n in self.failed.items()
                if (other, how) == (trial, kind) and where not in excused
            )
            again = n_failed <= BUDGETS.get(kind, 0)
        if again:
            assert [type(event) for event in found] == [Retry]
            assert found[0].failure == failure
            return
        was_drained = self.is_drained and not any(isinstance(event, Halt) for event in found)
        alike, n = self.alike
        self.alike = (failure.signature, n + 1 if alike == failure.signature else 1)
        halts = self.alike[1] == BREAK_AFTER and not was_drained
        assert found == [failure] + [Halt(failure, BREAK_AFTER)] * halts

    def expect_lost(self, slot, found, said):
        _, trial = self.holder.pop(slot)
        assert found[0].trial_id == trial
        failure = found[0].failure if isinstance(found[0], Retry) else found[0]
        assert (failure.kind, failure.host) == ("lost", "")
        assert said in failure.message
        self.expect_failure(slot, trial, failure, found)

    def certainly_ready(self, slot):
        """Orders of the slot's very size that no clock's rounding keeps from it, nor a failure."""
        size, kind = self.share(slot)
        return [
            trial
            for trial, at in self.ready_at.items()
            if self.need(trial, kind) == size and at + 0.001 < self.clock.now
            if (trial in self.tried or not self.may_rest(slot))
            and not (trial in self.tried and self.may_wait(trial, slot))
        ]

    def may_wait(self, trial, slot):
        """Whether there is a slot on a better node, or a node that may have one soon."""
        if self.better(trial, slot):
            return True
        here = self.worth(self.nodes[slot], trial)
        others = [node for node in {*self.kinds} - self.avoided if self.worth(node, trial) > here]
        alike = [other for other in self.ready_at if other in self.tried]
        ends = [
            self.ready_at[other] + ELSEWHERE_SECONDS * 2 ** (len(self.tried[other]) - 1)
            for other in alike
        ]
        return self.is_told and others and self.clock.now <= max(ends) + 0.001

    def may_rest(self, slot):
        """Whether three have failed there in a row, and another node may show why."""
        node = self.nodes[slot]
        n_failed, others = len(self.row.get(node, ())), {*self.nodes.values()} - {node}
        return n_failed >= TRIALS and not all(map(self.is_doubtful, others))

    # --- what processes do ----------------------------------------------------------------

    @rule(target=held, slot=st.sampled_from(list(SLOTS)), is_new=st.booleans())
    def ask(self, slot, is_new):
        """By a process that has nothing to do, or by a new one whose predecessor has died."""
        if is_new or slot in self.busy:
            self.newest[slot] = next(self.names)
            self.busy.pop(slot, None)
        return self.lease(slot)

    def lease(self, slot):
        lost = slot in self.holder
        process = self.asked[slot] = self.newest[slot]
        size, kind = self.share(slot)
        self.seats[slot] = self.clock.now
        answer = self.leases.lease(slot, process, size, self.nodes[slot])
        if answer == "leave":
            del self.seats[slot]
        found = self.collect()
        if lost:
            self.expect_lost(slot, found, "its worker died")
        else:
            assert found == []
        if self.nodes[slot] in self.avoided:
            assert answer == "leave"
            return multiple()
        if not isinstance(answer, Order):
            assert self.is_drained or not self.certainly_ready(slot)
            if answer == "leave" and not self.is_drained:
                of_others = any(at <= self.clock.now + 0.001 for at in self.ready_at.values())
                assert of_others or not (self.holder or self.ready_at)
            if answer == "wait":
                assert not self.is_drained
                assert self.holder or self.ready_at
            return multiple()
        trial = answer.trial_id
        assert not self.is_drained
        assert not self.ends[trial]
        assert trial not in [other for _, other in self.holder.values()]
        assert self.ready_at.pop(trial) <= self.clock.now + 0.001
        assert answer.per_gpu == size <= self.need(trial, kind)
        assert not self.is_to_wait(trial, slot)
        self.last_size[trial] = answer.per_gpu
        self.holder[slot] = process, trial
        self.spoke[slot] = self.clock.now
        self.busy[slot] = trial
        return slot, process, trial

    @rule(one=held)
    def ask_late(self, one):
        """By a process that another of its slot has followed: it goes, and does no harm."""
        slot, process, _ = one
        if process != self.asked[slot]:
            assert self.leases.lease(slot, process, self.share(slot)[0], "x") == "leave"
            assert self.collect() == []

    @rule(one=held, how=st.sampled_from(ENDS))
    def report_end(self, one, how):
        """By the holder, or late, by one that was taken for dead or has reported before."""
        slot, process, trial = one
        is_outcome = how in ("complete", "diverged", "stopped")
        event = ended(trial, how) if is_outcome else broken(trial, how)
        is_holder = self.holder.get(slot) == (process, trial)
        counts = is_holder or (is_outcome and trial in self.ready_at)
        self.leases.report(slot, event, process)
        if is_outcome and slot in self.seats:
            self.seats[slot] = self.clock.now  # it will ask again
        found = self.collect()
        if process == self.newest[slot] and self.busy.get(slot) == trial:
            del self.busy[slot]
        if not counts:
            assert found == []  # too late, or another process answers for it
            return
        if is_holder:
            del self.holder[slot]
        if not is_outcome:
            self.expect_failure(slot, trial, event, found)
            return
        assert found == [event]
        if how != "stopped":
            self.alike = (self.alike[0], 0)
            node = self.nodes[slot] if is_holder or slot in self.seats else ""
            self.completed[node] += 1
            self.row.pop(node, None)
            self.reached[trial, self.nodes[slot]] = 10**9

    @rule(
        one=held,
        step=st.integers(0, 9),
        epoch=st.sampled_from([0.0, 1.0, 2.5]),
        peak=st.sampled_from([0, 8 * GIB, 20 * GIB, 70 * GIB]),
    )
    def report_progress(self, one, step, epoch, peak):
        slot, process, trial = one
        said = says(trial, step, epoch, peak, 80 * GIB * (peak > 0))
        self.leases.report(slot, said, process)
        found = self.leases.take_events()
        if self.holder.get(slot) != (process, trial):
            assert found == []
            return
        assert found[0] == said
        key = trial, self.nodes[slot]
        self.reached[key] = max(step, self.reached.get(key, -1))
        for event in found[1:]:
            assert self.has_gpus
            assert (epoch, event.reason) >= (1.0, "measured")
            assert event.shape == self.shapes[trial]
            self.needs[event.shape, event.kind] = event.per_gpu

    @rule(one=held)
    def beat(self, one):
        """The holder is told to go on, every other process to stop."""
        slot, process, trial = one
        is_holder = self.holder.get(slot) == (process, trial)
        assert self.leases.beat(slot, process, trial) == (self.is_drained or not is_holder)
        if is_holder:
            self.spoke[slot] = self.clock.now

    @rule(one=held)
    def beat_idly(self, one):
        slot, process, _ = one
        assert self.leases.beat(slot, process, None) == self.is_drained
        if self.holder.get(slot, ("",))[0] == process:
            self.spoke[slot] = self.clock.now

    # --- what the driver and the keeper of slots do ------------------------------------------

    @rule(seconds=st.sampled_from([0.5, 2.0, 20.0, LEASE_SECONDS / 2, LEASE_SECONDS + 1]))
    def time_passes(self, seconds):
        self.clock.now += seconds

    @rule()
    def look(self):
        silent = [slot for slot in self.holder if self.clock.now - self.spoke[slot] > LEASE_SECONDS]
        assert self.leases.look() == sorted(silent)
        events = self.leases.take_events()
        avoided = [event for event in events if isinstance(event, Avoided)]
        self.note([event for event in events if event not in avoided])
        found = deque(self.worth_a_word(events))
        for slot in silent:
            first = [found.popleft()]
            while found and isinstance(found[0], Halt):
                first.append(found.popleft())
            self.expect_lost(slot, first, "no sign of life for")
            self.newest[slot] = next(self.names)  # the one before is killed
            self.busy.pop(slot, None)
        assert not found
        self.note(avoided)  # at last
        assert self.leases.look() == []

    @rule(slot=st.sampled_from(list(SLOTS)))
    def died(self, slot):
        """As Tune tells, of a process that held an order or none."""
        was_held = slot in self.holder
        self.leases.died(slot, "a bad day", self.nodes[slot])
        self.seats.pop(slot, None)
        found = self.collect()
        self.newest[slot] = next(self.names)
        self.busy.pop(slot, None)
        if was_held:
            self.expect_lost(slot, found, "a bad day")
        else:
            assert found == []

    @precondition(lambda self: not self.is_drained)
    @rule(really=st.sampled_from([True] + 15 * [False]))
    def drain(self, really):
        if really:
            self.leases.drain()
            self.is_drained = True

    # --- what always holds ------------------------------------------------------------------

    @invariant()
    def each_order_is_held_waits_or_has_ended_once(self):
        held = [trial for _, trial in self.holder.values()]
        found = [*held, *self.ready_at, *self.parked, *self.ends.elements()]
        assert sorted(found) == sorted(self.shapes)

    @invariant()
    def it_is_done_when_nothing_is_held_and_nothing_will_be(self):
        assert self.leases.is_done() == (not self.holder and (self.is_drained or not self.ready_at))

    @invariant()
    def demand_is_what_runs_and_what_could(self):
        found = self.leases.demands()
        ready, now = Counter(), self.clock.now
        for trial, at in self.ready_at.items():
            kinds = sorted(set(self.kinds.values())) if self.has_gpus else [""]
            needs = {kind: self.need(trial, kind) for kind in kinds}
            shares = tuple(Share(kind, n) for kind, n in needs.items() if n)
            ready[shares] += at <= now - 0.001
        seen = {demand.shares: demand.n_ready for demand in found}
        assert len(seen) == len(found)
        if self.is_drained:
            assert not found
        elif self.is_told or len(set(self.kinds.values())) == 1:
            assert all(seen.get(shares, 0) >= n for shares, n in ready.items())
        assert sum(seen.values()) <= len(self.ready_at)

    def teardown(self):
        """Whatever happened: with slots where there is demand, every order ends, unless drained."""
        if not hasattr(self, "leases"):
            return
        for slot, (_, trial) in list(self.holder.items()):
            self.leases.report(slot, ended(trial))
            del self.holder[slot]
            self.collect()
        slots = itertools.count(100, 100)
        self.kinds |= {f"new {kind}": kind for kind in set(self.kinds.values())}
        self.tell()
        while not self.leases.is_done():
            self.clock.now += 1000.0  # of the others nobody answers any more
            share = self.leases.demands()[0].shares[-1]
            slot = next(slots) + share.per_gpu  # of a new slot of this size
            self.newest[slot] = "new"
            self.nodes[slot] = f"new {share.kind}"
            self.lease(slot)
            assert slot in self.holder, "an order that is ready was refused"
            self.leases.report(slot, ended(self.holder.pop(slot)[1]))
            self.collect()
        self.each_order_is_held_waits_or_has_ended_once()
        assert self.is_drained or sum(self.ends.values()) == len(self.shapes)
        assert all(n == 1 for n in self.ends.values())


Sweep.TestCase.settings = settings(max_examples=150, stateful_step_count=50)
TestEveryOrderEndsOnce = Sweep.TestCase


# --- by hand --------------------------------------------------------------------------------


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make_leases(clock):
    def make(*trials, rules=RULES, has_gpus=False):
        orders = [one if isinstance(one, Order) else order(one) for one in trials]
        return Leases(orders, rules, has_gpus, clock)

    return make


def test_orders_are_leased_in_their_order_and_lost_ones_come_back_last(make_leases, clock):
    leases = make_leases("a", "b", "c")
    assert [leases.lease(slot, "p").trial_id for slot in (0, 1)] == ["a", "b"]
    assert leases.lease(0, "q").trial_id == "c"  # slot 0 died with a
    [retry] = leases.take_events()
    assert (retry.trial_id, retry.failure.kind) == ("a", "lost")
    leases.report(0, ended("c"))
    assert leases.lease(0, "q") == "wait"
    clock.now += retry.delay
    assert leases.lease(0, "q").trial_id == "a"


def test_slots_without_work_wait_while_others_may_die(make_leases):
    leases = make_leases("a")
    leases.lease(0, "p")
    assert leases.lease(1, "q") == "wait"
    leases.report(0, ended("a"))
    assert leases.lease(1, "q") == "leave"
    assert leases.is_done()


def test_a_worker_may_die_as_often_as_the_budget_says(make_leases, clock):
    leases = make_leases("a")
    for process in range(BUDGETS["lost"] + 1):
        assert leases.lease(0, str(process)).trial_id == "a"
        answer = leases.lease(0, str(process + 1))
        clock.now += 1000
    assert answer == "leave"
    *again, failure = leases.take_events()
    assert [type(event) for event in again] == [Retry] * BUDGETS["lost"]
    delays = [retry.delay for retry in again]
    assert all(2**n * 0.5 <= delay < 2**n * 1.5 for n, delay in enumerate(delays))
    assert (failure.trial_id, failure.kind) == ("a", "lost")
    assert leases.is_done()


def test_a_late_outcome_ends_an_order_that_waits_again(make_leases):
    leases = make_leases("a", "b")
    leases.lease(0, "p")
    leases.lease(0, "q")  # a is lost; slot 0 holds b
    leases.report(0, broken("a"), "p")  # that it was lost has counted
    leases.report(0, ended("a"), "p")
    assert leases.take_events()[1:] == [ended("a")]
    assert leases.lease(1, "r") == "wait"  # b is still held
    leases.report(0, ended("b"))
    assert leases.lease(1, "r") == "leave"


def test_after_a_drain_nothing_is_leased_and_lost_orders_stay_lost(make_leases):
    leases = make_leases("a", "b")
    leases.lease(0, "p")
    leases.drain()
    assert not leases.is_done()
    assert leases.lease(1, "q") == "leave"
    assert leases.lease(0, "r") == "leave"  # died instead of checkpointing
    assert [event.trial_id for event in leases.take_events()] == ["a"]
    assert leases.is_done()


def test_a_drained_attempt_is_stopped_and_not_run_again(make_leases):
    leases = make_leases("a")
    leases.lease(0, "p")
    leases.drain()
    assert leases.beat(0, "p", "a")
    leases.report(0, ended("a", "stopped"))
    polled = leases.poll(drain=True)
    assert (polled.events, polled.is_done) == ([ended("a", "stopped")], True)
    assert polled.demands == []


def test_a_preempted_attempt_goes_on_first_and_costs_no_budget(make_leases):
    leases = make_leases("a", "b")
    for i in range(20):
        assert leases.lease(i, "p").trial_id == "a"
        leases.report(i, ended("a", "stopped"))
    assert len(leases.take_events()) == 20
    assert not leases.is_done()
    assert leases.lease(99, "p").trial_id == "a"


def test_one_that_is_silent_is_given_up_and_told_to_stop_when_it_speaks_again(make_leases, clock):
    leases = make_leases("a")
    leases.lease(0, "p")
    clock.now = LEASE_SECONDS
    assert leases.look() == []
    clock.now += 0.1
    assert leases.look() == [0]
    leases.take_events()
    assert leases.beat(0, "p", "a")
    clock.now += 10
    assert leases.lease(1, "q").trial_id == "a"
    assert not leases.beat(1, "q", "a")
    assert leases.beat(0, "p", "a")
    leases.report(0, broken("a"))  # its new holder answers for it
    assert [type(event) for event in leases.take_events()] == []
    leases.report(1, ended("a"))
    assert leases.take_events() == [ended("a")]


def test_a_queue_that_was_away_gives_slots_the_time_to_be_heard(make_leases, clock):
    leases = make_leases("a")
    leases.lease(0, "p")
    clock.now = 10 * LEASE_SECONDS  # the machine of the queue was asleep; beats are in the mail
    assert leases.poll(drain=False).condemned == []
    polled, condemned_at = [], None
    while condemned_at is None:
        clock.now += 1
        polled.append(leases.poll(drain=False).condemned)
        condemned_at = clock.now if polled[-1] else None
    assert condemned_at - 10 * LEASE_SECONDS == pytest.approx(LEASE_SECONDS + 1)


def test_a_late_word_of_a_dead_process_does_not_end_the_new_ones_lease(make_leases, clock):
    leases = make_leases("a")
    leases.lease(0, "p")
    assert leases.lease(0, "q") == "wait"  # p is dead, and its order backs off
    clock.now += 60
    assert leases.lease(0, "q").trial_id == "a"
    leases.take_events()
    leases.report(0, broken("a"), "p")
    leases.report(0, says("a"), "p")
    assert leases.take_events() == []
    assert not leases.beat(0, "q", "a")
    leases.report(0, ended("a"), "q")
    assert leases.take_events() == [ended("a")]


def test_a_slot_that_dies_again_and_again_before_it_asks_cannot_start(make_leases):
    leases = make_leases("a", "b")
    for _ in range(3 * BARREN_DEATHS):  # with an order, or after one, it is no sign of that
        leases.lease(0, "p")
        leases.died(0, "its worker died")
    assert leases.poll(drain=False).barren == ""
    leases = make_leases("a", "b")
    for _ in range(BARREN_DEATHS - 1):
        leases.died(1, "no module named x")
    assert leases.poll(drain=False).barren == ""
    leases.died(1, "no module named x")
    assert leases.poll(drain=False).barren == "no module named x"


def test_one_node_where_nothing_starts_does_not_end_what_runs_elsewhere(make_leases):
    leases = make_leases("a", "b")
    leases.lease(0, "p")
    for _ in range(3 * BARREN_DEATHS):
        leases.died(1, "no module named x")
    assert leases.poll(drain=False).barren == ""


def test_a_process_that_is_to_be_killed_gets_no_other_order(make_leases, clock):
    leases = make_leases("a", "b", rules=Rules(stalled_after=10.0))
    leases.lease(0, "p")
    clock.now = 11.0
    assert leases.look() == [0]
    assert leases.lease(0, "p") == "leave"
    assert leases.lease(0, "q").trial_id == "b"


def test_one_that_beats_but_makes_no_step_is_taken_to_hang(make_leases, clock):
    leases = make_leases("a", rules=Rules(stalled_after=300.0))
    leases.lease(0, "p")
    for _ in range(6):
        clock.now += 50
        leases.beat(0, "p", "a")
        assert leases.look() == []
    leases.report(0, Waiting("a", "no room"))  # alive, though it makes no step
    clock.now += 100
    leases.beat(0, "p", "a")
    assert leases.look() == []
    for _ in range(3):
        clock.now += 100
        leases.beat(0, "p", "a")
    assert leases.look() == [0]
    waiting, retry = leases.take_events()
    assert waiting == Waiting("a", "no room")
    assert "no step for 400 s" in retry.failure.message


def test_a_trial_over_its_time_ends_for_good_and_its_process_is_killed(make_leases, clock):
    leases = make_leases("a", "b", rules=Rules(time_limit=100.0))
    leases.lease(0, "p")
    clock.now = 60
    leases.died(0, "its node is gone")
    clock.now = 1000
    assert leases.lease(0, "q").trial_id == "b"
    assert leases.lease(1, "p").trial_id == "a"
    clock.now = 1041
    leases.take_events()
    assert leases.look() == [1]
    [failure] = leases.take_events()
    assert (failure.trial_id, failure.kind, failure.error) == ("a", "lost", "TimeLimit")
    assert failure.message == "ran longer than --time-limit, before its first epoch ended"
    assert leases.lease(1, "q") == "wait"
    assert leases.take_events() == []


def test_the_limit_counts_what_ran_before_a_preemption(make_leases, clock):
    leases = make_leases("a", rules=Rules(time_limit=100.0))
    leases.lease(0, "p")
    clock.now = 60
    leases.report(0, ended("a", "stopped"))
    leases.lease(1, "p")
    clock.now = 101
    assert leases.look() == [1]
    assert leases.is_done()


def test_steps_are_movement(make_leases, clock):
    leases = make_leases("a", rules=Rules(stalled_after=100.0))
    leases.lease(0, "p")
    for step in range(9):
        clock.now += 90
        leases.report(0, says("a", step))
        leases.beat(0, "p", "a")
        assert leases.look() == []


def test_a_slot_waits_for_what_only_backs_off(make_leases, clock):
    leases = make_leases("a")
    leases.lease(0, "p")
    leases.died(0, "its node is gone")
    assert leases.lease(1, "p") == "wait"
    clock.now += 1.5
    assert leases.lease(1, "p").trial_id == "a"


def test_a_dead_process_keeps_no_lease_alive(make_leases, clock):
    leases = make_leases("a")
    leases.lease(0, "p")
    leases.lease(0, "q")
    clock.now += 1.5
    assert leases.lease(0, "q").trial_id == "a"  # the same slot and trial, another process
    clock.now += LEASE_SECONDS + 1
    assert leases.beat(0, "p", "a")
    assert leases.look() == [0]


def test_a_sweep_that_drains_is_not_halted(make_leases):
    leases = make_leases(*map(str, range(10)))
    for slot in range(10):
        leases.lease(slot, "p")
    leases.drain()
    for slot in range(10):
        leases.report(slot, broken(str(slot), "invalid"))
    assert [type(event) for event in leases.take_events()] == [Failure] * 10


def test_ten_alike_halt_the_sweep_and_let_what_runs_stop(make_leases):
    leases = make_leases(*(f"t{i}" for i in range(20)))
    leases.lease(0, "p")
    for i in range(1, 11):
        leases.lease(1, str(i))
        leases.report(1, broken(f"t{i}", "invalid"))
    *failures, halt = leases.take_events()
    assert [type(event) for event in failures] == [Failure] * 10
    assert halt == Halt(broken("t10", "invalid"), 10)
    assert leases.lease(1, "new") == "leave"
    assert leases.beat(0, "p", "t0")
    assert not leases.is_done()
    leases.report(0, ended("t0", "stopped"))
    assert leases.is_done()


@pytest.mark.parametrize("between", [ended("x", "diverged"), broken("x", "invalid", "another bug")])
def test_nine_alike_halt_nothing_where_another_end_is_between(make_leases, between):
    trials = [*(f"t{i}" for i in range(9)), "x", *(f"u{i}" for i in range(9)), "last"]
    leases = make_leases(*trials)
    for trial in trials[:-1]:
        leases.lease(0, "p")
        leases.report(0, between if trial == "x" else broken(trial, "invalid"))
    assert not [event for event in leases.take_events() if isinstance(event, Halt)]
    assert leases.lease(0, "p").trial_id == "last"


# --- shares ---------------------------------------------------------------------------------


def shaped(**counts):
    return [order(f"{shape}{i}", shape) for shape, n in counts.items() for i in range(n)]


def test_a_slot_is_given_orders_of_its_size_and_leaves_for_others(make_leases):
    leases = make_leases(
        *shaped(a=2, b=2), rules=Rules(packed={"a": {"": 4}, "b": {"": 1}}), has_gpus=True
    )
    assert leases.demands() == [Demand((Share("", 4),), 2), Demand((Share("", 1),), 2)]
    assert leases.lease(0, "p", 1).trial_id == "b0"
    assert leases.lease(1, "p", 2) == "leave"
    assert leases.lease(2, "p", 4).trial_id == "a0"
    polled = leases.poll(drain=False)
    assert polled.demands == [Demand((Share("", 4),), 1), Demand((Share("", 1),), 1)]
    assert polled.running == {Share("", 4): 1, Share("", 1): 1}


def test_a_last_order_for_a_smaller_share_takes_the_slot_that_there_is(make_leases):
    leases = make_leases(*shaped(a=1), rules=Rules(packed={"a": {"": 4}}), has_gpus=True)
    assert leases.lease(0, "p", 1).per_gpu == 1


def test_without_gpus_every_slot_fits_every_order(make_leases):
    leases = make_leases(*shaped(a=1, b=1), rules=Rules(packed={"a": {"": 4}}))
    assert leases.demands() == [Demand((Share("", 1),), 2)]
    assert [leases.lease(slot, "p").shape for slot in (0, 1)] == ["a", "b"]


def test_a_first_epoch_shows_how_many_may_share(make_leases):
    leases = make_leases(*shaped(a=9), has_gpus=True)
    leases.lease(0, "p", 1)
    leases.report(0, says("a0", 5, 0.9, 8 * GIB, 80 * GIB))
    assert [type(event) for event in leases.take_events()] == [Progress]
    leases.report(0, says("a0", 6, 1.0, 8 * GIB, 80 * GIB))
    assert leases.take_events()[1] == Packed("a", 4, "measured", 8 * GIB, 80 * GIB, "a0")
    assert leases.demands() == [Demand((Share("", 4),), 8)]


def test_too_little_memory_sends_the_shape_to_larger_shares_and_is_final_on_a_whole_gpu(
    make_leases,
):
    leases = make_leases(
        *shaped(a=2, b=1), rules=Rules(packed={"a": {"": 4}, "b": {"": 4}}), has_gpus=True
    )
    seen = []
    for slot, per_gpu in enumerate([4, 2, 1]):
        trial = leases.lease(slot, "p", per_gpu).trial_id
        leases.report(slot, broken(trial, "oom"))
        seen += [(type(e), getattr(e, "per_gpu", None)) for e in leases.take_events()]
        assert (Share("", max(per_gpu // 2, 1)),) in {demand.shares for demand in leases.demands()}
    assert seen == [(Packed, 2), (Retry, None), (Packed, 1), (Retry, None), (Failure, None)]
    assert leases.lease(9, "p", 4).trial_id == "b0"


def test_on_a_processor_too_little_gpu_memory_cannot_be_cured_by_a_share(make_leases):
    leases = make_leases("a", rules=Rules(packed={"a": {"": 4}}))
    leases.lease(0, "p")
    leases.report(0, broken("a", "oom"))
    assert leases.take_events() == [broken("a", "oom")]


# --- kinds of GPUs --------------------------------------------------------------------------

TWO_KINDS = {"small": Site("host1", "A"), "large": Site("host2", "B")}


def test_shapes_are_packed_by_the_kind_of_gpu(make_leases):
    leases = make_leases(*shaped(a=9), has_gpus=True)
    leases.poll(False, TWO_KINDS)
    assert leases.demands() == [Demand((Share("A", 1), Share("B", 1)), 9)]
    assert leases.lease(0, "p", 1, "small").trial_id == "a0"
    assert leases.lease(1, "p", 1, "large").trial_id == "a1"
    leases.report(0, says("a0", 6, 1.0, 8 * GIB, 24 * GIB))
    leases.report(1, says("a1", 6, 1.0, 8 * GIB, 80 * GIB))
    found = [event for event in leases.take_events() if isinstance(event, Packed)]
    assert [(event.kind, event.per_gpu) for event in found] == [("A", 2), ("B", 4)]
    polled = leases.poll(False)
    assert polled.demands == [Demand((Share("A", 2), Share("B", 4)), 7)]
    assert polled.running == {Share("A", 1): 1, Share("B", 1): 1}
    assert polled.kinds == {0: "A", 1: "B"}


def test_too_little_memory_on_a_small_gpu_says_nothing_of_a_large_one(make_leases):
    packed = {"a": {"A": 2, "B": 2}}
    leases = make_leases(*shaped(a=9), rules=Rules(packed=packed), has_gpus=True)
    leases.poll(False, TWO_KINDS)
    leases.lease(0, "p", 2, "small")
    leases.report(0, broken("a0", "oom"))
    assert [type(event) for event in leases.take_events()] == [Packed, Retry]
    assert leases.demands() == [Demand((Share("A", 1), Share("B", 2)), 9)]


def test_what_is_too_large_for_a_whole_gpu_goes_to_a_larger_kind_before_it_fails(make_leases):
    leases = make_leases(*shaped(a=2), has_gpus=True)
    leases.poll(False, TWO_KINDS)
    leases.lease(0, "p", 1, "small")
    leases.report(0, says("a0", 1, 0.0, 20 * GIB, 24 * GIB))
    leases.report(0, broken("a0", "oom"))
    packed, retry = leases.take_events()[1:]
    assert (packed.kind, packed.per_gpu, type(retry)) == ("A", 0, Retry)
    assert leases.demands() == [Demand((Share("B", 1),), 2)]
    assert leases.lease(0, "q", 1, "small") == "leave"  # in the way of none, but of no use
    assert leases.lease(1, "p", 1, "large").trial_id == "a1"
    assert leases.lease(2, "p", 1, "large").trial_id == "a0"
    leases.report(2, broken("a0", "oom"))
    assert leases.take_events() == [broken("a0", "oom")]


def test_it_does_not_go_to_a_kind_that_is_known_to_have_no_more_memory(make_leases):
    leases = make_leases(*shaped(b=1, a=1), has_gpus=True)
    leases.poll(False, TWO_KINDS)
    leases.lease(0, "p", 1, "small")
    leases.report(0, says("b0", 1, 0.0, 20 * GIB, 24 * GIB))
    leases.lease(1, "p", 1, "large")
    leases.report(1, says("a0", 1, 0.0, 20 * GIB, 80 * GIB))
    leases.take_events()
    leases.report(1, broken("a0", "oom"))
    assert leases.take_events() == [broken("a0", "oom")]


def test_a_kind_whose_nodes_are_gone_is_waited_for(make_leases):
    leases = make_leases(*shaped(a=1), rules=Rules(packed={"a": {"A": 0, "B": 1}}), has_gpus=True)
    leases.poll(False, TWO_KINDS)
    leases.poll(False, {"small": TWO_KINDS["small"]})
    assert leases.demands() == [Demand((Share("B", 1),), 1)]
    assert leases.lease(0, "p", 1, "small") == "leave"
    leases.poll(False, {"new": TWO_KINDS["large"]})
    assert leases.lease(1, "p", 1, "new").trial_id == "a0"


def events_of(polled, kind):
    return [event for event in polled.events if isinstance(event, kind)]


@pytest.fixture
def large_is_gone(make_leases, clock):
    """One that needs a large GPU, one that any fits, and nodes with large ones have gone."""

    def make(**settings):
        rules = Rules(packed={"a": {"A": 0, "B": 1}, "b": {"A": 1}})
        leases = Leases(shaped(a=2, b=1), rules, True, clock, **settings)
        leases.poll(False, TWO_KINDS)
        polled = leases.poll(False, {"small": TWO_KINDS["small"]})
        assert (events_of(polled, Stranded), polled.stranded) == ([], "")
        return leases

    return make


def test_what_waits_for_a_kind_that_is_gone_is_told_once_and_ends_the_launch_at_last(
    large_is_gone, clock
):
    leases = large_is_gone()
    clock.now += GONE_SECONDS - 1
    assert leases.poll(False).events == []
    clock.now += 1
    polled = leases.poll(False)
    assert events_of(polled, Stranded) == [Stranded(("B",), ("a",), 2)]
    assert "2 trials wait for a GPU of kind `B`" in str(polled.events[0])
    assert polled.stranded == ""  # another has work
    assert leases.lease(0, "p", 1, "small").trial_id == "b0"
    assert leases.poll(False).stranded == ""
    leases.report(0, ended("b0"))
    polled = leases.poll(False)
    assert events_of(polled, Stranded) == []
    assert polled.stranded == str(Stranded(("B",), ("a",), 2))
    assert not polled.is_done


def test_kinds_that_are_gone_are_waited_for_all_at_once(clock):
    rules = Rules(packed={"a": {"A": 0, "B": 1, "C": 1, "D": 1}})
    sites = {kind: Site("host", kind) for kind in "ABCD"}
    leases = Leases(shaped(a=1), rules, True, clock)
    leases.poll(False, sites)
    assert leases.poll(False, {"A": sites["A"]}).stranded == ""
    clock.now += GONE_SECONDS
    assert "of kind `B`, `C`, `D`, which no node has" in leases.poll(False).stranded


@pytest.mark.parametrize("has_gpus", [True, False])
def test_where_kinds_have_no_name_and_all_nodes_are_gone_it_does_not_wait_in_silence(
    clock, has_gpus
):
    leases = Leases(shaped(a=2), RULES, has_gpus, clock)
    leases.poll(False, {"x": Site("host")})
    for _ in range(2):  # the second time for one that came and went
        assert leases.poll(False, {}).stranded == ""
        clock.now += GONE_SECONDS - 1
        assert leases.poll(False).events == []
        leases.poll(False, {"y": Site("host")})
    assert leases.poll(False, {}).stranded == ""
    clock.now += GONE_SECONDS
    polled = leases.poll(False)
    assert events_of(polled, Stranded) == [Stranded(("",), ("a",), 2)]
    assert polled.stranded == (
        "2 trials wait for a node that has room for a slot, and there is none any more: `a`"
    )


def test_a_kind_that_comes_back_is_waited_for_anew(large_is_gone, clock):
    leases = large_is_gone()
    clock.now += GONE_SECONDS
    leases.poll(False)
    leases.poll(False, {"new": TWO_KINDS["large"], "small": TWO_KINDS["small"]})
    assert leases.lease(0, "p", 1, "new").trial_id == "a0"
    leases.died(0, NODE_IS_GONE, "new")
    leases.poll(False, {"small": TWO_KINDS["small"]})
    clock.now += GONE_SECONDS - 1
    assert events_of(leases.poll(False), Stranded) == []
    clock.now += 1
    assert events_of(leases.poll(False), Stranded) == [Stranded(("B",), ("a",), 2)]


def test_in_a_cluster_that_grows_it_is_told_and_waited_for(large_is_gone, clock):
    leases = large_is_gone(grows=True)
    leases.lease(0, "p", 1, "small")
    leases.report(0, ended("b0"))
    clock.now += GONE_SECONDS
    leases.poll(False)
    clock.now += GONE_SECONDS
    polled = leases.poll(False)
    assert polled.stranded == ""
    assert not polled.is_done


def test_a_slot_on_a_node_that_is_not_counted_yet_waits(make_leases):
    leases = make_leases(*shaped(a=1), has_gpus=True)
    leases.poll(False, {"small": TWO_KINDS["small"]})
    assert leases.lease(0, "p", 1, "large") == "wait"
    leases.poll(False, TWO_KINDS)
    assert leases.lease(0, "p", 1, "large").trial_id == "a0"


# --- nodes ----------------------------------------------------------------------------------

NODES = {node: Site(f"host of {node}") for node in ("x", "y")}


@pytest.fixture
def two_nodes(make_leases):
    def make(*trials, **settings):
        leases = make_leases(*trials, **settings)
        leases.poll(False, NODES)
        return leases

    return make


def test_what_failed_on_a_node_is_run_again_on_another(two_nodes):
    leases = two_nodes("a", "b")
    leases.lease(0, "p", 1, "x")
    leases.lease(1, "p", 1, "y")
    leases.report(0, broken("a"))
    assert leases.lease(0, "q", 1, "x") == "wait"
    leases.report(1, ended("b"))
    assert leases.lease(1, "p", 1, "y").trial_id == "a"


def test_it_is_run_on_the_same_node_where_no_other_answers(two_nodes, clock):
    leases = two_nodes("a", "b")
    leases.lease(0, "p", 1, "x")
    leases.report(0, broken("a"))
    leases.lease(1, "p", 1, "y")
    leases.died(1, NODE_IS_GONE, "y")
    assert leases.lease(0, "q", 1, "x") == "wait"
    leases.poll(False, {"x": NODES["x"]})
    assert leases.lease(0, "q", 1, "x").trial_id == "a"


def test_a_node_without_a_slot_that_answers_is_waited_for_a_while(two_nodes, clock):
    leases = two_nodes("a")
    assert leases.lease(0, "p", 1, "x").trial_id == "a"
    assert leases.lease(1, "p", 1, "y") == "wait"
    leases.report(0, broken("a"))
    clock.now += max(SILENT_SECONDS, ELSEWHERE_SECONDS) - 0.1
    assert leases.lease(0, "q", 1, "x") == "wait"
    clock.now += 0.1
    assert leases.lease(0, "q", 1, "x").trial_id == "a"


def test_where_no_slot_answers_that_is_never_longer(two_nodes, clock):
    leases = two_nodes("a")
    for process in range(BUDGETS["storage"] + 1):
        assert leases.lease(0, f"{process}", 1, "x").trial_id == "a"
        leases.report(0, broken("a", "storage"))
        *_, event = leases.take_events()
        clock.now += getattr(event, "delay", 0.0) + ELSEWHERE_SECONDS + 0.001
    assert event == broken("a", "storage")


def test_a_slot_of_another_size_elsewhere_is_waited_for_a_while(two_nodes, clock):
    rules = Rules(packed={"a": {"": 2}, "b": {"": 4}})
    leases = two_nodes(*shaped(a=1, b=1), rules=rules, has_gpus=True)
    leases.lease(0, "p", 2, "x")
    leases.lease(1, "p", 4, "y")
    leases.report(0, broken("a0"))
    assert leases.lease(0, "q", 2, "x") == "wait"
    clock.now += ELSEWHERE_SECONDS
    leases.beat(1, "p", "b0")
    assert leases.lease(0, "q", 2, "x").trial_id == "a0"


def test_a_busy_slot_elsewhere_is_waited_for_a_while_and_twice_as_long_each_time(two_nodes, clock):
    leases = two_nodes("a", "b")
    leases.lease(1, "p", 1, "y")
    for n_failed in range(6):
        before = clock.now
        while leases.lease(0, f"{n_failed}", 1, "x") == "wait":
            clock.now += 1
            leases.beat(1, "p", "a")
            assert clock.now - before < LONGEST_REST
        waited = ELSEWHERE_SECONDS * 2 ** (n_failed - 1) if n_failed else 0
        assert clock.now - before == pytest.approx(waited, abs=1)
        leases.report(0, broken("b"))
    leases.report(1, ended("a"))  # it was not known yet whether x is sound: no failure has counted
    assert leases.lease(1, "p", 1, "y").trial_id == "b"


def test_a_node_on_which_it_can_never_run_is_not_waited_for(make_leases, clock):
    packed = {"a": {"A": 0, "B": 1}, "b": {"A": 1, "B": 0}}
    leases = make_leases(*shaped(a=1, b=1), rules=Rules(packed=packed), has_gpus=True)
    leases.poll(False, TWO_KINDS)
    assert leases.lease(1, "p", 1, "small").trial_id == "b0"
    for process in range(BUDGETS["storage"] + 1):
        assert leases.lease(0, str(process), 1, "large").trial_id == "a0"
        leases.report(0, broken("a0", "storage"))
        *_, event = leases.take_events()
        clock.now += getattr(event, "delay", 0.0) + 0.001
    assert event == broken("a0", "storage")


def test_one_that_is_about_to_ask_elsewhere_is_waited_for_however_late(two_nodes, clock):
    leases = two_nodes("a", "b")
    leases.lease(1, "p", 1, "y")
    fail_on(leases, "x", "b")
    clock.now += 2 * ELSEWHERE_SECONDS
    leases.report(1, ended("a"))
    assert leases.lease(0, "q", 1, "x") == "wait"
    assert leases.lease(1, "p", 1, "y").trial_id == "b"


def test_where_others_failed_too_a_busy_slot_elsewhere_is_waited_for_as_long_as_it_takes(
    two_nodes, clock
):
    leases = two_nodes(*"abc")
    leases.lease(1, "p", 1, "y")
    fail_on(leases, "x", "bc")
    for _ in range(100):
        clock.now += 50
        leases.beat(1, "p", "a")
        assert leases.lease(0, "q", 1, "x") == "wait"
    leases.report(1, ended("a"))
    assert leases.lease(1, "p", 1, "y").trial_id == "b"


def fail_on(leases, node, trials, kind="bug", slot=0):
    for trial in trials:
        assert leases.lease(slot, f"of {trial}", 1, node).trial_id == trial
        leases.report(slot, broken(trial, kind))


def go_well_on(leases, node, trials, slot=1):
    found = set()
    for _ in trials:
        order = leases.lease(slot, "p", 1, node)
        leases.report(slot, ended(order.trial_id))
        found.add(order.trial_id)
    assert found == set(trials)


def events(leases, kind):
    leases.look()
    return [event for event in leases.take_events() if isinstance(event, kind)]


def test_a_node_that_fails_three_trials_which_go_well_elsewhere_is_avoided_and_named(two_nodes):
    leases = two_nodes(*"abcdefgh")
    leases.lease(1, "p", 1, "y")
    fail_on(leases, "x", "bcd")
    leases.report(1, ended("a"))
    go_well_on(leases, "y", "de")  # d first: it matters how it does elsewhere
    assert events(leases, Avoided) == []
    go_well_on(leases, "y", "fghbc")
    [found] = events(leases, Avoided)
    assert (found.node, found.host) == ("x", "host of x")
    assert set(found.trial_ids) == set("bcd")
    assert found.signature == "a bug"
    assert str(found) == (
        "host of x is avoided: 3 trials failed there and went well elsewhere (a bug)"
    )


def test_an_avoided_node_gets_no_more_orders_and_what_runs_there_may_finish(two_nodes):
    leases = two_nodes(*"abcdefgh")
    leases.lease(1, "p", 1, "y")
    assert leases.lease(5, "p", 1, "x").trial_id == "b"
    fail_on(leases, "x", "cde")
    leases.report(1, ended("a"))
    go_well_on(leases, "y", "efghcd")
    assert events(leases, Avoided)
    polled = leases.poll(False)
    assert (polled.avoided, polled.astray) == ({"x"}, {0, 5})
    assert polled.running == {}  # as far as it counts for those that are to be added
    assert leases.lease(0, "new", 1, "x") == "leave"
    assert not leases.beat(5, "p", "b")
    leases.report(5, ended("b"))
    assert leases.is_done()


def test_a_step_further_than_on_the_node_will_do(two_nodes):
    leases = two_nodes(*"abc")
    for trial in "abc":
        leases.lease(0, trial, 1, "x")
        leases.report(0, says(trial, 5))
        leases.report(0, broken(trial))
    for slot, trial in enumerate("cab", 1):  # c, with which there were three, matters first
        assert leases.lease(slot, "p", 1, "y").trial_id == trial
        leases.report(slot, says(trial, 5))
    assert events(leases, Avoided) == []
    for slot, trial in enumerate("cab", 1):
        leases.report(slot, says(trial, 6))
    assert [event.node for event in events(leases, Avoided)] == ["x"]


@pytest.mark.parametrize("kind", ["oom", "invalid"])
def test_what_is_the_trials_own_fault_is_not_the_nodes(two_nodes, kind):
    packed = {"a": {"": 2}}
    leases = two_nodes(*shaped(a=3, b=3), rules=Rules(packed=packed), has_gpus=True)
    for i in range(3):
        leases.lease(0, str(i), 2, "x")
        leases.report(0, broken(f"a{i}", kind))
    left = [] if kind == "invalid" else ["a0", "a1", "a2"]
    go_well_on(leases, "y", ["b0", "b1", "b2", *left])
    assert events(leases, Avoided) == []


def test_nor_is_a_node_to_blame_that_has_gone(two_nodes, clock):
    leases = two_nodes(*"abc")
    for slot, trial in enumerate("abc"):
        assert leases.lease(slot, "p", 1, "x").trial_id == trial
    for slot in range(3):
        leases.died(slot, NODE_IS_GONE, "x")
    leases.poll(False, {"y": NODES["y"]})
    clock.now += 60
    go_well_on(leases, "y", "abc", slot=9)
    assert events(leases, Avoided) == []


def test_nor_is_one_of_whose_end_is_heard_only_by_its_silence(two_nodes, clock):
    leases = two_nodes(*"abc")
    for slot in range(TRIALS):
        leases.lease(slot, "p", 1, "x")
    leases.poll(False, {"y": Site("y"), "z": Site("z")})
    clock.now += LEASE_SECONDS + 1
    leases.look()
    clock.now += ELSEWHERE_SECONDS
    go_well_on(leases, "y", "abc", slot=9)
    leases.look()
    assert events(leases, Avoided) == []


def test_the_last_node_is_never_avoided(two_nodes):
    leases = two_nodes(*"abc")
    fail_on(leases, "x", "abc")
    go_well_on(leases, "y", "abc")
    leases.poll(False, {"x": NODES["x"]})  # in the same moment y has gone
    assert leases.poll(False).avoided == set()
    leases.poll(False, NODES)
    assert leases.poll(False).avoided == {"x"}


def test_what_most_nodes_fail_in_is_no_nodes_fault(make_leases):
    """As when the disk that they share is away for a while."""
    leases = make_leases(*"abcdefghi")
    leases.poll(False, {node: Site(node) for node in "xyz"})
    for slot, trial in enumerate("abcdefghi"):
        assert leases.lease(slot, "p", 1, "xyz"[slot % 3]).trial_id == trial
    for slot, trial in enumerate("abcdefghi"):
        leases.report(slot, broken(trial))
    for _ in range(3):
        found = [(slot, leases.lease(slot, "well", 1, "xyz"[slot])) for slot in (2, 0, 1)]
        for slot, again in found:
            leases.report(slot, ended(again.trial_id))
    assert leases.is_done()
    assert events(leases, Avoided) == []


def test_a_node_that_completes_as_many_is_not_avoided(two_nodes):
    leases = two_nodes(*"abcdef")
    fail_on(leases, "x", "abc")
    go_well_on(leases, "x", "def", slot=5)
    go_well_on(leases, "y", "abc")
    assert events(leases, Avoided) == []


def test_what_was_used_up_on_an_avoided_node_is_given_back(two_nodes):
    leases = two_nodes(*"zabcd")
    assert leases.lease(9, "p", 1, "y").trial_id == "z"
    for slot, trial in enumerate("abcd"):
        assert leases.lease(slot, "p", 1, "x").trial_id == trial
    for slot, trial in enumerate("abcd"):
        leases.report(slot, broken(trial))
    leases.report(9, ended("z"))  # y is sound
    for slot, trial in enumerate("cdab"):
        assert leases.lease(slot, "q", 1, "y").trial_id == trial
    for slot, trial in enumerate("cda"):
        leases.report(slot, ended(trial))
    assert events(leases, Avoided)
    leases.report(3, broken("b"))  # a second bug, if the first had counted
    assert [type(event) for event in leases.take_events()] == [Retry]


@pytest.fixture
def resting(two_nodes, clock):
    """What a node leaves that failed three trials, while the other is busy with a long one."""
    leases = two_nodes(*"abcdefghijkl")
    leases.lease(1, "p", 1, "y")
    fail_on(leases, "x", "bcd")
    return leases


def test_a_suspect_gets_what_has_not_failed_yet_only_now_and_then(resting, clock):
    """Each time after twice as long, one at a time, while another is to show who is to blame."""
    for n, trial in enumerate("efgh"):
        before = clock.now
        while (found := resting.lease(0, "q", 1, "x")) == "wait":
            assert resting.lease(2, "q", 1, "x") == "wait"
            clock.now += 1
            resting.beat(1, "p", "a")
            assert clock.now - before < LONGEST_REST
        assert found.trial_id == trial
        assert clock.now - before == pytest.approx(ELSEWHERE_SECONDS * 2**n, abs=1)
        resting.report(0, broken(trial))
    assert [type(event) for event in resting.take_events()] == [Retry] * 7


def test_a_suspect_that_completes_what_it_is_given_rests_no_more(resting, clock):
    assert resting.lease(0, "q", 1, "x") == "wait"
    clock.now += ELSEWHERE_SECONDS
    resting.report(0, ended(resting.lease(0, "q", 1, "x").trial_id))
    assert isinstance(resting.lease(0, "q", 1, "x"), Order)


def test_a_suspect_does_not_rest_from_what_no_other_node_can_run(make_leases, clock):
    packed = {"a": {"A": 0, "B": 1}, "b": {"A": 1, "B": 1}}
    leases = make_leases(*shaped(b=9, a=2), rules=Rules(packed=packed), has_gpus=True)
    leases.poll(False, TWO_KINDS)
    leases.lease(1, "p", 1, "small")
    fail_on(leases, "large", [f"b{i}" for i in range(1, TRIALS + 1)])
    for slot in (0, 2):
        assert leases.lease(slot, "q", 1, "large").shape == "a"
    clock.now += ELSEWHERE_SECONDS - 1  # which does not make it rest longer from the others
    assert leases.lease(3, "q", 1, "large") == "wait"
    clock.now += 1
    assert leases.lease(3, "q", 1, "large").trial_id == "b4"


def test_a_slot_makes_no_room_for_one_that_would_find_nothing_there_either(make_leases, clock):
    """Else the driver asks for another slot, which leaves for the first, and so on."""
    rules = Rules(packed={"a": {"": 4}, "b": {"": 2}})
    leases = make_leases(*shaped(a=9, b=9), rules=rules, has_gpus=True)
    leases.poll(False, {node: Site(node) for node in "xy"})
    leases.lease(1, "p", 4, "y")
    for i in range(TRIALS):
        leases.report(0, broken(leases.lease(0, str(i), 4, "x").trial_id))
    assert leases.lease(0, "q", 4, "x") == leases.lease(2, "q", 2, "x") == "wait"
    assert leases.lease(3, "q", 1, "x") == "wait"
    assert leases.lease(4, "q", 1, "y") == "leave"  # where one of another size is of use


def test_a_suspect_rests_no_more_where_no_other_can_show_anything(resting):
    resting.report(1, broken("a"))  # y is doubtful, too
    assert isinstance(resting.lease(0, "q", 1, "x"), Order)


def test_failures_on_nodes_not_known_to_be_sound_do_not_count_while_another_may_try(make_leases):
    leases = make_leases("z", "a", "b")
    leases.poll(False, {node: Site(node) for node in "xyz"})
    leases.lease(2, "p", 1, "z")
    fail_on(leases, "x", "a")
    fail_on(leases, "y", "b")
    assert leases.lease(0, "q", 1, "x") == leases.lease(1, "q", 1, "y") == "wait"
    leases.report(2, broken("z"))  # now there is none
    assert leases.lease(1, "q", 1, "y").trial_id == "a"
    leases.report(1, broken("a"))
    assert leases.take_events()[-1] == broken("a")


def test_where_new_nodes_come_and_go_a_bug_is_not_tried_again_for_ever(make_leases):
    """On one of which nothing is known each time, while another is busy with a long trial."""
    leases = make_leases("long", "a")
    leases.lease(99, "p", 1, "other")
    again = []
    for i in range(MOST_EXCUSED + 1):
        again += leases.poll(False, {"other": Site("host"), f"x{i}": Site("host")}).events
        assert leases.lease(i, "p", 1, f"x{i}").trial_id == "a"
        leases.report(i, broken("a"))
    assert [type(event) for event in again] == [Retry] * MOST_EXCUSED
    assert leases.take_events() == [broken("a")]


def test_a_trial_that_loses_its_nodes_has_a_budget_wherever_it_may_be_tried(make_leases, clock):
    leases = make_leases("a", "b")
    leases.lease(99, "p", 1, "other")
    for i in range(BUDGETS["lost"] + 1):
        clock.now += 1e4
        assert leases.lease(i, "p", 1, f"x{i}").trial_id == "b"
        leases.died(i, NODE_IS_GONE, f"x{i}")
    *again, failure = leases.take_events()
    assert [type(event) for event in again] == [Retry] * BUDGETS["lost"]
    assert (type(failure), failure.trial_id) == (Failure, "b")


# --- nodes where nothing starts -------------------------------------------------------------


def test_a_node_with_other_code_is_avoided_at_once_and_costs_no_trial_anything(two_nodes):
    leases = two_nodes("a")
    leases.unfit("x", "sweeper is 0.1.0 there, and 0.2.0 where the driver runs")
    polled = leases.poll(False)
    assert [str(event) for event in polled.events] == [
        "host of x is avoided: sweeper is 0.1.0 there, and 0.2.0 where the driver runs"
    ]
    assert polled.barren == ""
    leases.unfit("x", "again")
    assert leases.poll(False).events == []
    assert leases.lease(0, "p", 1, "x") == "leave"
    assert leases.lease(1, "p", 1, "y").trial_id == "a"


def without_data(trial: str) -> Failure:
    return Failure.of(trial, DataError("data.name", "`cifar10` is not in `/data`"))


def test_a_node_without_the_data_is_avoided_and_costs_no_trial_anything(two_nodes):
    leases = two_nodes("a")
    assert leases.lease(0, "p", 1, "x").trial_id == "a"
    leases.report(0, without_data("a"))
    retry, avoided = leases.poll(False).events
    assert isinstance(retry, Retry)
    assert isinstance(avoided, Avoided)
    assert "`cifar10` is not in `/data`" in avoided.reason
    assert leases.lease(0, "q", 1, "x") == "leave"
    assert leases.lease(1, "p", 1, "y").trial_id == "a"
    leases.report(1, broken("a"))  # has the budget of a first failure
    assert [type(event) for event in leases.take_events()] == [Retry]


def test_when_the_data_is_nowhere_it_says_so_and_no_trial_has_failed(two_nodes):
    leases = two_nodes("a")
    for slot, node in enumerate("xy"):
        leases.lease(slot, "p", 1, node)
        leases.report(slot, without_data("a"))
    found = leases.poll(False)
    assert "`cifar10` is not in `/data`" in found.barren
    assert not any(isinstance(event, Failure) for event in found.events)


def test_a_kind_that_is_avoided_everywhere_is_not_waited_for(make_leases):
    leases = make_leases(*shaped(a=1), rules=Rules(packed={"a": {"A": 0, "B": 1}}), has_gpus=True)
    leases.poll(False, TWO_KINDS)
    leases.unfit("large", "other code")
    leases.poll(False, TWO_KINDS)
    assert leases.lease(0, "p", 1, "small").trial_id == "a0"  # and if it fails, then for good
    leases.report(0, Failure("a0", "oom", "OutOfMemoryError", "CUDA out of memory"))
    assert isinstance(leases.take_events()[-1], Failure)


def test_when_no_node_is_fit_it_says_why_as_soon_as_nothing_runs(two_nodes):
    leases = two_nodes("a", "b")
    leases.lease(0, "p", 1, "x")
    leases.unfit("x", "other code")
    leases.unfit("y", "no sweeper")
    assert leases.poll(False).barren == ""
    leases.report(0, ended("a"))
    assert "no sweeper" in leases.poll(False).barren
    assert leases.poll(False, {**NODES, "z": Site("another")}).barren == ""


def test_a_node_where_slots_die_before_they_ask_is_avoided(two_nodes):
    leases = two_nodes("a", "b")
    leases.lease(1, "p", 1, "y")
    for slot in range(2, 2 + BARREN_DEATHS):
        assert events(leases, Avoided) == []
        leases.died(slot, "no module named sweeper", "x")
    [found] = events(leases, Avoided)
    assert (found.node, found.reason, found.trial_ids) == ("x", "no module named sweeper", ())
    assert leases.poll(False).barren == ""


def test_a_node_where_slots_die_at_their_work_is_not(two_nodes):
    leases = two_nodes("a", "b")
    for process in range(3 * BARREN_DEATHS):
        leases.lease(0, str(process), 1, "x")
        leases.died(0, "its worker died", "x")
    assert events(leases, Avoided) == []


# --- ten thousand ---------------------------------------------------------------------------


def test_what_has_ended_leaves_nothing_behind(make_leases, clock):
    """Whether it completed, at once or after a failure, failed, or took too long."""
    leases = make_leases(*(f"t{i}" for i in range(10_000)), rules=Rules(time_limit=1e3))
    n_ended, seen, process = 0, set(), "p"
    while isinstance(found := leases.lease(0, process), Order):
        clock.now += 1
        trial = found.trial_id
        leases.report(0, says(trial))
        if trial.endswith("7"):
            leases.report(0, broken(trial, signature=trial))  # once more, then for good
        elif trial.endswith("8") and trial not in seen:
            leases.report(0, broken(trial))
        elif trial.endswith("9"):
            clock.now += 2e3
            process = trial  # the one before is killed
        else:
            leases.report(0, ended(trial))
        seen.add(trial)
        leases.look()
        n_ended += sum(map(is_end, leases.take_events()))
    assert n_ended == 10_000
    assert leases.is_done()
    assert kept(leases) < 80


def kept(thing, seen=None):
    """How many entries all containers of our own objects have, one below another."""
    seen = set() if seen is None else seen
    if id(thing) in seen:
        return 0
    seen.add(id(thing))
    if isinstance(thing, (dict, list, set, deque)):
        values = thing.values() if isinstance(thing, dict) else thing
        return len(thing) + sum(kept(value, seen) for value in values)
    if type(thing).__module__.startswith("sweeper.schedule"):
        return kept(vars(thing), seen)
    return 0
