"""No step makes the host wait for the device; what would wait on a GPU is seen on a CPU too."""

import itertools

import pytest

from sweeper.registry import BUILT_IN
from sweeper.train.loop import train
from tests.no_sync import counted_syncs

SIZED = {"cutout": {"augment__side": 4}, "resized-crop-flip": {"augment__size": 8}}
SETTINGS = [
    *({"optim__name": name} for name in BUILT_IN["optim"] if name != "rmsprop"),  # not fused
    *({"optim__schedule.name": name} for name in BUILT_IN["schedule"]),
    *({"augment__name": name, **SIZED.get(name, {})} for name in BUILT_IN["augment"]),
    {"model__name": "fc", "model__widths": None},
    {"model__name": "vit", "model__widths": None, "regularize__dropout": 0.2},
    {"regularize__mixup": 0.3, "regularize__cutmix": 1.0, "regularize__label_smoothing": 0.1},
    {"regularize__ema": 0.99},
    {"optim__clip": 1.0, "regularize__decay": "weights", "regularize__weight_decay": 1e-3},
    {"precision": "bf16", "channels_last": True},
    {"precision": "fp16", "optim__clip": 1.0},
    {"init__corner.fit": "subset", "init__corner.samples": 1200, "init__corner.accuracy": 0},
]


@pytest.mark.parametrize("changes", SETTINGS, ids=str)
def test_no_step_waits_for_the_device(trial, changes):
    small = {"model__name": "cnn", "model__widths": [8], "optim__lr": 1e-3}
    config = trial(**{**small, "epochs": 9, "record__schedule": [9], **changes})
    moments = train(config)
    first = list(itertools.islice(moments, 2))  # the first step sets up what all others use
    assert [moment.step for moment in first] == [0, 1]
    with counted_syncs() as found:
        next(moments)
    assert found == []


def test_the_end_of_an_epoch_asks_once_whether_training_has_diverged(trial):
    moments = train(trial(epochs=9, record__schedule=[9]))
    list(itertools.islice(moments, 3))
    with counted_syncs() as found:
        assert next(moments).epoch == 1.0
    assert len(found) == 1
