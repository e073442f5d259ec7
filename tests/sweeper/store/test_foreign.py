from __future__ import annotations

import hashlib

import numpy as np
import pytest

from analysis.select import select
from analysis.union import open_union
from sweeper.config import TrialConfig
from sweeper.errors import ConfigError, SweeperError
from sweeper.registry import entry
from sweeper.store import open_store, seal, writer
from sweeper.store.adopt import Source, adopt
from sweeper.store.foreign import read_trajectory
from sweeper.store.schema import LOG_PROB_MIN, SampleSet
from sweeper.store.verify import verify

FLAT = {
    "data.name": "digits",
    "model.name": "external/theirs",
    "optim.name": "sgd",
    "optim.lr": 0.1,
    "epochs": 1,
}
CONFIG = TrialConfig.from_flat(FLAT)
FLOAT16 = 2**-10  # relative to a float16's value, the distance to the next


def tree(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def changed(values, index, value):
    copied = values.copy()
    copied[index] = value
    return copied


def save_one(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def without(arrays, name):
    return {key: values for key, values in arrays.items() if key != name}


@pytest.fixture
def ours(tiny):
    """The id of a complete trial of ours, of the data set that `CONFIG` names."""
    header = tiny.header()
    return tiny.sealed(1, config={**header.config, "data.name": "digits"})


@pytest.fixture
def arrays(tiny, ours):
    """What our trial predicted, as somebody else would write it."""
    store = open_store(tiny.path)
    moments = store.snapshots(ours)
    return {
        "log_probs": store.log_probs(ours, "test"),
        "steps": moments["step"].to_numpy(),
        "epochs": moments["epoch"].to_numpy(),
        "labels": store.labels("test", ours),
    }


@pytest.fixture
def write(tmp_path):
    """Write a file of arrays; its path."""

    def write(arrays):
        np.savez(tmp_path / "theirs.npz", **arrays)
        return tmp_path / "theirs.npz"

    return write


@pytest.fixture
def refused(tmp_path, write):
    """The error of a file of arrays, which names the file and says what to do."""

    def refuse(arrays):
        path = write(arrays) if isinstance(arrays, dict) else arrays
        with pytest.raises(SweeperError) as caught:
            read_trajectory(path)
        assert caught.value.where.startswith(f"{path}: ")
        assert caught.value.hint
        assert caught.value.exit_code == 2
        return str(caught.value).removeprefix(f"{path}: ")

    return refuse


# --- arrays that are a trajectory -------------------------------------------------------------


@pytest.mark.parametrize("name", ["log_probs", "probs"])
@pytest.mark.parametrize("dtype", ["<f2", ">f2", "<f4", "<f8", ">f8"])
def test_predictions_of_every_type_are_those_given_to_float16(arrays, write, name, dtype):
    log_probs = arrays.pop("log_probs")
    values = np.exp(log_probs) if name == "probs" else log_probs
    found = read_trajectory(write(arrays | {name: values.astype(dtype)}))
    assert found.log_probs.dtype == np.float16
    distance = np.abs(found.log_probs.astype(np.float64) - log_probs)
    assert (distance <= 2 * FLOAT16 * np.maximum(np.abs(log_probs), 1)).all()


def test_what_sums_to_nearly_one_is_normalised(arrays, write):
    probs = np.exp(arrays.pop("log_probs").astype(np.float64))
    found = read_trajectory(write(arrays | {"probs": probs * 1.0009}))
    sums = np.exp(found.log_probs.astype(np.float64)).sum(axis=-1)
    np.testing.assert_allclose(sums, 1, atol=1e-3)


def test_probabilities_of_zero_become_the_least_log_probability(arrays, write):
    shape = arrays.pop("log_probs").shape
    probs = np.zeros(shape, np.float32)
    probs[..., 0] = 1
    found = read_trajectory(write(arrays | {"probs": probs}))
    assert (found.log_probs[..., 0] == 0).all()
    assert (found.log_probs[..., 1:] == LOG_PROB_MIN).all()


def test_an_array_in_any_order_of_memory_is_read(arrays, write):
    transposed = np.asfortranarray(arrays["log_probs"])
    expected = read_trajectory(write(arrays)).digest()
    assert read_trajectory(write(arrays | {"log_probs": transposed})).digest() == expected


def test_loss_and_accuracy_are_computed_and_other_arrays_are_metrics(arrays, write):
    own = np.array([0.5, np.nan, 2, 3], np.float32)
    found = read_trajectory(write(arrays | {"train_loss": own}))
    assert list(found.metrics) == ["test_loss", "test_accuracy", "train_loss"]
    of_label = arrays["log_probs"][:, np.arange(12), arrays["labels"]]
    np.testing.assert_allclose(found.metrics["test_loss"], -of_label.mean(axis=1), rtol=1e-6)
    right = (arrays["log_probs"].argmax(axis=-1) == arrays["labels"]).mean(axis=1)
    np.testing.assert_allclose(found.metrics["test_accuracy"], right)
    np.testing.assert_array_equal(found.metrics["train_loss"], own)


def test_a_loss_and_an_accuracy_that_agree_are_accepted_and_not_stored(arrays, write):
    computed = read_trajectory(write(arrays)).metrics
    given = {name: np.array(values) + 0.009 for name, values in computed.items()}
    assert read_trajectory(write(arrays | given)).metrics == computed


def test_a_tie_may_have_been_won_or_lost_where_the_accuracy_was_computed(arrays, write, refused):
    tied = {**arrays, "log_probs": np.full((4, 12, 3), -np.log(3), np.float32)}
    for accuracy in (0.0, 0.5, 1.0):
        given = tied | {"test_accuracy": np.full(4, accuracy)}
        assert read_trajectory(write(given)).metrics["test_accuracy"][0] == pytest.approx(
            (arrays["labels"] == 0).mean()
        )
    refused(tied | {"test_accuracy": np.full(4, 1.2)})


# --- arrays that are none ----------------------------------------------------------------------

BAD = {
    "no-predictions": (lambda a: without(a, "log_probs"), "log_probs, probs: missing"),
    "both": (lambda a: a | {"probs": np.exp(a["log_probs"])}, "both are there; one of the two"),
    "two-axes": (lambda a: a | {"log_probs": a["log_probs"][0]}, "log_probs: shape (12, 3)"),
    "no-snapshots": (lambda a: a | {"log_probs": a["log_probs"][:0]}, "shape (0, 12, 3)"),
    "integers": (lambda a: a | {"log_probs": np.zeros((4, 12, 3), int)}, "log_probs: type int64"),
    "complex": (lambda a: a | {"log_probs": a["log_probs"] + 0j}, "log_probs: type complex64"),
    "nan": (
        lambda a: a | {"log_probs": changed(a["log_probs"], (2, 5, 1), np.nan)},
        "log_probs: nan at snapshot 2, sample 5, class 1; finite",
    ),
    "minus-infinity": (
        lambda a: a | {"log_probs": changed(a["log_probs"], (3, 0, 0), -np.inf)},
        "log_probs: -inf at snapshot 3, sample 0, class 0",
    ),
    "logits": (lambda a: a | {"log_probs": a["log_probs"] + 5}, "snapshot 0, sample 0"),
    "negative-logits": (
        lambda a: a | {"log_probs": a["log_probs"] - 5},
        "sums to 0.0067379",
    ),
    "negative-probs": (
        lambda a: without(a, "log_probs") | {"probs": -np.exp(a["log_probs"])},
        "probs: -",
    ),
    "probs-that-do-not-sum": (
        lambda a: (
            without(a, "log_probs")
            | {
                "probs": changed(
                    np.exp(a["log_probs"]), ([1, 2], [7, 8]), [[0.5, 0.5, 0.1], [0.5, 0.5, 0.2]]
                )
            }
        ),
        "probs: snapshot 2, sample 8 sums to 1.2; ",
    ),
    "no-steps": (lambda a: without(a, "steps"), "steps: missing; whole numbers of shape (4,)"),
    "few-steps": (lambda a: a | {"steps": np.arange(3)}, "steps: shape (3,) and type int64"),
    "fractional-steps": (lambda a: a | {"steps": np.arange(4.0)}, "steps: shape (4,) and type f"),
    "repeated-steps": (lambda a: a | {"steps": np.array([0, 1, 1, 2])}, "steps: 1 after 1"),
    "negative-steps": (lambda a: a | {"steps": np.arange(-1, 3)}, "steps: -1 at the start"),
    "huge-steps": (
        lambda a: a | {"steps": np.array([0, 1, 2, 2**53 + 1], np.uint64)},
        "steps: 9007199254740993 after 2",
    ),
    "no-epochs": (lambda a: without(a, "epochs"), "epochs: missing"),
    "falling-epochs": (lambda a: a | {"epochs": np.array([0, 2, 1, 3])}, "epochs: 1.0 after 2.0"),
    "nan-epochs": (lambda a: a | {"epochs": np.array([0, 1, 2, np.nan])}, "epochs: nan after 2.0"),
    "no-labels": (lambda a: without(a, "labels"), "labels: missing"),
    "one-hot-labels": (lambda a: a | {"labels": np.eye(12, 3)}, "labels: shape (12, 3)"),
    "label-too-large": (
        lambda a: a | {"labels": changed(a["labels"], 4, 3)},
        "labels: 3 of sample 4; classes from 0 to 2",
    ),
    "negative-label": (lambda a: a | {"labels": changed(a["labels"], 4, -1)}, "-1 of sample 4"),
    "few-ids": (lambda a: a | {"ids": np.arange(3)}, "ids: shape (3,)"),
    "huge-ids": (lambda a: a | {"ids": np.full(12, 2**63, np.uint64)}, "ids: 9223372036854775808"),
    "few-names": (lambda a: a | {"class_names": ["a", "b"]}, "class_names: shape (2,)"),
    "names-of-bytes": (lambda a: a | {"class_names": [b"a", b"b", b"c"]}, "class_names: shape"),
    "objects": (
        lambda a: a | {"labels": a["labels"].astype(object)},
        "arrays: cannot be read (Object arrays",
    ),
    "misspelt": (lambda a: a | {"id": np.arange(12)}, "id: shape (12,) and type int64; a metric"),
    "metric-of-a-column": (lambda a: a | {"digest": np.zeros(4)}, "digest: no name of a metric"),
    "metric-of-a-field": (lambda a: a | {"seed": np.zeros(4)}, "seed: no name of a metric"),
    "metric-of-a-dotted-name": (lambda a: a | {"a.b": np.zeros(4)}, "a.b: no name of a metric"),
    "another-loss": (
        lambda a: a | {"test_loss": np.full(4, 9.0)},
        "test_loss: 9 at snapshot 0, where the predictions have",
    ),
    "another-accuracy": (
        lambda a: a | {"test_accuracy": np.full(4, np.nan)},
        "test_accuracy: nan at snapshot 0",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_arrays_that_are_no_trajectory_are_refused(arrays, refused, name):
    spoil, said = BAD[name]
    assert said in refused(spoil(arrays))


def test_predictions_in_another_order_than_the_labels_show_in_the_accuracy(arrays, write, refused):
    right = read_trajectory(write(arrays)).metrics["test_accuracy"]
    shuffled = arrays["log_probs"][:, np.roll(np.arange(12), 1)]
    assert "test_accuracy: " in refused(
        arrays | {"log_probs": shuffled, "test_accuracy": np.array(right)}
    )


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.unlink(), "arrays: no such file"),
        (lambda path: (path.unlink(), path.mkdir()), "arrays: not a file"),
        (lambda path: path.write_bytes(b""), "arrays: cannot be read (No data left in file)"),
        (lambda path: path.write_text("a,b\n1,2\n"), "arrays: cannot be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "arrays: cannot be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "arrays: cannot be read"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:400] + b"?" + path.read_bytes()[401:]),
            "arrays: cannot be read (Bad CRC-32",
        ),
        (save_one, "arrays: one array without a name"),
    ],
    ids=["absent", "folder", "empty", "text", "cut", "cut-short", "flipped", "npy"],
)
def test_a_file_that_holds_no_arrays_is_refused(arrays, write, refused, spoil, said):
    path = write(arrays)
    spoil(path)
    assert refused(path).startswith(said)


