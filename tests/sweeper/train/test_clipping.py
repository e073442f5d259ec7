"""Clipping of gradients."""

import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sweeper.train.optim import clip_gradients

SHAPES = ((4, 3), (5,), (2, 3, 2, 2))


def with_gradients(scale):
    found = [nn.Parameter(torch.ones(shape, dtype=torch.float64)) for shape in SHAPES]
    for index, weight in enumerate(found):
        counted = torch.arange(1.0, weight.numel() + 1, dtype=weight.dtype) + index
        weight.grad = scale * counted.view(weight.shape)
    return found


def norm(found):
    return math.sqrt(math.fsum(float(weight.grad.square().sum()) for weight in found))


def test_long_gradients_are_scaled_to_the_limit_together():
    found, before = with_gradients(1.0), with_gradients(1.0)
    length = norm(before)
    clip_gradients(iter(found), 2.0)
    assert norm(found) == pytest.approx(2.0, rel=1e-6)
    for one, other in zip(found, before, strict=True):
        torch.testing.assert_close(one.grad, other.grad * 2.0 / (length + 1e-6), rtol=1e-14, atol=0)


def test_gradients_within_the_limit_are_not_touched():
    found, before = with_gradients(1e-3), with_gradients(1e-3)
    found[0].grad = before[0].grad = None
    clip_gradients(found, 2.0)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(found[1:], before[1:], strict=True))


class NoReading(TorchDispatchMode):
    """Fails where a value of a tensor is asked for, for which a GPU would be waited for."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        waits = ("_local_scalar_dense", "nonzero", "equal", "masked_select")
        assert function.overloadpacket.__name__ not in waits
        return function(*args, **(kwargs or {}))


def test_clipping_reads_nothing_off_the_device():
    found = with_gradients(1.0)
    with NoReading():
        clip_gradients(found, 2.0)
    with pytest.raises(AssertionError), NoReading():
        found[0].grad.sum().item()


@pytest.mark.parametrize("spoilt", [math.inf, math.nan])
def test_a_gradient_that_is_not_finite_is_no_error_here(spoilt):
    found = with_gradients(1.0)
    found[0].grad[0, 0] = spoilt
    clip_gradients(found, 2.0)
    assert found[0].grad.isnan().any()
