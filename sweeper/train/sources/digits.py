"""Scikit-learn's digits: the data set that is always there."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sweeper.train.data import DataSet, Splits

_TEST_PER_CLASS = 36
_SPLIT_SEED = 0


def digits() -> DataSet:
    """8×8 images of handwritten digits, 16 grey levels: 1,437 to train on, 360 to test.

    The 1,797 images of scikit-learn's `load_digits`, from Alpaydin & Kaynak, "Optical Recognition
    of Handwritten Digits", UCI Machine Learning Repository, 1998, doi:10.24432/C50P49. The test
    set has 36 images of each class; writers are in both sets, since their names are not known.
    """
    return DataSet(
        shape=(1, 8, 8),
        class_names=tuple(str(digit) for digit in range(10)),
        n_train=1437,
        n_test=360,
        load=_load,
    )


def _load() -> Splits:
    from sklearn.datasets import load_digits  # half a second: only those who train pay it

    source = load_digits()
    train_ids, test_ids = _stratified(source.target, _TEST_PER_CLASS, _SPLIT_SEED)
    x = torch.from_numpy(source.images.astype(np.uint8)).unsqueeze(1)
    y = torch.from_numpy(source.target.astype(np.int64))
    return Splits(
        train_x=x[train_ids],
        train_y=y[train_ids],
        test_x=x[test_ids],
        test_y=y[test_ids],
        train_ids=train_ids,
        test_ids=test_ids,
        class_names=tuple(str(name) for name in source.target_names),
        scale=16.0,
        mean=(0.305,),  # of the training set's pixels
        std=(0.376,),
    )


def _stratified(labels: np.ndarray, per_class: int, seed: int) -> tuple[Tensor, Tensor]:
    """Ids of the training and test samples, each ascending, `per_class` of each class to test.

    Only raw PCG64 output is used: NumPy promises that stream for ever, but no shuffle made of it.
    """
    keys = np.random.PCG64(seed).random_raw(len(labels))
    test = np.concatenate(
        [
            members[np.argsort(keys[members], kind="stable")[:per_class]]
            for members in (np.flatnonzero(labels == label) for label in np.unique(labels))
        ]
    )
    is_test = np.isin(np.arange(len(labels)), test)
    return torch.from_numpy(np.flatnonzero(~is_test)), torch.from_numpy(np.flatnonzero(is_test))
