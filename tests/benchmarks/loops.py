"""One measurement of a training loop in a process of its own, for `training.py` and `gpu.py`.

    python -m tests.benchmarks.loops '{"what": "ours", "network": "fc", "device": "cpu"}'

prints one line of JSON. Images are random, of CIFAR-10's shape, so that nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from sweeper.config import TrialConfig
from sweeper.train.build import build_model
from sweeper.train.data import DataSet, Splits, load
from sweeper.train.loop import train
from sweeper.train.memory import keep_freed_memory
from sweeper.train.randomness import epoch_order

BATCH, LR, MOMENTUM = 200, 0.05, 0.9
RECORDED_TRAIN, RECORDED_TEST = 600, 1_000  # samples of the trials whose recording is timed
NETWORKS = {
    "fc": {"model.name": "fc", "model.widths": [1024, 512, 256, 128]},
    "allcnn": {"model.name": "allcnn"},
    "wrn-10-4-8": {"model.name": "wrn-10-4-8"},
    "vit": {
        "model.name": "vit",
        "model.patch": 4,
        "model.dim": 512,
        "model.depth": 6,
        "model.heads": 8,
        "model.mlp": 512,
    },
}


def cifar_shape(n_train: int = 10_000, n_test: int = 2_000) -> DataSet:
    """Random images of 32×32 pixels in three colours and ten classes."""
    names = tuple("0123456789")

    def read() -> Splits:
        draw = torch.Generator().manual_seed(0)
        splits = {}
        for split, n in (("train", n_train), ("test", n_test)):
            x = torch.randint(256, (n, 3, 32, 32), generator=draw, dtype=torch.uint8)
            y = torch.randint(10, (n,), generator=draw)
            splits |= {f"{split}_x": x, f"{split}_y": y, f"{split}_ids": torch.arange(n)}
        statistics = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
        return Splits(**splits, class_names=names, scale=255.0, **statistics)

    return DataSet(shape=(3, 32, 32), class_names=names, n_train=n_train, n_test=n_test, load=read)


def config_of(network: str, **changes: object) -> TrialConfig:
    """The recipe of all loops here: SGD with Nesterov momentum, cosine, random crops and flips."""
    flat = {
        "data.name": "tests.benchmarks.loops:cifar_shape",
        **NETWORKS[network],
        "optim.name": "sgd-nesterov",
        "optim.lr": LR,
        "optim.batch_size": BATCH,
        "optim.schedule.name": "cosine",
        "augment.name": "crop-flip",
        "epochs": 10_000,
        "record.schedule": [10_000],
        "record.train": "none",
    }
    return TrialConfig.from_flat(flat | changes)


def measure(**cell: object) -> dict[str, object]:
    """One cell in a fresh process: its figures and its peak memory."""
    found = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.loops", json.dumps(cell)],
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode:
        raise SystemExit(f"{cell}:\n{found.stderr}")
    return json.loads(found.stdout.splitlines()[-1])


# --- images per second ------------------------------------------------------------------------


def _rate(steps, device, seconds: float, warm_up: int, meet=None) -> float:
    """Images a second of an iterator that makes one step at a time."""
    for _ in range(warm_up):
        next(steps)
    _wait(device)
    if meet is not None:
        _meet(Path(meet["folder"]), meet["n"])
    start, n_steps = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        next(steps)
        n_steps += 1
        if n_steps % 50 == 0:
            _wait(device)  # or the clock would run ahead of a GPU's queue
    _wait(device)
    return n_steps * BATCH / (time.perf_counter() - start)


def _meet(folder: Path, n_processes: int) -> None:
    """Go on when so many processes have come here, so that all are timed while all train."""
    (folder / f"{os.getpid()}").touch()
    while len(list(folder.iterdir())) < n_processes:
        time.sleep(0.01)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ours(
    device: torch.device, network: str, seconds: float, warm_up: int, changes: dict, meet=None
) -> dict[str, float]:
    """Our loop's images a second, in a process set up as that of an attempt."""
    keep_freed_memory()
    moments = train(config_of(network, **changes), device=device)
    next(moments)
    return {"images_per_second": _rate(moments, device, seconds, warm_up, meet)}


class _Pictures(Dataset):
    """Images and labels one by one, as torchvision's CIFAR-10 gives them."""

    def __init__(self, data: Splits, transform) -> None:
        from PIL import Image

        arrays = data.train_x.permute(0, 2, 3, 1).numpy()
        self._images = [Image.fromarray(array) for array in arrays]
        self._labels, self._transform = data.train_y.tolist(), transform

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int):
        return self._transform(self._images[index]), self._labels[index]


