import itertools
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.config import TrialConfig
from sweeper.errors import GridError
from sweeper.grid import expand, load_grid, text_of


def picked(expansion, *keys):
    """These values of every trial, in order."""
    return [tuple(t.config.to_flat().get(key) for key in keys) for t in expansion.trials]


def counts(expansion):
    return [(held.n_combinations, held.n_added) for held in expansion.whens]


# --- when -------------------------------------------------------------------------------------


def test_an_axis_under_a_when_exists_where_its_condition_holds(expanded, without):
    found = expanded(
        base=without("model.name"),
        axes={"model.name": ["fc", "vit"], "seed": [0, 1]},
        when=[{"if": "model.name == 'vit'", "axes": {"model.dim": [16, 64]}}],
    )
    assert picked(found, "model.name", "seed", "model.dim") == [
        *(("fc", 0, None), ("fc", 1, None)),
        *(("vit", 0, 16), ("vit", 0, 64), ("vit", 1, 16), ("vit", 1, 64)),
    ]
    assert counts(found) == [(2, 2)]
    assert found.n_product == 6
    label = "model.dim, when model.name == 'vit'"
    assert [(name, len(values)) for name, values in found.axes][-1] == (label, 2)


def test_a_when_sees_defaults_and_the_axes_of_earlier_ones_and_comes_before_derive(expanded):
    found = expanded(
        axes={"augment.name": ["none", "shift"]},
        when=[
            {"if": "augment.pixels == 1", "axes": {"let.a": [3, 4]}},
            {"if": "let.a == 4", "axes": {"optim.batch_size": [8, 16]}},
        ],
        derive={"seed": "let.a * optim.batch_size if let.a > 0 else 0"},
    )
    keys = ("augment.name", "optim.batch_size", "seed")
    assert picked(found, *keys) == [
        *(("none", 128, 0), ("shift", 128, 384), ("shift", 8, 32), ("shift", 16, 64)),
    ]
    assert counts(found) == [(1, 1), (1, 1)]


def test_a_when_may_override_the_base_and_two_may_set_one_key_in_different_trials(expanded):
    found = expanded(
        axes={"seed": [0, 1, 2]},
        when=[
            {"if": "seed == 0", "axes": {"optim.lr": [0.5, 0.6]}},
            {"if": "seed == 1", "axes": {"optim": [{"lr": 0.7, "batch_size": 4}]}},
        ],
    )
    assert picked(found, "seed", "optim.lr") == [(0, 0.5), (0, 0.6), (1, 0.7), (2, 0.1)]


def test_a_when_may_zip_its_own_axes(expanded):
    found = expanded(
        axes={"seed": [0, 1]},
        when=[
            {
                "if": "seed == 1",
                "axes": {"optim.lr": [0.5, 0.6], "optim.batch_size": [4, 8]},
                "zip": [["optim.lr", "optim.batch_size"]],
            }
        ],
    )
    assert picked(found, "optim.lr", "optim.batch_size") == [(0.1, 128), (0.5, 4), (0.6, 8)]
    assert [(pair.n_product, pair.n_values) for pair in found.zips] == [(4, 2)]


def test_exclude_sees_what_only_a_when_sets_as_none_elsewhere(expanded):
    found = expanded(
        axes={"seed": [0, 1]},
        when=[{"if": "seed == 1", "axes": {"let.a": [1, 2, 3]}}],
        exclude=["let.a == 2", "let.a == null and seed == 0", "let.a > 2"],
    )
    assert found.excluded == (
        *(("let.a == 2", 1), ("let.a == null and seed == 0", 1), ("let.a > 2", 1)),
    )
    assert picked(found, "seed") == [(1,)]


def test_too_many_combinations_under_a_when_are_refused_before_they_are_made(grid_file):
    start = time.process_time()
    huge = {"if": "seed == 1", "axes": {"optim.batch_size": {"range": [1, 10**15]}}}
    grid = load_grid(grid_file(axes={"seed": {"range": [0, 1000]}}, when=[huge]))
    with pytest.raises(GridError, match="more than 100,000 trials before `exclude`"):
        expand(grid)
    assert time.process_time() - start < 1
    few = {"if": "seed == 1", "axes": {"optim.batch_size": [1, 2, 3]}}
    grid = load_grid(grid_file(axes={"seed": {"range": [0, 1000]}}, when=[few]))
    assert len(expand(grid, max_trials=1002).trials) == 1002
    checked = []
    with pytest.raises(GridError, match="more than 1,001 trials"):
        expand(grid, max_trials=1001, check=checked.append)
    assert not checked


# --- properties -------------------------------------------------------------------------------

