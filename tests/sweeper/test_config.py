import dataclasses
import hashlib
import math
import subprocess
import sys
import types

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper import config, registry
from sweeper.coerce import coerce
from sweeper.config import TrialConfig, content_id, default_values, schema, upgrade
from sweeper.errors import ConfigError
from sweeper.sections import RECORD_SCHEDULES

REQUIRED = {
    "data.name": "digits",
    "model.name": "fc",
    "optim.name": "sgd",
    "optim.lr": 0.1,
    "epochs": 5,
}


def make(changes):
    return TrialConfig.from_flat(REQUIRED | changes)


def refusal(changes):
    with pytest.raises(ConfigError) as caught:
        make(changes)
    return caught.value


@pytest.fixture
def plug_in(monkeypatch):
    """Make a module of these functions importable as `my_entries`, and forget it afterwards."""
    monkeypatch.setattr(registry, "BUILT_IN", registry.BUILT_IN)
    yield lambda **functions: monkeypatch.setitem(
        sys.modules, "my_entries", types.SimpleNamespace(**functions)
    )
    forget()


def forget():
    for cached in (registry.entry, config._defaults, schema, config.named_sections):
        cached.cache_clear()


# --- ids --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "trial_id"),
    [
        ({}, "t9c4b415721e9"),
        ({"seed": 7}, "t1f98ba2c4408"),
        (
            {"optim.lr": 1e-3, "regularize.weight_decay": 1e-5, "optim.name": "adamw"},
            "t43b518dc297e",
        ),
        ({"model.widths": [32, 16], "regularize.dropout": 0.5}, "t0dad2d9a8be7"),
        ({"record.schedule": "manifold", "record.train": "predictions"}, "t85bd5c903577"),
        ({"record.schedule": [0, 0.25, 1, 5]}, "t4987fe68a924"),
        (
            {
                "model.name": "vit",
                "model.dim": 64,
                "optim.name": "sgd-nesterov",
                "optim.schedule.name": "cosine",
                "optim.schedule.warmup_epochs": 2,
            },
            "t8d7495d3ff6b",
        ),
        (
            {
                "augment.name": "shift",
                "augment.pixels": 2,
                "init.name": "normal",
                "init.std": 0.02,
            },
            "t4329aa1edcec",
        ),
        (
            {
                "optim.name": "adam",
                "optim.betas": [0.9, 0.95],
                "optim.lr": 1 / 3,
                "seed": 2**63 - 1,
            },
            "tcc8082337021",
        ),
    ],
)
def test_golden_ids_stay_as_they_were_published(changes, trial_id):
    assert make(changes).trial_id == trial_id


def test_the_id_is_the_sha256_of_canonical_json_of_what_differs_from_the_defaults():
    text = (
        '{"schema":1,"trial":{"data.name":"digits","epochs":5,"model.name":"fc",'
        '"model.widths":[32,16],"optim.lr":0.001,"optim.name":"sgd"}}'
    )
    flat = {"model.widths": (32, 16), "optim.lr": 1e-3, "regularize.dropout": 0.0}
    assert make(flat).trial_id == "t" + hashlib.sha256(text.encode()).hexdigest()[:12]


def test_another_schema_version_gives_other_ids():
    assert content_id({"epochs": 5}, 1) != content_id({"epochs": 5}, 2)


def test_an_id_does_not_depend_on_the_process():
    program = (
        "from sweeper.config import TrialConfig\n"
        f"print(TrialConfig.from_flat({REQUIRED | {'optim.lr': 0.3}!r}).trial_id)"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == make({"optim.lr": 0.3}).trial_id


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"epochs": 5}, {"epochs": 5.0}),
        ({"optim.lr": 1}, {"optim.lr": 1.0}),
        ({"optim.lr": 1e-3}, {"optim.lr": 0.001}),
        ({"regularize.dropout": 0.0}, {"regularize.dropout": -0.0}),
        ({"model.widths": [8, 8]}, {"model.widths": (8.0, 8)}),
        ({"optim.batch_size": 128}, {}),
        ({"model.widths": [128, 64]}, {}),
        ({"record.schedule": [0, 1]}, {"record.schedule": (0.0, 1.0)}),
    ],
)
def test_two_spellings_of_one_value_have_one_id(one, other):
    assert make(one).trial_id == make(other).trial_id


