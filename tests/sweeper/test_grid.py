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
from sweeper.errors import GridError
from sweeper.grid import expand, load_grid


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


def test_cases_are_relative_to_their_section_or_absolute(expanded, without):
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


def test_let_variables_reach_expressions_and_no_trial(expanded, without):
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


def test_derive_goes_in_file_order_and_sees_defaults_and_options(expanded, without):
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


def test_derived_floats_are_rounded_to_twelve_digits_so_that_sums_meet_literals(expanded, without):
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


def test_exclude_can_remove_what_would_not_be_valid(expanded, refused, without):
    axes = {"model.name": ["fc", "vit"], "model.dim": [32, 64]}
    base = without("model.name")
    assert "no option `dim`" in refused(base=base, axes=axes).found
    found = expanded(base=base, axes=axes, exclude=["model.name == 'fc'"])
    assert [f["model.dim"] for f in flats(found)] == [32, 64]


def test_a_name_that_only_other_trials_have_is_none(expanded, without):
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
def test_the_spelling_of_a_number_does_not_matter(grid_file, expanded, spelling, without):
    text = f"name: g\nbase: {json.dumps(without('optim.lr'))}\naxes: {{optim.lr: [{spelling}]}}"
    found = expand(load_grid(grid_file(text)))
    expected = expanded(base=without("optim.lr"), axes={"optim.lr": [0.001]})
    assert found.trials == expected.trials


def test_an_empty_section_is_as_good_as_none(grid_file, base):
    text = f"name: g\nbase: {json.dumps(base)}\naxes:\nderive:\nexclude:\n"
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


@given(axes=AXES, rules=st.lists(st.sampled_from(RULES), max_size=2))
@settings(max_examples=60)
def test_the_product_is_trials_and_excluded_and_duplicates(expand_quietly, axes, rules):
    axes = axes | {"let.kept": [0, 1]}  # so that no rule can remove everything
    found = expand_quietly(axes, exclude=[f"let.kept == 0 and ({rule})" for rule in rules])
    assert found.n_product == math.prod(map(len, axes.values()))
    n_excluded = sum(n for _, n in found.excluded)
    assert found.n_product == len(found.trials) + n_excluded + found.n_duplicates
    assert len({trial.trial_id for trial in found.trials}) == len(found.trials)


@given(axes=AXES)
@settings(max_examples=40)
def test_expansion_agrees_with_a_product_written_by_hand(expand_quietly, axes):
    expected = []
    for values in itertools.product(*axes.values()):
        flat = {"data.name": "digits", "model.name": "fc", "optim.name": "sgd", "optim.lr": 0.1}
        flat["epochs"] = 2
        for key, value in zip(axes, values, strict=True):
            flat |= {f"model.{k}": v for k, v in value.items()} if key == "model" else {key: value}
        expected.append(TrialConfig.from_flat(flat))
    assert [t.config for t in expand_quietly(axes).trials] == list(dict.fromkeys(expected))


@given(axes=AXES, random=st.randoms())
@settings(max_examples=40)
def test_ids_depend_neither_on_the_order_of_axes_nor_of_values(expand_quietly, axes, random):
    labels = random.sample(list(axes), len(axes))
    shuffled = {label: random.sample(axes[label], len(axes[label])) for label in labels}
    before, after = expand_quietly(axes), expand_quietly(shuffled)
    assert {t.trial_id for t in before.trials} == {t.trial_id for t in after.trials}


@given(axes=AXES.filter(bool), data=st.data())
@settings(max_examples=40)
def test_extending_an_axis_keeps_all_ids_and_their_order(expand_quietly, axes, data):
    key = data.draw(st.sampled_from(sorted(axes)))
    new = {"seed": [9, 8], "model": [{"name": "cnn", "widths": [4]}], "augment.name": ["shift"]}
    more = new.get(key, [2, 4] if key == "optim.batch_size" else [0.5])
    before = [t.trial_id for t in expand_quietly(axes).trials]
    after = [t.trial_id for t in expand_quietly(axes | {key: axes[key] + more}).trials]
    assert [trial_id for trial_id in after if trial_id in set(before)] == before


@given(lrs=st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=4, unique=True))
@settings(max_examples=40)
def test_derive_is_deterministic_and_rounds_to_twelve_digits(expand_quietly, lrs, without):
    sections = {"base": without("optim.lr"), "derive": {"optim.lr": "let.lr * 3 / 7"}}
    once, again = (expand_quietly({"let.lr": lrs}, **sections) for _ in range(2))
    assert once == again
    for trial, lr in zip(once.trials, dict.fromkeys(f"{x * 3 / 7:.12g}" for x in lrs), strict=True):
        assert trial.config.optim.lr == float(lr)


# --- size -------------------------------------------------------------------------------------


def test_a_hundred_million_trials_are_refused_at_once(refused, base):
    start = time.process_time()
    error = refused(axes={"seed": {"range": [0, 100_000_000]}})
    assert error.found == "100,000,000 trials before `exclude`"
    assert error.allowed == "at most 100,000"
    assert "--max-trials" in error.hint
    many = {key: {"range": [0, 10**15]} for key in ("seed", "epochs", "optim.batch_size")}
    base = {k: v for k, v in base.items() if k != "epochs"}
    assert "trials before" in refused(base=base, axes=many).found
    assert time.process_time() - start < 1


def test_max_trials_can_be_raised_and_lowered(grid_file):
    grid = load_grid(grid_file(axes={"seed": {"range": [0, 20]}}))
    assert len(expand(grid, max_trials=20).trials) == 20
    with pytest.raises(GridError, match="20 trials"):
        expand(grid, max_trials=19)


def test_two_thousand_trials_expand_in_a_second_or_so(grid_file, without):
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
