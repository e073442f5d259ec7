"""Every grid in `grids/` is planned: it has as many trials as it says, and each can be built."""

import re
from collections import Counter
from pathlib import Path

import pytest

from sweeper.grid import expand, load_grid
from sweeper.train import check
from sweeper.trial import size_of

GRIDS = Path(__file__).parents[1] / "grids"
N_TRIALS = {
    "cifar10": 3120,
    "corners": 50,
    "digits": 60,
    "imagenet": 792,
    "scaling": 60,
    "synthetic": 240,
}


@pytest.fixture(scope="module", params=sorted(N_TRIALS))
def grid(request):
    path = GRIDS / f"{request.param}.yaml"
    return path, expand(load_grid(path))


def test_every_grid_of_the_folder_is_here():
    assert sorted(path.stem for path in GRIDS.glob("*.yaml")) == sorted(N_TRIALS)


def test_a_grid_has_the_trials_that_its_head_comment_promises(grid):
    path, expansion = grid
    assert expansion.name == path.stem
    assert len(expansion.trials) == N_TRIALS[path.stem]
    comment = re.match(r"(#.*\n)+", path.read_text()).group()
    assert f"{N_TRIALS[path.stem]:,} trials" in comment.replace("\n# ", " ").replace("\n#", "")
    assert expansion.n_duplicates == 0


def test_a_head_comment_says_what_it_costs(grid):
    path, expansion = grid
    comment = re.match(r"(#.*\n)+", path.read_text()).group().replace("\n# ", " ")
    if found := re.search(r"Disk ([\d.]+) GB before compression", comment):
        n_bytes = sum(size_of(trial.config).n_bytes for trial in expansion.trials)
        assert float(found[1]) == pytest.approx(n_bytes / 1e9, rel=0.05)


@pytest.mark.timeout(300)
def test_every_trial_of_a_grid_can_be_built(grid):
    _, expansion = grid
    for trial in expansion.trials:
        check(trial.config)


def test_cifar10_is_26_settings_of_the_optimizer_for_each_of_6_networks():
    trials = [trial.config.to_flat() for trial in expand(load_grid(GRIDS / "cifar10.yaml")).trials]
    keys = ("optim.name", "optim.lr", "optim.batch_size", "regularize.weight_decay")
    settings = {tuple(flat[key] for key in keys) for flat in trials}
    assert Counter(name for name, *_ in settings) == {"sgd": 6, "sgd-nesterov": 6, "adam": 14}
    assert {rate for name, rate, size, _ in settings if (name, size) == ("sgd", 500)} == {0.25}
    assert {r for name, r, size, _ in settings if (name, size) == ("adam", 1000)} == {0.0025, 0.005}
    assert set(Counter(flat["model.name"] for flat in trials).values()) == {520}
    n_snapshots = {
        trial.config.optim.batch_size: size_of(trial.config).n_snapshots
        for trial in expand(load_grid(GRIDS / "cifar10.yaml")).trials
    }
    assert n_snapshots == {200: 67, 500: 62, 1000: 67}


def test_imagenet_is_the_product_that_its_comment_states():
    trials = [trial.config.to_flat() for trial in expand(load_grid(GRIDS / "imagenet.yaml")).trials]
    for key, n_values in {"model.name": 11, "optim.name": 3, "augment.name": 2, "seed": 6}.items():
        assert len({flat[key] for flat in trials}) == n_values
    everything = expand(load_grid(GRIDS / "imagenet.yaml", ["data.test_subset=null"]))
    assert size_of(everything.trials[0].config).n_bytes == 41 * 50_000 * 1000 * 2