# --- a trial beside ours ------------------------------------------------------------------------


@pytest.fixture
def bring(tiny, write):
    """Import arrays into the tiny store."""

    def bring(arrays, config=CONFIG, source=Source):
        return adopt(tiny.objects, config, read_trajectory(write(arrays)), source)

    return bring


def test_an_imported_trial_is_complete_and_reads_as_ours(tiny, ours, arrays, bring, write):
    done = bring(arrays)
    store = open_store(tiny.path)
    assert (done.trial_id, done.is_new) == (CONFIG.trial_id, True)
    assert done.digest == read_trajectory(write(arrays)).digest()
    row = store.trials().loc[done.trial_id]
    assert (row["state"], row["digest"], row["n_snapshots"]) == ("complete", done.digest, 4)
    assert row["model.name"] == "external/theirs"
    found, expected = (store.log_probs(trial, "test") for trial in (done.trial_id, ours))
    np.testing.assert_allclose(found, expected, rtol=2 * FLOAT16, atol=FLOAT16)
    moments = store.snapshots(done.trial_id)
    np.testing.assert_array_equal(moments["step"], arrays["steps"])
    np.testing.assert_array_equal(moments["epoch"], arrays["epochs"])
    assert store.sample_set("test", done.trial_id) == store.sample_set("test", ours)
    assert verify(store).damages == ()
    assert set(select(open_union([tiny.path])).digests) == {ours, done.trial_id}
    assert tiny.objects.names("staging") == []


