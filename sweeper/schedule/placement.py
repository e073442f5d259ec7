"""Slots as Ray Tune's trials: Tune places them, brings back those that die, and waits for room.

Tune is given slots one by one as `missing_slots` asks for them, and is never asked what was done.
To be imported after Tune's settings are in the environment.
"""

from __future__ import annotations

import contextlib
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.execution import class_cache
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from sweeper.schedule.cluster import UNKNOWN, of_kind, set_up
from sweeper.schedule.executor import Runner
from sweeper.schedule.leases import NODE_IS_GONE, PREEMPTED
from sweeper.schedule.nodes import Site
from sweeper.schedule.packing import Devices, Share, missing_slots
from sweeper.schedule.polled import Polled
from sweeper.schedule.slot import occupy

# Tune would send the driver's own credentials along with every slot, and Ray write them into the
# logs of every node. Workers have theirs from where they run.
class_cache.ENV_VARS_TO_PROPAGATE = {
    name for name in class_cache.ENV_VARS_TO_PROPAGATE if not name.startswith("AWS_")
}

_DETAIL = re.compile(r"Worker exit detail: (.*?)(?:\. (?=[A-Z])|\.?$)", re.DOTALL)


class Placement:
    """The slots that Tune has been given, and what it is still to be given.

    Shared by the driver's thread, which says what is missing and when all is done, and Tune's.

    Parameters
    ----------
    on_death : told of a slot whose process died, why, and on which node.
    """

    def __init__(self, threads: int, on_death: Callable[[int, str, str], None]) -> None:
        self._threads, self._on_death = threads, on_death
        self._lock = threading.Lock()
        self._missing: list[Share] = []
        self._devices = Devices({})
        self._sites: Mapping[str, Site] = {}
        self._avoided: Collection[str] = ()
        self._given: dict[str, tuple[int, Share]] = {}  # by Tune's name of the slot
        self._n_made = 0
        self._condemned: set[int] = set()
        self._is_over = threading.Event()

    def __reduce__(self) -> tuple[Any, ...]:
        """As nothing: Tune saves what it is given, and what it saved is never read."""
        return object, ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Placement:
        return self

    # --- in the driver's thread -----------------------------------------------------------

    def want(self, found: Polled, devices: Devices, sites: Mapping[str, Site]) -> None:
        """Add slots for what could run and has none; those without work leave by themselves."""
        with self._lock:
            asked = _asked(self._given.values(), found, devices)
            self._missing = missing_slots(found.demands, asked, found.running, devices)
            self._devices, self._sites, self._avoided = devices, sites, found.avoided

    def kill(self, slots: Sequence[int]) -> None:
        """End the processes of these slots; Tune starts others for them."""
        with self._lock:
            self._condemned.update(slots)

    def end(self) -> None:
        """No slot is needed any more."""
        self._is_over.set()

    def run(
        self,
        queue: Any,
        runner: Runner,
        code: Mapping[str, str],
        plug_ins: Collection[str],
        data_root: str,
        scratch: Path,
    ) -> None:
        """Have Tune keep the slots, until `end`."""
        slot = tune.with_parameters(
            _Slot,
            queue=queue,
            runner=runner,
            code=code,
            plug_ins=plug_ins,
            import_path=list(sys.path),
            data_root=data_root,
        )
        tune.Tuner(
            slot,
            tune_config=tune.TuneConfig(
                search_alg=_Source(self),
                scheduler=_Scheduler(self),
                num_samples=-1,
                reuse_actors=False,
            ),
            run_config=tune.RunConfig(
                name="slots",
                storage_path=str(scratch),
                verbose=0,
                stop=_End(self),
                callbacks=[_Keeper(self)],
                failure_config=tune.FailureConfig(max_failures=-1),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()

    # --- in Tune's thread -----------------------------------------------------------------

    def is_over(self) -> bool:
        """Whether no slot is needed any more."""
        return self._is_over.is_set()

    def next_slot(self, name: str) -> dict[str, Any] | None:
        """The configuration of a slot that is missing, which Tune will call by this name."""
        with self._lock:
            if not self._missing:
                return None
            share = self._missing.pop(0)
            self._n_made += 1
            self._given[name] = self._n_made, share
            gpus = self._devices.gpus
            is_particular = gpus is not None and set(gpus) != {share.kind}
            return {
                "slot": self._n_made,
                "per_gpu": share.per_gpu,
                "cpus": self._threads,
                # Four decimals are all that Ray keeps, and k shares may not add up to more than 1.
                "gpus": 0 if gpus is None else int(1e4 / share.per_gpu) / 1e4,
                "kind": share.kind if is_particular else "",
                "away": self._away(share.kind),
            }

    def request(self, config: Mapping[str, Any]) -> Any:
        """What a slot that comes back asks of Ray by now."""
        with self._lock:
            return _request({**config, "away": self._away(config["kind"])})

    def _away(self, kind: str) -> list[str]:
        """The nodes on which such a slot is not to be placed."""
        others = [n for n, s in self._sites.items() if kind == UNKNOWN and s.kind != UNKNOWN]
        return sorted({*self._avoided, *others} & self._sites.keys())

    def left(self, name: str) -> None:
        """A slot has left for good."""
        with self._lock:
            self._given.pop(name, None)

    def died(self, trial: Any) -> None:
        """Tune has seen a slot's process end with an error, and starts another."""
        error = _error_of(trial)
        self._on_death(trial.config["slot"], reason_of(error), _node_of(error))

    def execute(self, trials: Sequence[Any]) -> None:
        """Kill the processes of the slots that are to be killed."""
        with self._lock:
            condemned, self._condemned = self._condemned, set()
        for trial in trials if condemned else ():
            actor = trial.temporary_state.ray_actor
            if trial.config["slot"] in condemned and actor is not None:
                ray.kill(actor)


def _asked(given: Collection[tuple[int, Share]], found: Polled, devices: Devices) -> Counter[Share]:
    """The slots that count: what waits for a kind of node that is gone may wait for ever."""
    return Counter(
        Share(found.kinds.get(slot, share.kind), share.per_gpu)
        for slot, share in given
        if slot not in found.astray
        and (slot in found.kinds or not share.kind or share.kind in devices.slots)
    )


def _error_of(trial: Any) -> BaseException | None:
    """What a slot's process ended with, as Tune keeps it on the driver's machine."""
    path = trial.pickled_error_file
    with contextlib.suppress(Exception):  # of whatever kind: it is only for people to read
        error = ray.cloudpickle.loads(Path(path).read_bytes())
        return error if isinstance(error, BaseException) else None
    return None


def _node_of(error: BaseException | None) -> str:
    """The node of an actor that died, even of one that never ran; empty where it is not known."""
    with contextlib.suppress(Exception):  # Ray tells of this without a dashboard only privately
        found = ray._private.state.actors(getattr(error, "actor_id", None))
        return str(found["Address"]["NodeID"])
    return ""


def reason_of(error: BaseException | None) -> str:
    """Why a slot's process ended, in a few words."""
    text = str(error)
    last = next(reversed(text.strip().splitlines()), "").strip()
    if isinstance(error, ray.exceptions.RayTaskError):  # raised in it, whatever it may tell of
        return f"its worker failed: {last}"
    if isinstance(error, ray.exceptions.OutOfMemoryError) or "memory monitor" in text:
        return "its worker was killed because the node ran out of memory"
    if getattr(error, "preempted", False):
        return PREEMPTED
    if "node has died" in text or "node was terminated" in text or "node failure" in text:
        return NODE_IS_GONE
    if "creation task" in text:
        return f"its worker could not start: {last}"
    found = _DETAIL.search(text)
    return f"its worker died: {found[1]}" if found else "its worker died"


class _Slot(tune.Trainable):  # type: ignore[misc]  # Ray is not typed
    """One slot: a single step that lasts until the slot leaves, in the main thread of its actor."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> Any:
        return _request(config)

    def setup(
        self,
        config: dict[str, Any],
        queue: Any,
        runner: Runner,
        code: Mapping[str, str],
        plug_ins: Collection[str],
        import_path: list[str],
        data_root: str,
    ) -> None:
        set_up(import_path, data_root)
        slot, per_gpu, threads = config["slot"], config["per_gpu"], config["cpus"]
        self._occupy: Callable[[], None] = lambda: occupy(
            queue, slot, per_gpu, threads, runner, code, plug_ins
        )

    def step(self) -> dict[str, Any]:
        self._occupy()
        return {"done": True}


def _request(config: Mapping[str, Any]) -> Any:
    """What a slot asks of Ray: processors, a share of a GPU, and where."""
    resources = {"CPU": config["cpus"], "GPU": config["gpus"], **of_kind(config["kind"])}
    where = {}
    if config["away"]:
        selector = {"ray.io/node-id": f"!in({','.join(config['away'])})"}
        where["bundle_label_selector"] = [selector]
    return tune.PlacementGroupFactory([{k: v for k, v in resources.items() if v}], **where)


class _Source(Searcher):  # type: ignore[misc]
    """Where Tune asks for slots."""

    def __init__(self, placement: Placement) -> None:
        super().__init__()
        self._placement = placement

    def set_search_properties(self, metric: Any, mode: Any, config: Any, **spec: Any) -> bool:
        return True  # there is nothing to search for

    def suggest(self, trial_id: str) -> Any:
        if self._placement.is_over():  # without a slot, Tune asks here alone for minutes
            return self.FINISHED
        return self._placement.next_slot(trial_id)

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        self._placement.left(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: Tune's state is never read again."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing."""


class _Scheduler(FIFOScheduler):  # type: ignore[misc]
    """Starts slots in their order; those that come back not where it is avoided by now."""

    def __init__(self, placement: Placement) -> None:
        super().__init__()
        self._placement = placement

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        trial.update_resources(self._placement.request(trial.config))


class _Keeper(tune.Callback):  # type: ignore[misc]
    """Hears of slots that die, and kills those that are to be killed."""

    def __init__(self, placement: Placement) -> None:
        self._placement = placement

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        self._placement.died(trial)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        self._placement.died(trial)

    def on_step_end(self, iteration: int, trials: Any, **_: Any) -> None:
        self._placement.execute(trials)


class _End(tune.Stopper):  # type: ignore[misc]
    """Stops slots that wait for a place when there is nothing left for them to do."""

    def __init__(self, placement: Placement) -> None:
        self._placement = placement

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._placement.is_over()
