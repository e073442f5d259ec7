"""What `launch` refuses on a cluster before anything runs there."""

from __future__ import annotations

import contextlib
import os

import pytest

from sweeper.config import TrialConfig
from sweeper.doctor.demands import check_devices, check_time_limit
from sweeper.doctor.finding import failed, passed, warned
from sweeper.doctor.preflight import Preflight, with_slots
from sweeper.errors import PlanError, SweeperError
from sweeper.grid import Trial
from sweeper.plan import Size, make_plan
from sweeper.work import Rates
from tests.sweeper.doctor.conftest import node


def trial(seed=0, **changes):
    flat = {"data.name": "digits", "model.name": "fc", "optim.name": "sgd", "optim.lr": 0.1}
    config = TrialConfig.from_flat(flat | {"epochs": 10, "seed": seed} | changes)
    return Trial(config.trial_id, config)


def plan_of(*trials, n_steps=100):
    return make_plan(trials, (), lambda _: Size(1, 1, 1, n_steps, 1.0))


@pytest.fixture
def preflight(tmp_path):
    """A preflight of trials whose store is a folder, and what it says."""
    said = []

    def make(*trials, force=False, may_grow=False, threads=1):
        made = plan_of(*(trials or (trial(),)))
        return Preflight(made, str(tmp_path), threads, may_grow, force, said.append)

    make.said = said
    return make


STORE = failed("store", "/x: cannot be written: Read-only file system", "mount it")
ABSENT = failed("data cifar10", "data.name: `cifar10` is not in `/data`", "`sweeper data get`")
SLOW = warned("store", "/x: write 2000.0 ms", "a faster disk")
FINE = passed("clock", "within 1 s")


def test_nodes_that_are_fit_are_launched_on_without_a_word(preflight):
    preflight().judge({"a": [FINE], "b": [FINE]})
    preflight().judge({})
    assert preflight.said == []


def test_an_unfit_node_is_named_with_the_cure_and_what_force_does(preflight):
    with pytest.raises(PlanError) as refused:
        preflight().judge({"a": [FINE], "b": [FINE, ABSENT], "c": [FINE]})
    assert str(refused.value) == "b: data.name: `cifar10` is not in `/data`"
    assert refused.value.hint == "`sweeper data get`; `--force` goes on all the same"
    assert refused.value.exit_code == 2


def test_what_all_nodes_share_is_one_error(preflight):
    with pytest.raises(PlanError) as refused:
        preflight().judge({name: [ABSENT, FINE] for name in "abcd"})
    assert str(refused.value).startswith("all 4 nodes: data.name")


def test_the_store_comes_first_and_is_not_forced(preflight):
    found = {"a": [FINE], "b": [ABSENT, STORE]}
    for force in (True, False):
        with pytest.raises(PlanError) as refused:
            preflight(force=force).judge(found)
        assert str(refused.value) == "b: /x: cannot be written: Read-only file system"
        assert "--force" not in refused.value.hint
        assert "`sweeper doctor GRID --address …` shows this and 1 more" in refused.value.hint


def test_force_turns_the_rest_into_warnings(preflight):
    preflight(force=True).judge({"a": [FINE, SLOW], "b": [ABSENT]})
    assert preflight.said == [
        "warning: a: /x: write 2000.0 ms",
        "warning: b: data.name: `cifar10` is not in `/data`",
    ]


@pytest.mark.parametrize(
    ("nodes", "threads", "expected"),
    [
        ([node("head", 0), node("a", 4)], 1, ["a"]),
        ([node("small", 1), node("a", 4)], 2, ["a"]),
        ([node("cpus", 64), node("gpus", 4, 8)], 1, ["gpus"]),
        ([node("head", 0)], 1, []),
    ],
)
def test_only_nodes_that_slots_can_be_on_have_to_be_fit(nodes, threads, expected):
    assert [one.host for one in with_slots(nodes, threads)] == expected


