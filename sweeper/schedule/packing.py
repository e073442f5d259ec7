"""How many slots share a GPU: by the memory that a shape is seen to need; pure.

A share is always 1/k of one GPU: any other fraction can be free in sum and on no single GPU. GPUs
of several kinds have not the same memory, so that what is known of a shape is known of a kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sweeper.attempt import CONTEXT_BYTES
from sweeper.schedule.rules import Rules

CHOICES = (8, 4, 2, 1)  # of slots a GPU, tried in this order
HEADROOM = 1.25  # above the most that tensors took: what lies between them is lost, too


@dataclass(frozen=True)
class Share:
    """What a slot has of a GPU: 1/`per_gpu` of one of a kind; that is empty where none is known."""

    kind: str = ""
    per_gpu: int = 1


def fitting(peak_bytes: int, device_bytes: int) -> int:
    """How many trials that need so much fit on a GPU that has so much; at least one."""
    each = peak_bytes * HEADROOM + CONTEXT_BYTES
    return next((k for k in CHOICES if k * each <= device_bytes), 1)


class Packing:
    """How many trials of each shape may share a GPU of each kind, as far as it is known.

    A shape that nothing is known of has a GPU to itself until its first trial shows what it needs.

    Parameters
    ----------
    grows : whether a kind of which there is no node may come: one that an earlier launch has found
        to be large enough then is waited for, where those that there are were too small.
    """

    def __init__(self, rules: Rules, has_gpus: bool = True, grows: bool = False) -> None:
        self._fixed, self._has_gpus, self._grows = rules.per_gpu, has_gpus, grows
        packed = {} if rules.per_gpu else rules.packed
        self._known = {shape: dict(of) for shape, of in packed.items()}  # of each kind
        self._peaks: dict[tuple[str, str], int] = {}
        self._memory: dict[str, int] = {}  # bytes that a GPU of the kind has
        self._kinds: tuple[str, ...] = ("",)

    def sees(self, kinds: Iterable[str], avoided: Iterable[str] = ()) -> None:
        """Take note of the kinds that there are; one that goes may come back, and counts on.

        Parameters
        ----------
        avoided : kinds of nodes that get no more trials.
        """
        known, there = {*self._kinds} - {*avoided}, {*kinds}
        self._kinds = tuple(sorted((known | there) - {""})) or ("",)

    def has(self, kind: str, device_bytes: int) -> None:
        """Take note of how much memory a GPU of this kind has; 0 where that is not known."""
        if device_bytes:
            self._memory[kind] = device_bytes

    def shares(self, shape: str) -> tuple[Share, ...]:
        """The shares in which a trial of this shape may run, one of each kind that is large enough.

        Where none is, it may try. Without GPUs it is the whole of a slot.
        """
        if not self._has_gpus:
            return (Share(),)
        found = [Share(kind, self.per_gpu(shape, kind)) for kind in self._kinds]
        found = [share for share in found if share.per_gpu]
        if self._grows:
            found = self._known_to_fit(shape, found)
        return tuple(found) or tuple(Share(kind) for kind in self._kinds)

    def _known_to_fit(self, shape: str, found: list[Share]) -> list[Share]:
        """What to ask a cluster for that grows: not any kind, if one is known to be too small."""
        known = [Share(kind, n) for kind, n in sorted(self._known.get(shape, {}).items()) if kind]
        if not all(share.per_gpu for share in known):
            found = [share for share in found if share != Share()]
        return found or [share for share in known if share.per_gpu]

    def needed(self, shape: str, kind: str) -> int:
        """How many slots of the size that this shape needs share a GPU of a kind; 0 for none."""
        return next((s.per_gpu for s in self.shares(shape) if s.kind == kind), 0)

    def per_gpu(self, shape: str, kind: str = "") -> int:
        """How many trials of this shape may share a GPU of this kind; 0 if it is too small."""
        found = self._found(shape, kind)
        return (self._fixed or 1) if found is None else found

    def measured(
        self, shape: str, peak_bytes: int, device_bytes: int, kind: str = ""
    ) -> int | None:
        """Take a measurement; the new number for the shape, None when it stays.

        Only the first one can raise the number, and none can raise what was demoted.
        """
        key = shape, kind
        if self._fixed or not device_bytes or peak_bytes <= self._peaks.get(key, 0):
            return None
        self._peaks[key] = peak_bytes
        found, known = fitting(peak_bytes, device_bytes), self._found(shape, kind)
        return self._set(shape, kind, found) if known is None or found < known else None

    def out_of_memory(self, shape: str, per_gpu: int, kind: str = "") -> int | None:
        """A trial found too little memory; the new number, None when it stays.

        0 is for a whole GPU of a kind that is too small, while another may be large enough.
        """
        least = 0 if self._may_fit_elsewhere(shape, kind) else 1
        fewer = max(per_gpu // 2, least)
        return self._set(shape, kind, fewer) if fewer < self.per_gpu(shape, kind) else None

    def _found(self, shape: str, kind: str) -> int | None:
        known = self._known.get(shape, {})
        found = known.get(kind)
        if found is None and len(self._kinds) == 1:  # as journals say that name no kinds
            return known.get("")
        return found

    def _may_fit_elsewhere(self, shape: str, kind: str) -> bool:
        there = self._memory.get(kind, 0)
        others = [other for other in self._kinds if other != kind and self.per_gpu(shape, other)]
        return any(self._memory.get(other, there + 1) > there for other in others)

    def _set(self, shape: str, kind: str, per_gpu: int) -> int:
        self._known.setdefault(shape, {})[kind] = per_gpu
        return per_gpu


@dataclass(frozen=True)
class Demand:
    """Trials that could start now: how many, and the shares of which each needs any one."""

    shares: tuple[Share, ...]
    n_ready: int


@dataclass(frozen=True)
class Devices:
    """What there is for slots, by kind of GPU; without GPUs that is empty.

    Parameters
    ----------
    slots : how many the processors can feed that are beside these GPUs.
    gpus : None where slots are to have none.
    n_slots : how many there may be in all; None for as many as there is room for.
    grows : whether slots may wait for what is not there yet.
    """

    slots: Mapping[str, int]
    gpus: Mapping[str, int] | None = None
    n_slots: int | None = None
    grows: bool = False


def missing_slots(
    demands: Sequence[Demand],
    asked: Mapping[Share, int],
    running: Mapping[Share, int],
    devices: Devices,
) -> list[Share]:
    """The slots to add, each by its share.

    Parameters
    ----------
    demands : in the order in which their trials run.
    asked : slots that there are or that wait to be placed. Those of one share are taken to fill
        GPUs one after another.
    running : how many of them run a trial; the others take what they have a share for.
    """
    room, added = _Room(asked, devices), list[Share]()
    for demand, n_left in zip(demands, _unserved(demands, asked, running), strict=True):
        for share in demand.shares:
            n_new = min(n_left, room.for_slots(share))
            n_left -= n_new
            added += room.take(share, n_new)
        if devices.grows:
            added += room.take(demand.shares[0], min(n_left, room.n_left))
    return added


def _unserved(
    demands: Sequence[Demand], asked: Mapping[Share, int], running: Mapping[Share, int]
) -> list[int]:
    """How many trials of each demand find no idle slot; who has the least choice takes first."""
    idle = {share: max(n - running.get(share, 0), 0) for share, n in asked.items()}
    left = [demand.n_ready for demand in demands]
    for i in sorted(range(len(demands)), key=lambda i: len(demands[i].shares)):
        shares = demands[i].shares
        # A slot that waits for whatever kind may come takes what has as large a share there.
        for share in [*shares, *(Share("", share.per_gpu) for share in shares)]:
            n_taken = min(left[i], idle.get(share, 0))
            left[i] -= n_taken
            idle[share] = idle.get(share, 0) - n_taken
    return left


class _Room:
    """What is left of the devices beside the slots that were asked for."""

    def __init__(self, asked: Mapping[Share, int], devices: Devices) -> None:
        self._asked, self._devices = Counter(asked), devices
        most = devices.n_slots
        self._most = sum(devices.slots.values()) if most is None else most

    @property
    def n_left(self) -> int:
        return max(self._most - self._asked.total(), 0)

    def for_slots(self, share: Share) -> int:
        """How many slots of this share there is room for."""
        kind, gpus = share.kind, self._devices.gpus
        there = {other: n for other, n in self._asked.items() if other.kind == kind}
        n = min(self.n_left, self._devices.slots.get(kind, 0) - sum(there.values()))
        if gpus is not None:
            taken = sum(_gpus(n_slots, other.per_gpu) for other, n_slots in there.items())
            free = max(gpus.get(kind, 0) - taken, 0)
            n = min(n, -there.get(share, 0) % share.per_gpu + free * share.per_gpu)
        return max(n, 0)

    def take(self, share: Share, n_slots: int) -> list[Share]:
        self._asked[share] += n_slots
        return [share] * n_slots


def _gpus(n_slots: int, per_gpu: int) -> int:
    """How many GPUs so many slots take up."""
    return -(-n_slots // per_gpu)
