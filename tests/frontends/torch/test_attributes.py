"""What a parent reads of its child is told by its code, whatever the spelling."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn

from reparam_compiler.frontends.torch.tracing.attributes import missing, only_calls, plain_attributes, reads_of


class Child(nn.Module):
    expansion = 4

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)
        self.stage = nn.Sequential(nn.Conv2d(2, 2, 1))
        self.stride = 2
        self._hidden = 3

    @property
    def width(self) -> int:
        return self.conv.out_channels

    def forward(self, x: Tensor) -> Tensor:
        return self.stage(self.conv(x))


class Parent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.child = Child()


def parent(forward: Callable[[Any, Tensor], Any], **more: Any) -> nn.Module:
    return type("Made", (Parent,), {"forward": forward, **more})()


def measure(child: nn.Module) -> int:
    return child.width


def calls(self: Any, x: Tensor) -> Tensor:
    return self.child(x)


def twice(self: Any, x: Tensor) -> Tensor:
    return next(self.child(y) for y in self.child(x))


def indexes(self: Any, x: Tensor) -> Tensor:
    return self.child[0](x)


def measures(self: Any, x: Tensor) -> int:
    return len(self.child)


def keeps(self: Any, x: Tensor) -> Tensor:
    child = self.child
    return child(x)


def looks_up(self: Any, x: Tensor) -> Tensor:
    return getattr(self, "child")(x)  # noqa: B009


def walks(self: Any, x: Tensor) -> Tensor:
    for module in self.children():
        x = module(x)
    return x


@pytest.mark.parametrize(
    ("forward", "expected"),
    [(calls, True), (twice, True), (indexes, False), (measures, False), (keeps, False), (looks_up, False), (walks, False)],
)
def test_only_calls(forward: Callable[[Any, Tensor], Any], expected: bool) -> None:
    assert only_calls([parent(forward)], "child") is expected


def test_children_of_containers_are_handed_round() -> None:
    assert not only_calls([nn.Sequential(Child())], "0")
    assert not only_calls([nn.ModuleList([Child()])], "0")


def test_what_an_ancestor_reads_of_a_child_is_more_than_a_call() -> None:
    inner = parent(calls)
    assert only_calls([parent(reads_a_layer), inner], "child")
    assert not only_calls([parent(lambda self, x: self.inner.child[0]), inner], "child")


def reads_a_layer(self: Any, x: Tensor) -> Any:
    return self.child.conv.weight.dtype


def reads_a_stage(self: Any, x: Tensor) -> Any:
    return self.child.stage(x)


def reads_a_property(self: Any, x: Tensor) -> Any:
    return self.child.width


def reads_by_a_function(self: Any, x: Tensor) -> Any:
    return measure(self.child)


def reads_by_a_method(self: Any, x: Tensor) -> Any:
    return self.help()


def reads_by_name(self: Any, x: Tensor) -> Any:
    return getattr(self.child, "width", None)


def reads_plain_attributes(self: Any, x: Tensor) -> Any:
    return self.child.stride * self.child.expansion


def has_the_same_names_itself(self: Any, x: Tensor) -> Any:
    return self.conv(self.width, self.child(x))


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (calls, None),
        (reads_a_layer, "conv"),
        (reads_a_stage, "stage"),
        (reads_a_property, "width"),
        (reads_by_a_function, "width"),
        (reads_by_a_method, "width"),
        (reads_by_name, "width"),
        (reads_plain_attributes, None),
        (has_the_same_names_itself, None),
    ],
)
def test_missing_is_what_is_read_and_not_there(forward: Callable[[Any, Tensor], Any], expected: str | None) -> None:
    child, fused = Child(), nn.Module()
    for name, value in plain_attributes(child).items():
        setattr(fused, name, value)
    fused.stage = nn.Module()  # what a tracer leaves to hold layers by their names
    holder = parent(forward, help=lambda self: self.child.width, fuse=lambda self: self.child.conv)
    assert missing([holder], child, fused) == expected


def test_a_layer_that_is_still_there_is_not_missing() -> None:
    child, fused = Child(), nn.Module()
    fused.conv = child.conv
    assert missing([parent(reads_a_layer)], child, fused) is None


def test_what_is_read_of_all_ancestors_counts() -> None:
    assert missing([parent(reads_a_property), nn.ModuleList()], Child(), nn.Module()) == "width"


def test_plain_attributes_are_those_of_the_class_and_of_the_module() -> None:
    assert plain_attributes(Child()) == {"expansion": 4, "stride": 2, "training": True}


def test_methods_that_forward_does_not_call_are_not_read() -> None:
    kind: Any = type(parent(calls, fuse=lambda self: self.child.width))
    assert "width" not in reads_of(kind).others


def test_a_method_may_call_its_object_otherwise() -> None:
    def calls(s: Any, x: Tensor) -> Any:
        return [s.child(part) for part in x.split(1)]

    def reads(s: Any, x: Tensor) -> Any:
        return s.child(x) * s.child.stride

    assert only_calls([parent(calls)], "child")
    assert not only_calls([parent(reads)], "child")
