"""Every entry of every axis trains a few steps; any two of different axes meet in some trial."""

import hashlib
import itertools

import numpy as np
import pytest
import torch

from sweeper.config import TrialConfig
from sweeper.registry import BUILT_IN
from sweeper.train import check, planned_steps
from sweeper.train.build import build_model
from sweeper.train.loop import train
from tests.data_files import tiny_data
from tests.pairs import pairwise

IMAGES = [name for name in BUILT_IN["data"] if name != "synthetic"]
MODELS = {
    **{name: {} for name in BUILT_IN["model"] if name != "wrn-16-4-64"},  # `wrn`, but large
    "torchvision/resnet18": {"model.stem": "small"},
    "torchvision/shufflenet_v2_x0_5": {},
}
OPTIONS = {"resized-crop-flip": {"augment.size": 32}, "perturbed": {"init.std": 0.01}}
ROWS = pairwise(
    {
        "data.name": IMAGES,
        "model.name": [*MODELS],
        "augment.name": [*BUILT_IN["augment"]],
        "optim.name": [*BUILT_IN["optim"]],
        "optim.schedule.name": [*BUILT_IN["schedule"]],
        "init.name": [*BUILT_IN["init"]],
        "precision": ["float32", "tf32", "bf16"],  # fp16 is slow on a CPU: see test_resume
        "regularize": [
            {},
            {"regularize.mixup": 0.2, "regularize.cutmix": 1.0},
            {"regularize.ema": 0.9, "regularize.weight_decay": 1e-3},
        ],
        "data": [{}, {"data.label_noise": 0.3}, {"data.subset": 0.5, "data.shuffle_labels": True}],
    }
)


@pytest.fixture(scope="module", autouse=True)
def data_files(tmp_path_factory):
    with tiny_data(tmp_path_factory.mktemp("data")):
        yield


def config_of(row):
    flat = dict(row)
    flat |= flat.pop("regularize") | flat.pop("data")
    flat |= MODELS[flat["model.name"]] | OPTIONS.get(flat["augment.name"], {})
    flat |= OPTIONS.get(flat["init.name"], {})
    flat |= {"optim.lr": 1e-3, "optim.batch_size": 3, "epochs": 1, "data.image_size": 32}
    flat |= {"data.test_subset": 6, "record.schedule": [1], "record.train": "none"}
    if flat["data.name"] == "image_folder":
        flat["data.path"] = "pictures"
    return flat


@pytest.mark.parametrize("row", range(len(ROWS)))
def test_every_two_entries_of_different_axes_train_together(row, tmp_path):
    flat = config_of(ROWS[row])
    if flat["init.name"] == "checkpoint":
        flat |= saved_weights(flat, tmp_path)
    config = TrialConfig.from_flat(flat)
    check(config)
    moments = train(config)
    first, *others = itertools.islice(moments, 3)
    moments.close()
    n_classes = first.log_probs["test"].shape[1]
    assert first.log_probs["test"].shape == (6, n_classes)
    probabilities = np.exp(first.log_probs["test"].astype(np.float64)).sum(axis=1)
    np.testing.assert_allclose(probabilities, 1, atol=2e-3)
    assert [moment.step for moment in others] == [1, 2]
    assert planned_steps(config)[0] == 0


def saved_weights(flat, folder):
    """The options of an init that reads a file with weights of the same network."""
    without = TrialConfig.from_flat({**flat, "init.name": "torch"})
    model = build_model(without.data, without.model, without.regularize, seed=3)
    path = folder / "weights.pt"
    torch.save(model.state_dict(), path)
    return {
        "init.path": str(path),
        "init.sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


@pytest.mark.parametrize("optim", BUILT_IN["optim"])
def test_synthetic_data_train_a_network_of_layers(optim):
    flat = {
        "data.name": "synthetic",
        "data.n_train": 60,
        "data.n_test": 20,
        "model.name": "fc",
        "optim.name": optim,
        "optim.lr": 1e-2,
        "optim.batch_size": 20,
        "epochs": 4,
    }
    config = TrialConfig.from_flat(flat)
    check(config)
    recorded = [moment for moment in train(config) if moment.snapshot is not None]
    assert [moment.epoch for moment in recorded] == [0, 1, 2, 3, 4]
    assert recorded[-1].metrics["train_loss"] < recorded[0].metrics["train_loss"]
