"""Where devices are to be had: a tracker, and the key under which servers offer them to it."""

from dataclasses import dataclass

from reparam_compiler.errors import LoweringError


@dataclass(frozen=True, slots=True)
class Rpc:
    """Devices that a tracker knows under one key: machines of one kind, each behind a `tvmc server`.

    >>> Rpc("192.168.1.10:9190", "pi4").place
    ('192.168.1.10', 9190)

    tracker: "HOST:PORT" of a `tvmc tracker`. key: under which its servers offer devices.
    wait: seconds to wait for a device, and for a tracker that does not answer, before that is an error.
    timeout: seconds that a device may take to answer, such as for loading a model or for measuring it.
    compiler: the C++ compiler that links libraries for these devices, such as "aarch64-linux-gnu-g++"; none is this machine's.
    """

    tracker: str
    key: str
    wait: float = 60.0
    timeout: float = 600.0
    compiler: str | None = None

    @property
    def place(self) -> tuple[str, int]:
        """The host and the port of the tracker. Raises LoweringError where `tracker` is no such thing."""
        return host_and_port(self.tracker)

    def check(self) -> None:
        """Raises LoweringError where a part of it can mean nothing."""
        host_and_port(self.tracker)
        if not self.key or any(letter.isspace() for letter in self.key):
            raise LoweringError(f"rpc: found the key {self.key!r}; expected a word, the one that `tvmc server --key` was given")
        if not (self.wait > 0 and self.timeout > 0):
            raise LoweringError(f"rpc: found wait={self.wait}, timeout={self.timeout}; expected more than 0 seconds of each")


def host_and_port(text: str) -> tuple[str, int]:
    """The parts of "HOST:PORT", of "[::1]:9190" too.

    >>> host_and_port("[::1]:9190")
    ('::1', 9190)

    Raises: LoweringError where it has another form.
    """
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isdecimal() and int(port) < 1 << 16):
        raise LoweringError(f"rpc: found the tracker {text!r}; expected HOST:PORT, as in 192.168.1.10:9190")
    return host.removeprefix("[").removesuffix("]"), int(port)
