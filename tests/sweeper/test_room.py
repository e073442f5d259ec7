import errno
import os

import pytest

from sweeper import room
from sweeper.errors import PlanError
from sweeper.room import Room, check_path, check_room, free_room, is_full, when_there_is_room

PLENTY = 10**9


def full(code=errno.ENOSPC):
    return OSError(code, os.strerror(code))


# --- whether a sweep fits --------------------------------------------------------------------


@pytest.mark.parametrize("what", ["bytes", "files"])
def test_a_sweep_is_warned_of_above_four_fifths_of_what_is_free_and_refused_above_all(what):
    def check(needed, free, force=False):
        limits = (needed, free) if what == "bytes" else (1, PLENTY)
        others = (needed, free) if what == "files" else (1, PLENTY)
        needs, there = zip(limits, others, strict=True)
        return check_room("disk", Room(*needs), Room(*there), force)

    assert check(800, 1000) == []
    for needed in (801, 1000):
        assert check(needed, 1000) == [
            f"warning: disk: about {needed:,} {what} to write, 1,000 are free"
        ]
    with pytest.raises(PlanError) as refused:
        check(1001, 1000)
    assert str(refused.value) == (
        f"disk: about 1,001 {what} to write, 1,000 are free; a disk on which the sweep fits"
    )
    assert "--force" in refused.value.hint
    assert check(1001, 1000, force=True) == [
        f"warning: disk: about 1,001 {what} to write, 1,000 are free"
    ]


def test_with_force_every_shortage_is_said():
    assert len(check_room("disk", Room(5000, 5000), Room(1000, 1000), force=True)) == 2


def test_what_has_no_limit_is_never_too_small():
    assert check_room("bucket", Room(PLENTY, PLENTY), Room(None, None), force=False) == []
    assert check_room("disk", Room(None, None), Room(0, 0), force=False) == []


def test_a_sweep_that_writes_nothing_fits_on_a_full_disk():
    assert check_room("disk", Room(0, 0), Room(0, 0), force=False) == []


def test_the_room_of_a_folder_that_does_not_exist_is_that_of_the_disk_it_will_be_on(tmp_path):
    here, there = free_room(tmp_path), free_room(tmp_path / "not/yet")
    assert here.n_bytes == pytest.approx(there.n_bytes, rel=0.01)
    assert here.n_bytes < os.statvfs(tmp_path).f_blocks * os.statvfs(tmp_path).f_frsize


@pytest.mark.parametrize(("n_files", "expected"), [(0, None), (1000, 10)])
def test_a_file_system_without_a_number_of_files_has_no_limit_of_them(
    tmp_path, monkeypatch, n_files, expected
):
    # bsize, frsize, blocks, bfree, bavail, files, ffree, favail, flag, namemax: more is free than
    # is available to whoever is not root.
    found = os.statvfs_result(
        (4096, 512, 1000, 200, 100, n_files, 20, 10 if n_files else 0, 0, 255)
    )
    monkeypatch.setattr(os, "statvfs", lambda path: found)
    assert free_room(tmp_path) == Room(100 * 512, expected)


# --- names -----------------------------------------------------------------------------------


def test_a_usual_path_is_accepted_whether_it_exists_or_not(tmp_path):
    for folder in (tmp_path, tmp_path / "runs/ä" / ("n" * 200)):
        check_path(folder)


def test_a_name_that_no_file_can_have_is_refused(tmp_path):
    # 130 characters, and 260 bytes of UTF-8
    for name in ("n" * 256, "ä" * 130):
        with pytest.raises(PlanError) as refused:
            check_path(tmp_path / name / "sweep")
        assert refused.value.found == f"a name of {len(name)} characters"
        assert refused.value.allowed == "at most 255"


def test_a_path_without_room_for_the_names_below_it_is_refused(tmp_path):
    folder = tmp_path
    while len(str(folder)) < os.pathconf(tmp_path, "PC_PATH_MAX") - 200:
        folder /= "n" * 40
    check_path(folder)
    with pytest.raises(PlanError, match=r"a path of \d+ characters; at most"):
        check_path(folder / ("n" * 100))


# --- waiting ---------------------------------------------------------------------------------


@pytest.fixture
def naps(monkeypatch):
    """The waits, which take no time."""
    taken = []
    monkeypatch.setattr(room.time, "sleep", taken.append)
    return taken


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_write_is_tried_until_there_is_room_and_each_wait_is_told(naps, code):
    outcomes, told = [full(code), full(code), "written"], []

    def write():
        outcome = outcomes.pop(0)
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    assert when_there_is_room(write, told.append, lambda: False) == "written"
    assert [error.errno for error in told] == [code, code]
    assert naps == [room.ROOM_SECONDS] * 2


@pytest.mark.parametrize("error", [OSError(errno.EIO, "input/output error"), ValueError("28")])
def test_another_error_is_raised_at_once(naps, error):
    assert not is_full(error)

    def write():
        raise error

    with pytest.raises(type(error)) as raised:
        when_there_is_room(write, pytest.fail, lambda: False)
    assert raised.value is error
    assert naps == []


def test_whoever_is_asked_to_stop_does_not_wait(naps):
    asked = iter([False, True])

    def write():
        raise full()

    told = []
    with pytest.raises(OSError, match="No space left"):
        when_there_is_room(write, told.append, lambda: next(asked))
    assert len(told) == len(naps) == 1