def test_every_single_change_of_a_field_changes_the_id():
    changes = [
        {},
        {"model.name": "cnn"},
        {"optim.name": "adam"},
        {"optim.lr": 0.2},
        {"optim.batch_size": 64},
        {"optim.momentum": 0.9},
        {"optim.schedule.name": "cosine"},
        {"optim.schedule.warmup_epochs": 1},
        {"regularize.weight_decay": 1e-4},
        {"regularize.dropout": 0.1},
        {"regularize.label_smoothing": 0.1},
        {"augment.name": "shift"},
        {"init.name": "kaiming"},
        {"record.schedule": "log"},
        {"record.train": "none"},
        {"epochs": 6},
        {"seed": 1},
        {"seed": 10},
    ]
    assert len({make(change).trial_id for change in changes}) == len(changes)


DEFAULTS = {
    "data.subset": None,
    "data.test_subset": None,
    "data.label_noise": 0.0,
    "data.shuffle_labels": False,
    "data.image_size": None,
    "data.seed": 0,
    "optim.batch_size": 128,
    "optim.clip": None,
    "optim.schedule.name": "constant",
    "optim.schedule.warmup_epochs": 0.0,
    "regularize.weight_decay": 0.0,
    "regularize.decay": "all",
    "regularize.dropout": 0.0,
    "regularize.stochastic_depth": 0.0,
    "regularize.label_smoothing": 0.0,
    "regularize.mixup": 0.0,
    "regularize.cutmix": 0.0,
    "regularize.ema": 0.0,
    "augment.name": "none",
    "init.name": "torch",
    "init.corner.fit": "nothing",
    "init.corner.samples": 0,
    "init.corner.epochs": 200,
    "init.corner.accuracy": 0.99,
    "init.corner.seed": 0,
    "record.schedule": "epoch",
    "record.train": "metrics",
    "precision": "float32",
    "channels_last": False,
    "compile": False,
    "seed": 0,
}
RELU = {"activation": "relu", "norm": "batch"}
OPTIONS = {
    ("data", "cifar10"): {},
    ("data", "cifar100"): {},
    ("data", "digits"): {},
    ("data", "fashion_mnist"): {},
    ("data", "image_folder"): {"path": ""},
    ("data", "imagenet"): {},
    ("data", "mnist"): {},
    ("data", "svhn"): {},
    ("data", "synthetic"): {
        "dim": 200,
        "decay": 0.5,
        "n_train": 5000,
        "n_test": 1000,
        "n_classes": 5,
        "teacher_widths": (50,),
        "labels": "teacher",
    },
    ("model", "allcnn"): {"widths": (96, 96, 144, 144), **RELU, "affine": True},
    ("model", "cnn"): {"widths": (16, 16, 32, 32), **RELU, "affine": True},
    ("model", "convmixer"): {
        "dim": 256,
        "depth": 8,
        "kernel": 5,
        "patch": 2,
        "activation": "gelu",
        "norm": "batch",
        "affine": True,
    },
    ("model", "fc"): {"widths": (128, 64), **RELU, "affine": False},
    ("model", "residual"): {"blocks": 6, "width": 64, "hidden": 1024, **RELU, "affine": True},
    ("model", "vit"): {
        "patch": 4,
        "dim": 32,
        "depth": 2,
        "heads": 2,
        "mlp": 64,
        "qkv_bias": True,
        "activation": "gelu",
        "norm": "layer",
        "affine": True,
    },
    ("model", "wrn"): {"depth": 16, "widen": 4, "base": 16, **RELU, "affine": False},
    ("model", "wrn-10-4-8"): {**RELU, "affine": False},
    ("model", "wrn-16-4-64"): {**RELU, "affine": False},
    ("optim", "adagrad"): {"eps": 1e-10},
    ("optim", "adam"): {"betas": (0.9, 0.999), "eps": 1e-8},
    ("optim", "adamw"): {"betas": (0.9, 0.999), "eps": 1e-8},
    ("optim", "rmsprop"): {"alpha": 0.99, "eps": 1e-8, "momentum": 0.0},
    ("optim", "sgd"): {"momentum": 0.0},
    ("optim", "sgd-momentum"): {"momentum": 0.9},
    ("optim", "sgd-nesterov"): {"momentum": 0.9},
    ("schedule", "constant"): {},
    ("schedule", "cosine"): {},
    ("schedule", "linear"): {"final": 0.0},
    ("schedule", "one-cycle"): {"peak": 0.3, "start_div": 25.0, "final_div": 1e4},
    ("schedule", "step"): {"milestones": (0.5, 0.75), "gamma": 0.1},
    ("augment", "color-jitter"): {
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.4,
        "hue": 0.1,
    },
    ("augment", "crop-flip"): {"padding": 4},
    ("augment", "cutout"): {"side": 16},
    ("augment", "flip"): {},
    ("augment", "full"): {"num_ops": 2, "magnitude": 12},
    ("augment", "none"): {},
    ("augment", "randaugment"): {"num_ops": 2, "magnitude": 9},
    ("augment", "resized-crop-flip"): {"size": 224},
    ("augment", "shift"): {"pixels": 1},
    ("augment", "trivialaugment"): {},
    ("init", "checkpoint"): {"path": "", "sha256": ""},
    ("init", "kaiming"): {},
    ("init", "normal"): {"std": 0.05},
    ("init", "orthogonal"): {"gain": 1.0},
    ("init", "perturbed"): {"std": 1.0, "seed": 0},
    ("init", "torch"): {},
    ("init", "uniform"): {"scale": 0.05},
    ("init", "xavier"): {},
}
PINNED = (
    "a default is part of every id that leaves it out: changing one renames existing trials, so "
    "it needs a new SCHEMA_VERSION and a step in `upgrade`; a new field or entry only needs its "
    "line here"
)


