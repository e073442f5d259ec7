"""The prediction store beside plain files and zarr-python, on a disk and on S3, in one run.

    python -m tests.benchmarks.store [FOLDER] [--quick]

FOLDER is on the disk to measure; by default temporary files are. S3 is an emulator: moto's server
on loopback, in a process of its own, one request at a time. Nothing here passes or fails.

GB/s count stored float16 values, whatever was read for them. Every pass opens its store anew, so it
pays for the metadata, too. "Cold" is after the page cache was told to forget the store's files; the
host of a virtual disk may still have them.
"""

from __future__ import annotations

import argparse
import io
import itertools
import multiprocessing
import os
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import zarr
from obstore.store import from_url
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import ObjectStore

from sweeper.config import TrialConfig, content_id
from sweeper.durable import sync_folder
from sweeper.store.index import write_index
from sweeper.store.objects import Objects
from sweeper.store.opening import create_store
from sweeper.store.reader import Store
from sweeper.store.schema import SampleSet, sealed_key, staging_key
from sweeper.store.seal import seal
from sweeper.store.writer import AttemptWriter, TrialHeader
from sweeper.store.zarr_store import DurableStore
from sweeper.sweep_dir import environment
from tests import s3_server

CIFAR = (60, 10_000, 10)  # snapshots, samples, classes of a trial
IMAGENET = (50_000, 1_000)
BLOCK = CIFAR[1] // 8  # samples
BLOCKS = (0, 2, 4)  # one a round; of a sealed trial's chunks they need 1, 2, 2, and all eight 13
KEYS = {"staged": staging_key, "sealed": sealed_key}
CODECS = [BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"), Crc32cCodec()]  # as ours
METRICS = ("test_loss", "test_accuracy", "train_loss", "train_accuracy")

Array = np.ndarray
Rows = dict[str, list[str]]


@dataclass(frozen=True)
class Place:
    """Where stores are made, a folder or a bucket, and how much of everything."""

    is_local: bool
    root: str
    n_trials: int
    n_listed: int
    n_images: int  # snapshots of ImageNet's shape

    def objects(self, store: str) -> Objects:
        return create_store(f"{self.root}/{store}")

    def bucket(self, name: str) -> Any:
        return from_url(f"{self.root}/{name}", client_options={"allow_http": True})

    def zarr_store(self, store: str) -> Any:
        """Zarr's way to the same objects."""
        path = Path(self.root, store)
        return DurableStore(path) if self.is_local else ObjectStore(self.bucket(store))

    def forget(self, store: str) -> None:
        """Drop a store's files, which are durable already, from the page cache."""
        for path in filter(Path.is_file, Path(self.root, store).rglob("*.*")):
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def labels_of(n_samples: int, n_classes: int) -> Array:
    return np.random.default_rng(0).integers(0, n_classes, n_samples)


def log_softmax(logits: Array) -> Array:
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def trajectory(seed: int, n_snapshots: int, *shape: int) -> Iterator[Array]:
    """Logits that sharpen, with noise in each snapshot; they compress by 10 %, as real ones do."""
    random = np.random.default_rng(seed)
    final = random.standard_normal(shape, np.float32)
    final[np.arange(shape[0]), labels_of(*shape)] += random.normal(4, 1, shape[0])
    for i in range(n_snapshots):
        noise = random.standard_normal(shape, np.float32)
        sharpness = np.float32(3 - 3 * np.exp(-3 * i / n_snapshots))
        yield log_softmax(sharpness * final + np.float32(0.3) * noise).astype(np.float16)


def header(seed: int, n_snapshots: int, n_samples: int, n_classes: int) -> TrialHeader:
    flat = {"data.name": "cifar10", "model.name": "allcnn", "optim.name": "sgd", "optim.lr": 0.1}
    config = TrialConfig.from_flat({**flat, "epochs": n_snapshots, "seed": seed})
    names = tuple(f"class {i}" for i in range(n_classes))
    samples = SampleSet("test", labels_of(n_samples, n_classes), np.arange(n_samples), names)
    return TrialHeader(
        trial_id=config.trial_id,
        schema=1,
        config=config.to_flat(),
        identity=config.identity,
        steps=[390 * i for i in range(n_snapshots)],
        metrics=METRICS,
        sample_sets={"test": samples},
        provenance=environment(),
    )


def append(writer: AttemptWriter, i: int, values: Array) -> None:
    writer.append(i, float(i), dict.fromkeys(METRICS, 0.5), {"test": values})


def timed(function: Callable[..., object], *arguments: Any) -> float:
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def ways_to_write(place: Place, writer: AttemptWriter) -> dict[str, Callable[[int, Array], None]]:
    """The floor first, then ours, and zarr-python: each makes one snapshot durable."""
    trial_id = writer.header.trial_id
    folder = Path(place.root, "plain", trial_id)
    options = {"shape": CIFAR, "chunks": (1, *CIFAR[1:]), "dtype": "float16", "compressors": CODECS}
    target = zarr.create_array(place.zarr_store("zarr"), name=trial_id, **options)

    def save(i: int, values: Array, name: str = "plain.npy") -> None:
        with (folder / f"{i}-{name}").open("wb") as file:
            np.save(file, values)
            file.flush()
            os.fsync(file.fileno())

    def save_renamed(i: int, values: Array) -> None:
        save(i, values, "partial")
        os.replace(folder / f"{i}-partial", folder / f"{i}.npy")
        sync_folder(folder)

    def put(i: int, values: Array) -> None:
        np.save(file := io.BytesIO(), values)
        obstore.put(bucket, f"{i}.npy", file.getvalue(), use_multipart=False)

    ours = {"sweeper": partial(append, writer), "zarr-python, one chunk": target.__setitem__}
    if place.is_local:
        folder.mkdir(parents=True)
        return {"np.save, fsync": save, "and rename, fsync of the folder": save_renamed, **ours}
    bucket = place.bucket(f"plain/{trial_id}")
    return {"np.save, one PUT": put, **ours}


def write(place: Place) -> tuple[dict[str, int], Rows]:
    """Stage the trials, every other way beside ours in turn, so that noise meets all alike."""
    seconds, attempts, objects = defaultdict(list), {}, place.objects("sealed")
    for seed in range(place.n_trials):
        writer = AttemptWriter(objects, header(seed, *CIFAR), 0)
        attempts[writer.header.trial_id] = writer.attempt
        ways = list(ways_to_write(place, writer).items())
        for i, values in enumerate(trajectory(seed, *CIFAR)):
            for name, way in ways[i % len(ways) :] + ways[: i % len(ways)]:
                seconds[name].append(timed(way, i, values))
    staged = place.objects("staged")
    for entry in objects.walk(""):
        staged.write(entry.key, objects.read(entry.key))
    found = {name: 1000 * np.quantile(seconds[name], (0.5, 0.99)) for name, _ in ways}
    ratios = {name: found[name][0] / found[ways[0][0]][0] for name in found}
    return attempts, {name: [f"{ms:.2f}" for ms in (*found[name], ratios[name])] for name in found}


def seal_all(place: Place, attempts: dict[str, int]) -> Rows:
    """Seal one of the two stores; objects and bytes of both."""
    objects = place.objects("sealed")
    took = [timed(seal, objects, trial, "complete", number) for trial, number in attempts.items()]
    rows = {}
    for layout, key in KEYS.items():
        sizes = [e.size for trial in attempts for e in place.objects(layout).walk(key(trial))]
        n_objects, n_bytes = len(sizes) / len(attempts), sum(sizes) / len(attempts)
        share = n_bytes / (2 * np.prod(CIFAR))
        rows[layout] = [f"{n_objects:g}", f"{n_bytes / 1e6:.2f}", f"{share:.3f}", ""]
    rows["sealed"][-1] = f"{1000 * np.median(took):.0f}"
    return rows


def read(place: Place, attempts: dict[str, int]) -> Rows:
    """GB/s of whole trials and of a block of all trials, each case in turn in every round."""

    def ours(layout: str, dtype: Any, samples: slice) -> None:
        store = Store(place.objects(layout))
        for trial_id in attempts:
            store.log_probs(trial_id, "test", samples=samples, dtype=dtype)

    def iterated(layout: str, dtype: Any, samples: slice) -> None:
        for _ in Store(place.objects(layout)).iter_blocks(list(attempts), BLOCK, dtype=dtype):
            pass

    def by_zarr(layout: str, dtype: Any, samples: slice) -> None:
        for trial_id, attempt in attempts.items():
            name = f"{KEYS[layout](trial_id)}/{attempt}/test/log_probs"
            values = zarr.open_array(place.zarr_store(layout), path=name, mode="r")[:, samples]
            if dtype == "float32":
                log_softmax(values.astype(np.float32))

    cases = {
        "one trial, log_probs": (ours, 1),
        "one trial, zarr-python": (by_zarr, 1),
        "all eighths of the samples, iter_blocks": (iterated, 1),
        "an eighth of the samples, log_probs": (ours, 1 / 8),
        "an eighth of the samples, zarr-python": (by_zarr, 1 / 8),
    }
    seconds: dict[str, dict[Any, float]] = defaultdict(lambda: defaultdict(float))
    heats = (False, True) if place.is_local else (False,)
    for number, dtype, is_cold in itertools.product(BLOCKS, ("float16", "float32"), heats):
        samples = slice(number * BLOCK, (number + 1) * BLOCK)
        for (name, (way, share)), layout in itertools.product(cases.items(), KEYS):
            if is_cold:
                place.forget(layout)
            took = timed(way, layout, dtype, slice(None) if share == 1 else samples)
            seconds[f"{name}, {layout}"][dtype, is_cold] += took / share
    gigabytes = len(BLOCKS) * len(attempts) * 2 * np.prod(CIFAR) / 1e9
    return {name: [f"{gigabytes / s:.3f}" for s in seconds[name].values()] for name in seconds}


def listing(place: Place, trial_id: str) -> Rows:
    """Seconds to list trials that have a real one's metadata and no arrays."""
    attributes = dict(Store(place.objects("sealed")).trial_attributes(trial_id))
    del attributes["checksum"]
    objects = place.objects("listed")

    def make(seed: int) -> None:
        own = {name: {**attributes[name], "seed": seed} for name in ("config", "identity")}
        named = content_id(own["identity"])
        objects.create_group(sealed_key(named), {**attributes, **own, "trial": named})

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(make, range(place.n_listed)))
    _, without = in_process(list_trials, objects.location)
    took = timed(write_index, objects, Store(objects).summary)
    imports, indexed = in_process(list_trials, objects.location)
    found = [f"{seconds:.2f}" for seconds in (without, took, indexed, imports)]
    return {"sealed trials": [f"{place.n_listed:,}", *found]}


