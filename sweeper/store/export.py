"""A store as Parquet files, for who reads tables and knows nothing of Zarr.

===================  =============  =========================================================
file                 one row        columns
===================  =============  =========================================================
trials.parquet       a trial        `trial_id`, every configuration field by its dotted name,
                                    `state`, `n_snapshots`, `digest`, the last metrics
snapshots.parquet    a snapshot     `trial_id`, `snapshot`, `step`, `epoch`, `time` (Unix
                                    seconds), the metrics
predictions.parquet  a snapshot     `trial_id`, `snapshot`, `sample_id`, `label`, `log_probs`
                     and sample     (natural logarithms, n_classes float32) of the test set
===================  =============  =========================================================

A column has one type: whole numbers int64, with fractions among them float64, lists a list of such
a type. Where a configuration field has values of several kinds in these trials, such as a name or
a list of epochs, its column is text, each value in JSON; the metadata name these columns. What a
trial does not have, and a metric that is not finite, is null; a column of nothing else is text.

The files' metadata hold, as JSON under `sweeper`, the store, the version, `--where`, the names of
columns in JSON, and for the predictions the names of the classes in the order of `log_probs`.
"""

from __future__ import annotations

import io
import itertools
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import sweeper
from sweeper.durable import write_parts
from sweeper.errors import AnalysisError
from sweeper.store.moments import MOMENT_COLUMNS
from sweeper.store.objects import REQUESTS_AT_ONCE
from sweeper.store.reader import Store
from sweeper.store.schema import Array
from sweeper.store.table import Summary
from sweeper.store.where import holds

TRIALS, SNAPSHOTS, PREDICTIONS = "trials.parquet", "snapshots.parquet", "predictions.parquet"

GROUP_BYTES = 64 << 20  # of predictions in a row group, all of one trial: what is in memory at once


def export(
    store: Store,
    folder: Path,
    where: str | None = None,
    predictions: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    only: Collection[str] | None = None,
) -> dict[Path, int]:
    """Write the files, each whole or not at all; their numbers of rows by path.

    Predictions are streamed, so that memory does not grow with their number. Trials that are not
    complete are among the rows, with the snapshots that they have. No file is replaced before all
    of the store that is asked for has been read.

    Parameters
    ----------
    where : only trials for which this expression holds, as for `analysis.select.select`.
    predictions : write `predictions.parquet` as well.
    progress : called with the number of snapshots whose predictions are written and of all.
    only : of these trials alone; None for all.

    Raises
    ------
    AnalysisError : there are no such trials, or they differ in their classes.
    ExpressionError : `where` is no expression of the trials.
    HoleError, StoreError : something is absent or damaged; files that were there stay.
    """
    chosen = _chosen(store, where, only)
    about = {"store": _absolute(store.location), "version": sweeper.__version__, "where": where}
    trials, snapshots = _trials(chosen, about), _snapshots(store, chosen, about)
    written = {}
    if predictions:  # first, because nothing else is left to be read
        class_names = _class_names(store, trials.column("trial_id").to_pylist())
        schema = _predictions_schema(class_names, about)
        groups = _groups(store, snapshots, schema, progress)
        written[folder / PREDICTIONS] = _write(folder / PREDICTIONS, schema, groups)
    for name, table in ((SNAPSHOTS, snapshots), (TRIALS, trials)):
        written[folder / name] = _write(folder / name, table.schema, [table])
    return written


def _absolute(location: str) -> str:
    return location if "://" in location else os.path.abspath(location)


