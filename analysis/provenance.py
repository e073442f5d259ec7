"""What an artifact was made of, kept with it, so that it is made again only when that changed."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from sweeper.durable import write_atomically
from sweeper.errors import FormatVersionError, StoreError

_KEY, _HASH = b"sweeper", b"sweeper.sha256"
_LIBRARIES = ("sweeper", "numpy", "scipy", "torch", "zarr")
_AGAIN = "run `sweeper analyze all DIR` again"


def provenance(
    stage: str,
    inputs: Mapping[str, Any],
    parameters: Mapping[str, Any],
    left_out: Mapping[str, Any],
    places: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """A record of JSON values: stage, inputs, parameters, left out, places, versions, fingerprint.

    The fingerprint (12 hex digits) covers what the result depends on: stage, inputs, parameters
    and our own version. The same trials give the same result wherever they were read.
    """
    about: dict[str, Any] = {"stage": stage, "inputs": dict(inputs), "parameters": dict(parameters)}
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    text = json.dumps([about, versions["sweeper"]], sort_keys=True, allow_nan=False)
    fingerprint = hashlib.sha256(text.encode()).hexdigest()[:12]
    about |= {"left_out": dict(left_out), "places": [dict(place) for place in places]}
    about |= {"versions": versions, "fingerprint": fingerprint}
    return dict(json.loads(json.dumps(about)))


def write_table(path: Path, table: pd.DataFrame, about: Mapping[str, Any]) -> None:
    """Replace a Parquet file atomically; its schema's metadata holds the provenance."""
    content = pa.Table.from_pandas(table, preserve_index=False)
    metadata = {
        **(content.schema.metadata or {}),
        _KEY: json.dumps(about).encode(),
        _HASH: _hash(content.to_pandas(), about),
    }
    buffer = io.BytesIO()
    pq.write_table(
        content.replace_schema_metadata(metadata),
        buffer,
        compression="zstd",
    )
    write_atomically(path, buffer.getvalue())


def read_table(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A table and its provenance.

    Raises
    ------
    StoreError : it is absent, damaged, or not written by `write_table`.
    """
    try:
        # Without pyarrow's threads, which can abort the process if they outlive Python.
        content = pq.ParquetFile(pa.BufferReader(path.read_bytes())).read(use_threads=False)
        table, metadata = content.to_pandas(use_threads=False), content.schema.metadata
        about = json.loads(metadata[_KEY])
        if _hash(table, about) != metadata[_HASH]:
            raise ValueError("its checksum does not match")
        return table, about
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        found = "absent" if isinstance(error, FileNotFoundError) else f"unreadable ({error})"
        raise StoreError(str(path), found, hint=_AGAIN) from error


def _hash(table: pd.DataFrame, about: Mapping[str, Any]) -> bytes:
    """SHA-256 over names, values and provenance, whatever their encoding in the file."""
    rows = pd.util.hash_pandas_object(table, index=False).to_numpy()
    text = json.dumps([list(table.columns), about], sort_keys=True)
    return hashlib.sha256(text.encode() + rows.tobytes()).hexdigest().encode()


def write_document(path: Path, content: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Replace a JSON file atomically, with its `provenance` and the `sha256` of both."""
    document = {**content, "provenance": dict(about)}
    document["sha256"] = _hash_of(document)
    write_atomically(path, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())


def read_document(path: Path) -> dict[str, Any]:
    """A JSON file that `write_document` wrote, its `provenance` included.

    Raises
    ------
    StoreError : it is absent, damaged, or something else.
    """
    try:
        found = dict(json.loads(path.read_bytes()))
        if "sha256" not in found:
            raise ValueError("no checksum: of an earlier version, or something else")
        if found.pop("sha256") != _hash_of(found):
            raise ValueError("its checksum does not match")
        return {**found, "provenance": dict(found["provenance"])}
    except (OSError, KeyError, TypeError, ValueError) as error:
        missing = "absent" if isinstance(error, FileNotFoundError) else f"unreadable ({error})"
        raise StoreError(str(path), missing, hint=_AGAIN) from error


def check_format(path: Path, what: str, found: int, known: int) -> None:
    """Refuse an artifact of a format that is newer than is known.

    Parameters
    ----------
    what : `a map`, or what else it is.

    Raises
    ------
    FormatVersionError : it is.
    """
    if found > known:
        raise FormatVersionError(
            str(path),
            f"{what} of format `{found}`",
            f"this sweeper reads up to {known}",
            "install the version of sweeper that wrote it, or a newer one",
        )


def _hash_of(document: Mapping[str, Any]) -> str:
    """SHA-256 over keys and values, whatever the layout of the file."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def are_of(
    about: Mapping[str, Any], tables: Sequence[Path] = (), documents: Sequence[Path] = ()
) -> bool:
    """Whether all these artifacts are there, whole, and of this provenance."""
    try:
        found = [read_table(path)[1] for path in tables]
        found += [read_document(path)["provenance"] for path in documents]
    except StoreError:
        return False
    return all(item["fingerprint"] == about["fingerprint"] for item in found)