def list_trials(location: str) -> tuple[float, float]:
    """Seconds of the imports, and of the listing."""
    imports = sum(timed(import_module, name) for name in ("pandas", "pyarrow.parquet"))
    return imports, timed(Store(create_store(location)).trials)


def in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call it in a new process, where nothing is imported and no freed memory is left."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def image_step(step: str, location: str, n: int) -> list[str]:
    """Seconds and MiB of appending the last of n snapshots, sealing them, or reading a block."""
    objects, about, sizes = create_store(location), header(0, n, *IMAGENET), []
    if step == "append":
        writer = AttemptWriter(objects, about, 0)
        snapshots = enumerate(trajectory(0, n, *IMAGENET))
        return [*[peak(append, writer, i, values) for i, values in snapshots][-1], ""]
    if step == "seal":
        return [*peak(seal, objects, about.trial_id, "complete", 1), ""]

    def counted(reading: Callable[..., Any], *arguments: Any) -> Any:
        found = reading(*arguments)
        sizes.extend(map(len, found if isinstance(found, list) else [found]))
        return found

    for reading in ("read", "read_tail", "read_ranges"):
        setattr(objects, reading, partial(counted, getattr(objects, reading)))
    samples = slice(25_000, 25_500)  # in the middle
    found = peak(Store(objects).log_probs, about.trial_id, "test", slice(None), samples)
    return [*found, f"{sum(sizes) / 1e6:.1f} for {2e-6 * n * 500 * IMAGENET[1]:.1f}"]


