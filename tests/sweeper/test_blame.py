import re

import pytest

from sweeper.errors import ConfigError
from sweeper.grid import expand, load_grid

PLAIN = "plain_for_blame:build"  # a model that takes no dropout


@pytest.fixture
def models(without, tmp_path, monkeypatch):
    """A base that leaves the model to the axes, and a model that takes no dropout."""
    (tmp_path / "plain_for_blame.py").write_text("def build(shape, n_classes): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    return {"base": without("model.name")}


def fixed(refused, expanded, rule, **sections):
    """The error of a grid, and its trials once the rule that its hint gives is in it."""
    error = refused(**sections)
    found = re.search(r"`- (.*)`", error.hint)[1]
    return error, found, expanded(**sections | {rule: [*sections.get(rule, []), found]})


def test_two_axis_values_that_do_not_go_together_are_named_with_the_exclude_that_helps(
    refused, expanded, models
):
    sections = models | {
        "axes": {
            "seed": [0, 1],
            "model.name": ["fc", "vit", PLAIN],
            "regularize.dropout": [0, 0.25],
        }
    }
    error, rule, found = fixed(refused, expanded, "exclude", **sections)
    named = f"`model.name={PLAIN}` with `regularize.dropout=0.25`"
    assert error.where == f"{named}: regularize.dropout"
    assert rule == f"model.name == '{PLAIN}' and regularize.dropout == 0.25"
    assert len(found.trials) == 10
    assert isinstance(error, ConfigError)


def test_an_axis_that_never_goes_with_a_value_is_hinted_into_a_when(refused, expanded, models):
    axes = {"model.name": ["fc", "vit", "cnn"], "model.dim": [32, 64], "seed": [0, 1]}
    error = refused(**models, axes=axes)
    assert error.where == "`model.name=fc` with `model.dim=32`: model.dim"
    condition = re.search(r'{if: "(.*)", axes: {model.dim: ...}}', error.hint)[1]
    assert condition == "model.name == 'vit'"
    dims = axes.pop("model.dim")
    when = [{"if": condition, "axes": {"model.dim": dims}}]
    assert len(expanded(**models, axes=axes, when=when).trials) == 8


def test_several_values_that_go_with_an_axis_are_all_in_its_when(refused, without):
    axes = {"optim.name": ["adam", "sgd", "sgd-nesterov"], "optim.momentum": [0.8, 0.9]}
    error = refused(base=without("optim.name"), axes=axes)
    assert error.where == "`optim.name=adam` with `optim.momentum=0.8`: optim.momentum"
    assert "{if: \"optim.name in ['sgd', 'sgd-nesterov']\", axes: " in error.hint


def test_a_case_is_named_by_what_sets_it_apart_from_those_that_help(refused, expanded, models):
    sections = models | {
        "axes": {
            "model": [{"name": PLAIN}, {"name": "fc"}],
            "regular": [
                {"optim.batch_size": 8, "regularize.dropout": 0.5},
                {"optim.batch_size": 8, "regularize.dropout": 0},
            ],
        }
    }
    error, rule, found = fixed(refused, expanded, "exclude", **sections)
    assert error.where.startswith(f"`model.name={PLAIN}` with `regularize.dropout=0.5`: ")
    assert rule == f"model.name == '{PLAIN}' and regularize.dropout == 0.5"
    assert len(found.trials) == 3


def test_a_case_that_the_helping_ones_share_a_key_with_is_named_by_another(refused, expanded):
    base = {"data.name": "digits", "model.name": "fc", "optim": {"name": "sgd", "lr": 0.1}}
    cases = [{"seed": 3, "epochs": 2}, {"optim.batch_size": 4, "epochs": 8}, {"epochs": 9}]
    axes = {"setting": cases, "optim.schedule.warmup_epochs": [4, 1], "let.a": [None, 1]}
    error, rule, found = fixed(refused, expanded, "exclude", base=base, axes=axes)
    assert error.where.startswith("`epochs=2` with `optim.schedule.warmup_epochs=4`: ")
    assert rule == "epochs == 2 and optim.schedule.warmup_epochs == 4"
    assert (found.n_product, found.excluded) == (12, ((rule, 2),))


def test_no_value_at_all_can_have_a_part(grid_file):
    def check(config):
        if config.data.subset is None and config.seed == 1:
            raise ConfigError("model.name", "too much data")

    path = grid_file(axes={"data.subset": [None, 100], "seed": {"range": [0, 100]}})
    with pytest.raises(ConfigError) as caught:
        expand(load_grid(path), check=check)
    assert "`data.subset=null` with `seed=1`: model.name" in caught.value.where
    rule = re.search(r"`- (.*)`", caught.value.hint)[1]
    assert rule == "data.subset == None and seed == 1"
    path = grid_file(axes={"data.subset": [None, 100], "seed": {"range": [0, 100]}}, exclude=[rule])
    assert len(expand(load_grid(path), check=check).trials) == 199


def test_values_that_could_not_help_have_no_part(refused, expanded):
    axes = {
        "let.half": [1, 2],
        "epochs": [2, 4],
        "optim.schedule.warmup_epochs": [0, 3],
        "seed": [0, 1, 2],
    }
    sections = {"axes": axes}
    base = {"data.name": "digits", "model.name": "fc", "optim": {"name": "sgd", "lr": 0.1}}
    error, rule, found = fixed(refused, expanded, "exclude", base=base, **sections)
    assert rule == "epochs == 2 and optim.schedule.warmup_epochs == 3"
    assert "let.half" not in error.where
    assert len(found.trials) == 9


def test_values_that_only_derive_brings_together_are_named(refused, expanded):
    base = {"data.name": "digits", "model.name": "fc", "optim": {"name": "sgd", "lr": 0.1}}
    sections = {
        "base": base,
        "axes": {"let.a": [1, 2, 3], "let.b": [0, 2], "seed": [0, 1]},
        "derive": {"epochs": "let.a - let.b + 1"},
    }
    error, rule, found = fixed(refused, expanded, "exclude", **sections)
    assert error.where == "`let.a=1` with `let.b=2`: epochs"
    assert rule == "let.a == 1 and let.b == 2"
    assert [trial.config.epochs for trial in found.trials] == [2, 2, 3, 3, 1, 1, 4, 4]


def test_an_axis_under_a_when_takes_part(refused, expanded, models):
    sections = models | {
        "axes": {"model.name": [PLAIN, "fc", "vit"], "seed": [0, 1]},
        "when": [{"if": "model.name != 'vit'", "axes": {"regularize.dropout": [0, 0.5]}}],
    }
    error, _, found = fixed(refused, expanded, "exclude", **sections)
    assert error.where.startswith(f"`model.name={PLAIN}` with `regularize.dropout=0.5`: ")
    assert len(found.trials) == 8


def test_of_two_faults_at_once_the_values_of_the_first_are_named(refused, without):
    axes = {
        "optim.name": ["adam", "sgd"],
        "optim.momentum": [0.9],
        "model.name": ["fc", "vit"],
        "model.dim": [32],
    }
    error = refused(base=without("model.name", "optim.name"), axes=axes)
    assert error.where == "`optim.name=adam` with `optim.momentum=0.9`: optim.momentum"


def test_an_error_of_one_value_keeps_the_whole_trial_and_its_own_hint(refused):
    error = refused(axes={"seed": [0, 1], "optim.momentun": [0.5, 0.9], "epochs2": [{}, {}]})
    assert error.where == "trial `seed=0, optim.momentun=0.5, epochs2={}`: optim.momentun"
    assert error.hint == "did you mean `optim.momentum`?"


def test_what_a_check_refuses_is_named_by_its_values_too(grid_file):
    def check(config):
        if config.seed == 1 and config.optim.batch_size > 100:
            raise ConfigError("optim.batch_size", f"`{config.optim.batch_size}`", "at most 100")

    path = grid_file(axes={"optim.batch_size": [50, 200], "seed": [0, 1], "epochs2": [{}, {}]})
    with pytest.raises(ConfigError) as caught:
        expand(load_grid(path), check=check)
    assert caught.value.where == f"{path}: `optim.batch_size=200` with `seed=1`: optim.batch_size"
    assert "`- optim.batch_size == 200 and seed == 1`" in caught.value.hint


def test_a_check_sees_each_trial_that_is_left_once(grid_file):
    seen = []
    path = grid_file(axes={"seed": [0, 1, 1, 2]}, exclude=["seed == 2"])
    expand(load_grid(path), check=seen.append)
    assert [config.seed for config in seen] == [0, 1]


def test_a_long_axis_costs_no_more_than_a_few_trials(grid_file):
    calls = []

    def check(config):
        calls.append(config)
        raise ConfigError("seed", "never right")

    path = grid_file(axes={"seed": {"range": [0, 10**6]}})
    with pytest.raises(ConfigError, match="trial `seed=0`"):
        expand(load_grid(path), max_trials=10**6, check=check)
    assert len(calls) < 50
