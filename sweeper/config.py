"""One trial's complete configuration, its validation and its content id.

A configuration has two forms that convert into each other without loss: the frozen
`TrialConfig`, for code, and a flat mapping of dotted names such as ``optim.lr``, for grids, the
store and tables. Everything that changes the predictions is in it, and nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass
from typing import Any

from sweeper.coerce import coerce, in_range, in_words
from sweeper.errors import ConfigError, nearest
from sweeper.registry import Entry, entry, is_plug_in
from sweeper.sections import (
    AugmentConfig,
    DataConfig,
    InitConfig,
    ModelConfig,
    OptimConfig,
    Options,
    RecordConfig,
    RegularizeConfig,
    number,
)
from sweeper.together import (
    canonical_decay,
    canonical_record,
    check_corner,
    check_data_seed,
    check_record,
    check_supplied,
    check_warmup,
)

# Changing any default, here or of a registry entry, renames trials: it needs a new version and
# an `upgrade` step (tests/sweeper/test_config.py pins every default).
SCHEMA_VERSION = 1

Flat = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """One complete configuration, seed included.

    Raises
    ------
    ConfigError : from `from_flat`, when a key, name, type or value is not allowed.
    """

    data: DataConfig
    model: ModelConfig
    optim: OptimConfig
    regularize: RegularizeConfig = RegularizeConfig()
    augment: AugmentConfig = AugmentConfig()
    init: InitConfig = InitConfig()
    record: RecordConfig = RecordConfig()
    epochs: int = number(at_least=1, below=10**7)  # the record schedule lists them
    # Of matrix products and convolutions; weights, sums and predictions are float32 in all.
    precision: typing.Literal["float32", "tf32", "bf16", "fp16"] = "float32"
    channels_last: bool = False  # images in memory as height × width × channels
    compile: bool = False  # by torch.compile
    seed: int = number(0, at_least=0, below=2**63)

    @classmethod
    def from_flat(cls, flat: Mapping[str, Any]) -> TrialConfig:
        """Validate a flat mapping of dotted names and fill in the defaults."""
        check_keys(flat)
        remaining = dict(flat)
        config: TrialConfig = _build(cls, "", remaining)
        if remaining:
            raise _inapplicable(next(iter(remaining)), flat)
        _check_together(config)
        return dataclasses.replace(
            config,
            record=canonical_record(config.record),
            regularize=canonical_decay(config.regularize),
        )

    def to_flat(self) -> Flat:
        """Every field and option by its dotted name, defaults included; tuples as lists."""
        return dict(_flatten(self, ""))

    def plug_ins(self) -> tuple[str, ...]:
        """The import paths among the names of the registry entries."""
        names = (self.to_flat()[f"{section}.name"] for section in named_sections())
        return tuple(sorted({name for name in names if is_plug_in(name)}))

    @functools.cached_property
    def identity(self) -> Flat:
        """The fields that differ from their defaults: what the id is made of."""
        flat = self.to_flat()
        defaults = default_values(flat)
        return {
            key: value
            for key, value in flat.items()
            if key not in defaults or value != defaults[key]
        }

    @functools.cached_property
    def trial_id(self) -> str:
        """`t` and 12 hex digits of the SHA-256 of the canonical identity (see `content_id`)."""
        return content_id(self.identity)


def content_id(identity: Mapping[str, Any], schema: int = SCHEMA_VERSION) -> str:
    """The id of an identity: `t` + SHA-256 over its canonical JSON, 12 hex digits.

    Canonical is sorted keys, no white space and shortest round-trip floats. The `t` keeps
    spreadsheets and YAML from reading `86e501496586` as a number.
    """
    text = json.dumps(
        {"schema": schema, "trial": dict(identity)},
        sort_keys=True,
        separators=(",", ":"),
        allow_nan=False,
    )
    return "t" + hashlib.sha256(text.encode()).hexdigest()[:12]


# --- the schema, read off the dataclasses ---------------------------------------------------


@dataclass(frozen=True)
class Leaf:
    """One field: its type, its default (MISSING when required) and its range."""

    type: Any
    default: Any
    bounds: Mapping[str, float]


@functools.cache
def schema() -> Mapping[str, Leaf]:
    """Every field by its dotted name; options of registry entries are not among them."""
    return types.MappingProxyType(dict(_leaves(TrialConfig, "")))


@functools.cache
def named_sections() -> tuple[str, ...]:
    """The prefixes that name a registry entry: `data`, `model`, `optim.schedule` and so on."""
    return tuple(key.removesuffix(".name") for key in schema() if key.endswith(".name"))


def sections() -> tuple[str, ...]:
    """The top-level mappings of a configuration."""
    return tuple(dict.fromkeys(key.split(".")[0] for key in schema() if "." in key))


@functools.cache
def _layout(cls: type) -> tuple[tuple[str, Leaf, type | None], ...]:
    """Per field its name, what it is and, if it is a section, that section's class."""
    hints = typing.get_type_hints(cls)
    return tuple(
        (
            item.name,
            Leaf(hints[item.name], item.default, item.metadata),
            hints[item.name] if dataclasses.is_dataclass(hints[item.name]) else None,
        )
        for item in dataclasses.fields(cls)
    )