def plain(
    device: torch.device, network: str, seconds: float, warm_up: int, workers: int
) -> dict[str, float]:
    """The images a second of the loop that most scripts have: a DataLoader that transforms."""
    from torchvision import transforms

    crop = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    recipe = [*crop, transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.25,) * 3)]
    config = config_of(network)
    loader = DataLoader(
        _Pictures(load(config.data), transforms.Compose(recipe)),
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
    )
    model = build_model(config.data, config.model, config.regularize, seed=0).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=500_000)

    def steps():
        while True:
            for x, y in loader:
                x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
                optimizer.zero_grad()
                cross_entropy(model(x), y).backward()
                optimizer.step()
                schedule.step()
                yield

    return {"images_per_second": _rate(steps(), device, seconds, warm_up)}


# --- is it the same, what does recording add, does a step wait ---------------------------------


def same_result(device: torch.device, network: str) -> dict[str, float]:
    """Our predictions after ten steps without augmentation, against the plain loop's."""
    changes = {"data.n_train": 2000, "augment.name": "none", "optim.schedule.name": "constant"}
    config = config_of(network, epochs=1, **{"record.schedule": [1]}, **changes)
    *_, last = train(config, device=device)
    data = load(config.data, device)
    model = build_model(config.data, config.model, config.regularize, seed=0).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, nesterov=True)
    for batch in epoch_order(0, 0, 2000).split(BATCH):
        x = (data.train_x[batch].float() / 255 - 0.5) / 0.25
        optimizer.zero_grad()
        cross_entropy(model(x), data.train_y[batch]).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        x = (data.test_x.float() / 255 - 0.5) / 0.25
        logits = torch.cat([model(some) for some in x.split(500)])
    expected = torch.log_softmax(logits.double(), dim=1).cpu().numpy()
    return {
        "largest_difference": float(np.abs(np.exp(last.log_probs["test"]) - np.exp(expected)).max())
    }


def recording(device: torch.device, network: str) -> dict[str, float]:
    """What a snapshot costs: its forward pass, and what recording adds to it.

    The recorded trial is a real one, through the store. `blocked` is the time for which training
    stands still for it; `append` is what the thread beside it takes.
    """
    from sweeper.attempt import Order
    from sweeper.trial import _Recorder, run_attempt

    blocked, appended = [], []
    record = _Recorder.record

    def timed_record(self, moment):
        start = time.perf_counter()
        record(self, moment)
        blocked.append(time.perf_counter() - start)

    def timed_append(append):
        def timed(moment):
            start = time.perf_counter()
            append(moment)
            appended.append(time.perf_counter() - start)

        return timed

    init = _Recorder.__init__
    _Recorder.record = timed_record
    _Recorder.__init__ = lambda self, append: init(self, timed_append(append))
    sizes = {"data.n_train": RECORDED_TRAIN, "data.n_test": RECORDED_TEST}
    config = config_of(network, epochs=3, **{"record.schedule": "epoch"}, **sizes)
    with tempfile.TemporaryDirectory() as folder:
        order = Order(config.trial_id, config.to_flat(), folder)
        run_attempt(order, lambda: False, lambda progress: None)
    forward, epoch = _evaluation_and_epoch(config, device)
    return {
        "forward_ms": 1e3 * forward,
        "blocked_ms": 1e3 * float(np.median(blocked)),
        "append_ms": 1e3 * float(np.median(appended)),
        "epoch_s": epoch * 50_000 / RECORDED_TRAIN,  # of CIFAR-10's 50,000 images
    }


def _evaluation_and_epoch(config: TrialConfig, device: torch.device) -> tuple[float, float]:
    """Seconds of one evaluation of the test set, and of training on every sample once."""
    from sweeper.train.trainee import Trainee

    trainee = Trainee.build(config, device)
    forwards, epochs = [], []
    for _ in range(3):
        start = time.perf_counter()
        trainee.evaluate("test", keep=True)
        forwards.append(time.perf_counter() - start)
        start = time.perf_counter()
        for batch, stored in trainee.batches():
            trainee.advance(batch, stored)
        _wait(device)
        epochs.append(time.perf_counter() - start)
    return min(forwards), min(epochs)


def host_syncs(device: torch.device, network: str) -> dict[str, float]:
    """How often a step makes the host wait for the device.

    On a CPU, operations that would wait on a GPU are counted; a GPU itself raises an error.
    """
    moments = train(config_of(network), device=device)
    for _ in range(3):
        next(moments)
    if device.type == "cuda":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the mode is a prototype
            torch.cuda.set_sync_debug_mode("error")
        for _ in range(20):
            next(moments)
        torch.cuda.set_sync_debug_mode("default")
        return {"syncs_per_step": 0.0}
    from tests.no_sync import counted_syncs

    with counted_syncs() as found:
        for _ in range(20):
            next(moments)
    return {"syncs_per_step": len(found) / 20}


def main() -> None:
    """Run one cell and print its figures."""
    cell = json.loads(sys.argv[1])
    device = torch.device(cell.pop("device"))
    torch.set_num_threads(cell.pop("threads", 1))
    found = globals()[cell.pop("what")](device, **cell)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if device.type == "cuda":
        found["peak_gpu_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
    print(json.dumps(found | {"peak_mib": peak}))


if __name__ == "__main__":
    main()