AXES = {
    "seed": [0, 1, 2],
    "model": [{"name": "fc"}, {"name": "vit", "dim": 64}, {"name": "cnn"}],
    "augment.name": ["none", "shift"],
}
# Condition as text and as a function of a flat mapping; the axes that it adds.
WHENS = [
    ("seed == 1", lambda f: f.get("seed", 0) == 1, {"regularize.dropout": [0, 0.25]}),
    (
        "augment.name == 'shift'",
        lambda f: f.get("augment.name") == "shift",
        {"augment.pixels": [1, 2], "let.deep": [0, 1]},
    ),
    (
        "let.deep == 1 or model.dim == 64",
        lambda f: f.get("let.deep") == 1 or f.get("model.dim") == 64,
        {"optim.lr": [0.1, 0.3, 0.5]},
    ),
]
RULES = [
    ("optim.lr > 0.2 and seed == 1", lambda f: f["optim.lr"] > 0.2 and f.get("seed", 0) == 1),
    ("augment.pixels == 2", lambda f: f.get("augment.pixels") == 2),
]
SIZED = st.fixed_dictionaries(
    {key: st.lists(st.sampled_from(values), max_size=2) for key, values in AXES.items()}
).map(
    # One value each at least, and those that bring the options that conditions name.
    lambda axes: {
        "seed": axes["seed"] or [1],
        "model": [*axes["model"], {"name": "vit", "dim": 64}],
        "augment.name": [*axes["augment.name"], "shift"],
    }
)


def settings_of(key, value):
    return {f"model.{k}": v for k, v in value.items()} if key == "model" else {key: value}


def by_hand(axes, pairs, whens):
    """The flat mappings of all combinations, in order, from the definition."""
    labels, seen = [], set()
    for label in axes:
        group = next((pair for pair in pairs if label in pair), [label])
        if label not in seen:
            labels.append([other for other in axes if other in group])
            seen.update(group)
    flats = [{}]
    for group in labels:
        together = [
            {
                k: v
                for key, value in zip(group, values, strict=True)
                for k, v in settings_of(key, value).items()
            }
            for values in zip(*(axes[key] for key in group), strict=True)
        ]
        flats = [flat | more for flat, more in itertools.product(flats, together)]
    held = []
    for _, condition, added in whens:
        products = [
            dict(zip(added, values, strict=True)) for values in itertools.product(*added.values())
        ]
        held.append(sum(map(condition, flats)))
        flats = [f | more for f in flats for more in (products if condition(f) else [{}])]
    return flats, held


@given(
    axes=SIZED,
    order=st.permutations(list(AXES)),
    whens=st.lists(st.sampled_from(range(3)), unique=True).map(sorted),
    rules=st.lists(st.sampled_from(RULES), unique=True),
    zipped=st.booleans(),
)
@settings(max_examples=150)
def test_expansion_agrees_with_one_written_by_hand_and_its_counts_add_up(
    expand_quietly, axes, order, whens, rules, zipped
):
    axes, whens = {label: axes[label] for label in order}, [WHENS[i] for i in whens]
    if not any("let.deep" in added for _, _, added in whens):
        whens = [when for when in whens if "let.deep" not in when[0]]
    equal = [a for a in axes if len(axes[a]) == len(axes["model"])]
    pairs = [equal] if zipped and len(equal) > 1 else []
    axes = axes | {"let.kept": [0, 1]}  # so that no rule can remove everything
    found = expand_quietly(
        axes,
        zip=pairs,
        when=[{"if": text, "axes": added} for text, _, added in whens],
        exclude=[f"let.kept == 0 and ({text})" for text, _ in rules],
    )

    flats, held = by_hand(axes, pairs, whens)
    base = {"data.name": "digits", "model.name": "fc", "optim.name": "sgd", "optim.lr": 0.1}
    flats = [base | {"epochs": 2} | flat for flat in flats]
    removed = [0] * len(rules)
    expected = []
    for flat in flats:
        hits = [i for i, (_, rule) in enumerate(rules) if flat["let.kept"] == 0 and rule(flat)]
        if hits:
            removed[hits[0]] += 1
        else:
            kept = {key: value for key, value in flat.items() if not key.startswith("let.")}
            expected.append(TrialConfig.from_flat(kept))
    assert [trial.config for trial in found.trials] == list(dict.fromkeys(expected))
    assert [n for _, n in found.excluded] == removed
    assert [n for n, _ in counts(found)] == held

    assert found.n_product == len(flats)
    assert found.n_product == len(found.trials) + sum(removed) + found.n_duplicates
    n_axes = math.prod(len(v) for label, v in found.axes if ", when " not in label)
    assert found.n_product == n_axes + sum(n for _, n in counts(found))


def test_the_grid_that_is_kept_with_a_set_gives_the_same_trials(grid_file, without, tmp_path):
    path = grid_file(
        base=without("model.name"),
        axes={
            "model": [{"name": "fc"}, {"name": "vit", "axes": {"dim": [16, 64]}}],
            "seed": [0, 1],
            "let.a": [1, 2],
        },
        zip=[["seed", "let.a"]],
        when=[{"if": "model.dim == 64", "axes": {"optim.batch_size": [4, 8]}}],
        derive={"epochs": "let.a"},
        exclude=["model.name == 'fc' and seed == 0"],
    )
    path.write_text(path.read_text().replace(', "epochs": 2', ""))
    overrides = ["optim.lr=0.25"]
    loaded = load_grid(path, overrides)
    kept = tmp_path / "kept.yaml"
    kept.write_text(text_of(loaded, overrides))
    assert expand(load_grid(kept)).trials == expand(loaded).trials
    assert picked(expand(loaded), "optim.lr", "epochs")[0] == (0.25, 2)
