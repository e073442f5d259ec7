import itertools
import json
import math
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper import config
from sweeper.config import TrialConfig
from sweeper.errors import ConfigError, ExpressionError, GridError, SweeperError
from sweeper.grid import expand, load_grid

BASE = {
    "data": {"name": "digits"},
    "model": {"name": "fc"},
    "optim": {"name": "sgd", "lr": 0.1},
    "epochs": 2,
}


@pytest.fixture
def grid_file(tmp_path):
    """Write a grid of these sections over `BASE`, and give its path."""

    def write(text=None, **sections):
        path = tmp_path / "g.yaml"
        content = json.dumps({"name": "g", "base": BASE} | sections) if text is None else text
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def expanded(grid_file):
    return lambda *overrides, **sections: expand(load_grid(grid_file(**sections), overrides))


@pytest.fixture
def refused(grid_file):
    """The error of a grid, its path taken off."""

    def refuse(text=None, *, overrides=(), **sections):
        path = grid_file(text, **sections)
        before = path.read_bytes()
        with pytest.raises(SweeperError) as caught:
            expand(load_grid(path, overrides))
        assert caught.value.where.startswith(f"{path}: ")
        assert caught.value.exit_code == 2
        assert path.read_bytes() == before
        caught.value.where = caught.value.where.removeprefix(f"{path}: ")
        return caught.value

    return refuse


def without(*keys):
    """`BASE` without some of its dotted keys."""
    base = {section: dict(v) if isinstance(v, dict) else v for section, v in BASE.items()}
    for key in keys:
        section, _, name = key.partition(".")
        del base[section][name]
    return base


def seeds(expansion):
    return [trial.config.seed for trial in expansion.trials]


def flats(expansion):
    return [trial.config.to_flat() for trial in expansion.trials]


# --- the language -----------------------------------------------------------------------------


def test_a_grid_without_axes_is_one_trial(expanded):
    found = expanded()
    assert len(found.trials) == found.n_product == 1
    assert found.name == "g"
    assert found.trials[0].trial_id == found.trials[0].config.trial_id


def test_axes_are_multiplied_with_the_last_one_fastest(expanded):
    found = expanded(axes={"optim.batch_size": [8, 4], "seed": [3, 1, 2]})
    assert [(f["optim.batch_size"], f["seed"]) for f in flats(found)] == [
        *((8, 3), (8, 1), (8, 2), (4, 3), (4, 1), (4, 2)),
    ]
    assert [(label, list(values)) for label, values in found.axes] == [
        ("optim.batch_size", [8, 4]),
        ("seed", [3, 1, 2]),
    ]


def test_a_range_is_half_open_and_may_have_a_step(expanded):
    assert seeds(expanded(axes={"seed": {"range": [42, 45]}})) == [42, 43, 44]
    assert seeds(expanded(axes={"seed": {"range": [0, 10, 4]}})) == [0, 4, 8]


def test_an_axis_may_hold_lists(expanded):
    found = expanded(axes={"model.widths": [[8], [8, 8]], "record.schedule": ["log", [0, 2, 1, 1]]})
    assert [f["model.widths"] for f in flats(found)] == [[8], [8], [8, 8], [8, 8]]
    assert [f["record.schedule"] for f in flats(found)] == ["log", [1.0, 2.0]] * 2


def test_cases_are_relative_to_their_section_or_absolute(expanded):
    cases = [
        {"name": "sgd", "lr": 0.5, "schedule": {"name": "cosine"}, "let.a": 1, "epochs": 3},
        {"name": "adam", "optim.lr": 0.25, "model": {"widths": [4]}, "seed": 7},
        {},
    ]
    base = without("optim.name", "optim.lr") | {"optim": {"name": "adamw", "lr": 1}}
    first, second, third = flats(expanded(base=base, axes={"optim": cases}))
    assert (first["optim.lr"], first["optim.schedule.name"], first["epochs"]) == (0.5, "cosine", 3)
    assert (second["optim.lr"], second["model.widths"], second["seed"]) == (0.25, [4], 7)
    assert (third["optim.name"], third["optim.lr"], third["epochs"]) == ("adamw", 1, 2)
    assert not any(key.startswith("let") for key in first)