def test_every_default_of_a_field_is_pinned():
    found = {k: leaf.default for k, leaf in schema().items() if k in default_values({})}
    assert found == DEFAULTS, PINNED
    assert schema().keys() - found.keys() == REQUIRED.keys(), PINNED


def test_every_default_of_a_registry_entry_is_pinned():
    found = {
        (axis, name): dict(registry.entry(axis, name).defaults)
        for axis, names in registry.BUILT_IN.items()
        for name in names
    }
    assert found == OPTIONS, PINNED


def test_a_field_added_later_with_a_default_renames_nothing(monkeypatch):
    before = {key: make({"seed": key}).trial_id for key in range(3)}
    later = dataclasses.make_dataclass(
        "Later", [("ema", float, 0.0)], bases=(TrialConfig,), frozen=True, kw_only=True
    )
    monkeypatch.setattr(config, "TrialConfig", later)
    forget()
    try:
        flat = REQUIRED | {"seed": 2}
        assert {k: later.from_flat(flat | {"seed": k}).trial_id for k in range(3)} == before
        assert later.from_flat(flat | {"ema": 0.0}).trial_id == before[2]
        assert later.from_flat(flat | {"ema": 0.5}).trial_id not in before.values()
    finally:
        monkeypatch.undo()
        forget()


def test_an_option_added_later_with_a_default_renames_nothing(plug_in):
    def build(shape, n_classes, width: int = 3):
        raise AssertionError("never built")

    def build_later(shape, n_classes, width: int = 3, depth: int = 2):
        raise AssertionError("never built")

    flat = {"model.name": "my_entries:build", "model.width": 5}
    plug_in(build=build)
    before = make(flat).trial_id
    forget()
    plug_in(build=build_later)
    assert make(flat | {"model.depth": 2}).trial_id == make(flat).trial_id == before
    assert make(flat | {"model.depth": 3}).trial_id != before


