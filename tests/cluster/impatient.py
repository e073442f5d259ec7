"""`sweeper`, but a slot that gives no sign of life for a while has lost its trial much sooner.

python -m tests.cluster.impatient launch …
"""

from __future__ import annotations

from typing import Any

from sweeper.cli import main
from sweeper.schedule import leases, tune

SECONDS = 10.0


class _Impatient(leases.Leases):
    """In the queue's process, which imports the module anew."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        leases.LEASE_SECONDS = SECONDS
        super().__init__(*arguments, **named)


if __name__ == "__main__":
    tune.Leases = _Impatient  # type: ignore[misc]
    main()