def test_an_imported_trial_says_where_it_came_from(tiny, arrays, bring, write):
    done = bring(arrays)
    (attempt,) = open_store(tiny.path).trial_attributes(done.trial_id)["attempts"]
    sha256 = hashlib.sha256(write(arrays).read_bytes()).hexdigest()
    assert attempt["provenance"]["imported"] == {"file": "theirs.npz", "sha256": sha256}
    assert {"host", "versions"} <= attempt["provenance"].keys()


def test_the_same_trajectory_again_is_there_already_and_changes_nothing(tiny, arrays, bring):
    done = bring(arrays)
    before = tree(tiny.path)
    for again in (arrays, arrays | {"ids": np.arange(100, 112)}):  # another file, equal in content
        found = bring(again)
        assert (found.digest, found.is_new) == (done.digest, False)
        assert tree(tiny.path) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda a: {"log_probs": changed(a["log_probs"], 2, a["log_probs"][1])},
            "(predictions of snapshot 2 differ)",
        ),
        (lambda a: {"steps": a["steps"] + 1}, "(steps, epochs or metrics differ)"),
        (lambda a: {"train_loss": np.zeros(4)}, "(steps, epochs or metrics differ)"),
        (
            lambda a: {key: values[:3] for key, values in a.items() if key != "labels"},
            "(steps, epochs or metrics differ)",
        ),
    ],
    ids=["predictions", "steps", "metrics", "fewer"],
)
def test_another_trajectory_of_the_same_trial_is_refused_and_changes_nothing(
    tiny, arrays, bring, change, said
):
    done = bring(arrays)
    before = tree(tiny.path)
    with pytest.raises(SweeperError) as caught:
        bring(arrays | change(arrays))
    assert f"trial {done.trial_id}: stored with another trajectory" in str(caught.value)
    assert said in str(caught.value)
    assert "seed" in caught.value.hint
    assert caught.value.exit_code == 2
    assert tree(tiny.path) == before


