"""Gaussian inputs, sloppy or isotropic, that a random network has labelled."""

from __future__ import annotations

import functools
import hashlib
import itertools
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sweeper.errors import ConfigError
from sweeper.train.data import DataSet, Splits
from sweeper.train.randomness import raw_numbers

# Streams of raw PCG64 output, one for each thing that is drawn.
_TEACHER, _TRAIN_X, _TEST_X, _TRAIN_Y, _TEST_Y = range(5)


def synthetic(
    dim: int = 200,
    decay: float = 0.5,
    n_train: int = 5000,
    n_test: int = 1000,
    n_classes: int = 5,
    teacher_widths: tuple[int, ...] = (50,),
    labels: Literal["teacher", "random"] = "teacher",
    seed: int = 0,
) -> DataSet:
    """Gaussian vectors whose variances fall exponentially, labelled by a random tanh network.

    x ~ N(0, diag(λ)/dim) with λ_i = 50 c exp(−c i), i = 0 … dim−1 and c = `decay`; λ_i = 1 if
    c = 0 (isotropic). Large `decay` is sloppy: few directions matter. Mao et al., PNAS 121(12),
    2024, doi:10.1073/pnas.2310002121; the teacher's weights are not given there, so these are ours.

    The teacher is z → tanh(W₁z) → … → Wₖ₊₁z, of widths dim, `teacher_widths`, n_classes, without
    biases; a label is the index of its largest output. The entries of W₁ are N(0, 1), so that
    isotropic inputs give units of variance 1; those of the others N(0, 1/fan_in).

    All draws are made of the raw 64-bit output of NumPy's `PCG64((stream, seed))`, r₀, r₁, …:
    uₖ = (⌊rₖ/2¹¹⌋ + ½)/2⁵³, and Gaussian number k is √(−2 ln u₂ₖ) cos(2π u₂ₖ₊₁), in float64, row by
    row. Streams: 0 the teacher's matrices, (fan_in, fan_out), in order; 1 and 2 the training and
    test inputs; 3 and 4 their random labels, rₖ modulo n_classes. A sample's id is 63 bits of the
    BLAKE2b of `stream/seed/dim/decay/index`, so that predictions on other inputs are never taken
    for predictions on the same.

    Parameters
    ----------
    labels : `teacher`, or `random` for labels that have nothing to do with the inputs.
    seed : supplied from `data.seed`.

    Raises
    ------
    ConfigError : a size is below 1 (below 2 for `n_classes`), or `decay` is negative.
    """
    sizes = {"dim": dim, "n_train": n_train, "n_test": n_test, "n_classes": n_classes}
    sizes |= {"teacher_widths": min(teacher_widths, default=1)}
    for name, size in sizes.items():
        least = 2 if name == "n_classes" else 1
        if size < least:
            raise ConfigError(name, f"`{size}`", f"at least {least}")
    if decay < 0:
        raise ConfigError("decay", f"`{decay}`", "at least 0")
    widths = (dim, *teacher_widths, n_classes)
    return DataSet(
        shape=(dim,),
        class_names=tuple(str(label) for label in range(n_classes)),
        n_train=n_train,
        n_test=n_test,
        load=functools.partial(_load, widths, decay, n_train, n_test, labels == "teacher", seed),
    )


def _load(
    widths: tuple[int, ...], decay: float, n_train: int, n_test: int, is_taught: bool, seed: int
) -> Splits:
    teacher = _teacher(widths, seed)
    train_x = _inputs(n_train, widths[0], decay, (_TRAIN_X, seed))
    test_x = _inputs(n_test, widths[0], decay, (_TEST_X, seed))
    if is_taught:
        train_y, test_y = (_taught(x, teacher) for x in (train_x, test_x))
    else:
        train_y, test_y = (
            (raw_numbers(n, stream, seed) % np.uint64(widths[-1])).astype(np.int64)
            for n, stream in ((n_train, _TRAIN_Y), (n_test, _TEST_Y))
        )
    return Splits(
        train_x=torch.from_numpy(train_x.astype(np.float32)),
        train_y=torch.from_numpy(train_y),
        test_x=torch.from_numpy(test_x.astype(np.float32)),
        test_y=torch.from_numpy(test_y),
        train_ids=_ids(n_train, f"{_TRAIN_X}/{seed}/{widths[0]}/{float(decay)!r}"),
        test_ids=_ids(n_test, f"{_TEST_X}/{seed}/{widths[0]}/{float(decay)!r}"),
        class_names=tuple(str(label) for label in range(widths[-1])),
    )


def variances(dim: int, decay: float) -> np.ndarray:
    """λ, the variances of the inputs times `dim`; (dim,) float64."""
    if decay == 0:
        return np.ones(dim)
    return 50 * decay * np.exp(-decay * np.arange(dim))


def _ids(n: int, inputs: str) -> Tensor:
    """What names each input, whatever its rounding on this machine; (n,) int64."""
    digests = [
        hashlib.blake2b(f"{inputs}/{index}".encode(), digest_size=8).digest() for index in range(n)
    ]
    return torch.tensor([int.from_bytes(digest, "big") >> 1 for digest in digests])


def _inputs(n: int, dim: int, decay: float, stream: tuple[int, int]) -> np.ndarray:
    normal = _normal(n * dim, stream).reshape(n, dim)
    return normal * np.sqrt(variances(dim, decay) / dim)


def _teacher(widths: tuple[int, ...], seed: int) -> list[np.ndarray]:
    """The matrices, (fan_in, fan_out) float64."""
    shapes = list(itertools.pairwise(widths))
    numbers = _normal(sum(inner * outer for inner, outer in shapes), (_TEACHER, seed))
    matrices = []
    for index, (inner, outer) in enumerate(shapes):
        drawn, numbers = numbers[: inner * outer], numbers[inner * outer :]
        matrices.append(drawn.reshape(inner, outer) / (1 if index == 0 else np.sqrt(inner)))
    return matrices


def _taught(x: np.ndarray, teacher: list[np.ndarray]) -> np.ndarray:
    """The teacher's labels, (n,) int64."""
    for matrix in teacher[:-1]:
        x = np.tanh(x @ matrix)
    return np.argmax(x @ teacher[-1], axis=1)


def _normal(n: int, stream: tuple[int, int]) -> np.ndarray:
    """Standard normal numbers by Box and Muller, (n,) float64."""
    u = ((raw_numbers(2 * n, *stream) >> np.uint64(11)) + 0.5) / 2**53
    return np.sqrt(-2 * np.log(u[0::2])) * np.cos(2 * np.pi * u[1::2])