def test_cases_of_a_nested_section_and_of_no_section(expanded):
    axes = {
        "optim.schedule": [{"name": "constant"}, {"name": "cosine", "warmup_epochs": 1}],
        "setting": [{"epochs": 3}, {"optim.batch_size": 4, "regularize": {"dropout": 0.5}}],
    }
    last = flats(expanded(axes=axes))[-1]
    assert last["optim.schedule.warmup_epochs"] == 1
    assert (last["epochs"], last["optim.batch_size"], last["regularize.dropout"]) == (2, 4, 0.5)


def test_let_variables_reach_expressions_and_no_trial(expanded):
    found = expanded(
        base=without("optim.lr") | {"let": {"scale": 10}},
        axes={
            "optim": [{"name": "sgd", "let.base_lr": 0.1}, {"name": "adam", "let.base_lr": 1e-3}],
            "let.half": [1, 2],
        },
        derive={"optim.lr": "let.base_lr * let.scale / let.half"},
        exclude=["let.half == 2 and optim.name == 'adam'"],
    )
    assert [f["optim.lr"] for f in flats(found)] == [1.0, 0.5, 0.01]
    assert not any("let" in key for f in flats(found) for key in f)


def test_derive_goes_in_file_order_and_sees_defaults_and_options(expanded):
    found = expanded(
        base=without("optim.lr"),
        axes={"seed": [0, 1]},
        derive={
            "let.width": "16 * (seed + 1)",
            "optim.lr": "let.width / optim.batch_size + optim.momentum",
            "regularize.dropout": "optim.lr if model.norm == 'batch' else 0",
        },
    )
    assert [(f["optim.lr"], f["regularize.dropout"]) for f in flats(found)] == [
        *((0.125, 0.125), (0.25, 0.25)),
    ]


def test_derived_floats_are_rounded_to_twelve_digits_so_that_sums_meet_literals(expanded):
    derived = expanded(base=without("optim.lr"), derive={"optim.lr": "0.1 + 0.2"})
    literal = expanded(base=without("optim.lr") | {"optim.lr": 0.3})
    assert derived.trials == literal.trials


def test_a_derived_name_brings_its_options_into_scope(expanded):
    found = expanded(
        axes={"seed": [0, 1]},
        derive={"augment.name": "'shift' if seed == 1 else 'none'"},
        exclude=["augment.pixels == 1"],
    )
    assert seeds(found) == [0]


def test_exclude_counts_for_the_first_rule_that_matches(expanded):
    found = expanded(axes={"seed": {"range": [0, 6]}}, exclude=["seed < 2", "seed % 2 == 0"])
    assert found.excluded == (("seed < 2", 2), ("seed % 2 == 0", 2))
    assert seeds(found) == [3, 5]


def test_exclude_can_remove_what_would_not_be_valid(expanded, refused):
    axes = {"model.name": ["fc", "vit"], "model.dim": [32, 64]}
    base = without("model.name")
    assert "no option `dim`" in refused(base=base, axes=axes).found
    found = expanded(base=base, axes=axes, exclude=["model.name == 'fc'"])
    assert [f["model.dim"] for f in flats(found)] == [32, 64]


def test_a_name_that_only_other_trials_have_is_none(expanded):
    base = without("model.name")
    models = [{"name": "fc"}, {"name": "vit", "dim": 64}, {"name": "vit"}]
    found = expanded(base=base, axes={"model": models}, exclude=["model.dim > 40"])
    assert [f["model.name"] for f in flats(found)] == ["fc", "vit"]
    assert len(expanded(base=base, axes={"model": models}, exclude=["model.dim != 32"]).trials) == 1


def test_duplicates_are_folded_and_counted(expanded):
    found = expanded(axes={"seed": [1, 0, 1.0], "optim.batch_size": [128, 64]})
    assert (len(found.trials), found.n_product, found.n_duplicates) == (4, 6, 2)
    assert seeds(found) == [1, 1, 0, 0]