# --- the two forms ----------------------------------------------------------------------------

FLATS = st.fixed_dictionaries(
    {
        "data.name": st.just("digits"),
        "model.name": st.sampled_from(["fc", "cnn", "vit"]),
        "optim.name": st.sampled_from(["sgd", "sgd-nesterov", "adam", "adamw"]),
        "optim.lr": st.floats(1e-8, 1e3),
        "epochs": st.integers(1, 10**6),
    },
    optional={
        "optim.batch_size": st.integers(1, 4096),
        "optim.schedule.name": st.sampled_from(["constant", "cosine"]),
        "optim.schedule.warmup_epochs": st.floats(0, 1),
        "regularize.weight_decay": st.floats(0, 1),
        "regularize.label_smoothing": st.floats(0, 0.99),
        "augment.name": st.sampled_from(["none", "shift"]),
        "init.name": st.sampled_from(["torch", "kaiming", "normal"]),
        "record.schedule": st.one_of(
            st.sampled_from(RECORD_SCHEDULES),
            st.lists(st.floats(1e-9, 1), max_size=5, unique=True).map(sorted),
        ),
        "record.train": st.sampled_from(["none", "metrics", "predictions"]),
        "seed": st.integers(0, 2**63 - 1),
    },
)


@given(FLATS)
@settings(max_examples=100)
def test_a_configuration_survives_its_flat_form(flat):
    made = TrialConfig.from_flat(flat)
    assert flat.items() <= made.to_flat().items()
    assert TrialConfig.from_flat(made.to_flat()) == made
    assert TrialConfig.from_flat(made.to_flat()).trial_id == made.trial_id


@given(FLATS)
@settings(max_examples=100)
def test_a_configuration_is_its_identity_and_the_defaults(flat):
    made = TrialConfig.from_flat(flat)
    assert TrialConfig.from_flat(made.identity) == made
    assert default_values(made.to_flat()) | made.identity == made.to_flat()


@given(FLATS, st.randoms())
@settings(max_examples=50)
def test_the_order_of_keys_does_not_matter(flat, random):
    keys = list(flat)
    random.shuffle(keys)
    shuffled = TrialConfig.from_flat({key: flat[key] for key in keys})
    assert shuffled.trial_id == TrialConfig.from_flat(flat).trial_id


def test_a_configuration_can_be_hashed_and_not_changed():
    made = make({"model.widths": [8]})
    assert hash(made) == hash(make({"model.widths": (8,)}))
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.seed = 3


def test_upgrade_keeps_todays_schema_and_refuses_a_newer_one():
    assert upgrade(REQUIRED, config.SCHEMA_VERSION) == REQUIRED
    with pytest.raises(ConfigError, match="schema version 99"):
        upgrade(REQUIRED, 99)


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize("key", REQUIRED)
def test_a_required_field_that_is_missing_is_named(key):
    flat = {k: v for k, v in REQUIRED.items() if k != key}
    with pytest.raises(ConfigError, match="missing") as caught:
        TrialConfig.from_flat(flat)
    assert caught.value.where == key


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("optim.lr", value) for value in (0, -0.1, math.nan, math.inf, "0.1", True, None, [1])],
        *[("optim.lr", value) for value in ("nan", 10**400, {})],
        *[("epochs", value) for value in (0, -1, 1.5, math.inf, "5", True, None)],
        *[("optim.batch_size", value) for value in (0, -8, 2.5, "8")],
        *[("optim.schedule.warmup_epochs", value) for value in (-1, 6, math.nan)],
        *[("regularize.dropout", value) for value in (-0.1, 1, 2, math.nan)],
        *[("regularize.label_smoothing", value) for value in (-0.1, 1, "a")],
        *[("regularize.weight_decay", value) for value in (-1e-9, math.inf)],
        *[("seed", value) for value in (-1, 2**63, 0.5, "a", False)],
        *[("precision", value) for value in ("float16", 32, None)],
        *[("record.train", value) for value in ("metric", 1, None, ["none"])],
        *[("record.schedule", value) for value in ("epochs", [-1], [6], ["a"], 3, [math.nan])],
        *[("model.name", value) for value in (3, None, ["fc"], True)],
        *[("model.widths", value) for value in (64, "64", [64.5], [True], [[64]])],
        *[("optim.momentum", value) for value in ("0.9", None, [0.9])],
    ],
    ids=lambda given: repr(given)[:30],
)
def test_a_value_of_the_wrong_type_or_range_is_refused_by_key(key, value):
    error = refusal({key: value})
    assert error.where.partition("[")[0] == key
    assert "`" in error.found
    assert error.allowed