def peak(function: Callable[..., object], *arguments: Any) -> list[str]:
    """Seconds, and by how many MiB resident memory rose above what it was before.

    Not `ru_maxrss`, in which Linux counts what the parent had when it started this process.
    """

    def resident(name: str) -> float:
        return int(re.search(rf"{name}:\s+(\d+)", status.read_text())[1]) / 1024

    status = Path("/proc/self/status")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident
    before = resident("VmRSS")
    seconds = timed(function, *arguments)
    return [f"{seconds:.2f}", f"{resident('VmHWM') - before:.0f}"]


def measure(place: Place) -> Iterator[tuple[str, list[str], Rows]]:
    """A table after another: what it is of, its columns and its rows."""
    attempts, rows = write(place)
    n = f"{place.n_trials} trials"
    yield "write a snapshot", [f"median ms, {n}", "p99 ms", "× the first"], rows
    yield "a trial", ["objects", "MB", "of float16's", "ms to seal"], seal_all(place, attempts)
    types = ["float16", "cold", "float32", "cold"] if place.is_local else ["float16", "float32"]
    yield "read, GB/s", types, read(place, attempts)
    columns = ["n", "without index, s", "write it, s", "with it, s", "imports, s"]
    yield "list", columns, listing(place, next(iter(attempts)))
    asked = f"{place.root}/imagenet", place.n_images
    steps = ("append one", "seal all", "read 500 samples of all")
    rows = {step: in_process(image_step, step.split()[0], *asked) for step in steps}
    columns = [f"{place.n_images} snapshots: s", "MiB above what was there", "MB read"]
    yield f"50,000 × 1,000, {np.prod(IMAGENET) / 2**19:.0f} MiB each", columns, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", help="on the disk to measure")
    parser.add_argument("--quick", action="store_true", help="few trials")
    asked = parser.parse_args()
    here = environment()
    print(time.strftime("%Y-%m-%d"), here["processor"], f"{here['cpus']} cores", here["versions"])
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder, s3_server.s3_server() as endpoint:
        os.environ |= s3_server.environment(endpoint)
        disk = Place(True, folder, *((2, 1_000, 2) if asked.quick else (16, 10_000, 4)))
        few = (1, 100, 2) if asked.quick else (2, 1_000, 2)
        places = disk, Place(False, f"s3://{s3_server.BUCKET}", *few)
        for (title, columns, rows), (_, others, there) in zip(*map(measure, places), strict=True):
            names = [f"disk: {name}" for name in columns] + [f"moto: {name}" for name in others]
            print(f"\n| {title} | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}")
            for name in rows | there:
                cells = rows.get(name, [""] * len(columns)) + there.get(name, [""] * len(others))
                print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