def test_a_cluster_is_asked_and_the_store_left_as_it_was(preflight, nodes_answer, tmp_path):
    ours = [node("a"), node("bb")]
    nodes_answer(dict.fromkeys(ours, contextlib.nullcontext))
    preflight()(ours)
    assert preflight.said == []
    assert not list(tmp_path.iterdir())


def test_a_cluster_that_has_no_node_for_trials_yet_is_said_to_be_unchecked(preflight, nodes_answer):
    head = node("head", 0)
    nodes_answer({head: contextlib.nullcontext})
    preflight(may_grow=True)([head])
    (said,) = preflight.said
    assert said.startswith("no node for trials yet: ")


def test_a_node_without_the_data_stops_the_launch(
    preflight, nodes_answer, tmp_path_factory, monkeypatch
):
    """The driver has looked before; the head, where no trial runs, needs none."""
    empty = tmp_path_factory.mktemp("empty")

    @contextlib.contextmanager
    def without():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SWEEPER_DATA", str(empty))
            yield

    on_cifar = trial(**{"data.name": "cifar10"})
    head, bad = node("head", 0), node("bad")
    nodes_answer({head: without, bad: without})
    with pytest.raises(PlanError) as refused:
        preflight(on_cifar)([head, bad])
    assert str(refused.value).startswith(f"bad (10.0.0.3): data.name: `cifar10` is not in `{empty}")
    assert "sweeper data get cifar10" in refused.value.hint
    nodes_answer({head: without})
    preflight(on_cifar)([head])


def test_a_read_only_sweep_directory_on_one_node_stops_the_launch(
    preflight, nodes_answer, monkeypatch
):
    from sweeper.store.local import LocalObjects

    @contextlib.contextmanager
    def read_only():
        def refuse(*_):
            raise OSError(30, os.strerror(30))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LocalObjects, "write_parts", refuse)
            yield

    good, bad = node("good"), node("bad")
    nodes_answer({good: contextlib.nullcontext, bad: read_only})
    for force in (False, True):
        with pytest.raises(PlanError, match=r"^bad .*cannot be written: Read-only"):
            preflight(force=force)([good, bad])


# --- what cannot be had ----------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16", "fp16", "tf32"])
def test_arithmetic_of_gpus_is_refused_where_there_is_none(precision):
    todo = [trial(0), trial(1, precision=precision)]
    with pytest.raises(PlanError) as refused:
        check_devices(todo, 0)
    assert f"1 of 2 trials are to compute in `{precision}`" in str(refused.value)
    assert "`--set precision=float32`" in refused.value.hint
    check_devices(todo, 1)
    check_devices(todo[:1], 0)


def test_a_cluster_without_gpus_refuses_it_unless_it_may_grow(preflight, nodes_answer):
    ours = [node("a")]
    nodes_answer({ours[0]: contextlib.nullcontext})
    half = trial(precision="bf16")
    with pytest.raises(PlanError, match="there is no GPU"):
        preflight(half)(ours)
    preflight(half, may_grow=True)(ours)
    preflight(half, force=True)(ours)


def test_a_time_limit_shorter_than_an_epoch_is_refused_where_that_is_known():
    short, long = trial(0), trial(1, epochs=1000)
    made = plan_of(short, long)
    measured = {short.trial_id: {"state": "complete", "seconds": 50.0, "steps": 100}}
    rates = Rates(made.work, measured)
    assert rates.seconds(made.shapes[0], 100, 1.0) == 50.0
    # An epoch of the long trial takes 0.05 s, and it would end some.
    check_time_limit(made, rates, 1.0)
    only = plan_of(short)
    rates = Rates(only.work, measured)
    for limit in (5.0, 60.0):
        check_time_limit(only, rates, limit)
    with pytest.raises(SweeperError) as refused:
        check_time_limit(only, rates, 4.9)
    assert refused.value.where == "--time-limit"
    assert refused.value.found == "4.9 s, and an epoch of the shortest trial takes 5.0 s"


def test_a_time_limit_is_believed_where_nothing_is_known():
    made = plan_of(trial(0))
    check_time_limit(made, Rates(made.work, {}), 1.0)
