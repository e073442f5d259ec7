"""Trials of one shape compute the same graph; the graph itself is the reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from sweeper.config import TrialConfig
from sweeper.shape import shape_of
from sweeper.train.trainee import Trainee

BASE = {
    "data.name": "digits",
    "data.subset": 100,
    "model.name": "cnn",
    "model.widths": [4, 4],
    "optim.name": "sgd-momentum",
    "optim.lr": 0.1,
    "optim.batch_size": 50,
    "epochs": 2,
}

# Of how much, of which samples, and for how long.
STRENGTHS = {
    "seed": [0, 7],
    "epochs": [2, 5],
    "data.seed": [0, 3],
    "optim.lr": [0.1, 1e-3],
    "optim.momentum": [0.9, 0.5],
    "optim.schedule.name": ["constant", "cosine"],
    "init.name": ["torch", "kaiming"],
    "record.schedule": ["epoch", "log"],
    "init.corner.fit": ["nothing", "random-labels"],
}

# What is computed, on how much at once, and what is kept in memory.
SWITCHES = {
    "data.subset": [100, 120],
    "data.test_subset": [None, 50],
    "data.image_size": [None, 10],
    "model.widths": [[4, 4], [4, 5]],
    "model.norm": ["batch", "none"],
    "model.name": ["cnn", "fc"],
    "optim.name": ["sgd-momentum", "sgd", "adam"],
    "optim.batch_size": [50, 51],
    "optim.clip": [None, 1.0],
    "regularize.weight_decay": [0.0, 1e-3],
    "regularize.dropout": [0.0, 0.2],
    "regularize.ema": [0.0, 0.9],
    "regularize.mixup": [0.0, 1.0],
    "regularize.label_smoothing": [0.0, 0.1],
    "augment.name": ["none", "shift"],
    "record.train": ["metrics", "none", "predictions"],
    "precision": ["float32", "tf32", "bf16"],
    "channels_last": [False, True],
    "compile": [False, True],
}


def trial(changes):
    """A trial of `BASE`, less the options of an entry that is not chosen."""
    flat = BASE | changes
    if flat["model.name"] != "cnn":
        del flat["model.widths"]
    if flat["optim.name"] != "sgd-momentum":
        flat.pop("optim.momentum", None)
    return TrialConfig.from_flat(flat)


def chosen(axes):
    return st.fixed_dictionaries({key: st.sampled_from(values) for key, values in axes.items()})


class Graph(TorchDispatchMode):
    """Writes down every operation and the shapes of the tensors that it is given."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        flat = torch.utils._pytree.tree_leaves((args, kwargs or {}))
        shapes = [tuple(item.shape) for item in flat if isinstance(item, torch.Tensor)]
        self.calls.append((str(function), shapes))
        return function(*args, **(kwargs or {}))


def graph_of_a_step(config):
    """The second step: the first makes the optimizer's state."""
    trainee = Trainee.build(config, torch.device("cpu"))
    first, second = list(trainee.batches())[:2]
    trainee.advance(*first)
    with Graph() as graph:
        trainee.advance(*second)
    return graph.calls


REGULARIZED = {
    "regularize.weight_decay": 1e-3,
    "regularize.dropout": 0.2,
    "regularize.ema": 0.9,
    "regularize.label_smoothing": 0.1,
    "optim.clip": 1.0,
    "data.label_noise": 0.1,
}
STRONGER = {
    "regularize.weight_decay": 1e-2,
    "regularize.dropout": 0.4,
    "regularize.ema": 0.99,
    "regularize.label_smoothing": 0.2,
    "optim.clip": 0.1,
    "data.label_noise": 0.5,
}


@pytest.mark.parametrize(
    ("key", "value"), [*((key, values[-1]) for key, values in STRENGTHS.items()), *STRONGER.items()]
)
def test_trials_of_one_shape_step_by_the_same_operations_on_the_same_shapes(key, value):
    reference, other = trial(REGULARIZED), trial(REGULARIZED | {key: value})
    assert other != reference
    assert shape_of(other) == shape_of(reference)
    graph = graph_of_a_step(reference)
    assert len(graph) > 50
    assert graph_of_a_step(other) == graph


def test_a_step_by_other_operations_is_of_another_shape():
    reference = trial({})
    graph, n_other = graph_of_a_step(reference), 0
    for key, values in SWITCHES.items():
        for value in values[1:]:
            other = trial({key: value})
            assert shape_of(other) != shape_of(reference), (key, value)
            n_other += key != "compile" and graph_of_a_step(other) != graph
    assert n_other >= 15, "the others differ in what they hold in memory or in their arithmetic"


@given(strengths=chosen(STRENGTHS), switches=chosen(SWITCHES))
def test_only_what_is_computed_sets_the_shape(strengths, switches):
    same = all(switches[key] == values[0] for key, values in SWITCHES.items())
    if switches["model.name"] == "fc":
        switches |= {"channels_last": False}
    here = shape_of(trial(switches))
    assert shape_of(trial(strengths | switches)) == here
    assert (here == shape_of(trial({}))) == same


def test_a_shape_reads_well_and_stays_the_same():
    assert shape_of(trial({})) == "cnn b50 sgd-momentum float32 #8d12d86a"
    flat = {"data.name": "cifar10", "model.name": "wrn-16-4-64", "optim.name": "sgd"}
    flat |= {"optim.lr": 0.1, "optim.batch_size": 500, "epochs": 200, "precision": "bf16"}
    assert shape_of(TrialConfig.from_flat(flat)) == "wrn-16-4-64 b500 sgd bf16 #bb5e1166"


def test_a_shape_is_no_part_of_an_id():
    config = trial({"regularize.weight_decay": 1e-3})
    before = config.trial_id, config.identity.copy()
    shape_of(config)
    assert (config.trial_id, config.identity) == before
    assert config.trial_id == TrialConfig.from_flat(config.to_flat()).trial_id
