"""Number formats, memory layout and compilation change the rounding and nothing else."""

import copy

import numpy as np
import pytest
import torch

from sweeper.train.loop import train
from sweeper.train.precision import Precision


def predictions(config):
    *_, last = train(config)
    return last.log_probs["test"].astype(np.float64), last


CNN = {"model__name": "cnn", "model__widths": [8, 8], "optim__lr": 0.02}


@pytest.mark.parametrize(("precision", "off"), [("tf32", 0.0), ("bf16", 0.15), ("fp16", 0.02)])
def test_a_lower_precision_stays_near_float32(trial, precision, off):
    exact, _ = predictions(trial(**CNN))
    found, last = predictions(trial(**CNN, precision=precision))
    assert np.abs(found - exact).mean() <= off
    assert (np.abs(found - exact).max() > 0) == (off > 0)
    weights = [value for value in last.state()["model"].values() if value.is_floating_point()]
    assert {value.dtype for value in weights} == {torch.float32}


def test_recorded_predictions_are_normalised_in_float32_whatever_the_precision(trial):
    for precision in ("bf16", "fp16"):
        found, _ = predictions(trial(precision=precision))
        # float16 rounds each log-probability by 2^-11 of itself at most.
        assert np.abs(np.log(np.exp(found).sum(axis=1))).max() < 1e-3


def test_channels_last_trains_the_same_network(trial):
    found, last = predictions(trial(**CNN, channels_last=True))
    exact, _ = predictions(trial(**CNN))
    np.testing.assert_allclose(found, exact, atol=5e-3)
    filters = [w for w in last.state()["model"].values() if w.ndim == 4 and w.shape[1] > 1]
    assert filters
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in filters)


def test_channels_last_leaves_samples_that_are_no_images_alone():
    precision = Precision("float32", True, torch.device("cpu"))
    x = torch.randn(4, 3)
    assert torch.equal(precision.logits(torch.nn.Identity(), x), x)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of its own imports
def test_a_compiled_network_trains_like_one_that_is_not(trial):
    small = {"model__widths": [8], "epochs": 1, "optim__batch_size": 479}
    found, last = predictions(trial(**small, compile=True))
    exact, other = predictions(trial(**small))
    np.testing.assert_allclose(found, exact, atol=5e-3)
    assert last.state()["model"].keys() == other.state()["model"].keys()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_trial_gives_the_same_bits_resumed_and_whatever_was_compiled_before(trial):
    same = {"compile": True, "optim__batch_size": 400, "optim__lr": 0.02}
    config = trial(**same, model__widths=[48, 40], precision="bf16", regularize__dropout=0.1)
    whole, states = [], []
    for moment in train(config):
        whole.append(moment)
        states.append(copy.deepcopy(moment.state()))
    torch.compiler.reset()  # as in another process
    for others in ([], [[20], [33, 8, 8]]):
        for widths in others:
            list(train(trial(**same, model__widths=widths, epochs=1)))
        *_, resumed = train(config, state=states[5])
        assert resumed.metrics == whole[-1].metrics
        assert np.array_equal(resumed.log_probs["test"], whole[-1].log_probs["test"])


def test_the_scale_of_fp16_goes_with_a_checkpoint(trial):
    states = [moment.state()["precision"] for moment in train(trial(precision="fp16"))]
    assert states[0]["scale"] == 65536.0
    assert [state["_growth_tracker"] for state in states] == list(range(7))
    assert next(train(trial())).state()["precision"] == {}


def test_in_fp16_a_step_whose_gradient_overflows_is_left_out_and_the_scale_halved():
    precision = Precision("fp16", False, torch.device("cpu"))
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.SGD([weight], lr=0.1, fused=True)
    precision.backward((weight * 1e38).sum())  # times the scale: inf
    precision.step(optimizer)
    assert weight.item() == 1.0
    assert precision.state_dict()["scale"] == 32768.0
