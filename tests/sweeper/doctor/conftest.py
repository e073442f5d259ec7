"""A cluster that is this process: its nodes answer in it, each with its own view."""

from __future__ import annotations

import contextlib

import pytest

from sweeper.schedule import cluster
from sweeper.schedule.cluster import Answer, Node


def node(name: str, n_cpus: int = 4, n_gpus: int = 0) -> Node:
    """A node of this name."""
    return Node(f"{name}-id", name, f"10.0.0.{len(name)}", n_cpus, n_gpus)


@pytest.fixture
def nodes_answer(monkeypatch):
    """Let these nodes be the cluster; each calls what it is asked within its own context.

    A context that raises is a node that gives that problem for an answer.
    """

    def use(views):
        def ask(what, seconds):
            return [_answer(one, view, what) for one, view in views.items()]

        monkeypatch.setattr(cluster, "ask_every_node", ask)
        monkeypatch.setattr(cluster, "joined", lambda address: contextlib.nullcontext())

    return use


def _answer(one, view, what):
    try:
        with view():
            return Answer(one, what())
    except RuntimeError as error:
        return Answer(one, None, str(error))
