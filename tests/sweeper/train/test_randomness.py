"""Stateless randomness."""

import torch

from sweeper.train.randomness import epoch_order, seed_global, seed_of


def test_seeds_are_the_same_in_every_process_and_version():
    # `printf 0/init/0 | b2sum -l 64`, half of it
    assert [seed_of(0, "init", 0), seed_of(42, "dropout", 7)] == [
        4213802666853728012,
        6172439917264677926,
    ]


def test_seeds_differ_between_seeds_streams_and_indices():
    streams = ("init", "order", "augment", "dropout", "evaluate")
    seeds = [seed_of(seed, name, i) for seed in range(20) for name in streams for i in range(100)]
    seeds += [seed_of(1, "init", 11), seed_of(11, "init", 1)]
    assert len(set(seeds)) == len(seeds) - 2  # the last two are among the first
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_each_epoch_visits_every_sample_once_in_its_own_order():
    orders = [epoch_order(0, epoch, 50) for epoch in range(5)] + [epoch_order(1, 0, 50)]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(50))
    assert len({tuple(order.tolist()) for order in orders}) == 6


def test_order_draws_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    epoch_order(0, 0, 10)
    assert torch.equal(torch.get_rng_state(), state)


def test_global_seed_fixes_what_dropout_draws():
    x = torch.ones(100)
    masks = []
    for history in (0, 5):
        torch.rand(history)
        seed_global(seed_of(0, "dropout", 3), torch.device("cpu"))
        masks.append(torch.nn.functional.dropout(x))
    assert torch.equal(*masks)
