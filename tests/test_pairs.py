import itertools

from tests.pairs import pairwise

AXES = {"a": [1, 2, 3], "b": ["x", "y"], "c": [None, 0.5, 1.0, 2.0], "d": [True, False]}


def test_every_pair_of_values_is_in_some_row_and_rows_are_few():
    rows = pairwise(AXES)
    for first, second in itertools.combinations(AXES, 2):
        met = {(row[first], row[second]) for row in rows}
        assert met == set(itertools.product(AXES[first], AXES[second]))
    assert 12 <= len(rows) <= 16
