"""Spans of time as options have them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper.errors import SweeperError
from sweeper.options import seconds_of


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("55m", 3300), ("1h30m", 5400), ("2d", 172800), ("1.5h", 5400)],
)
def test_a_time_is_read(text, seconds):
    assert seconds_of("--stop-after", text) == seconds


@given(st.integers(0, 9), st.integers(0, 23), st.integers(0, 59), st.integers(1, 59))
def test_units_add_up(days, hours, minutes, seconds):
    text = f"{days}d{hours}h{minutes}m{seconds}s"
    assert seconds_of("x", text) == ((days * 24 + hours) * 60 + minutes) * 60 + seconds


@pytest.mark.parametrize(
    "text", ["", "0", "0s", "-1", "x", "55 m", "2 h", "5 ", "1w", "m", "nan", "inf", "１h", "1e3"]
)
def test_what_is_no_time_is_refused(text):
    with pytest.raises(SweeperError) as caught:
        seconds_of("--time-limit", text)
    assert str(caught.value).startswith(f"--time-limit: `{text}`; a time such as")


def test_nothing_may_be_allowed():
    assert seconds_of("--checkpoint-every", "0", at_least=0) == 0
