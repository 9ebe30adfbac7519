"""The programs of a fleet: a tracker, which knows devices by key, and a server, which lends this machine's.

    server --(its key, its port)--> tracker <--(a key)-- client         client --(what it runs)--> server: a process a session

They are TVM's own, on sockets that we open: on any free port, on the loopback unless told otherwise, for a server runs
whatever code it is sent. A session that crashes costs that session alone: TVM's server would stop listening.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

from tvm.rpc import server as tvm_server
from tvm.rpc import tracker as tvm_tracker
from tvm.rpc.base import get_addr_family, random_key

from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.rpc.address import Rpc, host_and_port
from reparam_compiler.lowering.rpc.answering import offer
from reparam_compiler.lowering.runtime.launchers import SPIN, SPINS

log = logging.getLogger(__name__)
BACKLOG = 128
"""Connections that may wait; a fleet's servers all come back at once after a tracker was away."""
PAUSE = 1.0
"""Seconds after a session that ended badly."""
TVM_LOGGERS = ("RPCTracker", "RPCServer")


def track(host: str, port: int, said: Callable[[str], None]) -> None:
    """Be a tracker until SIGINT or SIGTERM.

    host, port: where to listen; port 0 is any that is free. said: is told where that is, as "HOST:PORT".

    Raises: LoweringError where it cannot listen there.
    """
    with _listening(host, port) as sock, _until_signalled() as begin:
        said(_address(sock))
        begin(lambda: tvm_tracker._tracker_server(sock, random_key("tracker")))


def serve(tracker: str, key: str, host: str, port: int, said: Callable[[str], None]) -> None:
    """Lend this machine's devices under a key until SIGINT or SIGTERM, one client at a time. Arguments as for `track`.

    Raises: LoweringError where it cannot listen there, or `tracker` is no HOST:PORT. A tracker that is away is waited for.
    """
    Rpc(tracker, key).check()
    os.environ.setdefault(SPIN, SPINS)
    multiprocessing.set_start_method("fork", force=True)  # a session finds what this process imported and offers
    offer()
    with _listening(host, port) as sock, _until_signalled() as begin:
        said(_address(sock))
        begin(lambda: _lend(sock, key, host_and_port(tracker)))


def _lend(sock: socket.socket, key: str, tracker: tuple[str, int]) -> None:
    """Session after session."""
    folder = os.getcwd()
    while True:
        try:
            tvm_server._listen_loop(sock, sock.getsockname()[1], key, tracker, None, None)
        except (RuntimeError, AssertionError, ValueError, OSError) as ended:  # a session's, or the tracker's answer
            log.warning("%s; the device is offered again", ended or type(ended).__name__)
            os.chdir(folder)  # TVM leaves the one of the session, which is gone
            time.sleep(PAUSE)


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket. Raises: LoweringError where it cannot be had."""
    with contextlib.ExitStack() as open_:
        try:
            sock = open_.enter_context(socket.socket(get_addr_family((host, port)), socket.SOCK_STREAM))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
            sock.listen(BACKLOG)
        except OSError as refusal:
            raise LoweringError(
                f"--host {host} --port {port}: cannot listen there ({refusal}); --port 0 takes any that is free"
            ) from refusal
        yield sock


def _address(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@contextlib.contextmanager
def _until_signalled() -> Iterator[Callable[[Callable[[], None]], None]]:
    """What the block begins runs on a thread of its own until SIGINT or SIGTERM, which end its sessions too.

    Signals are left to the main thread, which only waits: an exception in the middle of a fork would be lost.
    """
    for name in TVM_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    ended = threading.Event()
    before = {number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    os.register_at_fork(after_in_child=_mortal)
    try:
        yield lambda work: threading.Thread(target=work, daemon=True).start()
        ended.wait()
    finally:
        for session in multiprocessing.active_children():
            session.kill()
        for number, handler in before.items():
            signal.signal(number, handler)


def _mortal() -> None:
    """In a session: TVM's code, where no handler of Python's would ever run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the server too, which ends its sessions
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