def test_set_overrides_the_base_and_nothing_else(expanded, refused):
    found = expanded("optim.lr=1e-3", "model.widths=[4, 4]", "data={name: digits}", "epochs = 7")
    flat = flats(found)[0]
    assert (flat["optim.lr"], flat["model.widths"], flat["epochs"]) == (1e-3, [4, 4], 7)
    axes = {"optim": [{"batch_size": 8}, {}]}
    for override, sections in [
        ("seed=3", {"axes": {"seed": [1, 2]}}),
        ("optim.batch_size=3", {"axes": axes}),
        ("seed=3", {"derive": {"seed": "1"}}),
    ]:
        assert "also set by" in refused(overrides=[override], **sections).found


def test_nested_and_dotted_bases_give_the_same_trials(expanded):
    dotted = {"data.name": "digits", "model.name": "fc", "optim": {"name": "sgd"}, "optim.lr": 0.1}
    assert expanded(base=dotted | {"epochs": 2}).trials == expanded().trials


@pytest.mark.parametrize("spelling", ["1e-3", "0.001", "1.0e-3", "+1E-3", ".001", "1_0.0e-4"])
def test_the_spelling_of_a_number_does_not_matter(grid_file, expanded, spelling):
    text = f"name: g\nbase: {json.dumps(without('optim.lr'))}\naxes: {{optim.lr: [{spelling}]}}"
    found = expand(load_grid(grid_file(text)))
    expected = expanded(base=without("optim.lr"), axes={"optim.lr": [0.001]})
    assert found.trials == expected.trials


def test_an_empty_section_is_as_good_as_none(grid_file):
    text = f"name: g\nbase: {json.dumps(BASE)}\naxes:\nderive:\nexclude:\n"
    assert len(expand(load_grid(grid_file(text))).trials) == 1


# --- properties -------------------------------------------------------------------------------

AXES = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.lists(st.integers(0, 3), min_size=1, max_size=4),
        "optim.batch_size": st.lists(st.sampled_from([8, 16, 128]), min_size=1, max_size=3),
        "regularize.weight_decay": st.lists(st.sampled_from([0, 1e-5, 1e-3]), min_size=1),
        "model": st.lists(
            st.sampled_from([{"name": "fc"}, {"name": "vit", "dim": 64}, {"name": "cnn"}]),
            min_size=1,
            max_size=3,
        ),
        "augment.name": st.lists(st.sampled_from(["none", "shift"]), min_size=1, max_size=2),
    },
).filter(lambda axes: math.prod(map(len, axes.values())) <= 24)
RULES = ["seed == 1", "optim.batch_size > 8 and seed >= 2", "augment.name == 'shift' and seed == 0"]


@pytest.fixture(scope="module")
def expand_axes(tmp_path_factory):
    path = tmp_path_factory.mktemp("grids") / "g.yaml"

    def run(axes, **sections):
        path.write_text(json.dumps({"name": "g", "base": BASE, "axes": axes} | sections))
        return expand(load_grid(path), allow_empty_exclude=True)

    return run


@given(axes=AXES, rules=st.lists(st.sampled_from(RULES), max_size=2))
@settings(max_examples=60, deadline=None)
def test_the_product_is_trials_and_excluded_and_duplicates(expand_axes, axes, rules):
    axes = axes | {"let.kept": [0, 1]}  # so that no rule can remove everything
    found = expand_axes(axes, exclude=[f"let.kept == 0 and ({rule})" for rule in rules])
    assert found.n_product == math.prod(map(len, axes.values()))
    n_excluded = sum(n for _, n in found.excluded)
    assert found.n_product == len(found.trials) + n_excluded + found.n_duplicates
    assert len({trial.trial_id for trial in found.trials}) == len(found.trials)


@given(axes=AXES)
@settings(max_examples=40, deadline=None)
def test_expansion_agrees_with_a_product_written_by_hand(expand_axes, axes):
    expected = []
    for values in itertools.product(*axes.values()):
        flat = {"data.name": "digits", "model.name": "fc", "optim.name": "sgd", "optim.lr": 0.1}
        flat["epochs"] = 2
        for key, value in zip(axes, values, strict=True):
            flat |= {f"model.{k}": v for k, v in value.items()} if key == "model" else {key: value}
        expected.append(TrialConfig.from_flat(flat))
    assert [t.config for t in expand_axes(axes).trials] == list(dict.fromkeys(expected))


