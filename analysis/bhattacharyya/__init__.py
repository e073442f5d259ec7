"""Mean Bhattacharyya distance between snapshots, and its closed forms.

A snapshot is the product over samples of one categorical distribution per sample. For two of them

    d(p, q) = -(1/N) Σₙ log Σ_c √(pₙ(c) qₙ(c)),  in nats

(Mao et al., PNAS 121(12), 2024, doi:10.1073/pnas.2310002121). Snapshots come as natural-log
probabilities, because float32 probabilities of confident networks are already zero. Every row is
normalised here in float64, so that the rounding of float16 storage does not look like distance.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import typing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from analysis.bhattacharyya import cpu, portable, reference
from analysis.bhattacharyya import kernel as kernels
from analysis.bhattacharyya.kernel import (
    COEFFICIENT_FLOOR,
    Float64,
    Kernel,
    NotDistributionsError,
    Packed,
    tolerance,
)
from sweeper.errors import AnalysisError, nearest

__all__ = [
    "COEFFICIENT_FLOOR",
    "KERNELS",
    "Kernel",
    "NotDistributionsError",
    "Packed",
    "devices",
    "local_kernels",
    "pairwise",
    "to_ignorance",
    "to_truth",
    "worst_row",
]

LogProbs = npt.NDArray[typing.Any] | torch.Tensor

KERNELS = ("auto", "gpu", "cpu", "portable", "reference")
_BATCH = 2**20  # numbers that are looked at at once


def pairwise(
    log_p: LogProbs, log_q: LogProbs | None = None, device: str = "auto", kernel: str = "auto"
) -> Float64:
    """The distance of every snapshot of `log_p` to every snapshot of `log_q`.

    Parameters
    ----------
    log_p : (n_p, n_samples, n_classes) float16, float32 or float64 natural-log probabilities,
        NumPy or torch; −inf is allowed, NaN is not, and each row's probabilities sum
        to 1 within 1e-3 (float16: 0.025); they are normalised.
    log_q : (n_q, n_samples, n_classes), same samples in the same order; default `log_p`.
    device : `auto` (CUDA when there is one), `cpu`, `cuda` or `cuda:<index>`.
    kernel : `auto` (the fastest that is exact), `gpu` (Triton; exact from 8,192 samples on), `cpu`
        (C; from 256 on), `portable` (torch) or `reference` (float64 on the CPU, slow). Exact is
        within 1e-7·max(1, d) of the reference; a kernel that works in float32 is so where the
        rounding of many samples averages out, not where all samples are alike: 5e-7 then.

    Returns
    -------
    (n_p, n_q) float64, nats, ≥ 0; symmetric with an exactly zero diagonal when `log_q` is None.
        Where two snapshots have disjoint support on a sample, their distance is infinite:
        `reference` says so, the others count every coefficient below `COEFFICIENT_FLOOR` as that
        floor, so that one sample adds at most 41.6 nats / n_samples and no distance is infinite.

    Raises
    ------
    AnalysisError : shapes disagree, a dtype, device or kernel is unknown, there is a NaN, or a
        row does not sum to 1 (the message names the row and the worst sum).
    """
    p = _tensor(log_p, "log_p")
    q = None if log_q is None else _tensor(log_q, "log_q")
    if q is not None and p.shape[1:] != q.shape[1:]:
        raise AnalysisError(
            "log_q", f"shape `{tuple(q.shape)}`", f"samples and classes of `{tuple(p.shape)}`"
        )
    if kernel not in KERNELS:
        raise AnalysisError(
            "kernel", f"`{kernel}`", f"one of {', '.join(KERNELS)}", nearest(kernel, KERNELS)
        )
    if kernel in ("cpu", "reference"):
        if device not in ("auto", "cpu"):
            raise AnalysisError(
                "device", f"`{device}`", f"the {kernel} kernel runs on the cpu only"
            )
        device = "cpu"
    where = _device(device)
    if kernel == "reference":
        _check_rows(p, "log_p")
        if q is not None:
            _check_rows(q, "log_q")
        return reference.pairwise(p.numpy(), None if q is None else q.numpy())
    with _kernel(kernel, where, *p.shape[1:]) as chosen:
        try:  # every kernel looks at the rows itself while it reads them
            return kernels.pairwise(chosen, p, q)
        except NotDistributionsError:
            _check_rows(p, "log_p")
            if q is not None:
                _check_rows(q, "log_q")
        # What is refused in float32 may be accepted in float64, if only just.
        return kernels.pairwise(chosen, _normalised(p), None if q is None else _normalised(q))


@contextlib.contextmanager
def local_kernels(n_samples: int, n_classes: int) -> Iterator[list[Kernel]]:
    """The fastest kernels that are exact, for predictions of this shape: one a GPU, or one."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(_kernel("auto", device, n_samples, n_classes))
            for device in devices()
        ]


