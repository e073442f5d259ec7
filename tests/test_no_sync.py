"""The watch sees what waits, and only that."""

import pytest
import torch

from tests.no_sync import counted_syncs, no_syncs

X = torch.arange(6.0)

WAITING = {
    "item": lambda: X[2].item(),
    "float": lambda: float(X.sum()),
    "if": lambda: 1 if X.sum() > 3 else 2,
    "mask": lambda: X[X > 2],
    "mask assigned": lambda: X.clone().__setitem__(X > 2, torch.ones(3)),
    "nonzero": lambda: torch.nonzero(X),
    "where": lambda: torch.where(X > 2),
    "masked_select": lambda: X.masked_select(X > 2),
    "unique": lambda: X.unique(),
    "bincount": lambda: X.long().bincount(minlength=8),
    "equal": lambda: torch.equal(X, X),
    "tensor": lambda: torch.tensor([1.0, 2.0]),
}
NOT_WAITING = {
    "index": lambda: X[X.long()],
    "slice": lambda: X[1:3] * 2.0,
    "where of three": lambda: torch.where(X > 2, X, 0.0),
    "masked_fill": lambda: X.masked_fill(X > 2, 0.0),
    "draw": lambda: torch.rand(3, generator=torch.Generator().manual_seed(0)),
    "made on the device": lambda: torch.arange(4) + torch.full((4,), 2),
    "gather": lambda: X.gather(0, X.long()),
}


@pytest.mark.parametrize("name", WAITING)
def test_what_waits_is_seen_once(name):
    with counted_syncs() as found:
        WAITING[name]()
    assert len(found) == 1
    with pytest.raises(AssertionError, match="the host waits"), no_syncs():
        WAITING[name]()


@pytest.mark.parametrize("name", NOT_WAITING)
def test_what_does_not_wait_is_not_seen(name):
    with no_syncs():
        NOT_WAITING[name]()
