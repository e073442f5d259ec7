import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper.status.logs import follow, last_lines


@given(st.text(st.sampled_from("ab\n"), max_size=30), st.integers(0, 9))
def test_the_last_lines_are_an_end_of_the_text(text, n_lines):
    found = last_lines(text, n_lines)
    assert text.endswith(found)
    assert len(found.splitlines()) == min(n_lines, len(text.splitlines()))
    assert last_lines(text, None) == text


def followed(states, n_lines=None):
    """What is written, a text a round, of a log that is in these states one after another."""
    written, rounds = [], iter(states)
    now = {"parts": {}, "left": len(states)}

    def is_over():
        now["parts"], now["left"] = next(rounds), now["left"] - 1
        return not now["left"]

    pauses = []
    follow(lambda: now["parts"], n_lines, written.append, is_over, lambda: pauses.append(1))
    assert len(pauses) == len(states) - 1
    return written


def test_what_is_added_is_written_a_whole_line_at_a_time():
    states = [{}, {"a": b"one\ntw"}, {"a": b"one\ntwo\nthr"}, {"a": b"one\ntwo\nthr"}]
    assert followed(states) == ["one\n", "two\n", "thr"]


def test_a_character_is_not_cut():
    text = "é\n".encode()
    assert followed([{"a": text[:1]}, {"a": text}, {"a": text}]) == ["é\n"]


def test_several_parts_grow_side_by_side():
    states = [{"a": b"1\n"}, {"a": b"1\n2\n", "b": b"3\n"}, {"a": b"1\n2\n", "b": b"3\n4\n"}]
    assert followed(states) == ["1\n", "2\n3\n", "4\n"]


def test_only_the_beginning_is_cut_to_the_last_lines():
    states = [{"a": b"1\n2\n3\n"}, {"a": b"1\n2\n3\n4\n5\n"}]
    assert followed(states, n_lines=1) == ["3\n", "4\n5\n"]


@given(
    st.lists(st.binary(max_size=6), min_size=1, max_size=5),
    st.lists(st.sampled_from("ab"), min_size=5, max_size=5),
)
def test_all_of_a_log_is_written_once(pieces, names):
    states, parts = [], {}
    for piece, name in zip(pieces, names, strict=False):
        parts = {**parts, name: parts.get(name, b"") + piece.replace(b"\xff", b"\n")}
        states.append(dict(sorted(parts.items())))
    written = "".join(followed([*states, states[-1]]))
    total = b"".join(states[-1].values())
    if len(states[-1]) == 1 and total.isascii():
        assert written == total.decode()
    if total.isascii():
        assert sorted(written) == sorted(total.decode())


@pytest.mark.parametrize("n_lines", [None, 0, 3])
def test_a_log_of_nothing_is_nothing(n_lines):
    assert followed([{}, {}], n_lines) == []