@pytest.mark.parametrize(
    ("changes", "where", "hint"),
    [
        ({"optim.nme": "sgd"}, "optim.nme", "`optim.name`"),
        ({"optm.lr": 1}, "optm.lr", "`optim.lr`"),
        ({"epoch": 1}, "epoch", "`epochs`"),
        ({"regularize.weight_decy": 1}, "regularize.weight_decy", "`regularize.weight_decay`"),
        ({"model.width": [3]}, "model.width", "`model.widths`"),
        ({"model.dropout": 0.5}, "model.dropout", "`regularize.dropout`"),
        ({"model.name": "fcc"}, "model.name", "`fc`"),
        ({"optim.name": "SGD"}, "optim.name", ""),
        ({"optim.name": "sgd-nestrov"}, "optim.name", "`sgd-nesterov`"),
        ({"optim.schedule.name": "cosin"}, "optim.schedule.name", "`cosine`"),
        ({"record.schedule": "manifolds"}, "record.schedule", "`manifold`"),
        ({"record.train": "metric"}, "record.train", "`metrics`"),
    ],
)
def test_a_misspelling_is_answered_with_the_nearest_spelling(changes, where, hint):
    error = refusal(changes)
    assert error.where == where
    assert hint in error.hint


def test_an_option_of_another_entry_is_refused_with_those_of_this_one():
    error = refusal({"model.dim": 64})
    assert error.found == "model `fc` has no option `dim`"
    assert "model.widths" in error.allowed


@pytest.mark.parametrize(
    ("section", "name"),
    [("augment", "shift"), ("init", "normal"), ("optim.schedule", "step")],
)
def test_an_option_is_refused_by_the_entry_that_is_named_rather_than_the_default_one(section, name):
    error = refusal({f"{section}.name": name, f"{section}.foo": 1})
    assert f"`{name}` has no option `foo`" in error.found
    assert len(error.allowed.split(",")) > 1


def test_lists_without_types_take_those_of_their_defaults(plug_in):
    def model(shape, n_classes, widths=(3, 4), names: list = ("a",), anything=()):
        pass

    plug_in(model=model)
    named = {"model.name": "my_entries:model"}
    found = dict(make(named | {"model.widths": [5.0], "model.anything": ["b", 1]}).model.options)
    assert found == {"widths": (5,), "names": ("a",), "anything": ("b", 1)}
    assert refusal(named | {"model.widths": [0.5]}).where == "model.widths[0]"
    assert refusal(named | {"model.names": 3}).allowed == "a list, each item a name, is needed"


def test_what_decays_makes_no_other_trial_where_nothing_does():
    weights, none = {"regularize.decay": "weights"}, {"regularize.weight_decay": 0}
    assert make(weights | none) == make(none)
    decaying = {"regularize.weight_decay": 1e-3}
    assert make(weights | decaying).trial_id != make(decaying).trial_id


def test_dropout_needs_a_model_that_takes_it(plug_in):
    plug_in(build=lambda shape, n_classes: None)
    assert make({"model.name": "my_entries:build"}).regularize.dropout == 0
    error = refusal({"model.name": "my_entries:build", "regularize.dropout": 0.5})
    assert error.where == "regularize.dropout"
    assert "takes no dropout" in error.found


