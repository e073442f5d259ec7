"""`sweeper`, but a cluster whose head says nothing is given up sooner, and left sooner.

python -m tests.cluster.impatient launch …
"""

from __future__ import annotations

from sweeper.cli import main
from sweeper.schedule import cluster, tune

if __name__ == "__main__":
    cluster.HEAD_SECONDS, cluster.LEAVE_SECONDS = 15.0, 5.0
    tune.END_SECONDS = 5.0
    main()
