"""`sweeper data get --address` on a real cluster whose nodes share the folder of data sets."""

from __future__ import annotations

import functools
import shutil
import sys
import threading
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sweeper import data_cli
from sweeper.cli import main
from sweeper.train.sources.small import torchvision_class
from tests.data_files import serve, tiny_data
from tests.faults.machines import machines

pytestmark = pytest.mark.cluster


def announced(published: dict[str, list[str]], get: Callable[[str], str], name: str) -> str:
    """`get` where torchvision expects what this test published: on a node nobody has told it."""
    torchvision_class(name).split_list = published
    return get(name)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty folder of data sets; SVHN is on a server."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = functools.partial(Quiet, directory=str(tmp_path / "served"))
    with (
        tiny_data(tmp_path / "data") as root,
        ThreadingHTTPServer(("127.0.0.1", 0), handler) as server,
    ):
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        serve("svhn", root / "svhn", tmp_path / "served", url, monkeypatch)
        shutil.rmtree(root / "svhn")
        published = dict(torchvision_class("svhn").split_list)
        monkeypatch.setattr(
            data_cli, "_get", functools.partial(announced, published, data_cli._get)
        )
        yield root
        server.shutdown()


def data(capfd, monkeypatch, *arguments):
    """The exit code of `sweeper data`, and the lines it said."""
    monkeypatch.setattr(sys, "argv", ["sweeper", "data", *map(str, arguments)])
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0), capfd.readouterr().err.splitlines()


def test_nodes_that_share_a_folder_download_once_and_all_check(root, capfd, monkeypatch):
    with machines(2) as cluster:
        get = functools.partial(data, capfd, monkeypatch, "get", "svhn", "--root", root)
        code, said = get("--address", cluster.address)
        ended = sorted(line.rpartition(": ")[2] for line in said[1:])
        assert (code, ended) == (0, ["downloaded and checked", *["was there; checked"] * 2])
        (root / "svhn/test_32x32.mat").unlink()
        code, said = get("--address", cluster.address)
        assert code == 2
        absent = f"data get svhn: `{root / 'svhn/test_32x32.mat'}` is absent"
        assert sum(absent in line for line in said) == 3
        assert "failed on 3 of 3 nodes" in said[-3]
        assert said[-1] == f"hint: remove `{root / 'svhn'}` and ask again"