@given(axes=AXES, random=st.randoms())
@settings(max_examples=40, deadline=None)
def test_ids_depend_neither_on_the_order_of_axes_nor_of_values(expand_axes, axes, random):
    labels = random.sample(list(axes), len(axes))
    shuffled = {label: random.sample(axes[label], len(axes[label])) for label in labels}
    before, after = expand_axes(axes), expand_axes(shuffled)
    assert {t.trial_id for t in before.trials} == {t.trial_id for t in after.trials}


@given(axes=AXES.filter(bool), data=st.data())
@settings(max_examples=40, deadline=None)
def test_extending_an_axis_keeps_all_ids_and_their_order(expand_axes, axes, data):
    key = data.draw(st.sampled_from(sorted(axes)))
    new = {"seed": [9, 8], "model": [{"name": "cnn", "widths": [4]}], "augment.name": ["shift"]}
    more = new.get(key, [2, 4] if key == "optim.batch_size" else [0.5])
    before = [t.trial_id for t in expand_axes(axes).trials]
    after = [t.trial_id for t in expand_axes(axes | {key: axes[key] + more}).trials]
    assert [trial_id for trial_id in after if trial_id in set(before)] == before


@given(lrs=st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=4, unique=True))
@settings(max_examples=40, deadline=None)
def test_derive_is_deterministic_and_rounds_to_twelve_digits(expand_axes, lrs):
    sections = {"base": without("optim.lr"), "derive": {"optim.lr": "let.lr * 3 / 7"}}
    once, again = (expand_axes({"let.lr": lrs}, **sections) for _ in range(2))
    assert once == again
    for trial, lr in zip(once.trials, dict.fromkeys(f"{x * 3 / 7:.12g}" for x in lrs), strict=True):
        assert trial.config.optim.lr == float(lr)


# --- size -------------------------------------------------------------------------------------


def test_a_hundred_million_trials_are_refused_at_once(refused):
    start = time.perf_counter()
    error = refused(axes={"seed": {"range": [0, 100_000_000]}})
    assert error.found == "100,000,000 trials before `exclude`"
    assert error.allowed == "at most 100,000"
    assert "--max-trials" in error.hint
    many = {key: {"range": [0, 10**15]} for key in ("seed", "epochs", "optim.batch_size")}
    base = {k: v for k, v in BASE.items() if k != "epochs"}
    assert "trials before" in refused(base=base, axes=many).found
    assert time.perf_counter() - start < 1


def test_max_trials_can_be_raised_and_lowered(grid_file):
    grid = load_grid(grid_file(axes={"seed": {"range": [0, 20]}}))
    assert len(expand(grid, max_trials=20).trials) == 20
    with pytest.raises(GridError, match="20 trials"):
        expand(grid, max_trials=19)


def test_two_thousand_trials_expand_in_a_second_or_so(grid_file):
    grid = load_grid(
        grid_file(
            base=without("optim.lr"),
            axes={"seed": {"range": [0, 1000]}, "optim.batch_size": [8, 16]},
            derive={"optim.lr": "0.1 * optim.batch_size / 8"},
            exclude=["seed == 3 and optim.batch_size == 8"],
        )
    )
    start = time.process_time()
    assert len(expand(grid).trials) == 1999
    assert time.process_time() - start < 2  # 0.27 s on a quiet machine: 14 s for 100,000