def _leaves(cls: type, prefix: str) -> Iterable[tuple[str, Leaf]]:
    for name, leaf, section in _layout(cls):
        if section:
            yield from _leaves(section, f"{prefix}{name}.")
        elif name != "options":
            yield prefix + name, leaf


def _axis(section: str) -> str:
    """The registry axis of a named section: the last part of its dotted name."""
    return section.rpartition(".")[2]


def _entry(section: str, name: str) -> Entry:
    """The registry entry that a section names; its errors name the key."""
    try:
        return entry(_axis(section), name)
    except ConfigError as error:
        raise ConfigError(f"{section}.name", error.found, error.allowed, error.hint) from error


def check_keys(keys: Iterable[str]) -> None:
    """Refuse a key that no trial could have, whatever its registry entries are."""
    for key in keys:
        section = key.rpartition(".")[0]
        if key not in schema() and section not in named_sections():
            raise ConfigError(
                key,
                "unknown key",
                f"known: {', '.join(schema())}, and the options of {', '.join(named_sections())}",
                nearest(key, schema()),
            )


def default_values(flat: Mapping[str, Any]) -> Flat:
    """The defaults of all fields, and of the options of the entries that `flat` names."""
    names = {section: flat.get(f"{section}.name") for section in named_sections()}
    return dict(_defaults(tuple(names.items())))


@functools.lru_cache(maxsize=4096)
def _defaults(names: tuple[tuple[str, str | None], ...]) -> Flat:
    values = {key: leaf.default for key, leaf in schema().items() if leaf.default is not MISSING}
    for section, given in names:
        name = given if isinstance(given, str) else values.get(f"{section}.name")
        if name is None:
            continue
        found = _entry(section, name)
        values |= {f"{section}.{key}": default for key, default in found.defaults.items()}
    return {key: _plain(value) for key, value in values.items()}


def _plain(value: Any) -> Any:
    """As JSON would give it back: tuples as lists."""
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def _flatten(value: Any, prefix: str) -> Iterable[tuple[str, Any]]:
    for name, _, section in _layout(value.__class__):
        inner = getattr(value, name)
        if section:
            yield from _flatten(inner, f"{prefix}{name}.")
        elif name == "options":
            yield from ((prefix + key, _plain(option)) for key, option in inner)
        else:
            yield prefix + name, _plain(inner)


# --- building and checking ------------------------------------------------------------------


def _build(cls: type, prefix: str, remaining: Flat) -> Any:
    """Take this section's keys out of `remaining` and build it."""
    values: dict[str, Any] = {}
    for name, leaf, section in _layout(cls):
        key = prefix + name
        if section:
            values[name] = _build(section, f"{key}.", remaining)
        elif name == "options":
            values[name] = _take_options(prefix.rstrip("."), values["name"], remaining)
        elif key in remaining:
            values[name] = in_range(key, coerce(key, remaining.pop(key), leaf.type), leaf.bounds)
        elif leaf.default is MISSING:
            raise ConfigError(key, "missing", f"every trial needs {in_words(leaf.type)} here")
        else:
            values[name] = leaf.default
    return cls(**values)


def _take_options(section: str, name: str, remaining: Flat) -> Options:
    """The options of the section's registry entry, all of them, sorted by name."""
    found = _entry(section, name)
    options = []
    for option, default in sorted(found.defaults.items()):
        key = f"{section}.{option}"
        given = remaining.pop(key, default)
        options.append((option, coerce(key, given, found.types[option])))
    return tuple(options)


def _inapplicable(key: str, flat: Mapping[str, Any]) -> ConfigError:
    """The error for an option that the section's entry does not take."""
    section, _, option = key.rpartition(".")
    axis = _axis(section)
    found = entry(axis, {**default_values(flat), **flat}[f"{section}.name"])
    if option in found.supplied:
        return ConfigError(
            key, f"{axis} options do not include `{option}`", hint=f"set `regularize.{option}`"
        )
    known = [item for item in schema() if item.rpartition(".")[0] == section]
    known += [f"{section}.{name}" for name in found.defaults]
    return ConfigError(
        key,
        f"{axis} `{found.name}` has no option `{option}`",
        f"allowed: {', '.join(known)}",
        nearest(key, known),
    )


def _check_together(config: TrialConfig) -> None:
    """What no single field can tell."""
    corner = config.init.corner
    check_record(config.record, config.epochs)
    check_warmup(config.optim.schedule, corner, config.epochs)
    check_supplied(config.model, config.regularize)
    check_data_seed(config.data)
    check_corner(corner)


def upgrade(flat: Mapping[str, Any], version: int) -> Flat:
    """A stored configuration in today's schema.

    Raises
    ------
    ConfigError : it was written by a newer schema.
    """
    if version > SCHEMA_VERSION:
        raise ConfigError(
            "config",
            f"schema version {version}",
            f"this sweeper reads up to {SCHEMA_VERSION}",
            "install the version of sweeper that wrote it",
        )
    return dict(flat)
