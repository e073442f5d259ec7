"""A network's predictions on a fixed set of samples, and how good they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.functional import log_softmax, nll_loss

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
    """

    loss: float
    accuracy: float
    finite: bool
    log_probs: np.ndarray | None


@torch.no_grad()
def evaluate(model: nn.Module, data: Splits, split: str, *, keep: bool) -> Evaluation:
    """Evaluate `split` (`train` or `test`), unaugmented, in evaluation mode.

    Waits for the device only at the end. The model is left in evaluation mode.

    Parameters
    ----------
    keep : whether to return the log probabilities: log-softmax in float32, clipped to at least
        −65504, as float16.
    """
    model.eval()
    n_samples, device = len(getattr(data, f"{split}_y")), data.test_y.device
    totals = torch.zeros(3, dtype=torch.float64, device=device)
    kept = []
    for some_x, some_y in data.chunks(split, _CHUNK):
        log_probs = log_softmax(model(data.inputs(data.pixels(some_x))).float(), dim=1)
        loss = nll_loss(log_probs, some_y, reduction="none").sum(dtype=torch.float64)
        right = (log_probs.argmax(dim=1) == some_y).sum()
        totals += torch.stack([loss, right.double(), (~log_probs.isfinite()).sum().double()])
        if keep:
            kept.append(log_probs.clamp(min=LEAST_LOG_PROB).half())
    loss_sum, n_right, n_bad = totals.tolist()
    return Evaluation(
        loss=loss_sum / n_samples,
        accuracy=n_right / n_samples,
        finite=n_bad == 0,
        log_probs=torch.cat(kept).cpu().numpy() if keep else None,
    )
