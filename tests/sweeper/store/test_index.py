"""The table of trials from its index: the same as from the groups, and never instead of them."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from sweeper.errors import StoreError
from sweeper.plan import Size, make_plan, write_plan
from sweeper.store import open_store
from sweeper.store.index import INDEX, read_index, write_index
from sweeper.store.repair import repair
from sweeper.store.seal import seal
from sweeper.store.verify import verify
from tests.six_trials import TRIALS


@pytest.fixture
def indexed(tiny):
    """A store of three sealed trials that its index knows, and an unfinished one."""
    for seed in (1, 2, 3):
        tiny.sealed(seed)
    tiny.record(4, stop=2)
    update(tiny)
    return tiny


def update(tiny, **options):
    return write_index(tiny.objects, open_store(tiny.path).summary, **options)


def opened(monkeypatch, tiny):
    """The groups that are opened from now on."""
    keys, read = [], type(tiny.objects).attributes

    def watched(self, key):
        keys.append(key)
        return read(self, key)

    monkeypatch.setattr(type(tiny.objects), "attributes", watched)
    return keys


def test_the_table_is_the_same_with_and_without_the_index(indexed):
    with_index = open_store(indexed.path).trials()
    indexed.objects.delete(INDEX)
    pd.testing.assert_frame_equal(open_store(indexed.path).trials(), with_index)
    assert list(with_index["state"]).count("complete") == 3


def test_trials_in_the_index_are_not_opened(indexed, monkeypatch):
    store, keys = open_store(indexed.path), opened(monkeypatch, indexed)
    store.trials()
    sealed = {f"trials/{trial}" for trial in store.complete_ids()}
    assert keys  # those of the unfinished one
    assert not sealed & set(keys)


def test_a_trial_that_the_index_lacks_is_opened_alone(indexed, monkeypatch):
    new = indexed.sealed(5)
    store, keys = open_store(indexed.path), opened(monkeypatch, indexed)
    assert new in store.trials().index
    sealed = {f"trials/{trial}" for trial in store.complete_ids()}
    assert sealed & set(keys) == {f"trials/{new}"}


def test_a_trial_that_is_gone_is_not_in_the_table(indexed):
    gone = open_store(indexed.path).complete_ids()[0]
    indexed.objects.delete(f"trials/{gone}")
    assert gone not in open_store(indexed.path).trials().index


def test_a_row_of_a_trial_that_was_sealed_anew_is_not_believed(indexed):
    trial = indexed.header(1).trial_id
    before = open_store(indexed.path).trials().loc[trial, "digest"]
    indexed.objects.delete(f"trials/{trial}")
    writer = indexed.record(1, stop=3)
    values = {"test": indexed.predictions(9, 3)}
    writer.append(3, 1.5, {"test_loss": 0.0, "test_accuracy": 1.0}, values)
    seal(indexed.objects, trial, "complete", writer.attempt)
    row = open_store(indexed.path).trials().loc[trial]
    assert row["digest"] != before
    assert row["test_accuracy"] == 1.0


@pytest.mark.parametrize("content", [b"", b"PAR1", b"nonsense" * 100])
def test_an_unreadable_index_is_as_none(indexed, content):
    expected = open_store(indexed.path).trials()
    indexed.objects.write(INDEX, content)
    pd.testing.assert_frame_equal(open_store(indexed.path).trials(), expected)
    assert update(indexed) == 3
    assert len(read_index(indexed.objects).rows) == 3


def test_no_bit_that_changes_in_the_index_changes_the_table(indexed):
    whole, rows = indexed.objects.read(INDEX), read_index(indexed.objects).rows
    for position in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[position] ^= 1 << position % 8
        (indexed.path / INDEX).write_bytes(changed)
        found = read_index(indexed.objects).rows  # what is not there is read from its group
        assert found.items() <= rows.items()


def test_an_index_that_is_up_to_date_is_not_written_again(indexed):
    before = (indexed.path / INDEX).stat().st_mtime_ns
    assert update(indexed) == 3
    assert (indexed.path / INDEX).stat().st_mtime_ns == before
    assert update(indexed, rebuild=True) == 3
    assert (indexed.path / INDEX).stat().st_mtime_ns > before


def test_a_damaged_trial_is_not_indexed(indexed):
    new = indexed.sealed(5)
    path = indexed.path / f"trials/{new}/zarr.json"
    path.write_text(path.read_text().replace("complete", "diverged"))
    with pytest.raises(StoreError, match="altered metadata"):
        update(indexed)
    assert len(read_index(indexed.objects).rows) == 3


def test_verify_reads_the_groups_whatever_the_index_says(indexed):
    trial = open_store(indexed.path).complete_ids()[0]
    path = indexed.path / f"trials/{trial}/zarr.json"
    times = path.stat()
    path.write_text(path.read_text().replace('"complete"', '"diverged"'))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    store = open_store(indexed.path)
    report = verify(store)
    assert [damage.key for damage in report.damages] == [trial]
    repair(store, report, lambda config: [])
    assert trial not in open_store(indexed.path).trials().index


# --- at the end of the process ----------------------------------------------------------------

_READ = """
import os, sys
from pathlib import Path
import pyarrow.parquet
from sweeper.plan import planned_ids
from sweeper.store.index import read_index
from sweeper.store.objects import open_objects

def threads():
    return set(os.listdir("/proc/self/task"))

before = threads()
print(len(read_index(open_objects(sys.argv[1])).rows))
print(len(planned_ids(Path(sys.argv[2]).read_bytes())))
print(len(threads() - before))
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are listed in /proc")
def test_no_thread_is_left_that_could_abort_the_process_as_it_ends(indexed, tmp_path):
    """A thread of pyarrow's that lets go of a buffer of Python's when Python has ended does."""
    write_plan(tmp_path / "plan.parquet", make_plan(TRIALS, (), lambda config: Size(1, 1, 1)))
    command = [sys.executable, "-c", _READ, indexed.path, tmp_path / "plan.parquet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["3", "6", "0"], done.stderr
