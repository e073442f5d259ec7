"""Joining a Ray cluster at an address, and why there is none to join there."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sweeper.errors import SweeperError, first_line

ANSWER_SECONDS = 10.0  # in which something must answer at the address

_SETTINGS = {
    "RAY_gcs_server_port_wait_time_s": "1",  # how often it is tried to reach a head, 41 s each
    "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1",  # our variables beside those that a job was submitted with
}


def join(address: str, **options: Any) -> None:
    """Make this process a driver of the cluster at this address, within a minute or so.

    Parameters
    ----------
    address : `host:port`, or `auto` for what Ray finds by itself.
    options : Ray's own, of its `init`.

    Raises
    ------
    SweeperError : none answers there, or it lets this process not in, or not from this host.
    RuntimeError, ray.exceptions.RayError : what else Ray meets.
    """
    import ray

    _check_answers(address)
    try:
        with _settings():
            ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        refusal = _refusal(address, error)
        if refusal is None:
            raise
        raise refusal from error


@contextmanager
def _settings() -> Iterator[None]:
    """What Ray reads while it joins, unless the user says otherwise."""
    ours = {name: value for name, value in _SETTINGS.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]


def _refusal(address: str, error: Exception) -> SweeperError | None:
    """Why Ray did not join a cluster, in our words; None for what is no refusal."""
    said = f"{error}\n{error.__cause__ or ''}"
    if "Version mismatch" in said:
        return _other_version(address, said)
    if "InvalidAuthToken" in said or "authentication token" in said:
        found = f"the cluster at `{address}` asks for a token, and this is another or none"
        hint = "RAY_AUTH_MODE=token, and its token in RAY_AUTH_TOKEN or in ~/.ray/auth_token"
        return SweeperError("--address", found, "the cluster's own", hint)
    if "No node info found" in said:
        found = f"no node of the cluster at `{address}` runs on this host"
        hint = "start it on one of them; `ray start --address … --num-cpus 0` makes this one"
        return SweeperError("--address", found, "a host that is one of the cluster's", hint)
    if not isinstance(error, (ConnectionError, ValueError)):
        return None
    last = str(error.__cause__ or "").strip().splitlines()[-1:]
    return _no_cluster(address, ": ".join([first_line(error), *last]))


def _no_cluster(address: str, found: str) -> SweeperError:
    hint = "`ray status` on the cluster's head tells whether it is up"
    where = f"no cluster at `{address}` ({found})"
    return SweeperError("--address", where, "`auto`, or the `host:port` of a Ray cluster", hint)


def _other_version(address: str, said: str) -> SweeperError:
    """Ray joins no cluster of another version of itself or of Python: a refusal says which."""
    found = re.findall(r"Ray: (\S+)\s+Python: (\S+)", said) or [("?", "?")]
    theirs, ours = (f"Ray {ray} and Python {python}" for ray, python in (found[0], found[-1]))
    where = f"the cluster at `{address}` runs {theirs}, and here is {ours}"
    hint = "install the same versions here and on every node, as from one image"
    return SweeperError("--address", where, "the same versions", hint)


def _check_answers(address: str) -> None:
    """Refuse an address where nothing answers, for which Ray would wait a minute twenty times."""
    meant = _meant_by(address)
    host, _, port = meant.rpartition(":")
    if not host or not port.isdigit():
        return  # what else Ray may know
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        at = "" if meant == address else f" at `{meant}`, which Ray takes it for"
        raise _no_cluster(address, f"nothing answers{at}: {error}") from error


def _meant_by(address: str) -> str:
    """What Ray makes of an address: of `auto` one that it finds, of the loopback this host's own.

    It may be that of a cluster that is gone, or one at which the head does not listen.
    """
    from ray._private import services

    try:
        return str(services.canonicalize_bootstrap_address(address) or address)
    except (ConnectionError, ValueError):
        return address  # Ray tells why
