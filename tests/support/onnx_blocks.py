"""Blocks of parallel branches as ONNX nodes with their constants: RepVGG's, MobileOne's, the diverse branch block's."""

from typing import Any

import numpy as np
from onnx import NodeProto, helper

from tests.support.onnx_models import normal

SHAPE = (2, 4, 7, 6)
Parts = tuple[list[NodeProto], dict[str, np.ndarray]]


def norm(x: str, y: str, seed: int) -> Parts:
    names = [f"{y}_{role}" for role in ("scale", "shift", "mean", "var")]
    values = [normal(4, seed=seed + k) for k in range(3)] + [abs(normal(4, seed=seed + 3)) + 0.5]
    return [helper.make_node("BatchNormalization", [x, *names], [y], name=y)], dict(zip(names, values, strict=True))


def conv(x: str, y: str, size: int, seed: int, **attributes: Any) -> Parts:
    weight = normal(4, 4 // attributes.get("group", 1), size, size, seed=seed)
    pads = [size // 2] * 4
    return [helper.make_node("Conv", [x, f"{y}_w"], [y], name=y, pads=pads, **attributes)], {f"{y}_w": weight}


def together(*parts: Parts) -> Parts:
    return [node for nodes, _ in parts for node in nodes], {k: v for _, constants in parts for k, v in constants.items()}


def repvgg() -> Parts:
    add = [helper.make_node("Add", ["a2", "b2"], ["ab"]), helper.make_node("Add", ["ab", "c2"], ["y"])]
    convs = conv("x", "a1", 3, 1), conv("x", "b1", 1, 2)
    return together(*convs, norm("a1", "a2", 10), norm("b1", "b2", 20), norm("x", "c2", 30), (add, {}))


def mobileone() -> Parts:
    convs = [conv("x", f"a{k}", 3, k, group=4) for k in range(3)] + [conv("x", "a3", 1, 3, group=4)]
    norms = [norm(f"a{k}", f"n{k}", 10 * k + 10) for k in range(4)]
    return together(*convs, *norms, norm("x", "n4", 60), ([helper.make_node("Sum", [f"n{k}" for k in range(5)], ["y"])], {}))


def dbb() -> Parts:
    pool = helper.make_node(
        "AveragePool", ["c1"], ["c2"], kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1], count_include_pad=1
    )
    add = helper.make_node("Sum", ["a2", "b2", "c3"], ["y"])
    convs = conv("x", "a1", 3, 1), conv("x", "b1", 1, 2), conv("x", "c1", 1, 3)
    norms = norm("a1", "a2", 10), norm("b1", "b2", 20), norm("c2", "c3", 30)
    return together(*convs, ([pool], {}), *norms, ([add], {}))
