"""Which trials of a store a command is about; there need be no sweep directory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sweeper.chosen import Selectors, chosen
from sweeper.config import upgrade
from sweeper.errors import StoreError
from sweeper.journal import Tally
from sweeper.plan import planned_configs, planned_ids
from sweeper.status.states import states_of
from sweeper.store.reader import Store
from sweeper.store.schema import sealed_key
from sweeper.sweep_dir import SweepDir


def chosen_stored(asked: Selectors, store: Store, folder: SweepDir | None) -> set[str] | None:
    """The trials that are asked for, by the names of their folders; None for all.

    What cannot be read is taken, so that whoever looks for damage meets it. Without a sweep
    directory, a trial that is not sealed is `interrupted`.

    Parameters
    ----------
    folder : the store's sweep directory, whose plan and journal tell more; None if there is none.

    Raises
    ------
    SweeperError, ExpressionError : see `chosen`.
    """
    if not asked:
        return None
    planned = planned_ids(folder.plan) if folder is not None else []
    tally = Tally.read(folder.status, folder.journal) if folder is not None else Tally()
    labels = {trial: found["label"] for trial, found in tally.trials.items() if "label" in found}
    stored = {*store.objects.names("trials"), *store.objects.names("staging")}
    ids = sorted({*planned, *tally.trials, *stored} - set(labels.values()))

    def configs() -> Iterator[Mapping[str, Any] | None]:
        known: dict[str, Any] = {}
        if folder is not None:
            known = dict(zip(planned, planned_configs(folder.plan), strict=True))
        known |= _stored_configs(store) if len(known) < len(ids) else {}
        for trial in ids:
            yield known.get(trial) or _stored_config(store, labels.get(trial, trial))

    def states() -> Mapping[str, str]:
        if folder is not None:
            return states_of(folder, ids)
        return {trial: _stored_state(store, trial) or asked.states[0] for trial in ids}

    return {labels.get(trial, trial) for trial in chosen(asked, ids, configs, states)}


def _stored_configs(store: Store) -> dict[str, Any]:
    """The configurations of sealed trials, from the index; none where one of them is damaged."""
    try:
        found = store.summaries()
    except StoreError:
        return {}
    return {label: upgrade(one.config, one.schema) for label, one in found.items()}


def _stored_config(store: Store, label: str) -> Mapping[str, Any] | None:
    """One trial's configuration; None where nothing readable is stored."""
    try:
        found = store.summary(label)
        return upgrade(found.config, found.schema)
    except (StoreError, KeyError, TypeError, IndexError):
        return None


def _stored_state(store: Store, label: str) -> str | None:
    """One trial's state; None where it is damaged."""
    try:
        found = store.objects.attributes(sealed_key(label))
        return "interrupted" if found is None else str(found["state"])
    except (StoreError, KeyError):
        return None