class Killed(BaseException):
    """Stands for a SIGKILL: nothing catches it."""


@pytest.mark.parametrize(
    "step", ["claim", "snapshot", "seal-arrays", "seal-publish", "seal-removed"]
)
def test_an_import_that_was_killed_is_completed_by_importing_again(
    tiny, ours, arrays, bring, monkeypatch, step
):
    def kill(passed):
        if passed == step:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(writer, "crash_point", kill)
        patch.setattr(seal, "crash_point", kill)
        with pytest.raises(Killed):
            bring(arrays)
    assert verify(open_store(tiny.path)).damages == ()
    assert bring(arrays).trial_id == CONFIG.trial_id
    store = open_store(tiny.path)
    assert store.complete_ids() == sorted([ours, CONFIG.trial_id])
    assert (verify(store).damages, verify(store).orphans) == ((), ())


def test_what_could_be_trained_here_is_refused(tiny, arrays, bring):
    before = tree(tiny.path)
    with pytest.raises(SweeperError) as caught:
        bring(arrays, TrialConfig.from_flat(FLAT | {"model.name": "fc"}))
    assert "model.name: `fc` with this configuration is trained here" in str(caught.value)
    assert "external/fc" in caught.value.hint
    assert tree(tiny.path) == before


# --- of the same samples ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": lambda ours: ours[::-1]}, "sample 2 has label 2, not 1 (2 of 12"),
        ({"labels": lambda ours: changed(ours, 7, (ours[7] + 1) % 3)}, "sample 7 has label"),
        ({"ids": lambda _: np.arange(12)}, "sample 0 has id 0, not 100 (12 of 12 differ)"),
        ({"class_names": lambda _: ["ant", "bee", "cow"]}, "class 2 is `cow`, not `cat`"),
    ],
    ids=["order", "label", "ids", "names"],
)
def test_other_samples_than_those_of_the_stores_trials_are_refused_by_the_first_that_differs(
    tiny, ours, arrays, bring, change, said
):
    before = tree(tiny.path)
    ((name, make),) = change.items()
    with pytest.raises(SweeperError) as caught:
        bring(arrays | {name: np.array(make(arrays["labels"]))})
    assert said in str(caught.value)
    assert f"trial {ours}" in str(caught.value)
    assert "store.labels" in caught.value.hint
    assert tree(tiny.path) == before


