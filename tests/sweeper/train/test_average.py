"""The exponential moving average of weights."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from sweeper.train.average import Average
from sweeper.train.build import build_model
from sweeper.train.data import load
from sweeper.train.loop import train


def test_it_is_the_recursion_of_the_weights_of_every_step(trial):
    config, decay = trial(model__name="cnn", model__widths=[4, 4], regularize__ema=0.7), 0.7
    expected = None
    for moment in train(config):
        state = moment.state()
        now = {key: value.double() for key, value in state["model"].items()}
        if expected is None:
            expected = now
        expected = {key: decay * expected[key] + (1 - decay) * now[key] for key in now}
        for key, value in state["average"].items():
            if "running" not in key and "num_batches" not in key:
                torch.testing.assert_close(value.double(), expected[key], rtol=1e-5, atol=1e-6)


def test_predictions_are_those_of_the_average_with_the_trained_networks_statistics(trial):
    config = trial(model__name="cnn", model__widths=[4, 4], regularize__ema=0.9)
    data = load(config.data)
    *_, last = train(config)
    state = last.state()
    model = build_model(config.data, config.model, config.regularize, seed=0).eval()
    statistics = {k: v for k, v in state["model"].items() if "running" in k}
    assert statistics
    model.load_state_dict({**state["average"], **statistics})
    with torch.no_grad():
        log_probs = model(data.inputs(data.pixels(data.test_x))).log_softmax(dim=1).numpy()
    np.testing.assert_allclose(last.log_probs["test"], log_probs, rtol=1e-3, atol=1e-5)
    *_, plain = train(trial(model__name="cnn", model__widths=[4, 4]))
    assert not np.array_equal(plain.log_probs["test"], last.log_probs["test"])


def test_training_itself_does_not_depend_on_it(trial):
    ends = []
    for decay in (0.0, 0.9):
        *_, last = train(trial(regularize__ema=decay))
        ends.append(copy.deepcopy(last.state()["model"]))
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_the_average_of_weights_that_stay_is_those_weights():
    model = nn.Linear(3, 2)
    average = Average(model, 0.5)
    before = [value.clone() for value in model.parameters()]
    average.update()
    assert all(map(torch.equal, average.network().parameters(), before))


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_a_decay_outside_of_0_to_1_is_refused(trial, decay):
    with pytest.raises(Exception, match=r"regularize\.ema"):
        trial(regularize__ema=decay)
