"""Our training loop against the one that most scripts have, side by side on this machine's CPU.

    python tests/benchmarks/training.py [--seconds 10] [--rounds 3] [--networks fc allcnn …]

Both train on one core: the plain loop transforms in the training process, or, for comparison, in
two workers of a DataLoader beside it. Every cell is a process of its own; rounds are interleaved
and the best of each cell counts, since other work can only slow a cell down.
"""

from __future__ import annotations

import argparse

from loops import NETWORKS, measure

LOOPS = {
    "sweeper": {"what": "ours", "changes": {}},
    "plain, 0 workers": {"what": "plain", "workers": 0},
    "plain, 2 workers": {"what": "plain", "workers": 2},
}


def speed(networks: list[str], seconds: float, rounds: int) -> None:
    """Images a second and peak memory."""
    print("| network | loop | images/s | sweeper's are × | peak MiB |\n|---|---|---|---|---|")
    for network in networks:
        best: dict[str, dict] = {}
        for _ in range(rounds):
            for name, cell in LOOPS.items():
                timing = {"seconds": seconds, "warm_up": 3}
                found = measure(device="cpu", network=network, **timing, **cell)
                known = best.setdefault(name, found)
                best[name] = max(known, found, key=lambda cell: cell["images_per_second"])
        for name, found in best.items():
            rate = found["images_per_second"]
            ratio = best["sweeper"]["images_per_second"] / rate
            print(f"| {network} | {name} | {rate:,.0f} | {ratio:.2f} | {found['peak_mib']:.0f} |")


def recording(networks: list[str]) -> None:
    """What a snapshot of 1,000 samples costs, what a step waits for, and how results differ."""
    print(
        "\n| network | forward, ms | training waits, ms | append beside it, ms "
        "| waits in a CIFAR-10 epoch | host syncs a step | largest difference of p |"
        "\n|---|---|---|---|---|---|---|"
    )
    for network in networks:
        cell = measure(what="recording", device="cpu", network=network)
        syncs = measure(what="host_syncs", device="cpu", network=network)["syncs_per_step"]
        same = measure(what="same_result", device="cpu", network=network)["largest_difference"]
        share = cell["blocked_ms"] / 1e3 / cell["epoch_s"]
        print(
            f"| {network} | {cell['forward_ms']:.0f} | {cell['blocked_ms']:.2f} "
            f"| {cell['append_ms']:.1f} | {share:.4%} | {syncs:g} | {same:.1e} |"
        )


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=NETWORKS)
    asked = parser.parse_args()
    speed(asked.networks, asked.seconds, asked.rounds)
    recording(asked.networks)


if __name__ == "__main__":
    main()
