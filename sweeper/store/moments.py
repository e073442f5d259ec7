"""What is said of a snapshot beside its predictions: step, epoch, time and metrics.

A record of float64 and its CRC-32C, in front of the snapshot's predictions in one object, so that
the two are there together or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sweeper.durable import Bytes
from sweeper.store.codec import CRC_BYTES, with_crc, without_crc

MOMENT_COLUMNS = ("step", "epoch", "time")  # then the metrics; time is Unix seconds

Moment = dict[str, float]


def columns(metrics: Sequence[str]) -> tuple[str, ...]:
    """The names of a record's values."""
    return (*MOMENT_COLUMNS, *metrics)


def record_size(metrics: Sequence[str]) -> int:
    """Bytes of a record, its checksum included."""
    return 8 * len(columns(metrics)) + CRC_BYTES


def to_record(moment: Mapping[str, float], metrics: Sequence[str]) -> bytes:
    """The record of a moment."""
    return with_crc(np.array([moment[name] for name in columns(metrics)], "<f8").tobytes())


def from_record(data: Bytes, metrics: Sequence[str]) -> Moment:
    """The moment of a record.

    Raises
    ------
    ValueError : a bit has changed, or it is cut off.
    """
    values = np.frombuffer(without_crc(data), "<f8").tolist()
    return dict(zip(columns(metrics), values, strict=True))