def test_fewer_samples_or_classes_are_refused(tiny, arrays, bring):
    before = tree(tiny.path)
    few = {"log_probs": arrays["log_probs"][:, :9], "labels": arrays["labels"][:9]}
    with pytest.raises(SweeperError, match="9 samples, not 12 as in set s"):
        bring(arrays | few)
    more = np.exp(np.concatenate([arrays["log_probs"], np.full((4, 12, 1), -np.inf)], axis=-1))
    with pytest.raises(SweeperError, match="4 classes, not 3 as in set s"):
        bring(without(arrays, "log_probs") | {"probs": more})
    assert tree(tiny.path) == before


def test_samples_are_compared_with_those_of_the_same_data_set_only(
    make_tiny, make_samples, arrays, write, tmp_path
):
    store = make_tiny(tmp_path / "other.zarr", samples={"test": make_samples(seed=5)})
    store.sealed(1, config={**store.header().config, "data.name": "mnist"})
    source = Source(class_names=("ant", "bee", "cat"))
    done = adopt(store.objects, CONFIG, read_trajectory(write(arrays)), lambda: source)
    assert open_store(store.path).labels("test", done.trial_id).tolist() == list(arrays["labels"])


def test_ids_tell_sets_of_equal_labels_apart(tiny, ours, arrays, bring):
    samples = tiny.samples["test"]
    other = SampleSet("test", samples.labels, samples.ids + 1000, samples.class_names)
    config = {**tiny.header().config, "data.name": "digits", "data.test_subset": 12}
    trial = tiny.sealed(2, sample_sets={"test": other}, config=config)
    with pytest.raises(SweeperError, match="its labels are those of set") as caught:
        bring(arrays)
    assert "`ids`" in caught.value.hint
    done = bring(arrays | {"ids": other.ids})
    store = open_store(tiny.path)
    assert store.sample_set("test", done.trial_id) == store.sample_set("test", trial)


