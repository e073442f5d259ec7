import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.errors import ConfigError, ExpressionError, GridError, SweeperError
from sweeper.grid import expand, load_grid


@pytest.mark.parametrize(
    ("sections", "where", "found", "hint"),
    [
        ({"axs": {}}, "axs", "unknown key", "`axes`"),
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
        ({"axes": {"optim": ["sgd"]}}, "axes: optim", "a section, not a field", "`optim.name`, or"),
        (
            {
                "base": {
                    "data.name": "digits",
                    "model.name": "fc",
                    "optim": {"name": "sgd", "lr": [1]},
                }
            },
            *("its only trial: optim.lr", "`[1]`", "under `axes`"),
        ),
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


TWO = {"seed": [1, 2], "epochs": [1, 2, 3]}
VIT = {"if": "model.name == 'vit'", "axes": {"model.dim": [32, 64]}}


@pytest.mark.parametrize(
    ("sections", "where", "found", "hint"),
    [
        ({"zip": "seed"}, "zip", "`seed`", ""),
        ({"zip": ["seed", "epochs"]}, "zip[0]", "`seed`", ""),
        ({"zip": [["seed"]], "axes": TWO}, "zip[0]", "`['seed']`", ""),
        ({"zip": [["seed", "epoch"]], "axes": TWO}, "zip[0]", "no axis `epoch`", "`epochs`"),
        ({"zip": [["seed", [1]]], "axes": TWO}, "zip[0]", "no axis `[1]`", ""),
        ({"zip": [["seed", "seed"]], "axes": TWO}, "zip[0]", "`seed` is in zip[0] already", ""),
        (
            {"zip": [["seed", "x"], ["y", "seed"]], "axes": {"seed": [1], "x": [{}], "y": [{}]}},
            *("zip[1]", "`seed` is in zip[0] already", ""),
        ),
        (
            {"zip": [["epochs", "seed"]], "axes": TWO},
            *("zip", "`seed` has 2 values, `epochs` 3", ""),
        ),
        (
            {"zip": [["seed", "x"]], "axes": {"seed": [1, 2], "x": [{"seed": 1}, {}]}},
            *("axes", "`seed` is set by axis `seed` and axis `x`", ""),
        ),
        (
            {"zip": [["optim.lr", "seed"]], "axes": {"seed": [1, 2], "optim.lr": [1, 2]}},
            *("base: optim.lr", "also set by axis `seed + optim.lr`", ""),
        ),
        (
            {
                "zip": [["seed", "x"]],
                "axes": {key: {"range": [0, 10**9]} for key in ("seed", "x")},
            },
            *("axes: x", "unknown key", ""),
        ),
        (
            {
                "zip": [["seed", "epochs"]],
                "axes": {key: {"range": [0, 10**9]} for key in ("seed", "epochs")},
            },
            *("seed + epochs", "1,000,000,000 cases", "at the top of `axes`"),
        ),
        ({"when": VIT}, "when", "`{'if'", ""),
        ({"when": ["seed == 1"]}, "when[0]", "`seed == 1`", ""),
        ({"when": [{"axes": TWO}]}, "when[0]: if", "missing", ""),
        ({"when": [{"if": "seed == 1"}]}, "when[0]: axes", "missing", ""),
        ({"when": [VIT | {"axs": TWO}]}, "when[0]: axs", "unknown key", "`axes`"),
        ({"when": [VIT | {"axes": [1]}]}, "when[0]: axes", "`[1]`", ""),
        ({"when": [VIT | {"axes": {"sed": [1]}}]}, "when[0]: axes: sed", "unknown", "`seed`"),
        ({"when": [VIT | {"if": True}]}, "when[0]: if", "`True`", ""),
        ({"when": [VIT | {"if": "sede == 1"}]}, "when[0]: if", "unknown name `sede`", "`seed`"),
        ({"when": [VIT | {"if": "epochs"}]}, "its only trial: when[0]: if", "`epochs` is `2`", ""),
        ({"when": [VIT | {"zip": [["model.dim", "seed"]]}]}, "when[0]: zip[0]", "`seed`", ""),
        ({"when": [VIT]}, "when[0]", "holds for no combination", "--allow-empty-exclude"),
        (
            {"when": [VIT | {"if": "let.a == 1"}], "derive": {"let.a": "seed"}},
            *("when[0]: if", "`let.a` is set later", "after all axes"),
        ),
        (
            {
                "when": [VIT | {"if": "optim.batch_size > 100"}],
                "derive": {"optim.batch_size": "64 * (seed + 1)"},
            },
            *("when[0]: if", "`optim.batch_size` is set later", "after all axes"),
        ),
        (
            {
                "when": [
                    VIT | {"if": "regularize.ema == 0"},
                    VIT | {"axes": {"regularize.ema": [1]}},
                ]
            },
            *("when[0]: if", "`regularize.ema` is set later", "when[1] sets it"),
        ),
        (
            {"derive": {"seed": "optim.batch_size", "optim.batch_size": "64"}},
            *("derive: seed", "`optim.batch_size` is set later", "file order"),
        ),
        (
            {"when": [VIT | {"axes": {"let.b": [1]}}, VIT | {"if": "let.c == 1"}]},
            *("when[1]: if", "unknown name `let.c`", "`let.b`"),
        ),
        (
            {"axes": {"seed": [0, 1]}, "when": [{"if": "seed == 1", "axes": {"seed": [5]}}]},
            *("when[0]: seed", "also set by axis `seed`", ""),
        ),
        (
            {"derive": {"model.dim": "32"}, "when": [VIT]},
            *("derive: model.dim", "also set by `when[0]`", ""),
        ),
        (
            {
                "axes": {"setting": [{}, {"optim.batch_size": 8}]},
                "when": [{"if": "seed == 0", "axes": {"optim": [{"batch_size": 4}]}}],
            },
            "trial `setting={'optim.batch_size': 8}, optim={'optim.batch_size': 4}`: "
            "when[0]: optim.batch_size",
            *("also set by axis `setting`", ""),
        ),
        (
            {
                "when": [
                    {"if": f"seed < {i + 1}", "axes": {"optim.batch_size": [i + 2]}}
                    for i in range(2)
                ]
            },
            "trial `optim.batch_size=2, optim.batch_size=3`: when[1]: optim.batch_size",
            *("also set by axis `optim.batch_size`", ""),
        ),
        ({"axes": {"optim": [{"axes": {"lr": 1}}]}}, "axes: optim[0]: axes: optim.lr", "`1`", ""),
        (
            {"axes": {"optim": [{}, {"lr": 1, "axes": {"lr": [1]}}]}},
            *("axes: optim[1]: axes", "`optim.lr` is set by the case and by its axis", ""),
        ),
        (
            {"axes": {"optim": [{"axes": {"lr": [1], "x": [{"optim.lr": 2}]}}]}},
            *("axes: optim[0]: axes", "`optim.lr` is set by axis `optim.lr` and axis", ""),
        ),
        (
            {"axes": {"x": [{"axes": {"sed": [1]}}]}},
            *("axes: x[0]: sed", "unknown key", "`seed`"),
        ),
        (
            {"axes": {"x": [{"axes": {"seed": {"range": [0, 10**12]}}}]}},
            *("axes: x[0]: x", "1,000,000,000,000 cases", "at the top of `axes`"),
        ),
        (
            {"axes": {"optim": [{}, {"clip": [1, 2]}]}},
            *("trial `optim={'optim.clip': [1, 2]}`: optim.clip", "`[1, 2]`", "a case under its"),
        ),
        ({"axes": {"model": [{"axes": [8]}]}}, "trial `model={'model.axes': [8]}`", "option", ""),
    ],
    ids=lambda given: None if isinstance(given, str) else json.dumps(given)[:60],
)
def test_a_zip_a_when_or_a_nested_case_that_is_wrong_is_refused_by_key(
    refused, sections, where, found, hint
):
    error = refused(**sections)
    assert error.where.startswith(where)
    assert found in error.found
    assert hint in error.hint


def test_a_set_of_what_a_when_sets_is_refused(refused):
    error = refused(overrides=["model.dim=3"], when=[VIT])
    assert (error.where, error.found) == ("--set: model.dim", "also set by `when[0]`")


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
def test_a_name_on_an_axis_that_is_wrong_is_refused(refused, value, where, without):
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
    start = time.process_time()
    assert "anchor" in refused("\n".join(lines)).found
    assert time.process_time() - start < 1


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


def test_a_when_that_never_holds_is_allowed_when_asked_for(grid_file):
    found = expand(load_grid(grid_file(when=[VIT])), allow_empty_exclude=True)
    assert [(held.n_combinations, held.n_added) for held in found.whens] == [(0, 0)]
    assert len(found.trials) == 1


def test_an_expression_that_fails_keeps_its_kind(refused):
    assert isinstance(refused(derive={"seed": "log(-1 * epochs)"}), ExpressionError)


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from(["fc", "vit", "seed == 1", "optim.lr * 2", "${x}", "???", "1e-3", "range"]),
)  # fmt: skip
KEYS = st.sampled_from(
    [
        *("name", "base", "axes", "derive", "exclude", "optim", "optim.lr", "seed", "model.name"),
        *("let.a", "range", "model", "setting", "when", "if", "zip", "x", "1", "null"),
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
@settings(max_examples=200)
def test_any_document_is_a_grid_or_a_refusal(tmp_path_factory, sections, base):
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_text(json.dumps({"name": "g", "base": base} | sections))
    found = outcome(path)
    assert found.where.startswith(str(path)) if isinstance(found, SweeperError) else found.trials


@given(text=st.text(max_size=60) | st.binary(max_size=60))
@settings(max_examples=200)
def test_any_bytes_are_refused_when_they_are_no_grid(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    assert isinstance(outcome(path), SweeperError)