def test_one_id_for_two_configurations_is_refused(refused, monkeypatch):
    monkeypatch.setattr(config, "content_id", lambda identity: "t0")
    assert "two configurations have the id `t0`" in refused(axes={"seed": [1, 2]}).found


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "where", "found", "hint"),
    [
        ({"axs": {}}, "axs", "unknown key", "`axes`"),
        ({"zip": [["a", "b"]]}, "zip", "not there yet in this version", ""),
        ({"when": []}, "when", "not there yet in this version", ""),
        ({"name": None}, "name", "missing", ""),
        ({"name": 2024}, "name", "`2024`", "quotes"),
        ({"name": "../x"}, "name", "`../x`", ""),
        ({"name": ".."}, "name", "`..`", ""),
        ({"name": "a" * 101}, "name", "aaa", ""),
        ({"base": [1]}, "base", "`[1]`", ""),
        ({"base": {"optm.lr": 1}}, "base: optm.lr", "unknown key", "`optim.lr`"),
        ({"base": {"optim": None}}, "base: optim", "a section, not a field", ""),
        ({"base": {"optim": {"lr": 1}, "optim.lr": 2}}, "base: optim.lr", "given twice", ""),
        ({"base": {"model.widths": [{"a": 1}]}}, "base: model.widths", "a mapping in a list", ""),
        ({"base": {"let.a.b": 1}}, "base: let.a.b", "unknown key", ""),
        ({"base": {"let": 1}}, "base: let", "unknown key", ""),
        ({"axes": [1]}, "axes", "`[1]`", ""),
        ({"axes": {"seed": []}}, "axes: seed", "no values", ""),
        ({"axes": {"seed": None}}, "axes: seed", "`null`", ""),
        ({"axes": {"seed": 3}}, "axes: seed", "`3`", ""),
        ({"axes": {"seed": {"range": [5, 5]}}}, "axes: seed", "no values", ""),
        ({"axes": {"seed": {"range": [5]}}}, "axes: seed", "range `[5]`", ""),
        ({"axes": {"seed": {"range": [0, 1.5]}}}, "axes: seed", "range `[0, 1.5]`", ""),
        ({"axes": {"seed": {"range": [0, True]}}}, "axes: seed", "range `[0, True]`", ""),
        ({"axes": {"seed": {"range": [0, 10**30]}}}, "axes: seed", "range `[0, 1000", ""),
        ({"axes": {"seed": {"range": [0, 5, 0]}}}, "axes: seed", "range with step `0`", ""),
        ({"axes": {"seed": {"range": [0, 5], "x": 1}}}, "axes: seed", "`{'range'", ""),
        ({"axes": {"sed": [1]}}, "axes: sed", "unknown key", "`seed`"),
        ({"axes": {"optim": ["sgd"]}}, "axes: optim", "a section, not a field", ""),
        ({"axes": {"optim": {"batch_size": [1]}}}, "axes: optim", "`{'batch_size'", ""),
        ({"axes": {"optim": [{"lr": 1}, 2]}}, "axes: optim", "`2` among mappings", ""),
        ({"axes": {"seed": [2, {"a": 1}]}}, "axes: seed", "a mapping in a list", ""),
        ({"axes": {"setting": [{"epoch": 1}]}}, "axes: setting[0]: epoch", "unknown", "`epochs`"),
        ({"axes": {"x": [{"optim.lr": 1}, {"lr": 1}]}}, "axes: x[1]: lr", "unknown key", ""),
        ({"axes": {"init": [{"name": "torch", "init.name": "a"}]}}, "axes: init[0]", "twice", ""),
        ({"axes": {"optim.lr": [1]}}, "base: optim.lr", "also set by axis `optim.lr`", ""),
        ({"axes": {"seed": [1], "x": [{"seed": 1}]}}, "axes", "`seed` is set by axis `seed`", ""),
        ({"derive": {"optim.lr": "1"}}, "base: optim.lr", "also set by `derive`", ""),
        ({"axes": {"seed": [1]}, "derive": {"seed": "1"}}, "derive: seed", "also set by axis", ""),
        ({"derive": {"seed": 3}}, "derive: seed", "`3`", ""),
        ({"derive": {"sed": "3"}}, "derive: sed", "unknown key", "`seed`"),
        ({"derive": {"init.name": "xavier"}}, "derive: init.name", "`xavier`", "needs quotes"),
        ({"derive": {"seed": "two words"}}, "derive: seed", "not an expression", ""),
        ({"derive": {"seed": "max(1"}}, "derive: seed", "not an expression", "needs quotes"),
        ({"derive": {"seed": "optim.bach_size"}}, "derive: seed", "name", "`optim.batch_size`"),
        ({"derive": {"seed": "let.b", "let.b": "1"}}, "derive: seed", "`let.b`", "file order"),
        ({"derive": {"seed": "epochs / 0"}}, "its only trial: derive: seed", "by zero", ""),
        ({"derive": {"seed": "epochs / 4"}}, "its only trial: seed", "`0.5`", ""),
        ({"derive": {"init.name": "[1]"}}, "its only trial: init.name", "`[1]`", ""),
        ({"exclude": "seed == 1"}, "exclude", "`seed == 1`", ""),
        ({"exclude": [True]}, "exclude[0]", "`True`", ""),
        ({"exclude": ["sede == 1"]}, "exclude[0]", "unknown name `sede`", "`seed`"),
        ({"exclude": ["model.dim == 1"]}, "exclude[0]", "unknown name `model.dim`", ""),
        ({"exclude": ["seed"]}, "its only trial: exclude[0]", "`seed` is `0`", ""),
        ({"exclude": ["seed == 1"]}, "exclude[0]", "removes no trial", "--allow-empty-exclude"),
        ({"exclude": ["seed == 0"]}, "exclude", "0 of 1 trials left", ""),
    ],
    ids=lambda given: None if isinstance(given, str) else json.dumps(given)[:60],
)
def test_a_grid_that_is_wrong_is_refused_by_key(refused, sections, where, found, hint):
    error = refused(**sections)
    assert error.where.startswith(where)
    assert found in error.found
    assert hint in error.hint


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"model.name": ["fc", "fcc"]}, "model.name"),
        ({"model.name": ["fc", ["fc"]]}, "model.name"),
        ({"model.name": ["fc", None]}, "model.name"),
        ({"model.name": {"range": [0, 5]}}, "model.name"),
        ({"model.name": ["fc", "nowhere:build"]}, "model.name"),
        (
            {"model": [{"name": "fc"}, {"widths": [3]}]},
            "trial `model={'model.widths': [3]}`: model.name",
        ),
    ],
)
def test_a_name_on_an_axis_that_is_wrong_is_refused(refused, value, where):
    assert refused(base=without("model.name"), axes=value).where == where


