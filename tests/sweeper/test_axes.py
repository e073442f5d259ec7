import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def picked(expansion, *keys):
    """These values of every trial, in order."""
    return [tuple(t.config.to_flat().get(key) for key in keys) for t in expansion.trials]


# --- zip --------------------------------------------------------------------------------------


def test_zipped_axes_advance_together_where_the_first_of_them_stands(expanded):
    found = expanded(
        axes={"seed": [1, 2, 3], "optim.batch_size": [8, 4], "epochs2": [{"epochs": 4}, {}, {}]},
        zip=[["epochs2", "seed"]],
    )
    assert picked(found, "seed", "epochs", "optim.batch_size") == [
        *((1, 4, 8), (1, 4, 4), (2, 2, 8), (2, 2, 4), (3, 2, 8), (3, 2, 4)),
    ]
    assert [label for label, _ in found.axes] == ["seed + epochs2", "optim.batch_size"]
    assert [(pair.labels, pair.n_product, pair.n_values) for pair in found.zips] == [
        (("seed", "epochs2"), 9, 3)
    ]
    assert found.n_product == 6


def test_two_zips_are_multiplied(expanded):
    axes = {"seed": [1, 2], "let.a": [1, 2], "optim.batch_size": [2, 3], "let.b": [5, 6]}
    found = expanded(
        axes=axes,
        zip=[["let.a", "optim.batch_size"], ["seed", "let.b"]],
        exclude=["let.a == 1 and let.b == 6"],
    )
    assert picked(found, "seed", "optim.batch_size") == [(1, 2), (1, 3), (2, 3)]


def test_a_range_can_be_zipped(expanded):
    found = expanded(axes={"seed": {"range": [5, 8]}, "let.n": [1, 2, 3]}, zip=[["seed", "let.n"]])
    assert picked(found, "seed") == [(5,), (6,), (7,)]


# --- cases within cases -----------------------------------------------------------------------


def test_the_axes_of_a_case_are_multiplied_within_it(expanded, without):
    optim = [
        {"name": "sgd", "axes": {"lr": [0.1, 0.2], "momentum": [0, 0.9]}},
        {"name": "adam", "lr": 1e-3},
    ]
    found = expanded(base=without("optim.name", "optim.lr"), axes={"optim": optim, "seed": [0, 1]})
    keys = ("optim.name", "optim.lr", "optim.momentum", "seed")
    settings = [("sgd", lr, m) for lr in (0.1, 0.2) for m in (0, 0.9)] + [("adam", 1e-3, None)]
    assert picked(found, *keys) == [(*given, seed) for given in settings for seed in (0, 1)]
    assert [(label, len(values)) for label, values in found.axes] == [("optim", 5), ("seed", 2)]


def test_cases_nest_and_their_keys_are_relative_or_absolute_at_every_depth(expanded):
    schedules = [{"name": "constant"}, {"name": "cosine", "axes": {"warmup_epochs": [0, 1]}}]
    optim = [
        {
            "axes": {
                "schedule": schedules,
                "model": [{"widths": [4]}, {"widths": [8]}],
                "epochs": [2, 3],
            }
        }
    ]
    found = expanded(axes={"optim": optim})
    keys = ("optim.schedule.name", "optim.schedule.warmup_epochs", "model.widths", "epochs")
    assert picked(found, *keys) == [
        (name, warmup, widths, epochs)
        for name, warmup in (("constant", 0), ("cosine", 0), ("cosine", 1))
        for widths in ([4], [8])
        for epochs in (2, 3)
    ]


def test_the_axes_of_a_case_of_no_section_have_whole_keys(expanded):
    setting = [
        {"seed": 7, "axes": {"optim.batch_size": [4, 8]}},
        {"axes": {"optim": [{"batch_size": 2}], "seed": {"range": [0, 2]}}},
    ]
    found = expanded(axes={"setting": setting})
    assert picked(found, "optim.batch_size", "seed") == [(4, 7), (8, 7), (2, 0), (2, 1)]


def test_a_case_without_axes_and_one_with_none_are_the_same(expanded):
    one, other = (expanded(axes={"optim": [case]}) for case in ({"lr": 1}, {"lr": 1, "axes": {}}))
    assert one.trials == other.trials


NESTED = st.recursive(
    st.fixed_dictionaries({}, optional={"let.x": st.integers(0, 2)}),
    lambda inner: st.fixed_dictionaries(
        {"axes": st.dictionaries(
            st.sampled_from(["ua", "ub"]), st.lists(inner, min_size=1, max_size=2), max_size=2
        )}
    ),
    max_leaves=6,
)  # fmt: skip


def written_out(case):
    """The number of cases that a nested case stands for."""
    return math.prod(sum(map(written_out, cases)) for cases in case.get("axes", {}).values())


@given(cases=st.lists(NESTED, min_size=1, max_size=3))
@settings(max_examples=60)
def test_a_nested_case_stands_for_the_product_of_its_axes(expand_quietly, cases):
    number = iter(range(10**6))

    def numbered(case):
        """The same case, each of its leaves with a variable of its own."""
        inner = case.get("axes", {})
        if not inner:
            return {f"let.v{next(number)}": 1}
        return {"axes": {label: [numbered(c) for c in cs] for label, cs in inner.items()}}

    found = expand_quietly({"setting": [numbered(case) for case in cases], "seed": [0, 1]})
    n_cases = sum(map(written_out, cases))
    assert found.n_product == 2 * n_cases
    (_, values), _ = found.axes
    assert len({tuple(sorted(value)) for value in values}) == len(values) == n_cases


@pytest.mark.parametrize("label", ["optim", "setting"])
def test_an_option_called_axes_is_an_option(refused, label):
    key = "axes" if label == "optim" else "optim.axes"
    assert "`axes`" in refused(axes={label: [{key: [1]}]}).found
