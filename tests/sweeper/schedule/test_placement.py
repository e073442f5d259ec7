"""What slots ask of Ray, and what is said of those that die. No cluster is needed for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import ray

from sweeper.schedule.cluster import Node, kinds, of_kind
from sweeper.schedule.leases import NODE_IS_GONE, PREEMPTED
from sweeper.schedule.nodes import Site
from sweeper.schedule.packing import Demand, Devices, Share
from sweeper.schedule.placement import Placement, _Slot, reason_of
from sweeper.schedule.polled import Polled


def polled(*demands: Demand, **said: Any) -> Polled:
    nothing: Mapping[str, Any] = {
        **{"events": [], "condemned": [], "running": {}, "kinds": {}},
        **{"avoided": frozenset(), "astray": frozenset(), "is_done": False},
        **{"barren": "", "stranded": ""},
    }
    return Polled(demands=demands, **{**nothing, **said})


def slots_of(placement: Placement, first: int = 0) -> list[dict[str, Any]]:
    """The configurations of all slots that are missing."""
    found = []
    while (config := placement.next_slot(f"slot {first + len(found)}")) is not None:
        found.append(config)
    return found


def asked_of_ray(config: dict[str, Any]) -> tuple[dict[str, float], Any]:
    request = _Slot.default_resource_request(config)
    [bundle] = request.bundles
    return bundle, request._bound.kwargs.get("bundle_label_selector")


@pytest.fixture
def placement() -> Placement:
    return Placement(2, lambda slot, reason, node: None)


TWO = {"x": Site("host x", "A"), "y": Site("host y", "B")}
ANY = Demand((Share("A", 2), Share("B", 4)), 9)


def test_a_slot_that_waits_for_a_kind_that_is_gone_takes_nobodys_place(placement: Placement):
    one, devices = Demand((Share("A"), Share("B")), 1), Devices({"A": 1, "B": 1}, {"A": 1, "B": 1})
    placement.want(polled(one), devices, TWO)
    (config,) = slots_of(placement)
    assert config["kind"] == "A"
    placement.want(polled(one), devices, TWO)
    assert slots_of(placement, 1) == []  # the first is still to come
    left = Devices({"B": 1}, {"B": 1})
    placement.want(polled(one), left, {"y": TWO["y"]})
    (config,) = slots_of(placement, 1)
    assert config["gpus"] == 1


def test_without_gpus_a_slot_asks_for_processors_alone(placement: Placement):
    placement.want(polled(Demand((Share(),), 2)), Devices({"": 5}), {"x": Site("x")})
    for config in slots_of(placement):
        assert asked_of_ray(config) == ({"CPU": 2}, None)


def test_gpus_of_one_kind_are_asked_for_by_share_alone(placement: Placement):
    demand, devices = Demand((Share("A", 8),), 9), Devices({"A": 9}, {"A": 1})
    placement.want(polled(demand), devices, {"x": Site("x", "A")})
    found = slots_of(placement)
    assert len(found) == 8
    assert asked_of_ray(found[0]) == ({"CPU": 2, "GPU": 0.125}, None)


def test_of_several_kinds_a_slot_asks_for_one(placement: Placement):
    placement.want(polled(ANY), Devices({"A": 9, "B": 9}, {"A": 1, "B": 1}), TWO)
    bundles = [asked_of_ray(config)[0] for config in slots_of(placement)]
    a = {"CPU": 2, "GPU": 0.5, "accelerator_type:A": 0.001}
    b = {"CPU": 2, "GPU": 0.25, "accelerator_type:B": 0.001}
    assert bundles == [a] * 2 + [b] * 4


def test_one_of_a_kind_that_ray_does_not_know_keeps_off_the_others(placement: Placement):
    sites = {"x": Site("x", "A"), "z": Site("z", "unknown")}
    demand = Demand((Share("unknown", 1),), 1)
    placement.want(polled(demand), Devices({"A": 9, "unknown": 9}, {"A": 1, "unknown": 1}), sites)
    [config] = slots_of(placement)
    assert asked_of_ray(config) == ({"CPU": 2, "GPU": 1.0}, [{"ray.io/node-id": "!in(x)"}])


def test_slots_keep_off_nodes_that_are_avoided_those_that_come_back_too(placement: Placement):
    devices = Devices({"A": 9, "B": 9}, {"A": 1, "B": 1})
    placement.want(polled(ANY), devices, TWO)
    before = slots_of(placement)
    placement.want(polled(ANY, avoided=frozenset("xv")), devices, TWO)  # v has gone
    again = placement.request(before[0])
    assert again._bound.kwargs["bundle_label_selector"] == [{"ray.io/node-id": "!in(x)"}]
    assert again.bundles == _Slot.default_resource_request(before[0]).bundles


def test_slots_on_avoided_nodes_are_not_counted(placement: Placement):
    placement.want(polled(ANY), Devices({"A": 9, "B": 9}, {"A": 1, "B": 1}), TWO)
    first = slots_of(placement)
    assert [config["slot"] for config in first] == [1, 2, 3, 4, 5, 6]
    left = Devices({"B": 9}, {"B": 2})
    running = {Share("B", 4): 4}
    told = {"running": running, "avoided": frozenset("x"), "astray": frozenset({1, 2})}
    placement.want(polled(ANY, **told), left, TWO)
    assert [config["per_gpu"] for config in slots_of(placement, 6)] == [4] * 4


def test_a_slot_counts_for_the_kind_of_the_node_where_it_sits(placement: Placement):
    growing = {"n_slots": 2, "grows": True}
    placement.want(polled(Demand((Share("", 1),), 9)), Devices({}, {}, **growing), {})
    one, _ = slots_of(placement)
    assert asked_of_ray(one) == ({"CPU": 2, "GPU": 1.0}, None)
    sites = {"x": Site("x", "A")}
    told = polled(Demand((Share("A", 1),), 9), kinds={1: "A"}, running={Share("A", 1): 1})
    placement.want(told, Devices({"A": 9}, {"A": 4}, n_slots=3, grows=True), sites)
    assert len(slots_of(placement, 2)) == 1  # beside the one that runs and the one that waits


def test_kinds_that_ray_does_not_know_are_one_kind_beside_those_that_it_does():
    def node(name: str, kind: str) -> Node:
        return Node(name, name, name, 1, 1, kind)

    assert kinds([node("x", ""), node("y", "")]) == {"x": "", "y": ""}
    assert kinds([node("x", ""), node("y", "A")]) == {"x": "unknown", "y": "A"}
    assert of_kind("A") == {"accelerator_type:A": 0.001}
    assert of_kind("") == of_kind("unknown") == {}


DIED = {
    "… because its node has died.": NODE_IS_GONE,
    "Worker exit detail: It was ended. More": "its worker died: It was ended",
    "in its creation task\nValueError: x": "its worker could not start: ValueError: x",
    "memory monitor": "its worker was killed because the node ran out of memory",
}


@pytest.mark.parametrize(("text", "reason"), DIED.items())
def test_why_a_process_died_is_said_in_a_few_words(text: str, reason: str):
    assert reason_of(RuntimeError(text)) == reason


def test_what_a_trial_says_of_nodes_is_no_word_on_its_own():
    cause = RuntimeError("the connection broke: node has died")
    error = ray.exceptions.RayTaskError("step", "…\nRuntimeError: node has died", cause)
    assert (
        reason_of(error.as_instanceof_cause()) == "its worker failed: RuntimeError: node has died"
    )


def test_a_preemption_is_known_as_one():
    error = RuntimeError("…")
    error.preempted = True  # type: ignore[attr-defined]
    assert reason_of(error) == PREEMPTED
    assert reason_of(None) == "its worker died"
