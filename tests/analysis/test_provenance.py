"""Artifacts know what they were made of, and damage to them is seen."""

from __future__ import annotations

import pandas as pd
import pytest

from analysis.provenance import (
    provenance,
    read_document,
    read_table,
    write_document,
    write_table,
)
from sweeper.errors import StoreError

TABLE = pd.DataFrame({"trial_id": ["t0", "t1"], "snapshot": [0, 1], "pc1": [0.5, -0.25]})


def about(**parameters):
    return provenance("inpca", {"distances": "abc"}, parameters, {"diverged": ["t8"]})


def test_a_table_comes_back_with_its_provenance(tmp_path):
    write_table(tmp_path / "a.parquet", TABLE, about(k=3))
    found, why = read_table(tmp_path / "a.parquet")
    pd.testing.assert_frame_equal(found, TABLE)
    assert why == about(k=3)


def test_pandas_alone_reads_a_table(tmp_path):
    write_table(tmp_path / "a.parquet", TABLE, about())
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "a.parquet"), TABLE)


def test_no_flipped_bit_of_a_table_changes_what_is_read(tmp_path):
    path = tmp_path / "a.parquet"
    write_table(path, TABLE, about())
    whole = path.read_bytes()
    refused = 0
    for position in range(0, len(whole), 23):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        try:
            found, why = read_table(path)
        except StoreError:
            refused += 1
        else:
            pd.testing.assert_frame_equal(found, TABLE)
            assert why == about()
    assert refused > 20


def test_the_fingerprint_follows_inputs_and_parameters_but_not_what_was_left_out():
    same = provenance("inpca", {"distances": "abc"}, {"k": 3}, {})
    assert same["fingerprint"] == about(k=3)["fingerprint"]
    assert same["fingerprint"] != about(k=4)["fingerprint"]
    assert same["fingerprint"] != provenance("inpca", {}, {"k": 3}, {})["fingerprint"]


def test_a_document_comes_back_with_its_provenance(tmp_path):
    write_document(tmp_path / "a.json", {"bound": 0.5}, about())
    assert read_document(tmp_path / "a.json") == {"bound": 0.5, "provenance": about()}


def test_a_number_that_was_changed_is_seen(tmp_path):
    path = tmp_path / "a.json"
    write_document(path, {"bound": 0.5}, about())
    path.write_text(path.read_text().replace("0.5", "0.6"))
    with pytest.raises(StoreError, match="its checksum does not match"):
        read_document(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"provenance": 3}'])
def test_what_is_no_artifact_is_refused(tmp_path, content):
    for name, read in (("a.json", read_document), ("a.parquet", read_table)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(StoreError, match="unreadable") as caught:
            read(tmp_path / name)
        assert caught.value.hint == "run `sweeper analyze all DIR` again"


def test_an_absent_artifact_is_refused(tmp_path):
    with pytest.raises(StoreError, match=r"a\.parquet: absent"):
        read_table(tmp_path / "a.parquet")
