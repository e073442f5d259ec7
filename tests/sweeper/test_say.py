"""Messages never mix with data, and end nothing when they cannot be printed."""

import io
import sys

import pytest

from sweeper.say import say


def test_a_message_is_no_data(capsys):
    say("so many trials")
    assert capsys.readouterr() == ("", "so many trials\n")


@pytest.mark.parametrize("error", [BrokenPipeError, ValueError], ids=["nobody reads", "closed"])
def test_a_message_that_nobody_can_read_ends_nothing(monkeypatch, error):
    class Gone(io.StringIO):
        def write(self, text):
            raise error

    monkeypatch.setattr(sys, "stderr", Gone())
    say("so many trials")
