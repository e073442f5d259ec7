"""What every backend holds to: see `Objects`, whose contract this is."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from sweeper.errors import StoreError
from sweeper.store import remote
from sweeper.store.local import LocalObjects
from sweeper.store.objects import Objects, open_objects

MIB = 1 << 20


@pytest.fixture
def objects(place: str) -> Objects:
    return open_objects(place)


def contents(objects: Objects) -> dict[str, bytes]:
    return {entry.key: bytes(objects.read(entry.key)) for entry in objects.walk("")}


def ranges_of(objects: Objects, *ranges: tuple[int, int]) -> list[bytes]:
    return [bytes(part) for part in objects.read_ranges("x", ranges)]


class TestObjects:
    """The contract, in a folder, in memory and in a bucket."""

    # --- one object -------------------------------------------------------------------------

    def test_what_is_written_is_read(self, objects: Objects):
        objects.write("a/b/x", b"ab", bytearray(b"cd"), memoryview(b"ef"))
        assert bytes(objects.read("a/b/x")) == b"abcdef"

    def test_an_array_is_written_as_its_bytes(self, objects: Objects):
        values = np.arange(6, dtype=np.int64).reshape(2, 3)
        objects.write("x", memoryview(values), b"!")
        assert bytes(objects.read("x")) == values.tobytes() + b"!"

    @pytest.mark.parametrize("data", [b"longer than before", b"", b"n"])
    def test_a_second_write_replaces_all_of_the_first(self, objects: Objects, data: bytes):
        objects.write("x", b"before")
        objects.write("x", data)
        assert bytes(objects.read("x")) == data

    def test_an_empty_object_is_there(self, objects: Objects):
        objects.write("x")
        assert objects.exists("x")
        assert bytes(objects.read("x")) == bytes(objects.read_tail("x", 4)) == b""
        assert ranges_of(objects, (0, 4), (9, 12)) == [b"", b""]
        assert [(entry.key, entry.size) for entry in objects.walk("")] == [("x", 0)]

    @pytest.mark.parametrize(("size", "tail"), [(1, b"f"), (4, b"cdef"), (6, b"abcdef")])
    def test_the_tail_of_an_object_is_read(self, objects: Objects, size: int, tail: bytes):
        objects.write("x", b"abcdef")
        assert bytes(objects.read_tail("x", size)) == tail

    def test_the_tail_of_a_smaller_object_is_all_of_it(self, objects: Objects):
        objects.write("x", b"abc")
        assert bytes(objects.read_tail("x", 1000)) == b"abc"

    def test_ranges_are_read_in_any_order_and_may_overlap(self, objects: Objects):
        objects.write("x", b"abcdefgh")
        assert ranges_of(objects, (5, 8), (0, 2), (1, 6)) == [b"fgh", b"ab", b"bcdef"]
        assert ranges_of(objects) == []

    def test_ranges_far_from_one_another_are_read(self, objects: Objects):
        data = np.random.default_rng(0).bytes(5 * MIB)
        objects.write("x", data)
        ranges = [(4 * MIB, 4 * MIB + 9), (0, 7), (2 * MIB, 2 * MIB + 5), (3, 2 * MIB)]
        assert ranges_of(objects, *ranges) == [data[start:stop] for start, stop in ranges]

    @pytest.mark.parametrize("beyond", [6, 9, 3 * MIB, 1 << 40])
    def test_ranges_are_cut_where_the_object_ends(self, objects: Objects, beyond: int):
        """As those of an object that was truncated after its index was read."""
        objects.write("x", b"abcdef")
        assert ranges_of(objects, (4, 9)) == [b"ef"]
        assert ranges_of(objects, (beyond, beyond + 3)) == [b""]
        assert ranges_of(objects, (beyond, beyond + 3), (0, 2), (5, 8)) == [b"", b"ab", b"f"]

    def test_what_is_absent_raises_when_it_is_read_and_at_nothing_else(self, objects: Objects):
        objects.write("x", b"an object, no folder")
        for key in ("none", "none/inner", "x/inner"):
            for read in (
                lambda key: objects.read(key),
                lambda key: objects.read_tail(key, 3),
                lambda key: objects.read_ranges(key, [(0, 3)]),
            ):
                with pytest.raises(FileNotFoundError):
                    read(key)
            assert objects.names(key) == list(objects.walk(key)) == []
            assert objects.stamps(key, "name") == {}
            assert not objects.exists(key)
            assert objects.attributes(key) is None
            objects.delete(key)
        assert contents(objects) == {"x": b"an object, no folder"}

    # --- many -------------------------------------------------------------------------------

    def test_names_are_those_directly_below(self, objects: Objects):
        for key in ("d/e/x", "d/e/y", "d/f", "d/10", "d/9", "d.e/x", "d1", "c/d/x"):
            objects.write(key, b"1")
        assert objects.names("d") == ["10", "9", "e", "f"]
        assert objects.names("d/e") == ["x", "y"]
        assert objects.names("d/f") == []
        assert objects.names("") == ["c", "d", "d.e", "d1"]

    def test_the_objects_below_are_walked_in_the_order_of_their_names(self, objects: Objects):
        for key in ("d/e", "d/e-1/x", "d/f/x", "d/f-1", "d/f.a/b/c", "d.e/x", "d1"):
            objects.write(key, key.encode())
        expected = ["d/e", "d/e-1/x", "d/f-1", "d/f.a/b/c", "d/f/x"]
        assert [entry.key for entry in objects.walk("d")] == expected
        assert [entry.size for entry in objects.walk("d")] == [len(key) for key in expected]
        assert [entry.key for entry in objects.walk("")] == ["d.e/x", *expected, "d1"]

    def test_what_is_above_objects_is_no_object(self, objects: Objects):
        objects.write("d/e/x", b"1")
        assert objects.exists("d/e/x")
        assert not objects.exists("d/e")
        assert not objects.exists("d")

    def test_deleting_removes_an_object_and_all_below_a_name_and_no_other(self, objects: Objects):
        for key in ("d/e/x", "d/f", "d.e/x", "d1", "y"):
            objects.write(key, b"1")
        objects.delete("d")
        objects.delete("y")
        assert list(contents(objects)) == ["d.e/x", "d1"]
        objects.write("d/g", b"2")
        assert objects.names("d") == ["g"]

    def test_stamps_are_of_the_children_that_have_an_object_of_that_name(self, objects: Objects):
        for key in ("t/a/m", "t/b/m", "t/c/other", "t/d/deeper/m", "t/m", "t2/e/m"):
            objects.write(key, key.encode())
        assert objects.stamps("t", "m").keys() == {"a", "b"}

    def test_a_stamp_changes_when_its_object_is_replaced_and_never_otherwise(
        self, objects: Objects
    ):
        for key in ("t/a/m", "t/b/m"):
            objects.write(key, b"before")
        before = objects.stamps("t", "m")
        time.sleep(0.02)  # file systems have coarse clocks
        objects.write("t/a/m", b"beyond")
        objects.write("t/c/m", b"new")
        after = objects.stamps("t", "m")
        assert after["a"] != before["a"]
        assert after["b"] == before["b"]
        assert {entry.key: entry.stamp for entry in objects.walk("t/c")} == {"t/c/m": after["c"]}

    def test_one_level_down_is_the_same_place(self, objects: Objects):
        inner = objects.below("d").below("e")
        inner.write("x", b"1")
        objects.write("d/e/f/y", b"2")
        assert inner.location == f"{objects.location}/d/e"
        assert bytes(objects.read("d/e/x")) == b"1"
        assert contents(inner) == {"f/y": b"2", "x": b"1"}
        assert inner.names("") == ["f", "x"]
        assert inner.names("f") == ["y"]
        inner.delete("")
        assert contents(objects) == {}

    def test_objects_go_to_other_processes(self, objects: Objects):
        inner = objects.below("d")
        inner.write("x", b"1")
        there = pickle.loads(pickle.dumps(inner))
        assert (type(there), there.location) == (type(inner), inner.location)
        assert contents(there) == {"x": b"1"}

    # --- several at once --------------------------------------------------------------------

    def test_what_is_there_is_not_created(self, objects: Objects):
        assert objects.create("d/x", b"first")
        assert not objects.create("d/x", b"second")
        assert bytes(objects.read("d/x")) == b"first"
        objects.delete("d/x")
        assert objects.create("d/x", b"2")

    def test_of_several_that_create_an_object_exactly_one_does(self, objects: Objects):
        n_threads, n_rounds = 6, 8
        start = threading.Barrier(n_threads)

        def create(number: int) -> list[bool]:
            won = []
            for i in range(n_rounds):
                start.wait(30)
                won.append(objects.create(f"d/{i}", f"{number}".encode()))
            return won

        with ThreadPoolExecutor(n_threads) as pool:
            won = np.array(list(pool.map(create, range(n_threads))))
        assert won.sum(axis=0).tolist() == [1] * n_rounds
        written = [int(bytes(objects.read(f"d/{i}"))) for i in range(n_rounds)]
        assert written == won.argmax(axis=0).tolist()
        assert len(contents(objects)) == n_rounds, "nothing is left of those that lost"

    def test_readers_see_the_old_object_or_the_new_one(self, objects: Objects):
        sizes = {b"a": 300_000, b"b": 200_000}
        objects.write("x", b"a" * sizes[b"a"])
        done = threading.Event()

        def replace() -> None:
            for i in range(20):
                letter = (b"b", b"a")[i % 2]
                half = sizes[letter] // 2
                objects.write_parts("x", (letter * half for _ in range(2)))
            done.set()

        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(replace)
            n_read = 0
            while not done.is_set() or n_read == 0:
                found = bytes(objects.read("x"))
                assert found == found[:1] * sizes[found[:1]]
                n_read += 1
            writing.result()

    @pytest.mark.parametrize("n_parts", [0, 1, 3])
    def test_parts_that_cannot_be_made_leave_the_old_object(
        self, objects: Objects, n_parts: int, monkeypatch: pytest.MonkeyPatch
    ):
        """Also where some of them were sent already."""
        monkeypatch.setattr(remote, "ONE_PUT_BYTES", MIB)
        monkeypatch.setattr(remote, "_PART_BYTES", 5 * MIB)

        def parts() -> Iterator[bytes]:
            for _ in range(n_parts):
                yield bytes(4 * MIB)
            raise StoreError("here", "cannot be read")

        objects.write("x", b"old")
        with pytest.raises(StoreError, match="here: cannot be read"):
            objects.write_parts("x", parts())
        with pytest.raises(StoreError, match="here: cannot be read"):
            objects.write_parts("y", parts())
        assert contents(objects) == {"x": b"old"}

    def test_a_large_object_is_written_in_parts_and_is_whole(
        self, objects: Objects, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(remote, "ONE_PUT_BYTES", MIB)
        monkeypatch.setattr(remote, "_PART_BYTES", 5 * MIB)
        data = np.random.default_rng(1).bytes(11 * MIB + 17)
        cuts = [0, 10, 2 * MIB, 2 * MIB + 1, 9 * MIB, len(data)]
        parts = (memoryview(data)[start:stop] for start, stop in itertools.pairwise(cuts))
        objects.write_parts("x", parts)
        (entry,) = objects.walk("")
        assert entry.size == len(data)
        assert bytes(objects.read("x")) == data
        assert bytes(objects.read_tail("x", 5)) == data[-5:]
        is_s3 = objects.location.startswith("s3:")
        assert entry.stamp.strip('"').endswith("-3") or not is_s3, "three parts"

    def test_a_large_object_may_be_made_of_what_is_read_meanwhile(
        self, objects: Objects, monkeypatch: pytest.MonkeyPatch
    ):
        """As a sealed trial is of its staged snapshots."""
        monkeypatch.setattr(remote, "ONE_PUT_BYTES", MIB)
        monkeypatch.setattr(remote, "_PART_BYTES", 5 * MIB)
        part = np.random.default_rng(2).bytes(2 * MIB)
        objects.write("part", part)
        objects.write_parts("whole", (objects.read("part") for _ in range(3)))
        assert bytes(objects.read("whole")) == 3 * part

    def test_no_partial_write_is_left_and_removing_them_removes_no_object(self, objects: Objects):
        objects.write("a/x", b"1")
        objects.create("a/y", b"2")
        objects.settle("a/x")
        objects.remove_partials()
        assert contents(objects) == {"a/x": b"1", "a/y": b"2"}

    # --- groups -----------------------------------------------------------------------------

    def test_a_group_is_created_once_and_has_its_attributes_and_their_checksum(
        self, objects: Objects
    ):
        assert objects.create_group("g", {"name": "first", "values": [1, 2.5, None]})
        assert not objects.create_group("g", {"name": "second"})
        found = objects.attributes("g")
        assert found is not None
        assert len(found.pop("checksum")) == 64
        assert found == {"name": "first", "values": [1, 2.5, None]}
        document = json.loads(bytes(objects.read("g/zarr.json")))
        assert (document["zarr_format"], document["node_type"]) == (3, "group")

    @pytest.mark.parametrize(
        "alter",
        [
            lambda data: data.replace(b"first", b"other"),
            lambda data: data[:-5],
            lambda data: b"",
            lambda data: b"[]",
            lambda data: b'{"attributes": []}',
            lambda data: data.replace(b"first", b"\xff"),
        ],
        ids=["altered", "cut", "empty", "list", "attributes", "bytes"],
    )
    def test_altered_metadata_of_a_group_are_refused(self, objects: Objects, alter):
        objects.create_group("g", {"name": "first"})
        objects.write("g/zarr.json", alter(bytes(objects.read("g/zarr.json"))))
        with pytest.raises(StoreError) as caught:
            objects.attributes("g")
        assert caught.value.where == f"{objects.location}/g/zarr.json"


# --- a folder --------------------------------------------------------------------------------


def test_a_url_of_a_folder_is_that_folder(tmp_path: Path):
    objects = open_objects(f"file://{tmp_path}")
    objects.write("x", b"1")
    assert isinstance(objects, LocalObjects)
    assert (tmp_path / "x").read_bytes() == b"1"


def test_who_created_a_file_is_told_so_when_the_answer_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Over NFS a link that was made can be asked for once more, and then exists."""
    link = os.link

    def link_twice(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError(target)

    objects = LocalObjects(tmp_path)
    monkeypatch.setattr(os, "link", link_twice)
    assert objects.create("x", b"mine")
    monkeypatch.undo()
    assert not objects.create("x", b"theirs")
    assert contents(objects) == {"x": b"mine"}


def test_a_file_system_that_cannot_be_asked_is_not_taken_for_one_without_the_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def failing(*args: object, **options: object) -> None:
        raise OSError(5, "Input/output error")

    objects = LocalObjects(tmp_path)
    objects.write("x", b"1")
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", failing)
        with pytest.raises(OSError, match="Input/output error"):
            objects.exists("x")
    assert objects.exists("x")
