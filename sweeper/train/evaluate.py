"""A network's predictions on a fixed set of samples, and how good they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import log_softmax, nll_loss

from sweeper.train.corner import Fitted
from sweeper.train.data import Splits

# Samples of one forward pass. Fixed, since another number gives other bits.
_CHUNK = 512

# The least float16. A float16 probability of 0 makes distances infinite; this never does.
LEAST_LOG_PROB = -65504.0


@dataclass(frozen=True)
class Evaluation:
    """Predictions on one split.

    Parameters
    ----------
    loss : mean of −log p(label), nats; float64 mean of float32 terms.
    accuracy : fraction of samples whose most probable class is the label.
    finite : whether every log probability is finite; if not, nothing else here means anything.
    log_probs : (n_samples, n_classes) float16, or None when not asked for.
    fit_loss, fit_accuracy : the same of the samples and labels that are fitted; None when not
        asked for.
    """

    loss: float
    accuracy: float
    finite: bool
    log_probs: np.ndarray | None
    fit_loss: float | None = None
    fit_accuracy: float | None = None


@torch.no_grad()
def evaluate(
    logits: Callable[[Tensor], Tensor],
    data: Splits,
    split: str,
    *,
    keep: bool,
    fit: Fitted | None = None,
) -> Evaluation:
    """Evaluate `split` (`train` or `test`), unaugmented.

    Waits for the device only at the end.

    Parameters
    ----------
    logits : a network in evaluation mode: (batch, *shape) inputs to (batch, n_classes) float32.
    keep : whether to return the log probabilities: log-softmax in float32, clipped to at least
        −65504, as float16.
    fit : of the training split, what is fitted, if that is to be scored as well.
    """
    score = _Score(len(getattr(data, f"{split}_y")), data.test_y.device, fit)
    kept = []
    for stored, labels in data.chunks(split, _CHUNK):
        log_probs = log_softmax(logits(data.inputs(data.pixels(stored))).float(), dim=1)
        score.add(log_probs, labels)
        if keep:
            kept.append(log_probs.clamp(min=LEAST_LOG_PROB).half())
    return score.evaluation(torch.cat(kept).cpu().numpy() if keep else None)


class _Score:
    """Sums over samples, kept on their device until all are seen."""

    def __init__(self, n_samples: int, device: torch.device, fit: Fitted | None) -> None:
        self._n_samples, self._n_added, self._fit = n_samples, 0, fit
        self._seen = None if fit is None else fit.seen()
        self._totals = torch.zeros(5, dtype=torch.float64, device=device)

    def add(self, log_probs: Tensor, labels: Tensor) -> None:
        """Take in a chunk of samples, in order."""
        chosen = log_probs.argmax(dim=1)
        terms = [
            nll_loss(log_probs, labels, reduction="none").sum(dtype=torch.float64),
            (chosen == labels).sum().double(),
            (~log_probs.isfinite()).sum().double(),
        ]
        if self._fit is not None and self._seen is not None:
            rows = slice(self._n_added, self._n_added + len(labels))
            given, seen = self._fit.labels[rows], self._seen[rows]
            terms += [
                (nll_loss(log_probs, given, reduction="none") * seen).sum(),
                ((chosen == given) * seen).sum(),
            ]
        self._totals[: len(terms)] += torch.stack(terms)
        self._n_added += len(labels)

    def evaluation(self, log_probs: np.ndarray | None) -> Evaluation:
        """The means; waits for the device."""
        loss, n_right, n_bad, fit_loss, n_fit_right = self._totals.tolist()
        n_fit = None if self._fit is None else self._fit.n_samples
        return Evaluation(
            loss=loss / self._n_samples,
            accuracy=n_right / self._n_samples,
            finite=n_bad == 0,
            log_probs=log_probs,
            fit_loss=None if n_fit is None else fit_loss / n_fit,
            fit_accuracy=None if n_fit is None else n_fit_right / n_fit,
        )