def devices() -> list[torch.device]:
    """The GPUs, or the CPU where there is none."""
    n_gpus = torch.cuda.device_count()
    return [torch.device("cuda", index) for index in range(n_gpus)] or [torch.device("cpu")]


@contextlib.contextmanager
def _kernel(name: str, device: torch.device, n_samples: int, n_classes: int) -> Iterator[Kernel]:
    """The kernel of that name, or the fastest that is exact on a device, as long as it is used.

    Raises
    ------
    AnalysisError : it is not here, or not for this device.
    """
    if name == "auto":
        name = _fastest(device, n_samples, n_classes)
    elif reason := _missing(name, device):
        raise AnalysisError("kernel", f"`{name}`: {reason}", "one that is here, such as portable")
    n_threads = torch.get_num_threads() if device.type == "cpu" else 1
    if name == "gpu":
        from analysis.bhattacharyya.gpu import Gpu

        yield Gpu(device)
    elif name == "cpu":
        with ThreadPoolExecutor(n_threads) as pool:
            yield cpu.Cpu(pool, n_threads)
    else:
        memory = portable.memory_on(device)
        with portable.threads(n_threads) as pool:
            yield portable.Portable(pool, n_threads, device, n_samples, memory)


def _fastest(device: torch.device, n_samples: int, n_classes: int) -> str:
    """The name of the fastest kernel that is exact."""
    if device.type == "cuda":
        if _missing("gpu", device):
            return "portable"
        from analysis.bhattacharyya.gpu import MIN_SAMPLES

        return "gpu" if n_samples >= MIN_SAMPLES else "portable"
    return "cpu" if cpu.best(n_samples, n_classes) else "portable"


def _missing(name: str, device: torch.device) -> str | None:
    """Why a kernel cannot be used on a device, or None where it can."""
    if name == "cpu":
        return cpu.missing()
    if name != "gpu":
        return None
    if device.type != "cuda":
        return "there is no CUDA device"
    if importlib.util.find_spec("triton") is None:
        return "`triton` is not installed"
    from analysis.bhattacharyya.gpu import CAPABILITY

    found = torch.cuda.get_device_capability(device)
    return f"the GPU is of capability {found}" if found < CAPABILITY else None


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
    values = _tensor(log_probs, name)
    _check_rows(values, name)
    return values


def _tensor(log_probs: LogProbs, name: str) -> torch.Tensor:
    """The input as a tensor on the CPU, refused unless of a shape and type that is allowed."""
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
        return log_probs.detach().cpu()
    return torch.from_numpy(np.require(log_probs, requirements=["C", "W"]))


def _check_rows(values: torch.Tensor, name: str) -> None:
    """Refuse rows that are no distributions, naming the worst."""
    found = worst_row(values)
    if found is not None:
        snapshot, sample, text = found
        allowed = f"natural-log probabilities whose sum is 1 within {tolerance(values):g}"
        raise AnalysisError(f"{name}[{snapshot}, {sample}]", text, allowed)


def worst_row(values: torch.Tensor) -> tuple[int, int, str] | None:
    """Snapshot and sample of the row that is furthest from a distribution, and what it is.

    Parameters
    ----------
    values : (n, n_samples, n_classes) natural-log probabilities.

    Returns
    -------
    None if the probabilities of all rows sum to 1.
    """
    sums = torch.cat([torch.exp(batch.double()).sum(-1) for batch in _batches(values)])
    off = torch.nan_to_num((sums - 1).abs(), nan=math.inf)
    n_wrong = int((off > tolerance(values)).sum())
    if not n_wrong:
        return None
    snapshot, sample = divmod(int(off.argmax()), sums.shape[1])
    worst = sums[snapshot, sample]
    found = "NaN" if worst.isnan() else f"probabilities that sum to `{worst:.4g}`"
    return snapshot, sample, f"{found}, the worst of {n_wrong} wrong rows"


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if name != "cpu" and not (kind == "cuda" and (index.isdecimal() or name == "cuda")):
        raise AnalysisError("device", f"`{name}`", "auto, cpu, cuda or cuda:<index>")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise AnalysisError("device", f"`{name}`", f"{torch.cuda.device_count()} CUDA devices here")
    return torch.device(name)
