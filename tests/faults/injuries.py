"""What can befall a sweep on a cluster: each injury is done at an instant, and said what it met."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from sweeper.errors import SweeperError
from sweeper.journal import read_events
from sweeper.sweep_dir import SweepDir
from tests.faults.machines import Machines, Process, processes
from tests.full_disk import leave

GAP = (0.3, 4.0)  # seconds between two injuries
FROZEN = (17.0, 30.0)  # seconds that a worker is stopped: longer than it may stand still
FULL = (1.0, 8.0)  # seconds that the disk is full
RUNNING = ("trials that run", "no trial that runs")
EARLY = 0.3  # of what is due while a sweep comes up: a sweep spends little of its time so
AWAY = (1.0, 10.0)  # seconds until another node joins


class Injured:
    """A sweep on a cluster, and what is being done to it at the moment.

    Parameters
    ----------
    disk : that the sweep is on and that may be filled; None where there is none.
    """

    def __init__(
        self, cluster: Machines, folder: Path, disk: Path | None, draw: random.Random
    ) -> None:
        self.cluster, self.folder, self.disk, self.draw = cluster, folder, disk, draw
        self.kinds = random.Random(draw.random())  # apart: other instants change no kind
        self._kind = self._choose()
        self.counts: Counter[str] = Counter()
        self.is_headless = False  # no driver can join
        self._later: list[tuple[float, Callable[[], None]]] = []
        self._asked: list[subprocess.Popen[bytes]] = []  # `sweeper stop`
        self._orphans: dict[int, tuple[Process, float]] = {}  # of drivers that were killed
        self._next = time.monotonic() + draw.uniform(*GAP)

    def is_due(self) -> bool:
        return time.monotonic() >= self._next

    def injure(self, driver: int) -> str | None:
        """Do what comes next; what, and what it met, or None when it cannot be done yet."""
        self._next = time.monotonic() + self.draw.uniform(*GAP)
        met = self._met()
        if met not in RUNNING and self.draw.random() > EARLY:
            return None
        kind = self._kind
        if not INJURIES[kind][1](self, driver):
            return None
        self._kind = self._choose()
        return f"{kind}: {met}"

    def _choose(self) -> str:
        """The next injury, whatever the clock says; not the disk's, where that is not ours."""
        kinds = [kind for kind in INJURIES if self.disk is not None or kind != "disk filled"]
        return self.kinds.choices(kinds, [INJURIES[kind][0] for kind in kinds])[0]

    def keep_up(self) -> None:
        """End what is to last only for a while."""
        if not self.is_headless:
            self.cluster.replace()
        now = time.monotonic()
        for entry in [entry for entry in self._later if entry[0] <= now]:
            self._later.remove(entry)
            entry[1]()
        alive = processes() if self._orphans else {}
        for pid, (process, since) in list(self._orphans.items()):
            if alive.get(pid, process).started != process.started or pid not in alive:
                del self._orphans[pid]
                self.counts[f"a killed driver's worker left: within {_rounded(now - since)}"] += 1
        self._asked = [asked for asked in self._asked if asked.poll() is None]

    def end(self) -> None:
        """End all that lasts, at once."""
        for _, act in self._later:
            act()
        self._later.clear()
        for asked in self._asked:
            assert asked.wait(60) == 0, "`sweeper stop` failed"

    # --- helps ----------------------------------------------------------------------------

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        self._later.append((time.monotonic() + seconds, act))

    def slot(self) -> Process | None:
        """One of the slots' processes."""
        found = self.cluster.slots()
        return self.draw.choice(found) if found else None

    def _met(self) -> str:
        """What the sweep is at."""
        try:
            events = read_events(SweepDir(self.folder).journal).events
        except (SweeperError, OSError):
            return "nothing yet"
        running: set[str] = set()
        for event in events:
            if event["event"] == "launched":
                running.clear()
            elif event["event"] == "started":
                running.add(event["trial"])
            else:
                running.discard(event.get("trial", ""))
        if not events or events[-1]["event"] in ("ended", "launched"):
            return "the driver on its way up"
        return "trials that run" if running else "no trial that runs"

    # --- injuries: whether there was something to do it to ---------------------------------

    def kill_worker(self, driver: int) -> bool:
        slot = self.slot()
        if slot:
            slot.kill()
        return slot is not None

    def tell_worker(self, driver: int) -> bool:
        slot = self.slot()
        if slot:
            slot.kill(self.draw.choice([signal.SIGTERM, signal.SIGUSR1]))
        return slot is not None

    def freeze_worker(self, driver: int) -> bool:
        slot = self.slot()
        if slot is None or slot.state == "T":
            return False
        slot.kill(signal.SIGSTOP)
        self.after(self.draw.uniform(*FROZEN), lambda: _thaw(slot))
        return True

    def kill_queue(self, driver: int) -> bool:
        found = self.cluster.workers("Leases")
        for process in found:
            process.kill()
        return bool(found)

    def kill_driver(self, driver: int) -> bool:
        now = time.monotonic()
        self._orphans |= {found.pid: (found, now) for found in self.cluster.slots()}
        os.killpg(driver, signal.SIGKILL)
        return True

    def tell_driver(self, driver: int) -> bool:
        if SweepDir(self.folder).driver() is None:  # it would end at once, as any process
            return False
        os.kill(driver, self.draw.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]))
        return True

    def ask_driver(self, driver: int) -> bool:
        if SweepDir(self.folder).driver() is None:
            return False
        command = [sys.executable, "-m", "sweeper", "stop", str(self.folder)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._asked.append(subprocess.Popen(command, **quiet))
        return True

    def kill_raylet(self, driver: int) -> bool:
        return self._lose_a_node(self.cluster.kill_raylet)

    def kill_machine(self, driver: int) -> bool:
        return self._lose_a_node(self.cluster.kill_machine)

    def kill_head(self, driver: int) -> bool:
        if self.is_headless:
            return False
        self.is_headless = True
        self.cluster.kill_head()
        self.after(self.draw.uniform(*AWAY), self._renew)
        return True

    def _renew(self) -> None:
        self.cluster.renew()
        self.is_headless = False

    def _lose_a_node(self, kill: Callable[[object, float], None]) -> bool:
        if not self.cluster.nodes or self.is_headless:
            return False
        node = self.draw.choice(self.cluster.nodes)
        kill(node, self.draw.uniform(*AWAY))
        return True

    def fill_disk(self, driver: int) -> bool:
        if self.disk is None or (self.disk / "filler").exists():
            return False
        with contextlib.suppress(OSError):
            leave(self.disk, self.draw.choice([0, 0, 4096, 40_000]))
        self.after(self.draw.uniform(*FULL), lambda: (self.disk / "filler").unlink())
        return True


def _thaw(process: Process) -> None:
    now = processes().get(process.pid)
    if now is not None and now.started == process.started:
        process.kill(signal.SIGCONT)


def _rounded(seconds: float) -> str:
    return next((f"{limit} s" for limit in (1, 5, 15, 60) if seconds <= limit), "minutes")


INJURIES: Mapping[str, tuple[int, Callable[[Injured, int], bool]]] = {
    "worker killed": (30, Injured.kill_worker),
    "worker told to leave": (15, Injured.tell_worker),
    "worker stopped for longer than it may": (8, Injured.freeze_worker),
    "queue killed": (5, Injured.kill_queue),
    "driver killed": (7, Injured.kill_driver),
    "driver told to leave": (5, Injured.tell_driver),
    "driver asked to stop in the directory": (5, Injured.ask_driver),
    "raylet killed": (8, Injured.kill_raylet),
    "node killed": (8, Injured.kill_machine),
    "head killed": (3, Injured.kill_head),
    "disk filled": (9, Injured.fill_disk),
}
