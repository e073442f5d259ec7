"""Data sets and plug-ins that are there, damaged, absent, or others than the driver's."""

from __future__ import annotations

import sys

import pytest

from sweeper.doctor.inputs import check_data, check_plug_ins
from sweeper.registry import source_hash
from sweeper.sections import DataConfig
from tests.data_files import SMALL, tiny_data


@pytest.fixture
def root(tmp_path):
    with tiny_data(tmp_path / "data") as root:
        yield root


def data(name, **options):
    return DataConfig(name=name, **options)


def test_what_is_there_is_verified_once_whatever_is_made_of_it(root):
    configs = [data(name) for name in SMALL] + [data("cifar10", subset=0.5), data("digits")]
    found = list(check_data(configs, verify=True))
    assert [(one.check, one.verdict) for one in found] == [
        (f"data {name}", "pass") for name in (*SMALL, "digits")
    ]


def test_damage_is_found_where_it_is_asked_for(root):
    bad = root / "cifar10/cifar-10-batches-py/test_batch"
    bad.write_bytes(b"")
    (found,) = check_data([data("cifar10")], verify=True)
    assert found.verdict == "fail"
    assert f"`{bad}` is damaged" in found.text
    assert "sweeper data get cifar10" in found.cure
    (found,) = check_data([data("cifar10")], verify=False)
    assert found.verdict == "pass", "nothing is read"


@pytest.mark.parametrize("verify", [True, False])
def test_what_is_absent_is_named_with_the_command_that_brings_it(tmp_path, monkeypatch, verify):
    monkeypatch.setenv("SWEEPER_DATA", str(tmp_path))
    absent, there = check_data([data("cifar10"), data("cifar10", subset=9), data("digits")], verify)
    assert absent.verdict == "fail"
    assert "`cifar10` is not in" in absent.text
    assert "sweeper data get cifar10" in absent.cure
    assert there.verdict == "pass"


def test_imagenet_is_looked_for_with_its_prepared_copy(root):
    (found,) = check_data([data("imagenet", image_size=28)], verify=True)
    assert found.verdict == "warn"
    assert found.cure == "`sweeper data prepare imagenet --image-size 28`"
    (root / "imagenet" / "prepared-32").mkdir()
    (found,) = check_data([data("imagenet", image_size=28)], verify=True)
    assert found.verdict == "pass"
    assert "prepared-32" in found.text


def test_plug_ins_are_imported_and_compared(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "doctored.py").write_text("def model(shape, n_classes): ...\n")
    (tmp_path / "doctored_badly.py").write_text("raise RuntimeError('no licence')\n")
    name = "doctored:model"
    hashes = {name: source_hash(name), "doctored_badly:x": "0", "doctored_nowhere:x": "0"}
    good, raises, absent = check_plug_ins(hashes)
    assert (good.check, good.verdict) == (f"plug-in {name}", "pass")
    assert (raises.verdict, absent.verdict) == ("fail", "fail")
    assert "RuntimeError: no licence" in raises.text
    assert "No module named 'doctored_nowhere'" in absent.text
    (other,) = check_plug_ins({name: "0123456789abcdef"})
    assert other.verdict == "fail"
    assert f"source {hashes[name]}, but 0123456789abcdef where it is started" in other.text
    sys.modules.pop("doctored", None)
