"""Downloads, from a server that is a folder."""

from __future__ import annotations

import functools
import multiprocessing
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from sweeper.errors import SweeperError
from sweeper.sections import DataConfig
from sweeper.train.data import load
from sweeper.train.sources.fetch import fetch, urls
from sweeper.train.sources.small import damaged, torchvision_class
from tests.data_files import SMALL, forget, serve, tiny_data


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A function of a name: its files move to a server, and the root is without them."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = functools.partial(_Quiet, directory=str(tmp_path / "served"))
    with (
        tiny_data(tmp_path / "data") as root,
        ThreadingHTTPServer(("127.0.0.1", 0), handler) as server,
    ):
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()

        def serve_it(name):
            url = f"http://127.0.0.1:{server.server_port}"
            serve(name, root / name, tmp_path / "served", url, monkeypatch)
            shutil.rmtree(root / name)
            return root

        yield serve_it
        server.shutdown()
        thread.join()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def never():
    raise AssertionError("nobody else is at work")


@pytest.mark.parametrize("name", SMALL)
def test_what_is_downloaded_can_be_loaded(served, name):
    before = load(DataConfig(name=name)).train_x
    root = served(name)
    forget()
    assert fetch(name, root, never)
    assert torch.equal(load(DataConfig(name=name)).train_x, before)
    assert not list(root.glob("*.partial"))
    assert not list((root / name).glob("*.tar.gz"))


def test_what_is_there_is_checked_and_not_downloaded(served, monkeypatch):
    root = served("svhn")
    fetch("svhn", root, never)
    before = (root / "svhn/train_32x32.mat").stat().st_mtime_ns
    nowhere(monkeypatch)
    assert not fetch("svhn", root, never)
    assert (root / "svhn/train_32x32.mat").stat().st_mtime_ns == before
    (root / "svhn/train_32x32.mat").write_bytes(b"")
    with pytest.raises(SweeperError, match=r"train_32x32\.mat` is damaged"):
        fetch("svhn", root, never)
    (root / "svhn/train_32x32.mat").unlink()
    with pytest.raises(SweeperError, match=r"train_32x32\.mat` is absent"):
        fetch("svhn", root, never)


def nowhere(monkeypatch):
    """Point torchvision to a port on which nobody listens."""
    url = "http://127.0.0.1:9/"
    kinds = {name: torchvision_class(name) for name in SMALL}
    for name in ("cifar10", "cifar100"):
        monkeypatch.setattr(kinds[name], "url", url + kinds[name].filename)
    for name in ("mnist", "fashion_mnist"):
        monkeypatch.setattr(kinds[name], "mirrors", [url + "a/", url + "b/"])
    svhn = kinds["svhn"].split_list
    listed = {split: [url + path, path, md5] for split, (_, path, md5) in svhn.items()}
    monkeypatch.setattr(kinds["svhn"], "split_list", listed)


@pytest.mark.parametrize("name", SMALL)
def test_offline_the_error_says_so_and_what_was_tried(name, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    nowhere(monkeypatch)
    with pytest.raises(SweeperError, match="offline, or no server answers") as caught:
        fetch(name, tmp_path, never)
    assert all(url in caught.value.allowed for url in urls(name))
    assert str(tmp_path / name) in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == [f".{name}.lock"]


def test_a_download_with_another_sum_is_refused_and_leaves_nothing(served, monkeypatch):
    root = served("cifar10")
    monkeypatch.setattr(torchvision_class("cifar10"), "tgz_md5", "0" * 32)
    with pytest.raises(SweeperError, match="what was sent is not what was published"):
        fetch("cifar10", root, never)
    assert not (root / "cifar10").exists()
    assert not list(root.glob("*.partial"))


def test_what_a_killed_download_left_is_removed(served):
    root = served("mnist")
    left = root / "mnist.0123.partial"
    left.mkdir()
    (left / "half").write_bytes(b"")
    other = root / "fashion_mnist.0123.partial"
    other.mkdir()
    fetch("mnist", root, never)
    assert not left.exists()
    assert other.exists()


def test_of_two_processes_one_downloads_and_the_other_waits(served):
    root = served("cifar10")
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    processes = [
        context.Process(
            target=lambda: answers.put(fetch("cifar10", root, lambda: None)), daemon=True
        )
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    found = sorted(answers.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert found == [False, True]
    assert damaged("cifar10", root / "cifar10") is None