def _write(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> int:
    """Replace a Parquet file by these tables, which are made as they are written; its rows."""
    n_rows = 0

    def parts() -> Iterator[bytes]:
        nonlocal n_rows
        sink = io.BytesIO()  # emptied after every table; the writer counts what went through it
        repeating = [field.name for field in schema if field.type == pa.string()]
        options = {"compression": "zstd", "use_dictionary": repeating}
        with pq.ParquetWriter(sink, schema, **options) as writer:
            for table in tables:
                writer.write_table(table)
                n_rows += len(table)
                yield sink.getvalue()
                sink.seek(0)
                sink.truncate()
        yield sink.getvalue()

    write_parts(path, parts())
    return n_rows


def _metadata(about: Mapping[str, Any], **more: Any) -> dict[str, str]:
    return {"sweeper": json.dumps({**about, **more})}


# --- trials -----------------------------------------------------------------------------------


def _chosen(store: Store, where: str | None, only: Collection[str] | None) -> list[Summary]:
    """What is known of the trials for which `where` holds, by id."""
    sealed = store.summaries()
    ids = [trial_id for trial_id in store.trial_ids() if only is None or trial_id in only]
    found = [sealed.get(trial_id) or store.summary(trial_id) for trial_id in ids]
    if not found:
        hint = "`sweeper launch GRID` runs some"
        raise AnalysisError(store.location, "no trials", "at least one", hint)
    if where is None:
        return found
    columns = _columns(found)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    chosen = list(itertools.compress(found, holds(rows, where)))
    if not chosen:
        found_none = f"`{where}` holds for none of {len(found)} trials"
        raise AnalysisError("--where", found_none, "at least one", "without it all are exported")
    return chosen


def _columns(trials: Sequence[Summary]) -> dict[str, list[Any]]:
    """The values of each column of the table of trials, None where a trial has none."""
    fields = dict.fromkeys(name for trial in trials for name in trial.config)
    return {
        "trial_id": [trial.trial_id for trial in trials],
        **{name: [trial.config.get(name) for trial in trials] for name in fields},
        "state": [trial.state for trial in trials],
        "n_snapshots": [trial.n_snapshots for trial in trials],
        "digest": [trial.digest for trial in trials],
        **{name: [trial.metrics.get(name) for trial in trials] for name in _metrics(trials)},
    }


def _metrics(trials: Iterable[Summary]) -> list[str]:
    return list(dict.fromkeys(name for trial in trials for name in trial.metrics))


def _trials(trials: Sequence[Summary], about: Mapping[str, Any]) -> pa.Table:
    columns = _columns(trials)
    types = {name: _common_type(values) for name, values in columns.items()}
    types |= dict.fromkeys(_metrics(trials), pa.float64())
    table = pa.table({name: _array(values, types[name]) for name, values in columns.items()})
    in_json = [name for name, kind in types.items() if kind is None]
    return table.replace_schema_metadata(_metadata(about, json=in_json))


def _common_type(values: Iterable[Any]) -> pa.DataType | None:
    """The one Arrow type that loses nothing of these values and nulls; None if there is none."""
    given = [value for value in values if value is not None]
    kinds = {type(value) for value in given}
    if kinds == {list}:
        inner = _common_type(item for value in given for item in value)
        return inner and pa.list_(inner)
    if kinds == {int} and all(-(2**63) <= value < 2**63 for value in given):
        return pa.int64()
    if kinds and kinds <= {int, float} and all(value == float(value) for value in given):
        return pa.float64()
    if kinds <= {str}:
        return pa.string()
    return pa.bool_() if kinds == {bool} else None


def _array(values: Sequence[Any], kind: pa.DataType | None) -> pa.Array:
    if kind is None:
        return pa.array([None if value is None else json.dumps(value) for value in values])
    return pa.array(values, kind, from_pandas=True)


# --- snapshots --------------------------------------------------------------------------------


def _snapshots(store: Store, trials: Sequence[Summary], about: Mapping[str, Any]) -> pa.Table:
    metrics = dict.fromkeys((*MOMENT_COLUMNS[1:], *_metrics(trials)), pa.float64())
    types = {"trial_id": pa.string(), "snapshot": pa.int64(), "step": pa.int64(), **metrics}
    schema = pa.schema(types, metadata=_metadata(about))
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        tables = pool.map(lambda trial: _snapshots_of(store, trial.trial_id, schema), trials)
        return pa.concat_tables([schema.empty_table(), *tables])


def _snapshots_of(store: Store, trial_id: str, schema: pa.Schema) -> pa.Table:
    """One trial's rows; a metric that it did not record is null."""
    table = store.snapshots(trial_id).assign(trial_id=trial_id)
    columns = {name: table.get(name, [None] * len(table)) for name in schema.names}
    arrays = [pa.array(columns[field.name], field.type, from_pandas=True) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


# --- predictions ------------------------------------------------------------------------------


def _class_names(store: Store, trial_ids: Iterable[str]) -> tuple[str, ...]:
    """The names of the classes, which the trials have to share."""
    found: dict[tuple[str, ...], str] = {}
    for trial_id in trial_ids:
        found.setdefault(store.class_names(trial_id), trial_id)
    if len(found) > 1:
        (one, a), (other, b), *_ = found.items()
        text = f"trials differ in their classes: {len(one)} of {a}, {len(other)} of {b}"
        hint = "select with `--where`, for example by `data.name`"
        raise AnalysisError("--predictions", text, "the same classes in the same order", hint)
    return next(iter(found))


def _predictions_schema(class_names: Sequence[str], about: Mapping[str, Any]) -> pa.Schema:
    return pa.schema(
        {
            "trial_id": pa.string(),
            "snapshot": pa.int64(),
            "sample_id": pa.int64(),
            "label": pa.int64(),
            "log_probs": pa.list_(pa.float32(), len(class_names)),
        },
        metadata=_metadata(about, class_names=class_names),
    )


def _groups(
    store: Store, snapshots: pa.Table, schema: pa.Schema, progress: Callable[[int, int], None]
) -> Iterator[pa.Table]:
    """The predictions of these snapshots, as many of one trial at a time as make a row group."""
    rows, n_done = snapshots.select(["trial_id", "snapshot"]).to_pandas(), 0
    found = store.iter_snapshots(rows) if len(rows) else iter(())
    for trial_id, of_trial in itertools.groupby(found, key=lambda item: item[0]):
        ids, labels = store.sample_ids("test", trial_id), store.labels("test", trial_id)
        n_bytes = 4 * len(labels) * schema.field("log_probs").type.list_size
        while part := list(itertools.islice(of_trial, max(1, GROUP_BYTES // n_bytes))):
            yield pa.Table.from_batches(
                [_batch(schema, *snapshot, ids, labels) for snapshot in part]
            )
            n_done += len(part)
            progress(n_done, len(rows))


def _batch(
    schema: pa.Schema,
    trial_id: str,
    snapshot: int,
    log_probs: Array,
    ids: Array,
    labels: Array,
) -> pa.RecordBatch:
    """One snapshot's rows."""
    n_samples, n_classes = log_probs.shape
    values = pa.FixedSizeListArray.from_arrays(pa.array(log_probs.ravel()), n_classes)
    names = pa.repeat(trial_id, n_samples), pa.repeat(pa.scalar(snapshot, pa.int64()), n_samples)
    return pa.record_batch([*names, pa.array(ids), pa.array(labels), values], schema=schema)
