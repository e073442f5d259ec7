"""Mean Bhattacharyya distance between snapshots, and its closed forms.

A snapshot is the product over samples of one categorical distribution per sample. For two of them

    d(p, q) = -(1/N) Σₙ log Σ_c √(pₙ(c) qₙ(c)),  in nats

(Mao et al., PNAS 121(12), 2024, doi:10.1073/pnas.2310002121). Snapshots come as natural-log
probabilities, because float32 probabilities of confident networks are already zero. Every row is
normalised here in float64, so that the rounding of float16 storage does not look like distance.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from analysis.bhattacharyya import portable, reference
from analysis.bhattacharyya.portable import COEFFICIENT_FLOOR
from sweeper.errors import AnalysisError, nearest

__all__ = ["COEFFICIENT_FLOOR", "KERNELS", "pairwise", "to_ignorance", "to_truth"]

LogProbs = npt.NDArray[typing.Any] | torch.Tensor
Float64 = npt.NDArray[np.float64]

KERNELS = ("auto", "portable", "reference")
_BATCH = 2**20  # numbers that are looked at at once
ROW_SUM_TOLERANCE = 1e-3  # float16 log-probabilities of 1,000 classes stay within half of it


def pairwise(
    log_p: LogProbs, log_q: LogProbs | None = None, device: str = "auto", kernel: str = "auto"
) -> Float64:
    """The distance of every snapshot of `log_p` to every snapshot of `log_q`.

    Parameters
    ----------
    log_p : (n_p, n_samples, n_classes) float16, float32 or float64 natural-log probabilities,
        NumPy or torch; −inf is allowed, NaN is not, and each row sums to 1 within 1e-3.
    log_q : (n_q, n_samples, n_classes), same samples in the same order; default `log_p`.
    device : `auto` (CUDA when there is one), `cpu`, `cuda` or `cuda:<index>`.
    kernel : `auto` (the fastest that runs here), `portable` (torch; within 1e-7·max(1, d) of the
        reference) or `reference` (float64 on the CPU, slow).

    Returns
    -------
    (n_p, n_q) float64, nats, ≥ 0; symmetric with an exactly zero diagonal when `log_q` is None.
        Where two snapshots have disjoint support on a sample, their distance is infinite:
        `reference` says so, `portable` counts every coefficient below `COEFFICIENT_FLOOR` as that
        floor, so that one sample adds at most 41.6 nats / n_samples and no distance is infinite.

    Raises
    ------
    AnalysisError : shapes disagree, a dtype, device or kernel is unknown, there is a NaN, or a
        row does not sum to 1 (the message names the row and the worst sum).
    """
    p = _checked(log_p, "log_p")
    q = None if log_q is None else _checked(log_q, "log_q")
    if q is not None and p.shape[1:] != q.shape[1:]:
        raise AnalysisError(
            "log_q", f"shape `{tuple(q.shape)}`", f"samples and classes of `{tuple(p.shape)}`"
        )
    if kernel not in KERNELS:
        raise AnalysisError(
            "kernel", f"`{kernel}`", f"one of {', '.join(KERNELS)}", nearest(kernel, KERNELS)
        )
    if kernel == "reference":
        if device not in ("auto", "cpu"):
            raise AnalysisError("device", f"`{device}`", "the reference runs on the cpu only")
        return reference.pairwise(p.numpy(), None if q is None else q.numpy())
    return portable.pairwise(p, q, _device(device))


def to_truth(log_p: LogProbs, labels: npt.ArrayLike) -> Float64:
    """The distance to the truth, whose probabilities are one-hot: half the cross-entropy.

    d(p, P*) = −½ (1/N) Σₙ log pₙ(yₙ), exact: no floor, infinite only when a true class has
    probability zero.

    Parameters
    ----------
    log_p : (n, n_samples, n_classes), as in `pairwise`.
    labels : (n_samples,) integers in [0, n_classes).

    Returns
    -------
    (n,) float64, nats.

    Raises
    ------
    AnalysisError : as in `pairwise`, or the labels do not fit.
    """
    p = _checked(log_p, "log_p")
    y = np.asarray(labels)
    if y.shape != p.shape[1:2] or y.dtype.kind not in "iu":
        raise AnalysisError(
            "labels", f"shape `{y.shape}`, dtype `{y.dtype}`", f"`{(p.shape[1],)}` integers"
        )
    if y.min() < 0 or y.max() >= p.shape[2]:
        raise AnalysisError("labels", f"`{y.min()}` to `{y.max()}`", f"0 to {p.shape[2] - 1}")
    samples = torch.arange(p.shape[1])
    true = torch.from_numpy(y.astype(np.int64))
    means = [_normalised(batch)[:, samples, true].mean(-1).numpy() for batch in _batches(p)]
    return -0.5 * np.concatenate(means)


def to_ignorance(log_p: LogProbs) -> Float64:
    """The distance to ignorance, whose probabilities are all 1/n_classes.

    d(p, P₀) = ½ ln C − (1/N) Σₙ log Σ_c √pₙ(c).

    Parameters
    ----------
    log_p : (n, n_samples, n_classes), as in `pairwise`.

    Returns
    -------
    (n,) float64, nats; between 0 and ½ ln n_classes.

    Raises
    ------
    AnalysisError : as in `pairwise`.
    """
    p = _checked(log_p, "log_p")
    means = [
        torch.logsumexp(_normalised(batch) / 2, dim=-1).mean(-1).numpy() for batch in _batches(p)
    ]
    # Uniform rows give 0 to rounding, and a distance is never negative.
    return np.maximum(0.5 * math.log(p.shape[2]) - np.concatenate(means), 0.0)


def _batches(values: torch.Tensor) -> Iterator[torch.Tensor]:
    """Runs of snapshots, large enough that a few operations do and small enough for float64."""
    step = max(1, _BATCH // values[0].numel())
    return (values[start : start + step] for start in range(0, len(values), step))


def _normalised(batch: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(batch.double(), dim=-1)


def _checked(log_probs: LogProbs, name: str) -> torch.Tensor:
    """The input as a tensor on the CPU, refused unless it holds log-probabilities."""
    if not isinstance(log_probs, (np.ndarray, torch.Tensor)):
        raise AnalysisError(name, f"a {type(log_probs).__name__}", "a NumPy array or torch tensor")
    kind = str(log_probs.dtype).removeprefix("torch.")
    if kind not in ("float16", "float32", "float64"):
        raise AnalysisError(name, f"dtype `{kind}`", "float16, float32 or float64")
    if log_probs.ndim != 3 or 0 in log_probs.shape:
        raise AnalysisError(
            name, f"shape `{tuple(log_probs.shape)}`", "(n_snapshots, n_samples, n_classes)"
        )
    if isinstance(log_probs, torch.Tensor):
        values = log_probs.detach().cpu()
    else:
        values = torch.from_numpy(np.require(log_probs, requirements=["C", "W"]))
    sums = [torch.exp(batch.double()).sum(-1) for batch in _batches(values)]
    _check_rows(torch.cat(sums), name)
    return values


def _check_rows(sums: torch.Tensor, name: str) -> None:
    """Refuse rows that are no distributions, naming the worst; `sums` is (n, n_samples)."""
    off = torch.nan_to_num((sums - 1).abs(), nan=math.inf)
    wrong = int((off > ROW_SUM_TOLERANCE).sum())
    if not wrong:
        return
    snapshot, sample = divmod(int(off.argmax()), sums.shape[1])
    worst = sums[snapshot, sample]
    found = "NaN" if worst.isnan() else f"probabilities that sum to `{worst:.4g}`"
    raise AnalysisError(
        f"{name}[{snapshot}, {sample}]",
        f"{found}, the worst of {wrong} wrong rows",
        f"natural-log probabilities whose sum is 1 within {ROW_SUM_TOLERANCE:g}",
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if name != "cpu" and not (kind == "cuda" and (index.isdecimal() or name == "cuda")):
        raise AnalysisError("device", f"`{name}`", "auto, cpu, cuda or cuda:<index>")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise AnalysisError("device", f"`{name}`", f"{torch.cuda.device_count()} CUDA devices here")
    return torch.device(name)
