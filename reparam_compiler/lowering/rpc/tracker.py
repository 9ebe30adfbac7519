"""What a client asks a tracker: a device of a key, and how many there are.

    request -> (the tracker holds it back until a device is free) -> Place: where to connect, with the one-time key of this loan

A connection is made anew for each question, so that a tracker that was restarted is the same tracker.
"""

import contextlib
import logging
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from tvm.rpc.base import RPC_TRACKER_MAGIC, TrackerCode, recvall, recvjson, sendjson

from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.rpc.address import Rpc

log = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")

PAUSE = 1.0
"""Seconds between two looks at whether a wait is over, and between two tries to reach a tracker."""
ANSWER = 10.0
"""Seconds that a tracker may take to answer what it need not wait for."""


@dataclass(frozen=True, slots=True)
class Place:
    """A device that was lent: the address of its server, and the key that this loan connects with, within some seconds."""

    host: str
    port: int
    key: str


class GivenUpError(Exception):
    """Whoever waited for a device wants none any more."""


@dataclass(frozen=True, slots=True)
class Known:
    """What a tracker knows of a key. servers: how many are there; free: that nobody has. others: the keys of all others."""

    servers: int
    free: int
    others: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.servers} server{'' if self.servers == 1 else 's'}"


def request(rpc: Rpc, given_up: threading.Event | None = None) -> Place:
    """A device, once one is free.

    given_up: ends the wait with `GivenUpError`.

    Raises: LoweringError where none became free within `rpc.wait` seconds, or the tracker did not answer for so long.
    """
    until = time.monotonic() + rpc.wait
    place: Place | None = _persistently(rpc, lambda sock: _lent(rpc, sock, until, given_up), until, given_up)
    if place is None:
        raise LoweringError(_none_free(rpc, known(rpc)))
    return place


def known(rpc: Rpc, given_up: threading.Event | None = None) -> Known:
    """What the tracker knows of the key now. Raises: LoweringError where it did not answer for `rpc.wait` seconds."""
    return _persistently(rpc, lambda sock: _summary(rpc, sock), time.monotonic() + rpc.wait, given_up)


def _persistently(rpc: Rpc, ask: Callable[[socket.socket], ResultT], until: float, given_up: threading.Event | None) -> ResultT:
    """What a tracker says, which may be away for a while."""
    away = False
    while True:
        try:
            with _connected(rpc) as sock:
                if away:
                    log.warning("the tracker at %s answers again", rpc.tracker)
                    away = False
                return ask(sock)
        except OSError as refusal:
            if time.monotonic() >= until:
                raise LoweringError(
                    f"rpc: the tracker at {rpc.tracker} did not answer for {rpc.wait:g} s ({refusal}); start one: tvmc tracker"
                ) from refusal
            if not away:
                log.warning(
                    "the tracker at %s does not answer (%s); it is asked again for %g s", rpc.tracker, refusal, rpc.wait
                )
            away = True
            _pause(given_up)


def _pause(given_up: threading.Event | None) -> None:
    if (given_up or threading.Event()).wait(PAUSE):
        raise GivenUpError


@contextlib.contextmanager
def _connected(rpc: Rpc) -> Iterator[socket.socket]:
    """A connection to a tracker. Raises: OSError where there is none, LoweringError where something else answers."""
    with socket.create_connection(rpc.place, timeout=ANSWER) as sock:
        sock.sendall(struct.pack("<i", RPC_TRACKER_MAGIC))
        (magic,) = struct.unpack("<i", recvall(sock, 4))
        if magic != RPC_TRACKER_MAGIC:
            raise LoweringError(f"rpc: what answers at {rpc.tracker} is no tracker; start one: tvmc tracker")
        yield sock


def _lent(rpc: Rpc, sock: socket.socket, until: float, given_up: threading.Event | None) -> Place | None:
    """A device; None where none is free in time."""
    sendjson(sock, [TrackerCode.REQUEST, rpc.key, "", 1])
    while (left := until - time.monotonic()) > 0:
        if given_up is not None and given_up.is_set():
            raise GivenUpError
        if select.select([sock], [], [], min(left, PAUSE))[0]:
            return Place(*_answer(sock))
    return None


def _summary(rpc: Rpc, sock: socket.socket) -> Known:
    sendjson(sock, [TrackerCode.SUMMARY])
    found = _answer(sock)
    keys = [str(each["key"]).removeprefix("server:") for each in found["server_info"]]
    free = int(found["queue_info"].get(rpc.key, {"free": 0})["free"])
    return Known(keys.count(rpc.key), free, tuple(sorted({key for key in keys if key != rpc.key})))


def _answer(sock: socket.socket) -> Any:
    code, *found = recvjson(sock)
    if code != TrackerCode.SUCCESS:
        raise OSError(f"it answered with code {code}")
    return found[0]


def _none_free(rpc: Rpc, found: Known) -> str:
    """Why there is no device."""
    waited = f"no device of key {rpc.key!r} became free at the tracker {rpc.tracker} within {rpc.wait:g} s"
    if found.servers:
        return f"rpc: {waited}: it has {found}, which others use, or which do not answer. Wait longer, or start more servers"
    others = f"; it has {', '.join(found.others)}" if found.others else ""
    return (
        f"rpc: {waited}: it has no server of that key{others}. Start one: tvmc server --tracker {rpc.tracker} --key {rpc.key}"
    )
