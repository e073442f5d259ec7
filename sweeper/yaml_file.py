"""A small YAML file, read with suspicion: plain mappings, lists and values, or an error.

OmegaConf's loader is used for what it knows of YAML's traps (`1e-3` is a float, a duplicate key an
error). Aliases, tags and `${…}` would make the file more than data, or small text a large value.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweeper.errors import GridError, nearest

MAX_BYTES = 2**20
MAX_NESTING = 20


def read_text(path: Path) -> str:
    """The file's text, at most 1 MiB of UTF-8.

    Raises
    ------
    GridError : there is no such file, it is not a file, or it cannot be read.
    """
    try:
        if not path.exists():
            siblings = [other.name for other in path.parent.glob("*.y*ml")]
            raise GridError("grid", "no such file", hint=nearest(path.name, siblings))
        if not path.is_file():
            raise GridError("grid", "not a file", "a YAML file is needed")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise GridError("grid", "over 1 MiB", "a range makes a long axis short")
        return data.decode()
    except UnicodeDecodeError as error:
        raise GridError("grid", f"byte {error.start} is not UTF-8", "text in UTF-8") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise GridError("grid", f"cannot be read ({error})") from error


def load_mapping(text: str) -> dict[Any, Any]:
    """The mapping that the text holds; an empty text is an empty mapping.

    Raises
    ------
    GridError : naming the line, when the YAML is malformed or more than plain data.
    """
    try:
        _check_events(yaml.parse(text, Loader=yaml.SafeLoader))
        loaded = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))
    except yaml.YAMLError as error:
        raise _malformed(error, text) from error
    except (OmegaConfBaseException, ValueError) as error:
        found = f"malformed YAML ({str(error).partition(chr(10))[0]})"
        raise GridError("grid", found, "keys are names, values plain") from error
    assert isinstance(loaded, dict)
    return loaded


def dump_mapping(document: dict[Any, Any]) -> str:
    """The text that `load_mapping` reads back as the same mapping."""
    return str(yaml.safe_dump(document, sort_keys=False, allow_unicode=True))


def _check_events(events: Iterable[yaml.Event]) -> None:
    """Refuse whatever is not plain data, before any of it is built."""
    depth = 0
    for event in events:
        where = f"line {event.start_mark.line + 1}"
        if depth == 0 and isinstance(event, (yaml.ScalarEvent, yaml.SequenceStartEvent)):
            raise GridError(where, "not a mapping", "a mapping is needed at the top")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_NESTING:
            raise GridError(where, "nested too deeply", f"at most {MAX_NESTING} levels")
        if isinstance(event, yaml.NodeEvent):
            _check_node(where, event)


def _check_node(where: str, node: yaml.NodeEvent) -> None:
    if node.anchor:
        raise GridError(where, f"YAML anchor or alias `{node.anchor}`", "values are written out")
    if getattr(node, "tag", None):
        raise GridError(where, f"YAML tag `{node.tag}`", "values have no tags")
    value = getattr(node, "value", "")
    if "${" in value:
        raise GridError(
            where,
            f"interpolation `{value}`",
            "values are plain, expansion is pure",
            "share a value through `base`, compute one in `derive`",
        )


def _malformed(error: yaml.YAMLError, text: str) -> GridError:
    mark = getattr(error, "problem_mark", None)
    line = mark.line if mark else text.count("\n", 0, getattr(error, "position", None) or 0)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable"
    return GridError(f"line {line + 1}", f"malformed YAML ({problem})")
