"""A small trial, on one thread, and work that may not wait for a GPU."""

import contextlib
import warnings

import pytest
import torch

from sweeper.config import TrialConfig


@pytest.fixture(autouse=True)
def one_thread():
    """Bits depend on the thread count, and these networks are too small for two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def without_waiting():
    """A context in which whatever waits for a GPU raises."""
    return _without_waiting


@contextlib.contextmanager
def _without_waiting():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def trial():
    """A function of changes to a small trial; `__` stands for a dot, None takes a key away."""
    return small_trial


def small_trial(**changes):
    flat = {
        "data.name": "digits",
        "model.name": "fc",
        "model.widths": [16],
        "optim.name": "sgd",
        "optim.lr": 0.1,
        "optim.batch_size": 500,
        "epochs": 2,
    }
    flat |= {key.replace("__", "."): value for key, value in changes.items()}
    return TrialConfig.from_flat({key: value for key, value in flat.items() if value is not None})
