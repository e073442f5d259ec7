"""Sizes in words and numbers, and what of them is left."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from analysis import memory
from analysis.cli import app
from analysis.memory import budget, parse_size, size_text
from sweeper.errors import AnalysisError


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("8GiB", 8 << 30), ("1.5 KiB", 1536), ("0B", 0), (" 3 TiB", 3 << 40), ("512MiB", 512 << 20)],
)
def test_a_size_is_a_number_and_a_unit(text, n_bytes):
    assert parse_size(text, "--memory") == n_bytes


@pytest.mark.parametrize("text", ["8", "8GB", "GiB", "-1GiB", "8 gib", "1e3KiB", "8GiB!", "٣GiB"])
def test_what_is_none_is_refused_with_an_example(text):
    with pytest.raises(AnalysisError) as caught:
        parse_size(text, "--memory")
    assert str(caught.value) == f"--memory: `{text}`; a number and one of B, KiB, MiB, GiB, TiB"
    assert caught.value.hint == "for example `8GiB`"


@given(st.integers(0, 1 << 45))
def test_a_size_in_words_is_that_size_to_its_last_digit(n_bytes):
    found = parse_size(size_text(n_bytes), "")
    assert abs(found - n_bytes) <= 0.05 * max(1, n_bytes)


def test_half_of_what_is_free_is_taken_and_of_a_number_what_is_left(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 1000)
    monkeypatch.setattr(memory, "resident_memory", lambda: 300)
    assert budget(None) == 500
    assert budget(1 << 30) == (1 << 30) - 300 - (128 << 20)


def test_commands_keep_to_the_memory_they_are_given(sweep, monkeypatch):
    monkeypatch.setattr(memory, "resident_memory", lambda: 0)
    for option, message in (("1KiB", "0 B are left"), ("many", "`many`")):
        result = CliRunner().invoke(app, ["distances", str(sweep), "--memory", option])
        assert message in str(result.exception)
        assert isinstance(result.exception, AnalysisError)
    result = CliRunner().invoke(app, ["all", str(sweep), "--memory", "1GiB"])
    assert result.exit_code == 0, result.output
    assert "each snapshot is decoded once" in result.stderr


def test_a_cluster_is_asked_for_by_its_address_and_left_again(sweep):
    seen = []

    def map_two(function, squares, unfit):
        return [list(function(square)) for square in squares]

    @contextlib.contextmanager
    def spread(address):
        seen.append(address)
        yield map_two, lambda question: [("a", question()), ("b", question())]
        seen.append("left")

    result = CliRunner().invoke(app, ["distances", str(sweep), "--address", "auto"], obj=spread)
    assert result.exit_code == 0, result.output
    assert seen == ["auto", "left"]
