"""What may be wrong in a file, whatever it holds: its bytes, its JSON, the members of its archive.

in_bytes(random.Random(0), content, "truncated")    other bytes
in_json(random.Random(0), {"a": [1]}, "value moved")  another value
zipped(random.Random(0), content, "member twice")   another archive

A name that is none of these changes nothing: what reads the file then takes it.
"""

import copy
import io
import pickle
import random
import stat
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Bytes = Callable[[random.Random, bytes], bytes]
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**40, -(2**63), 10**400, 0.5, -0.0, float("nan"), float("inf")),
    *("", "x", "../x", "\ud800", "é\n", "a" * 5000, "torch.ops.aten.relu.default", "Winograd", "float32", "O"),
    *([], [1], [[]], {}, {"kind": "x"}, [2**40, 2**40]),
)
"""Values that stand where others are expected."""
CANARY = "reparam_pickle_ran"
"""What `Canary` leaves in `sys` where somebody unpickles one."""
BOMB = 2**24
"""Bytes that a member takes once it is inflated; its archive has a thousandth."""


class Canary:
    """An object whose pickle says that it was run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"import sys; sys.{CANARY} = True",)


def a_pickle_ran() -> bool:
    """Whether a canary was unpickled since this was asked last."""
    return sys.__dict__.pop(CANARY, False)


def _truncated(draw: random.Random, content: bytes) -> bytes:
    return content[: draw.randrange(len(content) + 1)]


def _flipped(draw: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 8, 64])):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _overwritten(draw: random.Random, content: bytes) -> bytes:
    start, length = draw.randrange(len(content)), draw.choice([1, 4, 16, 200])
    return content[:start] + draw.choice([bytes(length), b"\xff" * length, draw.randbytes(length)]) + content[start + length :]


def _inserted(draw: random.Random, content: bytes) -> bytes:
    start = draw.randrange(len(content))
    return content[:start] + draw.randbytes(draw.choice([1, 2, 30])) + content[start:]


def _taken_out(draw: random.Random, content: bytes) -> bytes:
    start = draw.randrange(len(content))
    return content[:start] + content[start + draw.choice([1, 2, 30, 500]) :]


def _repeated(draw: random.Random, content: bytes) -> bytes:
    start = draw.randrange(len(content))
    return content[:start] + content[max(0, start - draw.choice([8, 100, 10**6])) :]


BYTES: Mapping[str, Bytes] = {
    "truncated": _truncated,
    "bits flipped": _flipped,
    "bytes overwritten": _overwritten,
    "bytes inserted": _inserted,
    "bytes taken out": _taken_out,
    "bytes repeated": _repeated,
}
JSON = ("value replaced", "value dropped", "value added", "value nested", "value moved")
ZIP = ("member outside", "member a link", "member twice", "member missing", "member a bomb", "member a pickle", "member cut")


def in_bytes(draw: random.Random, content: bytes, name: str) -> bytes:
    """Other bytes; the same where the name is one of another kind of mutation."""
    return BYTES[name](draw, content) if name in BYTES else content


def in_json(draw: random.Random, value: Any, name: str) -> Any:
    """A copy of what JSON holds, changed at one place or a few."""
    changed = [copy.deepcopy(value)]
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        holder, key = draw.choice(list(_places(changed)))
        found = holder[key]
        if name == "value replaced":
            holder[key] = copy.deepcopy(draw.choice(ODD))
        elif name == "value dropped" and holder is not changed:
            del holder[key]
        elif name == "value added" and isinstance(found, dict):
            found[draw.choice(["x", "", "0", "kind", "format"])] = copy.deepcopy(draw.choice(ODD))
        elif name == "value added" and isinstance(found, list):
            found.insert(draw.randrange(len(found) + 1), copy.deepcopy(draw.choice(ODD)))
        elif name == "value nested":
            holder[key] = draw.choice([[found], {"x": found}, [found] * 3])
        elif name == "value moved":
            holder[key] = copy.deepcopy(_value(draw.choice(list(_places(changed)))))
    return changed[0]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every list or dict in a value, with each of its keys."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _value(place: tuple[Any, Any]) -> Any:
    return place[0][place[1]]


def zipped(draw: random.Random, content: bytes, name: str) -> bytes:
    """An archive with one member that is other than it should be."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(entry, archive.read(entry)) for entry in archive.infolist()]
    place = draw.randrange(len(members))
    entry, data = members[place]
    folder = entry.filename.rpartition("/")[0]
    if name == "member outside":
        members.append((zipfile.ZipInfo(draw.choice(["../x", "/tmp/x", f"{folder}/../../x", "..\\x", "C:\\x", ""])), data))
    elif name == "member a link":
        link = zipfile.ZipInfo(draw.choice([entry.filename, f"{folder}/link"]))
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        members[place : place + draw.choice([0, 1])] = [(link, draw.choice([b"/etc/hostname", b"../.."]))]
    elif name == "member twice":
        members.insert(draw.randrange(len(members)), (zipfile.ZipInfo(entry.filename), draw.choice([data, b""])))
    elif name == "member missing":
        del members[place]
    elif name == "member a bomb":
        entry.compress_type = zipfile.ZIP_DEFLATED
        members[place] = (entry, data[: draw.choice([0, 128])] + bytes(BOMB))
    elif name == "member a pickle":
        members[place] = (entry, pickle.dumps(Canary()))
    elif name == "member cut":
        members[place] = (entry, draw.choice(list(BYTES.values()))(draw, data or b"0"))
    return _archive(members)


def _archive(members: list[tuple[zipfile.ZipInfo, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for entry, data in members:
            archive.writestr(entry, data)
    return buffer.getvalue()
