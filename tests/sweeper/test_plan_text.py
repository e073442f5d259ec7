import pytest
import yaml

from sweeper.grid import expand, load_grid
from sweeper.journal import Journal
from sweeper.plan import Size, make_plan
from sweeper.plan_text import plan_fields, plan_lines
from sweeper.sweep_dir import SweepDir

SECTIONS = {
    "axes": {
        "augment.name": ["none", "shift"],
        "seed": [0, 1, 2],
        "let.a": [5, 6, 7],
        "optim": [{"batch_size": n} for n in range(1, 30)],
    },
    "zip": [["seed", "let.a"]],
    "when": [{"if": "augment.name == 'shift'", "axes": {"augment.pixels": [1, 2, 1]}}],
    "exclude": ["optim.batch_size > 2", "let.a == 6"],
}


@pytest.fixture
def planned(grid_file, tmp_path):
    """What the two functions are given, for a grid in which every rule does something."""
    path = grid_file(**SECTIONS)
    expansion = expand(load_grid(path))
    made = make_plan(expansion.trials, (), lambda config: Size(3, 100, 4))
    folder = SweepDir(tmp_path / "sweep")
    return path, expansion, made, folder, folder.root()


def test_the_plan_shows_what_each_rule_did(planned):
    first, *lines = plan_lines(*planned)
    assert first.endswith("g.yaml: 12 trials of 348 combinations")
    rows = dict(line.strip().split("  ", 1) for line in lines)
    rows = {name: value.strip() for name, value in rows.items()}
    assert rows["axis seed + let.a"] == "3: {seed: 0, let.a: 5}, {seed: 1, let.a: 6}, " + (
        "{seed: 2, let.a: 7}"
    )
    assert rows["axis augment.pixels, when augment.name == 'shift'"] == "3: 1, 2, 1"
    assert rows["zip seed + let.a"] == "3 of 9"
    assert rows["when augment.name == 'shift'"] == "+174, for 87 combinations"
    assert rows["exclude optim.batch_size > 2"] == "-324"
    assert rows["exclude let.a == 6"] == "-8"
    assert rows["duplicates folded"] == "-4"
    assert rows["axis optim"].startswith("29: {batch_size: 1}, {batch_size: 2}, ")
    assert rows["to run"] == "12 trials"
    assert max(map(len, lines)) < 180, "an axis of many cases is cut short"


def test_the_counts_of_the_json_add_up(planned):
    fields = plan_fields(*planned[1:])
    assert fields["axes"] == {
        "augment.name": 2,
        "seed + let.a": 3,
        "optim": 29,
        "augment.pixels, when augment.name == 'shift'": 3,
    }
    assert fields["zip"] == [{"axes": ("seed", "let.a"), "before": 9, "after": 3}]
    assert fields["when"] == [
        {"if": "augment.name == 'shift'", "combinations": 87, "added": 174},
    ]
    assert fields["n_product"] == 2 * 3 * 29 + 174
    removed = sum(fields["excluded"].values())
    assert fields["n_product"] == fields["n_trials"] + removed + fields["n_duplicates"]


def test_the_keys_of_a_case_are_as_a_grid_may_have_them(grid_file, tmp_path):
    case = {"fit": "subset", "samples": 20, "init.corner.seed": 3, "optim.batch_size": 4}
    case |= {"channels_last": True, "data.subset": None}
    path = grid_file(axes={"init.corner": [case]})
    expansion = expand(load_grid(path))
    made = make_plan(expansion.trials, (), lambda config: Size(3, 100, 4))
    first, row, *_ = plan_lines(path, expansion, made, SweepDir(tmp_path), str(tmp_path))
    assert first.endswith(": 1 trial of 1 combination")
    shown = yaml.safe_load(row.partition("1: ")[2])
    assert shown == case
    again = grid_file(axes={"init.corner": [shown]})
    assert expand(load_grid(again)).trials == expansion.trials


@pytest.mark.parametrize(
    ("n_bytes", "shown"),
    [
        (0, "0.0 kB"),
        (40_720, "40.7 kB"),
        (16_123_456, "16.1 MB"),
        (649_440_000_000, "649.4 GB"),
        (3_210_000_000_000_000, "3,210.0 TB"),
    ],
)
def test_bytes_are_shown_in_a_unit_that_fits(planned, n_bytes, shown):
    path, expansion, _, folder, root = planned
    made = make_plan(expansion.trials[:1], (), lambda config: Size(1, n_bytes, 4))
    lines = plan_lines(path, expansion, made, folder, root)
    assert f"{shown} before compression" in "\n".join(lines)


def test_a_store_elsewhere_is_shown(planned):
    path, expansion, made, folder, root = planned
    here = dict(line.strip().split("  ", 1) for line in [*plan_lines(*planned)][1:])
    assert "store" not in here
    lines = list(plan_lines(path, expansion, made, folder, "s3://bucket/prefix"))
    assert any(line.split() == ["store", "s3://bucket/prefix"] for line in lines)
    assert plan_fields(expansion, made, folder, root)["store"] == str(folder.path)


def time_row(*planned):
    return [*plan_lines(*planned)][-1].split(maxsplit=1)


def test_time_is_estimated_from_what_was_measured(planned):
    """Twelve trials of as much work each, one of them complete in a minute."""
    path, expansion, _, folder, root = planned
    done = expansion.trials[0].trial_id
    made = make_plan(expansion.trials, {done}, lambda config: Size(3, 100, 4, 50, 1e6))
    assert len(made.trials) == 12
    assert len(set(made.shapes)) > 1
    assert time_row(path, expansion, made, folder, root) == ["time", "not yet measured"]
    fields = plan_fields(expansion, made, folder, root)
    assert (fields["seconds"], fields["n_slots"], fields["seconds_left"]) == (None, None, None)

    ended = {"trial": done, "attempt": 1, "state": "complete", "digest": "0" * 64}
    folder.path.mkdir()
    with Journal(folder.journal) as journal:
        journal.append("launched", n_planned=12, n_todo=12, n_slots=4)
        journal.append("finished", **ended, seconds=60.0, steps=50)
    fields = plan_fields(expansion, made, folder, root)
    assert (fields["seconds"], fields["n_slots"], fields["seconds_left"]) == (660.0, 4, 165.0)
    expected = "11 min 0 s of one slot, 2 min 45 s on the last launch's 4"
    assert time_row(path, expansion, made, folder, root) == ["time", expected]

    half = {"trial": made.todo[0].trial_id, "attempt": 1}
    with Journal(folder.journal) as journal:
        journal.append("started", **half, step=10, n_steps=50)
        journal.append("stopped", **half, seconds=18.0, steps=15)
        journal.append("launched", n_planned=12, n_todo=11, n_slots=4, n_gpus=2)
    assert plan_fields(expansion, made, folder, root)["seconds"] == 660.0 - 60.0 * 25 / 50
    expected = "10 min 30 s of one slot, 5 min 15 s on the last launch's 2 GPUs"
    assert time_row(path, expansion, made, folder, root) == ["time", expected]