def test_an_invalid_trial_is_named_by_its_axis_values(refused):
    error = refused(axes={"seed": [1, -1], "optim": [{"batch_size": 4}, {}]})
    assert error.where == "trial `seed=-1, optim={'optim.batch_size': 4}`: seed"
    assert isinstance(error, ConfigError)


@pytest.mark.parametrize(
    ("text", "where", "found"),
    [
        ("", "name", "missing"),
        ("hello", "line 1", "not a mapping"),
        ("- a\n- b", "line 1", "not a mapping"),
        ("name: g\nbase: [1", "line 2", "malformed YAML"),
        ("name: g\n\n base: 3", "line 3", "malformed YAML"),
        ("name: g\nbase: {seed: 1, seed: 2}", "line 2", "duplicate key seed"),
        ("name: g\n\tbase: 3", "line 2", "malformed YAML"),
        ("name: g\nname2: \x01", "line 2", "malformed YAML"),
        ("name: g\n--- \nname: h", "line 2", "malformed YAML"),
        ("name: g\nbase: {optim.lr: =}", "line 2", "malformed YAML"),
        ("name: g\nbase: {? [1] : 2}", "line 2", "malformed YAML"),
        ("name: g\nbase: {seed: 0x_}", "grid", "malformed YAML"),
        ("name: g\nbase: {null: 2}", "grid", "malformed YAML"),
        ("name: g\nbase: {1: 2}", "base: 1", "a key that is not a name"),
        ("name: g\n1: 2", "1", "unknown key"),
        ("name: g\naxes: {1: [2]}", "axes: 1", "a label that is not a name"),
        ("name: g\nbase: {seed: '${oc.env:HOME}'}", "line 2", "interpolation `${oc.env:HOME}`"),
        ("name: g\nbase: {seed: '${'}", "line 2", "interpolation"),
        ("name: g\nbase: &b {seed: 1}", "line 2", "YAML anchor or alias `b`"),
        ("name: g\nbase: *b", "line 2", "YAML anchor or alias `b`"),
        ("name: g\nbase: !!python/object/apply:os.system ['true']", "line 2", "YAML tag"),
        ("name: !!int abc", "line 1", "YAML tag"),
        ("name: g\nbase: " + "[" * 30, "line 2", "nested too deeply"),
        (b"name: g\xff", "grid", "byte 7 is not UTF-8"),
        (b"a" * (2**20 + 1), "grid", "over 1 MiB"),
    ],
    ids=range(25),
)
def test_a_file_that_is_not_plain_yaml_is_refused_by_line(refused, text, where, found):
    error = refused(text)
    assert error.where == where
    assert found in error.found


