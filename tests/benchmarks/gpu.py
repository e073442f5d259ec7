"""What one GPU does: our training loop beside the usual one, GPUs that are shared, distances.

    python tests/benchmarks/gpu.py [--parts training distances] [--seconds 3] [--networks fc …]

Needs torch, torchvision and a CUDA device; neither Ray nor a data set. Training takes under eight
minutes with the defaults, every cell in a process of its own; distances take one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

import gpu_distances
import torch
from loops import NETWORKS, measure

SETTINGS = {
    "float32": {},
    "tf32": {"precision": "tf32"},
    "bf16": {"precision": "bf16"},
    "bf16, channels_last": {"precision": "bf16", "channels_last": True},
    "bf16, channels_last, compile": {"precision": "bf16", "channels_last": True, "compile": True},
}
SHARES = (1, 2, 4, 8)
SHARED = ("fc", "wrn-10-4-8")  # networks too small to fill a GPU


def speed(networks: list[str], seconds: float) -> None:
    """Images a second of the plain loop and of ours under every setting."""
    print("| network | loop | images/s | × the plain loop | peak GPU MiB |\n|---|---|---|---|---|")
    workers = min(8, os.cpu_count() or 1)
    for network in networks:
        timing = {"device": "cuda", "network": network, "seconds": seconds}
        base = measure(what="plain", workers=workers, warm_up=20, **timing)
        rows = {f"plain, {workers} workers": base}
        for name, changes in SETTINGS.items():
            rows[f"sweeper, {name}"] = measure(what="ours", warm_up=50, changes=changes, **timing)
        for name, found in rows.items():
            rate, peak = found["images_per_second"], found["peak_gpu_mib"]
            ratio = rate / base["images_per_second"]
            print(f"| {network} | {name} | {rate:,.0f} | {ratio:.1f} | {peak:.0f} |", flush=True)


def sharing(networks: list[str], seconds: float) -> None:
    """Images a second of all trials together when several share the GPU, each in its process."""
    print("\n| network | " + " | ".join(f"{k} trials" for k in SHARES) + " |")
    print("|---" * (1 + len(SHARES)) + "|")
    for network in networks:
        cell = {"what": "ours", "device": "cuda", "network": network, "seconds": seconds}
        totals = []
        for k in SHARES:
            with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(k) as pool:
                cell["meet"] = {"folder": folder, "n": k}
                waiting = [pool.submit(measure, warm_up=50, changes={}, **cell) for _ in range(k)]
                totals.append(sum(one.result()["images_per_second"] for one in waiting))
        print(
            f"| {network} | " + " | ".join(f"{total:,.0f}" for total in totals) + " |", flush=True
        )


def recording(networks: list[str]) -> None:
    """What a snapshot costs, and that no step waits for the device."""
    print("\n| network | forward, ms | training waits, ms | append beside it, ms | syncs a step |")
    print("|---|---|---|---|---|")
    for network in networks:
        cell = measure(what="recording", device="cuda", network=network)
        syncs = measure(what="host_syncs", device="cuda", network=network)["syncs_per_step"]
        print(
            f"| {network} | {cell['forward_ms']:.1f} | {cell['blocked_ms']:.2f} "
            f"| {cell['append_ms']:.1f} | {syncs:g} |",
            flush=True,
        )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parts = ("training", "distances")
    parser.add_argument("--parts", nargs="*", default=list(parts), choices=parts)
    parser.add_argument("--snapshots", nargs="*", type=int, default=[20_000, 50_000])
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=NETWORKS)
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("error: this machine: no CUDA device; one is needed")
    driver = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n{driver.stdout}")
    if "distances" in asked.parts:
        gpu_distances.table(asked.snapshots)
        gpu_distances.many_classes()
        gpu_distances.few_samples()
    if "training" in asked.parts:
        shared = [name for name in asked.networks if name in SHARED]
        speed(asked.networks, asked.seconds)
        sharing(shared, asked.seconds)
        recording(shared)


if __name__ == "__main__":
    main()
