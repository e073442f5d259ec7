import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.status.affected import Axes, in_words, terms

GRID = [
    {"model.name": name, "optim.batch_size": size, "seed": seed, "epochs": 2}
    for name in ("fc", "cnn", "vit")
    for size in (500, 1000)
    for seed in range(4)
]
IDS = [f"t{i}" for i in range(len(GRID))]


def those(**wanted):
    """The trials with these values, and the others."""
    named = {name.replace("_", ".", 1): value for name, value in wanted.items()}
    inside = [
        trial
        for trial, config in zip(IDS, GRID, strict=True)
        if all(config[name] == value for name, value in named.items())
    ]
    return inside, [trial for trial in IDS if trial not in inside]


def said(trials, ended, unended=(), configs=GRID):
    return in_words(Axes(IDS[: len(configs)], configs), trials, ended, list(unended))


def test_only_what_varies_is_an_axis():
    assert Axes(IDS, GRID).names == ["model.name", "optim.batch_size", "seed"]
    assert Axes([], []).names == []
    assert Axes(["t0"], GRID[:1]).names == []


def test_what_one_lacks_is_none_and_lists_are_values():
    configs = [{"a": [1, 2]}, {"a": [1, 2], "b": 3}, {"a": [2]}, {}]
    axes = Axes(IDS[:4], configs)
    assert axes.names == ["a", "b"]
    assert axes.shared(["t0", "t1"]) == {"a": (1, 2)}
    assert axes.shared(["t0", "t2"]) == {"b": None}
    assert axes.shared(["t3"]) == {"a": None, "b": None}
    assert terms(axes.shared(["t0"])) == "a=[1, 2] and b=null"


@pytest.mark.parametrize("wanted", [{"model_name": "vit"}, {"model_name": "vit", "seed": 1}])
def test_failures_that_are_a_corner_of_the_grid_are_told_by_what_makes_it(wanted):
    inside, outside = those(**wanted)
    values, n_others = Axes(IDS, GRID).tell_apart(inside, outside)
    assert (values, n_others) == ({k.replace("_", ".", 1): v for k, v in wanted.items()}, 0)


def test_every_trial_with_these_values_fails_so():
    inside, outside = those(model_name="vit", optim_batch_size=1000)
    text = "model.name=vit and optim.batch_size=1000"
    assert said(inside, outside) == f"every trial with {text} fails so"


def test_what_has_not_run_yet_is_not_claimed():
    inside, outside = those(model_name="vit", optim_batch_size=1000)
    assert said(inside[:3], outside[:9], [*inside[3:], *outside[9:]]) == (
        "all 3 trials with model.name=vit that have run; 5 are still to run"
    ), "so far, nothing speaks against the model alone"


def test_where_nothing_tells_them_apart_it_is_said_how_many_they_are():
    inside, outside = those(model_name="vit")
    assert said(inside[:6], [*inside[6:], *outside]) == (
        "6 of the 8 trials with model.name=vit that have run"
    )
    assert said([IDS[0], IDS[-1]], IDS[1:-1]) == (
        "2 of the 24 trials that have run: no value that they share tells them apart"
    )


def test_where_nothing_else_has_run_it_is_everything():
    assert said(IDS[:5], []) == "every trial fails so"
    mixed = [IDS[0], IDS[-1]]
    assert said(mixed, [], IDS[1:-1]) == "all 2 trials that have run; 22 are still to run"


def test_where_nothing_else_has_run_they_are_told_from_what_has_not_run():
    inside, outside = those(model_name="vit")
    assert said(inside, [], outside) == "all 8 with model.name=vit; the others have not run"
    assert said(inside[:5], [], [*inside[5:], *outside]) == (
        "5 of the 8 with model.name=vit; the others have not run"
    )


def test_one_trial_is_told_by_what_makes_it_itself():
    assert said(IDS[:1], IDS[1:4], IDS[4:]) == "model.name=fc and optim.batch_size=500 and seed=0"
    assert said(["t0"], [], configs=GRID[:1]) == "the only trial"


CONFIGS = st.lists(
    st.fixed_dictionaries({name: st.integers(0, 1) for name in "abcde"}), min_size=2, max_size=12
)


@settings(max_examples=150)
@given(CONFIGS, st.data())
def test_no_fewer_of_the_shared_values_leave_out_as_many(configs, data):
    """Against a search through all subsets of the shared values."""
    ids = IDS[: len(configs)]
    n_inside = data.draw(st.integers(1, len(ids) - 1))
    inside, outside = ids[:n_inside], ids[n_inside:]
    axes = Axes(ids, configs)
    found, n_others = axes.tell_apart(inside, outside)
    shared = axes.shared(inside)

    def n_with(names):
        rows = configs[n_inside:]
        return sum(all(row[name] == shared[name] for name in names) for row in rows)

    best = min(
        (subset for n in range(6) for subset in itertools.combinations(shared, n)),
        key=lambda subset: (n_with(subset) != n_with(shared), len(subset)),
    )
    assert n_others == n_with(shared) == n_with(found) == axes.n_with(found, outside)
    assert found.items() <= shared.items()
    if len(best) <= 3:
        assert len(found) == len(best)
    for name in found:
        assert n_with(found.keys() - {name}) > n_others, "every value is needed"