def test_aliases_cannot_make_a_small_file_large(refused):
    lines = ["name: g", "a0: &a0 [1, 2]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    start = time.perf_counter()
    assert "anchor" in refused("\n".join(lines)).found
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    ("override", "where", "found"),
    [
        ("optim.lr", "--set optim.lr", "no value"),
        ("optim.lr=[1", "--set optim.lr", "malformed YAML"),
        ("optim.lr=1\na: 2", "--set optim.lr", "`1\na: 2`"),
        ("optm.lr=1", "--set: optm.lr", "unknown key"),
        ("=1", "--set: ", "unknown key"),
        ("optim.lr=${x}", "--set optim.lr", "interpolation"),
        ("optim.lr=-1", "its only trial: optim.lr", "`-1.0`"),
        ("optim.lr=", "its only trial: optim.lr", "`null`"),
    ],
    ids=range(8),
)
def test_a_set_that_is_wrong_is_refused(refused, override, where, found):
    error = refused(overrides=[override])
    assert error.where == where
    assert found in error.found


def test_a_missing_file_is_refused_with_the_nearest_name(tmp_path):
    (tmp_path / "cifar10.yaml").touch()
    with pytest.raises(GridError, match="no such file") as caught:
        load_grid(tmp_path / "cifar01.yaml")
    assert caught.value.hint == "did you mean `cifar10.yaml`?"


def test_what_is_not_a_file_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "a\0b", tmp_path / ("x" * 300), tmp_path / "g" / "h"):
        with pytest.raises(GridError) as caught:
            load_grid(path)
        assert caught.value.where == f"{path}: grid"


def test_an_empty_exclude_is_allowed_when_asked_for(grid_file):
    grid = load_grid(grid_file(exclude=["seed == 1"]))
    assert expand(grid, allow_empty_exclude=True).excluded == (("seed == 1", 0),)


def test_an_expression_that_fails_keeps_its_kind(refused):
    assert isinstance(refused(derive={"seed": "log(-1 * epochs)"}), ExpressionError)


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from(["fc", "vit", "seed == 1", "optim.lr * 2", "${x}", "???", "1e-3", "range"]),
)  # fmt: skip
KEYS = st.sampled_from(
    [
        *("name", "base", "axes", "derive", "exclude", "optim", "optim.lr", "seed", "model.name"),
        *("let.a", "range", "model", "setting", "when", "x", "1", "null"),
    ]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


def outcome(path):
    """The path's trials or its refusal; every other exception fails the test."""
    try:
        return expand(load_grid(path), allow_empty_exclude=True)
    except SweeperError as error:
        return error


@given(sections=st.dictionaries(KEYS, VALUES, max_size=5))
@settings(max_examples=200, deadline=None)
def test_any_document_is_a_grid_or_a_refusal(tmp_path_factory, sections):
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_text(json.dumps({"name": "g", "base": BASE} | sections))
    found = outcome(path)
    assert found.where.startswith(str(path)) if isinstance(found, SweeperError) else found.trials


@given(text=st.text(max_size=60) | st.binary(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_refused_when_they_are_no_grid(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    assert isinstance(outcome(path), SweeperError)


def test_the_grid_of_the_demo_has_at_least_48_trials_over_six_axes():
    root = Path(__file__).parents[2]
    found = expand(load_grid(root / "grids" / "digits.yaml"))
    assert len(found.trials) >= 48
    keys = [
        "model.name",
        "optim.name",
        "regularize.weight_decay",
        "augment.name",
        "init.name",
        "seed",
    ]
    for key in keys:
        assert len({flat[key] for flat in flats(found)}) > 1, key
