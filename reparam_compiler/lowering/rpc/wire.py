"""The process that holds TVM's end of a connection, so that it can be ended: TVM's client waits for a dead peer for ever.

    connect {host, port, key, session} | ask MESSAGE | disconnect      in on stdin
    done ANSWER | failed WHY                                           out on what was stdout

Each is eight bytes of length, one of its kind, and its content. It imports no torch, which TVM would wait seconds for.
"""

import json
import os
import struct
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

CONNECT, ASK, DISCONNECT, DONE, FAILED = b"c", b"a", b"d", b"+", b"-"
HEAD = struct.Struct("<qc")
NAME = "reparam_compiler.rpc.answer"
"""Of the function that our servers answer by, in TVM's table."""


def framed(kind: bytes, content: bytes = b"") -> bytes:
    """What goes through a pipe.

    >>> HEAD.unpack(framed(DONE, b"abc")[: HEAD.size])
    (3, b'+')
    """
    return HEAD.pack(len(content), kind) + content


def _connected(content: bytes) -> Callable[[bytes], bytes]:
    """What asks a server that it is connected to."""
    from tvm import rpc

    about = json.loads(content)
    session = rpc.connect(about["host"], about["port"], about["key"], session_timeout=about["session"])
    try:
        answer = session.get_function(NAME)
    except AttributeError as refusal:
        raise RuntimeError("it is a server without reparam_compiler; start it by `tvmc server`") from refusal
    return lambda message: bytes(answer(message))


def _served(source: BinaryIO, sink: BinaryIO) -> None:
    """Does what is asked for until the source ends."""
    import tvm.rpc  # noqa: F401  a loan lapses after some seconds, and importing TVM takes as many

    answer: Any = None
    sink.write(framed(DONE))
    while len(head := source.read(HEAD.size)) == HEAD.size:
        length, kind = HEAD.unpack(head)
        content, found = source.read(length), b""
        try:
            if kind == ASK:
                found = answer(content)
            else:
                answer = None
                answer = _connected(content) if kind == CONNECT else None
            reply = framed(DONE, found)
        except Exception as lost:  # noqa: BLE001 - TVM raises its own, RuntimeError, AttributeError …
            reply = framed(FAILED, (str(lost).strip() or type(lost).__name__).encode())
        sink.write(reply)


if __name__ == "__main__":
    sys.modules["torch"] = None  # type: ignore[assignment]
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what TVM prints is no answer
    _served(sys.stdin.buffer, out)
