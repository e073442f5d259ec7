"""The index: the table of trials in one object, so that listing them does not open every group.

`index.parquet` lies in the store and can always be made again from its groups, which alone are
believed: a row counts only while its trial's metadata are the object that it was made from, by
their stamp, and what the index lacks is read from its group. Nothing but tables comes from it.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import google_crc32c

from sweeper.store.objects import REQUESTS_AT_ONCE, Objects, metadata_key
from sweeper.store.table import Summary

INDEX = "index.parquet"
_COLUMNS = ("trial_id", "stamp", "summary", "checksum")


@dataclass(frozen=True)
class Index:
    """What is known of sealed trials, and the stamps of those that there are."""

    stamps: Mapping[str, str]
    rows: Mapping[str, Summary] = field(default_factory=dict)

    def completed(self, summary: Callable[[str], Summary]) -> dict[str, Summary]:
        """All sealed trials; those without a row are asked for, several at a time."""
        missing = [trial_id for trial_id in self.stamps if trial_id not in self.rows]
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            found = dict(zip(missing, pool.map(summary, missing), strict=True))
        return {**self.rows, **found}


def read_index(objects: Objects) -> Index:
    """The rows of the index that are up to date; none when it is absent or unreadable."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    stamps = objects.stamps("trials", metadata_key(""))
    data = objects.find(INDEX)
    if data is None:
        return Index(stamps)
    try:
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            # A thread of pyarrow's that still has a buffer of ours when Python ends aborts it.
            table = file.read(_COLUMNS, use_threads=False)
        columns = [table.column(name).to_pylist() for name in _COLUMNS]
        known = {
            trial_id: text
            for trial_id, stamp, text, checksum in zip(*columns, strict=True)
            if stamps.get(trial_id) == stamp and checksum == _checksum(trial_id, stamp, text)
        }
        summaries = json.loads(f"[{','.join(known.values())}]")  # at once, in two thirds the time
        rows = {
            trial_id: Summary(**found) for trial_id, found in zip(known, summaries, strict=True)
        }
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):  # of damaged bytes
        return Index(stamps)
    return Index(stamps, rows)


def _checksum(*values: str) -> int:
    """A bit that changes in a Parquet file may give another value and no error."""
    return int(google_crc32c.value("\n".join(values).encode()))


def write_index(objects: Objects, summary: Callable[[str], Summary], rebuild: bool = False) -> int:
    """Bring the index up to date; returns the number of trials that it then has.

    Any number of processes may do so at once: the last one wins, and none of them can make it
    wrong, only incomplete.

    Parameters
    ----------
    summary : what is stored of a sealed trial.
    rebuild : take nothing from the index that is there.

    Raises
    ------
    StoreError : the metadata of a trial that is not indexed yet is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    known = read_index(objects)
    before = Index(known.stamps) if rebuild else known
    rows = before.completed(summary)
    if rows.keys() == known.rows.keys() and not rebuild:
        return len(rows)
    texts = [json.dumps(dataclasses.asdict(row)) for row in rows.values()]
    values = [list(rows), [known.stamps[trial_id] for trial_id in rows], texts]
    checksums = list(map(_checksum, *values))
    buffer = io.BytesIO()
    columns = dict(zip(_COLUMNS, [*values, checksums], strict=True))
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    objects.write(INDEX, buffer.getbuffer())
    return len(rows)
