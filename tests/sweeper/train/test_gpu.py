"""What only a GPU can show; skipped without one."""

import itertools

import numpy as np
import pytest
import torch

from sweeper.registry import BUILT_IN
from sweeper.train.loop import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SMALL = {"model__name": "cnn", "model__widths": [8, 8], "optim__lr": 0.02}


def predictions(config, device):
    *_, last = train(config, device=device)
    return last.log_probs["test"].astype(np.float64)


@pytest.mark.parametrize("model", ["fc", "cnn", "vit"])
def test_a_gpu_trains_as_a_cpu_does_but_for_rounding(trial, model):
    config = trial(model__name=model, model__widths=None, optim__lr=0.02)
    found, expected = (np.exp(predictions(config, device)) for device in ("cuda", "cpu"))
    np.testing.assert_allclose(found, expected, atol=2e-3)


# Of torch's optimizers only the fused ones leave out a step of fp16 without asking the device.
WITHOUT_WAITING = [
    *({"optim__name": name, "optim__lr": 1e-3} for name in BUILT_IN["optim"]),
    *({"augment__name": name} for name in ("shift", "crop-flip", "full", "flip")),
    *({"augment__name": name} for name in ("randaugment", "trivialaugment", "color-jitter")),
    {"augment__name": "cutout", "augment__side": 4},
    {"augment__name": "resized-crop-flip", "augment__size": 8},
    {"regularize__mixup": 0.3, "regularize__cutmix": 1.0},
    {"regularize__ema": 0.99},
    {"regularize__dropout": 0.2},
    {"optim__clip": 1.0},
    {"regularize__decay": "weights", "regularize__weight_decay": 1e-3},
    {"precision": "tf32"},
    {"precision": "bf16", "channels_last": True},
    {"precision": "fp16"},
    {"precision": "fp16", "optim__clip": 1.0},
    {"init__corner.fit": "subset", "init__corner.samples": 1200, "init__corner.accuracy": 0},
]


@pytest.mark.parametrize("changes", WITHOUT_WAITING, ids=str)
def test_no_step_waits_for_the_device(trial, changes, without_waiting):
    config = trial(**{**SMALL, "epochs": 9, "record__schedule": [9], **changes})
    moments = train(config, device="cuda")
    next(moments)
    for _ in itertools.islice(moments, 1):  # the first step sets up what all others use
        pass
    with without_waiting():
        next(moments)


def test_float32_is_not_tf32(trial):
    next(train(trial(**SMALL), device="cuda"))
    x = torch.randn(8, 64, 32, 32, device="cuda")
    w = torch.randn(64, 64, 3, 3, device="cuda")
    exact = torch.nn.functional.conv2d(x.double(), w.double())
    off = (torch.nn.functional.conv2d(x, w) - exact).abs().max() / exact.abs().max()
    assert off < 1e-5  # TF32 keeps 10 bits: 1e-4 and more
    next(train(trial(**SMALL, precision="tf32"), device="cuda"))
    off = (torch.nn.functional.conv2d(x, w) - exact).abs().max() / exact.abs().max()
    assert off > 1e-5


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_a_trial_resumed_on_a_gpu_goes_on_as_it_would_have(trial, precision):
    config = trial(**SMALL, precision=precision, regularize__ema=0.9, regularize__dropout=0.1)
    whole, state = [], None
    for moment in train(config, device="cuda"):
        whole.append(moment)
        if moment.step == 3:
            state = {**moment.state()}
            state = torch.utils._pytree.tree_map(
                lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, state
            )
    *_, last = train(config, device="cuda", state=state)
    found, expected = (np.exp(m.log_probs["test"].astype(float)) for m in (last, whole[-1]))
    np.testing.assert_allclose(found, expected, atol=2e-2)
