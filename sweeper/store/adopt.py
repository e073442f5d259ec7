"""Put a trajectory that was trained elsewhere into a store, beside its own trials."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from sweeper.config import SCHEMA_VERSION, TrialConfig, named_sections
from sweeper.errors import SweeperError
from sweeper.registry import is_external
from sweeper.store.foreign import Trajectory
from sweeper.store.objects import Objects
from sweeper.store.opening import check_format, create_store
from sweeper.store.reader import Store
from sweeper.store.samples import read_sample_set
from sweeper.store.schema import SampleSet
from sweeper.store.seal import is_sealed, remove_leftovers, seal
from sweeper.store.writer import AttemptWriter, TrialHeader
from sweeper.sweep_dir import environment

_ORDER = "`store.labels('test', TRIAL)` and `store.sample_ids('test', TRIAL)` give their order"
_NAMES = "`np.savez` with `class_names=[...]`, in the order of the last axis of the predictions"


@dataclass(frozen=True)
class Source:
    """What a configuration's data set says of itself.

    Parameters
    ----------
    test_set : its test samples; None where its files are not here.
    class_names : None where nothing is known of it.
    """

    test_set: SampleSet | None = None
    class_names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Adopted:
    """An imported trial; `is_new` unless it was there already."""

    trial_id: str
    digest: str
    is_new: bool


def adopt(
    objects: Objects, config: TrialConfig, given: Trajectory, source: Callable[[], Source]
) -> Adopted:
    """Store the trajectory as the complete trial of that configuration.

    Nothing is written before all is checked. Killed at any instant, the trial is complete or
    absent from the analysis, and calling again completes it.

    Parameters
    ----------
    objects : the store's, which need not be there yet.
    source : asked only where no trial of the store has predictions of that data set.

    Raises
    ------
    SweeperError : the configuration is one that is trained here, the trial is there with another
        trajectory, or the samples are not those of the store's trials.
    """
    _check_external(config)
    if objects.names(""):
        check_format(objects)
    if is_sealed(objects, config.trial_id):
        return _there_already(objects, config.trial_id, given)
    samples = _sample_set(Store(objects), config, given, source)
    writer = AttemptWriter(create_store(objects), _header(config, given, samples), 0)
    for snapshot, epoch in enumerate(given.epochs):
        metrics = {name: values[snapshot] for name, values in given.metrics.items()}
        writer.append(snapshot, epoch, metrics, {"test": given.log_probs[snapshot]})
    digest = seal(objects, config.trial_id, "complete", writer.attempt)
    return Adopted(config.trial_id, digest, is_new=True)


def _header(config: TrialConfig, given: Trajectory, samples: SampleSet) -> TrialHeader:
    imported = {"file": given.file, "sha256": given.sha256}
    return TrialHeader(
        trial_id=config.trial_id,
        schema=SCHEMA_VERSION,
        config=config.to_flat(),
        identity=config.identity,
        steps=given.steps,
        metrics=tuple(given.metrics),
        sample_sets={"test": samples},
        provenance={**environment(), "imported": imported},
    )


def _check_external(config: TrialConfig) -> None:
    """Refuse what could be trained here: a launch would take the import for its own trial."""
    flat = config.to_flat()
    if not any(is_external(flat[f"{section}.name"]) for section in named_sections()):
        name = flat["model.name"]
        raise SweeperError(
            "model.name",
            f"`{name}` with this configuration is trained here",
            "a model, optim, schedule, augment or init `external/NAME`",
            f"`model.name: external/{name.rpartition('/')[2].rpartition(':')[2]}`",
        )


def _there_already(objects: Objects, trial_id: str, given: Trajectory) -> Adopted:
    found = remove_leftovers(objects, trial_id)  # of an import that was killed at its end
    imported = found["attempts"][-1]["provenance"].get("imported", {})
    if given.sha256 != imported.get("sha256") and given.digest() != found["digest"]:
        pairs = zip(given.snapshot_hashes(), found["snapshot_hashes"]["test"], strict=False)
        differing = [f"predictions of snapshot {i}" for i, (a, b) in enumerate(pairs) if a != b]
        what = (differing or ["steps, epochs or metrics"])[0]
        raise SweeperError(
            f"trial {trial_id}",
            f"stored with another trajectory, of `{imported.get('file')}` ({what} differ)",
            "one trajectory a trial",
            "another training is another trial: change its `seed`, or NAME in `external/NAME`",
        )
    return Adopted(trial_id, found["digest"], is_new=False)


# --- the samples ------------------------------------------------------------------------------


def _sample_set(
    store: Store, config: TrialConfig, given: Trajectory, source: Callable[[], Source]
) -> SampleSet:
    """The set of samples that the predictions are of."""
    known = _known_sets(store, config.data.name)
    if known:
        return _fitting(known, given)
    found = source()
    if found.test_set is not None:
        return _fitting({f"the test set of `{config.data.name}`": found.test_set}, given)
    class_names = found.class_names or given.class_names
    if class_names is None or given.class_names not in (None, class_names):
        text = (
            "not those of the data set" if class_names else "missing, and nothing else tells them"
        )
        allowed = ", ".join(class_names or [f"{given.log_probs.shape[2]} strings"])
        raise SweeperError(f"{given.file}: class_names", text, allowed, _NAMES)
    ids = np.arange(len(given.labels)) if given.ids is None else given.ids
    return SampleSet("test", given.labels, ids, class_names)


def _known_sets(store: Store, data_name: str) -> dict[str, SampleSet]:
    """The test sets of the store's trials of a data set, each by what to call it."""
    trials = store.trials()
    if "data.name" not in trials:
        return {}
    options = [name for name in trials if name.startswith("data.")]
    of_data = trials[trials["data.name"] == data_name].drop_duplicates(options)
    trial_of = {store.sample_set("test", trial_id): trial_id for trial_id in of_data.index}
    return {
        f"set {key} of trial {trial_id}": read_sample_set(store.objects, key)
        for key, trial_id in trial_of.items()
    }


