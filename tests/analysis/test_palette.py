import pytest

from analysis.palette import colours, levels, named


@pytest.mark.parametrize(
    ("value", "expected"),
    [((100, 50), "[100, 50]"), ((50,), "[50]"), (None, "none"), ("vit", "vit"), (0.1, "0.1")],
)
def test_a_value_is_named_as_a_grid_has_it(value, expected):
    assert named(value) == expected


def test_levels_are_numbers_by_size_then_names_then_nothing():
    assert levels(["b", 10, None, 9.5, "a", 10]) == [9.5, 10, "a", "b", None]
    assert levels([(50,), (100, 50), (50,)]) == [(100, 50), (50,)]


def test_every_level_has_a_colour_of_its_own():
    for n in (1, 2, 5, 9, 12):
        assert len(set(colours([f"n{i}" for i in range(n)]))) == n