@given(
    st.dictionaries(
        st.sampled_from([*schema(), "model.x", "a.b", "", "."]),
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(),
            st.floats(),
            st.text(max_size=5),
            st.lists(st.integers(), max_size=2),
            st.sampled_from(["fc", "sgd", "digits"]),
        ),
        max_size=6,
    )
)
@settings(max_examples=200)
def test_any_mapping_makes_a_configuration_or_a_config_error(changes):
    try:
        made = make(changes)
    except ConfigError:
        return
    assert TrialConfig.from_flat(made.to_flat()) == made


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (3, float, 3.0),
        (3.0, int, 3),
        (True, bool, True),
        (None, float | None, None),
        (2, float | None, 2.0),
        ([1, 2.0], tuple[int, ...], (1, 2)),
        ("a", str | tuple[float, ...], "a"),
        ([1], str | tuple[float, ...], (1.0,)),
    ],
)
def test_coerce_gives_the_annotated_type_when_nothing_is_lost(value, kind, expected):
    found = coerce("key", value, kind)
    assert found == expected
    assert type(found) is type(expected)


# --- plug-ins ---------------------------------------------------------------------------------


def test_a_plug_in_is_named_by_its_import_path_and_has_its_own_options(plug_in):
    def build(shape, n_classes, width: int = 3, *, act: str = "relu", dropout: float = 0.0):
        raise AssertionError("never built")

    plug_in(build=build)
    made = make({"model.name": "my_entries:build", "model.width": 5.0, "regularize.dropout": 0.5})
    assert dict(made.model.options) == {"act": "relu", "width": 5}
    assert made.identity["model.name"] == "my_entries:build"
    assert made.plug_ins() == ("my_entries:build",)


def no_default(shape, n_classes, width):
    raise AssertionError("never built")


def unresolvable(shape, n_classes, width: "Nowhere" = 3):  # noqa: F821
    raise AssertionError("never built")


@pytest.mark.parametrize(
    ("name", "functions", "found"),
    [
        ("nowhere:build", {}, "cannot import"),
        ("my_entries:absent", {}, "cannot import"),
        (":", {}, "cannot import"),
        ("my_entries:", {}, "cannot import"),
        ("..x:y", {}, "TypeError"),
        ("my_entries:value", {"value": 3}, "is not a function"),
        ("my_entries:none", {"none": lambda: None}, "takes 0 arguments"),
        ("my_entries:no_default", {"no_default": no_default}, "`width` of model"),
        ("my_entries:unresolvable", {"unresolvable": unresolvable}, "Nowhere"),
        ("my_entries:signature", {"signature": dict}, "dict"),
    ],
)
def test_a_plug_in_that_cannot_be_used_is_refused(plug_in, name, functions, found):
    plug_in(**functions)
    error = refusal({"model.name": name})
    assert error.where == "model.name"
    assert found in error.found


def test_a_plug_in_that_fails_while_imported_is_refused(tmp_path, monkeypatch):
    (tmp_path / "broken_entries.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    error = refusal({"model.name": "broken_entries:build"})
    assert error.where == "model.name"
    assert "ZeroDivisionError" in error.found


def test_a_list_of_epochs_has_one_spelling():
    spellings = ([1, 2], [2, 1], [0, 1, 2], [1, 1, 2.0])
    assert len({make({"record.schedule": given}).trial_id for given in spellings}) == 1


@pytest.mark.parametrize("kind", [list[int], tuple[int, ...]])
def test_lists_of_any_length_are_taken_as_tuples(kind):
    assert coerce("key", [1, 2.0, 3], kind) == (1, 2, 3)


def test_a_list_of_another_length_is_refused():
    assert coerce("key", [0.9, 1], tuple[float, float]) == (0.9, 1.0)
    with pytest.raises(ConfigError, match="a list of 2, each item a finite number"):
        coerce("key", [1, 2, 3], tuple[float, float])