def _fitting(known: Mapping[str, SampleSet], given: Trajectory) -> SampleSet:
    """The one known set that the samples are.

    Raises
    ------
    SweeperError : it is none of them, or several; it names the first difference from the nearest.
    """
    differing = {
        name: difference
        for name, samples in known.items()
        if (difference := _difference(samples, given)) is not None
    }
    fitting = [name for name in known if name not in differing]
    if len(fitting) == 1:
        return known[fitting[0]]
    names = ", ".join(fitting or known)
    if fitting:
        text, hint = f"its labels are those of {names}", "`ids` and `class_names` tell them apart"
        raise SweeperError(given.file, text, "one of them", hint)
    name, (*_, text) = max(differing.items(), key=lambda item: item[1][:2])
    allowed = f"the samples of {names}" if len(known) > 1 else "its samples in its order"
    raise SweeperError(given.file, f"{text} as in {name}", allowed, _ORDER)


def _difference(samples: SampleSet, given: Trajectory) -> tuple[int, int, str] | None:
    """Where the given samples first differ from these, after how near they are; None: nowhere."""
    _, n_samples, n_classes = given.log_probs.shape
    if n_samples != len(samples.labels):
        return 0, 0, f"{n_samples} samples, not {len(samples.labels)}"
    if n_classes != len(samples.class_names):
        return 1, 0, f"{n_classes} classes, not {len(samples.class_names)}"
    ids, class_names = given.ids, given.class_names or samples.class_names
    for nearness, what, theirs, ours in (
        (2, "label", given.labels, samples.labels),
        (3, "id", samples.ids if ids is None else ids, samples.ids),
    ):
        differing = np.flatnonzero(theirs != ours)
        if len(differing):
            i = differing[0]
            text = f"sample {i} has {what} {theirs[i]}, not {ours[i]}"
            return nearness, -len(differing), f"{text} ({len(differing)} of {n_samples} differ)"
    for i, (name, other) in enumerate(zip(class_names, samples.class_names, strict=True)):
        if name != other:
            return 4, 0, f"class {i} is `{name}`, not `{other}`"
    return None