@pytest.fixture
def empty(make_tiny, tmp_path, write):
    """Import into a store without trials; gives the ids and the names that were stored."""
    place = tmp_path / "empty.zarr"

    def bring(arrays, source=Source):
        objects = make_tiny(place).objects
        done = adopt(objects, CONFIG, read_trajectory(write(arrays)), source)
        store = open_store(place)
        return store.sample_ids("test").tolist(), store.class_names(done.trial_id)

    return bring


def test_the_first_trial_of_all_is_of_the_data_sets_own_samples(tiny, arrays, empty):
    source = Source(tiny.samples["test"], tiny.samples["test"].class_names)
    with pytest.raises(SweeperError, match=r"sample 1 has label .* the test set of `digits`"):
        empty(arrays | {"labels": np.roll(arrays["labels"], 1)}, lambda: source)
    assert empty(arrays, lambda: source) == (list(range(100, 112)), ("ant", "bee", "cat"))


def test_where_the_data_is_not_here_the_first_trial_says_what_its_samples_are(arrays, empty):
    names = np.array(["x", "y", "z"])
    with pytest.raises(SweeperError, match="class_names: missing") as caught:
        empty(arrays)
    assert "class_names" in caught.value.hint
    known = Source(class_names=("ant", "bee", "cat"))
    with pytest.raises(SweeperError, match="class_names: not those of the data set; ant, bee, cat"):
        empty(arrays | {"class_names": names}, lambda: known)
    assert empty(arrays | {"class_names": names}) == (list(range(12)), ("x", "y", "z"))


def test_ids_that_are_given_are_kept_and_names_may_come_from_the_data_set(arrays, empty):
    known = Source(class_names=("ant", "bee", "cat"))
    given = arrays | {"ids": np.arange(12)[::-1]}
    assert empty(given, lambda: known) == (list(range(11, -1, -1)), known.class_names)


# --- `external/NAME` -----------------------------------------------------------------------------


@pytest.mark.parametrize("axis", ["model", "optim", "schedule", "augment", "init"])
def test_an_external_entry_has_no_options_and_cannot_be_built(axis):
    found = entry(axis, "external/theirs")
    assert found.defaults == {}
    with pytest.raises(ConfigError, match="`external/theirs` was trained elsewhere") as caught:
        found.build(1, 2, anything=3)
    assert "sweeper import" in caught.value.hint


@pytest.mark.parametrize(
    ("flat", "found"),
    [
        ({"data.name": "external/theirs"}, "unknown data `external/theirs`"),
        ({"model.name": "external/"}, "unknown model `external/`"),
        ({"model.name": "extrenal/theirs"}, "unknown model `extrenal/theirs`"),
        ({"model.width": 3}, "model `external/theirs` has no option `width`"),
    ],
)
def test_other_spellings_and_options_of_external_entries_are_refused(flat, found):
    with pytest.raises(ConfigError) as caught:
        TrialConfig.from_flat(FLAT | flat)
    assert found in str(caught.value)
    assert "external" not in caught.value.hint
    assert "external/" not in caught.value.allowed


def test_what_regularized_an_external_model_can_be_said():
    config = TrialConfig.from_flat(FLAT | {"regularize.dropout": 0.1})
    assert config.trial_id != CONFIG.trial_id
    assert TrialConfig.from_flat(config.to_flat()) == config
