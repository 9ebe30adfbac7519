"""What a habit is, and the net that most of them are a variant of."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tests.support.small_models import randomised

WIDTH = 16
"""Channels of each layer that a pruning can cut."""
SIZE = (8, 6)
"""Rows and columns of a picture."""
BATCH, OTHER_BATCH = 2, 3
HABITS: "dict[str, Habit]" = {}
"""All habits by name, in the order of their files."""
Made = TypeVar("Made", bound=Callable[..., Any])


class Net(nn.Module):
    """conv-BN, conv-BN and two heads, which a habit wires up in its `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(3, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH)
        self.b, self.nb = nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH)
        self.c, self.fc = nn.Conv2d(WIDTH, 8, 1), nn.Linear(WIDTH, 5)
        self.build()

    def build(self) -> None:
        """What a habit adds."""

    def stem(self, x: Tensor) -> Tensor:
        return self.na(self.a(x)).relu()

    def body(self, y: Tensor) -> Tensor:
        return self.nb(self.b(y)).relu()

    def features(self, x: Tensor) -> Tensor:
        return self.body(self.stem(x))

    def forward(self, x: Tensor) -> Any:
        return self.c(self.features(x))


@dataclass(frozen=True)
class Habit:
    """One way in which models are written.

    about: the habit in a few words. group: the file that it stands in. make: the model, in evaluation mode.
    args, kwargs: what it is called with, for a batch of that size.
    exact: the relative difference that its dtype allows.
    around: the mode that the caller is in, at every call of ours and of the model.
    """

    name: str
    about: str
    group: str
    make: Callable[[], nn.Module]
    args: Callable[[int], tuple[Any, ...]]
    kwargs: Callable[[int], Mapping[str, Any]]
    exact: float
    around: Callable[[], AbstractContextManager[Any]]


def picture(batch: int, channels: int = 3, size: Sequence[int] = SIZE) -> Tensor:
    """Random pixels, the same at every call."""
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(batch))


def habit(
    *,
    args: Callable[[int], tuple[Any, ...]] = lambda batch: (picture(batch),),
    kwargs: Callable[[int], Mapping[str, Any]] = lambda batch: {},
    after: Callable[[nn.Module], nn.Module] = lambda net: net,
    exact: float = 1e-4,
    around: Callable[[], AbstractContextManager[Any]] = nullcontext,
    parts: Callable[[], Mapping[str, Any]] = dict,
) -> Callable[[Made], Made]:
    """Takes a class of modules, or a `forward(m, x)` over a `Net`, as a habit; its docstring says what it is about.

    after: what is done to the net when its weights are drawn. parts: modules and parameters that the net is given besides.
    around: the mode that the caller is in.
    """

    def taken(code: Made) -> Made:
        group = code.__module__.rpartition(".")[2]
        is_class = isinstance(code, type)
        kind: Any = code if is_class else type(code.__name__.title().replace("_", ""), (Net,), {"forward": code})

        def make() -> nn.Module:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                net = kind()
                for name, part in parts().items():
                    setattr(net, name, part)
            return after(randomised(net))

        name = _words(code.__name__) if is_class else code.__name__
        assert name not in HABITS, name
        HABITS[name] = Habit(name, (code.__doc__ or "").strip().rstrip("."), group, make, args, kwargs, exact, around)
        return code

    return taken


def _words(camel: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in camel).lstrip("_")
