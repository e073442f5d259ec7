"""Errors in words."""

import pytest

from sweeper.errors import first_line


@pytest.mark.parametrize(
    ("error", "said"),
    [(ValueError("\n of a\nb"), "of a"), (ValueError(), "ValueError"), (KeyError("x"), "'x'")],
)
def test_what_an_error_says_is_one_line_or_its_type(error, said):
    assert first_line(error) == said
