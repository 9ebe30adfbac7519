"""What forward() takes, and what it gives."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.habits.parts import WIDTH, habit, picture


@habit()
def none_argument(m: Any, x: Tensor, mask: Tensor | None = None) -> Any:
    """forward(x, mask=None)."""
    y = m.c(m.features(x))
    return y if mask is None else y * mask


@habit()
def flag_argument(m: Any, x: Tensor, augment: bool = False) -> Any:
    """forward(x, augment=False), a flag that chooses a path."""
    y = m.c(m.features(x))
    return y.flip(3) if augment else y


@habit()
def scale_argument(m: Any, x: Tensor, scale: float = 0.5) -> Any:
    """forward(x, scale=0.5), a number."""
    return m.c(m.features(x)) * scale


@habit()
def keyword_only_argument(m: Any, x: Tensor, *, mask: Tensor | None = None) -> Any:
    """forward(x, *, mask=None)."""
    y = m.c(m.features(x))
    return y if mask is None else y * mask


@habit()
def star_arguments(m: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """forward(x, *args, **kwargs), which it does not read."""
    return m.c(m.features(x))


@habit()
def star_inputs(m: Any, *inputs: Tensor) -> Any:
    """forward(*inputs)."""
    return m.c(m.features(inputs[0]))


@habit()
def targets_for_training(m: Any, x: Tensor, targets: Any = None) -> Any:
    """forward(x, targets=None), a loss where the model trains."""
    y = m.c(m.features(x))
    if m.training:
        return nn.functional.cross_entropy(y.mean((2, 3)), targets)
    return y


@habit(args=lambda batch: (picture(batch), 2))
def integer_input(m: Any, x: Tensor, times: int) -> Any:
    """An int among the example inputs."""
    return m.c(m.features(x)) * times


@habit(args=lambda batch: (picture(batch), None))
def none_input(m: Any, x: Tensor, mask: Tensor | None) -> Any:
    """None among the example inputs."""
    y = m.c(m.features(x))
    return y if mask is None else y * mask


@habit(args=lambda batch: ([picture(batch), picture(batch) * 2],))
def list_input(m: Any, xs: list[Tensor]) -> Any:
    """A list of two pictures."""
    return m.c(m.features(xs[0]) + m.features(xs[1]))


@habit(args=lambda batch: ({"image": picture(batch)},))
def dict_input(m: Any, batch: dict[str, Tensor]) -> Any:
    """A dict, as a data loader collates it."""
    return m.c(m.features(batch["image"]))


@habit(args=lambda batch: (picture(batch), picture(batch) * 2))
def two_inputs(m: Any, x: Tensor, other: Tensor) -> Any:
    """Two pictures, as a siamese net takes them."""
    return (m.features(x).mean((2, 3)) * m.features(other).mean((2, 3))).sum(1)


@habit(args=lambda batch: (torch.arange(batch * 12).reshape(batch, 12) % 10,), parts=lambda: {"e": nn.Embedding(10, 3)})
def token_input(m: Any, ids: Tensor) -> Any:
    """Token ids, embedded and seen as a picture."""
    return m.c(m.features(m.e(ids).transpose(1, 2).unflatten(2, (4, 3))))


@habit()
def dict_output(m: Any, x: Tensor) -> Any:
    """A dict of tensors (torchvision's segmenters)."""
    y = m.features(x)
    return OrderedDict(out=m.c(y), aux=m.fc(y.mean((2, 3))))


@dataclass
class Detected:
    """What a model gives, as transformers' outputs are."""

    scores: Tensor
    hidden: Tensor | None = None


@habit()
def dataclass_output(m: Any, x: Tensor) -> Any:
    """A dataclass with a field that is None."""
    return Detected(scores=m.c(m.features(x)))


Pair = namedtuple("Pair", ["logits", "features"])


@habit()
def namedtuple_output(m: Any, x: Tensor) -> Any:
    """A namedtuple (torchvision's GoogLeNet)."""
    y = m.features(x)
    return Pair(m.fc(y.mean((2, 3))), m.c(y))


@habit()
def nested_output(m: Any, x: Tensor) -> Any:
    """Lists in tuples, and a None among them."""
    y = m.stem(x)
    return [m.c(y)], (m.c(m.body(y)), None)


@habit()
def features_output(m: Any, x: Tensor) -> Any:
    """A backbone: the features of each stage in a list."""
    y = m.stem(x)
    return [y, m.body(y)]


@habit()
def numbers_in_the_output(m: Any, x: Tensor) -> Any:
    """A number beside the tensor."""
    y = m.c(m.features(x))
    return y, y.shape[1], 0.5


@habit(parts=lambda: {"halves": nn.Conv2d(WIDTH, WIDTH, 1)})
def list_of_chunks(m: Any, x: Tensor) -> Any:
    """list(y.chunk(2, 1)), extended and concatenated (YOLO's C2f)."""
    y = list(m.halves(m.stem(x)).chunk(2, 1))
    y.extend(part.relu() for part in (y[-1], y[0]))
    return m.c(m.body(torch.cat(y[2:], 1)) + torch.cat(y[:2], 1))
