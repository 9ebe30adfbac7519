"""`tvmc tracker`, `tvmc server` and `--rpc-tracker`: devices far away, for whoever runs them and whoever uses them."""

import argparse
import json
import sys
from typing import TYPE_CHECKING

from reparam_compiler.errors import LoweringError
from reparam_compiler.tvmc.words import port_number, positive

if TYPE_CHECKING:
    from reparam_compiler.lowering import Rpc


def tracker_options(command: argparse.ArgumentParser) -> None:
    """Those of `tvmc tracker`."""
    _listening(command, 9190)


def server_options(command: argparse.ArgumentParser) -> None:
    """Those of `tvmc server`."""
    command.add_argument("--tracker", required=True, metavar="HOST:PORT", help="of a `tvmc tracker`; it may start later")
    command.add_argument("--key", required=True, help="what devices of this kind are asked for by, such as pi4")
    _listening(command, 9090)


def rpc_options(command: argparse.ArgumentParser) -> None:
    """Those of the commands that a device far away may do."""
    command.add_argument("--rpc-tracker", metavar="HOST:PORT", help="of a `tvmc tracker`: do it on a device far away")
    command.add_argument("--rpc-key", metavar="KEY", help="of the devices that it may be")
    command.add_argument("--rpc-wait", type=positive, metavar="S", help="seconds to wait for one to be free (default: 60)")


def rpc_of(found: argparse.Namespace) -> "Rpc | None":
    """The devices that the options name; None without any. Raises LoweringError where half of a name is missing."""
    given = {name: getattr(found, f"rpc_{name}") for name in ("tracker", "key", "wait")}
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        return None
    if missing := [name for name in ("tracker", "key") if name not in given]:
        raise LoweringError(
            f"--rpc-{missing[0]}: not given beside --rpc-{next(iter(given))}; expected both --rpc-tracker and --rpc-key"
        )
    from reparam_compiler.lowering import Rpc

    made = Rpc(**given, compiler=getattr(found, "cross_compiler", None))
    made.check()
    return made


def track(found: argparse.Namespace) -> None:
    """`tvmc tracker`."""
    from reparam_compiler.lowering.rpc.serving import track

    track(found.host, found.port, lambda address: _listens(found, tracker=address))


def serve(found: argparse.Namespace) -> None:
    """`tvmc server`."""
    from reparam_compiler.lowering.rpc.serving import serve

    about = {"tracker": found.tracker, "key": found.key}
    serve(found.tracker, found.key, found.host, found.port, lambda address: _listens(found, server=address, **about))


def _listening(command: argparse.ArgumentParser, port: int) -> None:
    """Where a program listens."""
    command.add_argument(
        "--host",
        default="127.0.0.1",
        help="the address to listen on; a server runs whatever it is sent by who reaches it (default: 127.0.0.1, this machine)",
    )
    command.add_argument("--port", type=port_number, default=port, metavar="N", help=f"0: any that is free (default: {port})")
    command.add_argument("--json", action="store_true", help="say where it listens as one JSON object")


def _listens(found: argparse.Namespace, **about: str) -> None:
    """Says where, in one line, at once: whoever started the program may wait for it."""
    kind, address = next(iter(about.items()))
    more = "".join(f", {name} {value}" for name, value in about.items() if name != kind)
    sys.stdout.write(f"{json.dumps(about) if found.json else f'{kind} listening on {address}{more}'}\n")
    sys.stdout.flush()
