"""What limits the streaming of ImageNet: `python tests/benchmarks/decoding.py [FOLDER]`.

Images a second of one core that decodes and resizes 500×375 JPEGs, step by step; of the workers
that `ImageFiles` has; and of a prepared copy, in the page cache and, where FOLDER is on a disk that
can forget it, from there. The images are made here: coarse noise enlarged, so that they compress
as photographs do (110 kB is the mean of ImageNet).
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize

from sweeper.processors import n_cores
from sweeper.train.data import Streamed
from sweeper.train.sources.folder import list_images
from sweeper.train.sources.prepared import open_prepared, place_of, prepare
from sweeper.train.sources.streamed import ImageFiles, decode

SIDE, N_FILES, N_BATCH = 256, 1024, 256
SECONDS = 4.0


def write_images(folder: Path) -> int:
    """Write the files of both splits; their mean size in bytes."""
    random, sizes = np.random.default_rng(0), []
    for split, n in (("train", N_FILES), ("val", 8)):
        (folder / split / "class").mkdir(parents=True)
        for index in range(n):
            coarse = random.integers(0, 256, (94, 125, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)
            content = BytesIO()
            image.save(content, "JPEG", quality=90)
            sizes.append(content.tell())
            (folder / split / "class" / f"{index:05}.JPEG").write_bytes(content.getvalue())
    return round(np.mean(sizes))


def rate(step: Callable[[int], object]) -> float:
    """Calls a second, one after another."""
    step(0)
    started, n = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < SECONDS:
        step(n % N_FILES)
        n += 1
    return n / elapsed


def stream_rate(source: Streamed) -> float:
    """Images a second after the first batch, in random order, as an epoch asks for them."""
    generator = torch.Generator().manual_seed(0)
    orders = (torch.randperm(N_FILES, generator=generator) for _ in range(64))
    batches = [batch for order in orders for batch in order.split(N_BATCH)]
    reading: Iterator[torch.Tensor] = source.batches(batches)
    next(reading)
    started, n = time.perf_counter(), 0
    for images in reading:
        n += len(images)
        if time.perf_counter() - started > SECONDS:
            break
    elapsed = time.perf_counter() - started
    del reading
    return n / elapsed


def forget(path: Path) -> None:
    """Drop a file from the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def cold_rate(source: Streamed, path: Path) -> float:
    """Images a second when each is read once, in random order, and none is in the page cache."""
    forget(path)
    order = torch.randperm(N_FILES, generator=torch.Generator().manual_seed(0))
    started = time.perf_counter()
    n = sum(map(len, source.batches(order.split(N_BATCH))))
    return n / (time.perf_counter() - started)


def measure(folder: Path) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    size = write_images(folder)
    names = {split: list_images(folder / split, "path").names for split in ("train", "val")}
    paths = [folder / "train" / os.fsdecode(name) for name in names["train"]]
    decoded = [Image.open(path).convert("RGB") for path in paths[:64]]
    resized = [resize(image, [SIDE]) for image in decoded]

    def stored(index: int) -> torch.Tensor:
        return pil_to_tensor(center_crop(resized[index % 64], [SIDE, SIDE]))

    print(f"{N_FILES} JPEGs of 500x375, {size / 1000:.0f} kB each, to {SIDE}x{SIDE}")
    print("\n| one core | images/s |\n|---|---|")
    for name, step in (
        ("read the file", lambda i: paths[i].read_bytes()),
        ("read and decode", lambda i: Image.open(paths[i]).convert("RGB")),
        ("resize", lambda i: resize(decoded[i % 64], [SIDE])),
        ("crop, to a tensor", stored),
        ("all of it", lambda i: decode(paths[i], SIDE)),
    ):
        print(f"| {name} | {rate(step):,.0f} |")
    files = ImageFiles(folder / "train", names["train"], SIDE)
    print("\n| streamed, batches of 256 | images/s |\n|---|---|")
    print(f"| files, {n_cores()} workers | {stream_rate(files):,.0f} |")
    prepare(folder, SIDE, names, lambda n: None, lambda: None)
    copies = open_prepared(folder, SIDE, names)
    assert copies is not None
    print(f"| prepared, in the page cache | {stream_rate(copies['train']):,.0f} |")
    cold = cold_rate(copies["train"], place_of(folder, SIDE) / "train.u8")
    print(f"| prepared, not in the page cache | {cold:,.0f} |")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if sys.argv[1:] else None) as scratch:
        measure(Path(scratch))
