import linecache
import re
import traceback
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper.status.logs import essence, follow, last_lines


@given(st.text(st.sampled_from("ab\n"), max_size=30), st.integers(0, 9))
def test_the_last_lines_are_an_end_of_the_text(text, n_lines):
    found = last_lines(text, n_lines)
    assert found.strip("\n") in text
    assert text.rstrip("\n").endswith(found.rstrip("\n"))
    assert len(found.splitlines()) == min(n_lines, len(text.rstrip("\n").splitlines()))
    assert last_lines(text, None) == text


def test_blank_lines_at_the_end_are_no_lines():
    assert last_lines("1\n\n2\n\n \n", 1) == "2\n"
    assert last_lines("1\n\n2\n\n", 2) == "\n2\n"
    assert last_lines("\n\n", 3) == ""


# --- what of a traceback matters --------------------------------------------------------------

LIBRARY = "/env/lib/python3.11/site-packages/torch/nn/module.py"


def raised(*files):
    """A traceback as Python writes it, through a function of each of these files."""
    call = None
    for file in reversed(files):
        code = "def run():\n    return (call() if call else 1 / 0) + 1\n"
        space = {"call": call}
        exec(compile(code, file, "exec"), space)
        lines = code.splitlines(keepends=True)
        linecache.cache[file] = (len(code), None, lines, file)
        call = space["run"]
    try:
        call()
    except ZeroDivisionError as error:
        error.__traceback__ = error.__traceback__.tb_next  # this function's own
        return "".join(traceback.format_exception(error))


def frames(text):
    return re.findall(r'File "([^"]+)"|… (\d+) frames? of libraries', text)


def test_the_frames_of_libraries_are_counted_and_markers_left_out():
    text = raised("/my/net.py", LIBRARY, LIBRARY, "/my/layer.py", LIBRARY)
    assert "^^" in text
    found = essence(text)
    assert frames(found) == [
        *[("/my/net.py", ""), ("", "2"), ("/my/layer.py", ""), ("", "1")],
    ]
    assert found.count("return (call()") == 2, "the source of one's own frames stays"
    assert "^^" not in found
    assert found.splitlines()[0] == "Traceback (most recent call last):"
    assert found.splitlines()[-1] == "ZeroDivisionError: division by zero"


def test_a_sweeper_that_is_installed_is_no_library():
    own = "/env/lib/python3.11/site-packages/sweeper/trial.py"
    assert frames(essence(raised(own, LIBRARY))) == [(own, ""), ("", "1")]


def test_a_library_that_calls_itself_a_thousand_times_is_one_line():
    text = f'  File "{LIBRARY}", line 3, in f\n    f()\n'
    text += "  [Previous line repeated 990 more times]\nRecursionError: deep\n"
    assert essence(text) == "  … 991 frames of libraries\nRecursionError: deep\n"


@given(st.lists(st.booleans(), min_size=1, max_size=8))
def test_every_frame_is_shown_or_counted(own):
    files = [f"/my/{i}.py" if is_own else LIBRARY for i, is_own in enumerate(own)]
    found = essence("started\n\n" + raised(*files) + "\n")
    n_counted = sum(int(n or 0) for _, n in frames(found))
    shown = [file for file, _ in frames(found) if file]
    assert shown == [file for file in files if file != LIBRARY]
    assert n_counted == files.count(LIBRARY)
    assert found.startswith("started\n\nTraceback")
    assert found.endswith("\nZeroDivisionError: division by zero\n\n")


def test_a_log_without_a_traceback_stays_as_it_is():
    text = Path(__file__).read_text()
    assert essence(text) == text


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
