from collections import Counter

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

from sweeper.attempt import Order, Outcome, Progress
from sweeper.schedule.executor import Failure, Lost
from sweeper.schedule.leases import Leases
from sweeper.schedule.retry import LOST_BUDGET

SLOTS = st.integers(0, 2)


def order(trial):
    return Order(trial, {}, "runs/x")


def ended(trial, state="complete"):
    return Outcome(trial, 1, state, 1.0)


def broken(trial):
    return Failure(trial, "bug", "RuntimeError", "a bug")


def is_end(event):
    return isinstance(event, (Outcome, Failure))


class Sweep(RuleBasedStateMachine):
    """Slots that lease, report, die and report late, against a book of who holds what."""

    held = Bundle("held")  # (slot, trial) as each slot's process believes, dead ones too

    @initialize(n_orders=st.integers(0, 4))
    def start(self, n_orders):
        self.trials = [f"t{i}" for i in range(n_orders)]
        self.leases = Leases([order(trial) for trial in self.trials])
        self.holder = {}  # slot: trial, of processes that live
        self.deaths, self.events = Counter(), []
        self.is_drained = False

    def collect(self):
        new = self.leases.take_events()
        self.events += new
        return new

    @rule(target=held, slot=SLOTS)
    def ask(self, slot):
        """By a process that holds nothing: a new one, or one that has reported."""
        lost = self.holder.pop(slot, None)
        answer = self.leases.lease(slot)
        new = self.collect()
        if lost is not None:
            self.deaths[lost] += 1
            is_over = self.deaths[lost] > LOST_BUDGET
            assert [type(event) for event in new] == [Failure if is_over else Lost]
            assert new[0].trial_id == lost
        else:
            assert new == []
        if not isinstance(answer, Order):
            if answer == "wait":
                assert self.holder
                assert not self.is_drained
            else:
                assert self.is_drained or not self.holder
            return multiple()
        assert not self.is_drained
        assert answer.trial_id not in self.holder.values()
        assert answer.trial_id not in self.ends()
        self.holder[slot] = answer.trial_id
        return slot, answer.trial_id

    @rule(one=held, is_failure=st.booleans())
    def report_end(self, one, is_failure):
        """By the holder, or late, by a process that was taken for dead or has reported before."""
        slot, trial = one
        is_holder = self.holder.get(slot) == trial
        had_ended, others = trial in self.ends(), dict(self.holder)
        self.leases.report(slot, broken(trial) if is_failure else ended(trial))
        new = self.collect()
        if is_holder:
            del self.holder[slot]
            assert len(new) == 1
        elif had_ended or trial in others.values():
            assert new == []  # too late, or another process answers for it
        else:
            assert len(new) == 1  # it waits to be run again, and need not be

    @rule(one=held)
    def report_progress(self, one):
        slot, trial = one
        self.leases.report(slot, Progress(trial, 1, 5, 9, "host", "cpu"))
        assert [type(event) for event in self.collect()] == [Progress]

    @precondition(lambda self: not self.is_drained)
    @rule(really=st.sampled_from([True] + 9 * [False]))
    def drain(self, really):
        if really:
            self.leases.drain()
            self.is_drained = True
        assert self.leases.is_draining() == self.is_drained

    def ends(self):
        return {event.trial_id for event in self.events if is_end(event)}

    @invariant()
    def no_order_ends_twice(self):
        ends = Counter(event.trial_id for event in self.events if is_end(event))
        assert all(n == 1 for n in ends.values())

    def teardown(self):
        """Whatever happened, slots that go on finish every order, unless drained."""
        if not hasattr(self, "leases"):
            return
        for slot, trial in list(self.holder.items()):
            self.leases.report(slot, ended(trial, "stopped" if self.is_drained else "complete"))
        for _ in self.trials:
            answer = self.leases.lease(7)
            if isinstance(answer, Order):
                self.leases.report(7, ended(answer.trial_id))
        assert self.leases.lease(7) == "leave"
        self.collect()
        self.no_order_ends_twice()
        if not self.is_drained:
            assert self.ends() == set(self.trials)


Sweep.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestEveryOrderEndsOnce = Sweep.TestCase


def test_orders_are_leased_in_their_order_and_lost_ones_come_back_last():
    leases = Leases([order(trial) for trial in ("a", "b", "c")])
    assert [leases.lease(slot).trial_id for slot in (0, 1)] == ["a", "b"]
    assert leases.lease(0).trial_id == "c"  # slot 0 died with a
    assert leases.take_events() == [Lost("a")]
    leases.report(0, ended("c"))
    assert leases.lease(0).trial_id == "a"


def test_slots_without_work_wait_while_others_may_die():
    leases = Leases([order("a")])
    leases.lease(0)
    assert leases.lease(1) == "wait"
    leases.report(0, ended("a"))
    assert leases.lease(1) == "leave"


def test_a_worker_may_die_as_often_as_the_budget_says():
    leases = Leases([order("a")])
    for _ in range(LOST_BUDGET + 1):
        assert leases.lease(0).trial_id == "a"
    assert leases.lease(0) == "leave"
    *lost, failure = leases.take_events()
    assert lost == [Lost("a")] * LOST_BUDGET
    assert (failure.trial_id, failure.kind) == ("a", "lost")
    assert f"{LOST_BUDGET + 1} times" in failure.message


@pytest.mark.parametrize("event", [ended("a"), broken("a")], ids=["outcome", "failure"])
def test_a_late_answer_ends_an_order_that_waits_again(event):
    leases = Leases([order("a"), order("b")])
    leases.lease(0)
    leases.lease(0)  # a is lost; slot 0 holds b
    leases.report(0, event)
    assert leases.take_events() == [Lost("a"), event]
    assert leases.lease(1) == "wait"  # b is still held
    leases.report(0, ended("b"))
    assert leases.lease(1) == "leave"


def test_after_a_drain_nothing_is_leased_and_lost_orders_stay_lost():
    leases = Leases([order("a"), order("b")])
    leases.lease(0)
    leases.drain()
    assert leases.is_draining()
    assert leases.lease(1) == "leave"
    assert leases.lease(0) == "leave"  # died instead of checkpointing
    assert leases.take_events() == [Lost("a")]
