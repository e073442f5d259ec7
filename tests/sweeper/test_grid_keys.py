import pytest

from sweeper.errors import GridError
from sweeper.grid_keys import absolute


@pytest.mark.parametrize(
    ("label", "key"), [("init.corner", "seed"), ("init.corner", "epochs"), ("data", "seed")]
)
def test_a_key_of_a_case_that_could_be_two_fields_is_refused(label, key):
    with pytest.raises(GridError, match=f"could be the trial's own `{key}` or `{label}.{key}`"):
        absolute(label, key)


@pytest.mark.parametrize(
    ("label", "key", "expected"),
    [
        ("model", "epochs", "epochs"),
        ("init.corner", "samples", "init.corner.samples"),
        ("init.corner", "init.corner.seed", "init.corner.seed"),
        ("optim", "schedule.name", "optim.schedule.name"),
        ("optim", "regularize.decay", "regularize.decay"),
        ("anything", "let.x", "let.x"),
    ],
)
def test_a_key_is_absolute_if_it_says_so_and_else_of_the_axiss_section(label, key, expected):
    assert absolute(label, key) == expected
