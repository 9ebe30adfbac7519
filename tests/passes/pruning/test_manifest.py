"""A manifest carries a cut to other weights: through a state_dict, and through any frontend's graph; what differs is named."""

import copy
import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

import reparam_compiler
from reparam_compiler.errors import InfeasiblePruneError, UnsupportedModelError
from reparam_compiler.frontends.torch.fx import FxFrontend, FxReading
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, Param, TensorType
from reparam_compiler.models.opening import frontend_for
from reparam_compiler.passes.pruning.apply_manifest import apply_manifest
from reparam_compiler.passes.pruning.criteria.base import Scores, Scoring
from reparam_compiler.passes.pruning.manifest import KeptFamily, KeptParam, Manifest
from reparam_compiler.passes.pruning.pipeline import PruneResult, prune
from tests.support.onnx_models import exported, run
from tests.support.small_models import randomised

FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}  # ONNX Runtime and torch, another order of sums
EXACT = {"rtol": 0, "atol": 0}
FEW = settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
X = torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """A residual sum, a concat, a depthwise conv and a flatten; `seed` gives another checkpoint."""

    def __init__(self, seed: int = 0, width: int = 12) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.SiLU())
            self.body = nn.Sequential(nn.Conv2d(width, 10, 1), nn.ReLU(), nn.Conv2d(10, width, 3, 1, 1))
            self.side = nn.Conv2d(width, 8, 3, padding=1)
            self.depthwise = nn.Conv2d(width + 8, width + 8, 3, padding=1, groups=width + 8)
            self.head = nn.Linear((width + 8) * 20, 5)
        randomised(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.body(x))
        return self.head(torch.flatten(torch.relu(self.depthwise(torch.cat([x, self.side(x)], 1))), 1))


def read(model: nn.Module) -> FxReading:
    traced = model if isinstance(model, fx.GraphModule) else fx.symbolic_trace(model)
    return FxFrontend().read(traced, (X,))


@cache
def pruned(ratio: float = 0.5, seed: int = 0, importance: str = "l1") -> tuple[FxReading, PruneResult, Manifest]:
    def drawn(scoring: Scoring) -> Scores:
        return np.random.default_rng(seed).random(scoring.groups.count)

    reading = read(Net(seed))
    result = prune(reading.graph, ratio=ratio, round_to=1, importance=drawn if importance == "random" else importance)
    return reading, result, Manifest.of(reading.graph, result)


def manifest() -> Manifest:
    return pruned()[2]


def test_a_family_of_an_embedding_says_which_columns_stay() -> None:
    words, reads = np.arange(1.0, 9.0) * np.ones((5, 1)), np.ones((3, 8))
    nodes = [
        Node("i", ops.Input(), (), TensorType("i64", (1, 4))),
        Node("e", ops.Embedding(), ("i", named(words, "words.weight")), TensorType("f32", (1, 4, 8))),
        Node("l", ops.Linear(), ("e", named(reads, "head.weight"), None), TensorType("f32", (1, 4, 3))),
    ]
    graph = Graph.of(nodes, ["l"])
    kept = Manifest.of(graph, prune(graph, ratio=0.5, round_to=1))
    assert kept.families == {"words": KeptFamily(8, 4, {"words": (4, 5, 6, 7)})}
    assert kept.params["words.weight"] == KeptParam((5, 8), {1: (4, 5, 6, 7)})


def named(array: np.ndarray, origin: str) -> Param:
    return Param.of(array, role="weight", dtype="f32", origin=origin)


# The same cut of other weights


@FEW
@given(ratio=st.floats(0.1, 0.9), seed=st.integers(0, 99))
def test_the_state_dict_of_another_checkpoint_follows(ratio: float, seed: int) -> None:
    reading, result, kept = pruned(round(ratio, 2), seed, "random")
    small, other = reading.write(result.graph), Net(seed + 1)
    state = other.state_dict()
    before = copy.deepcopy(state)
    small.load_state_dict(apply_manifest(state, kept))
    expected = read(other).write(apply_manifest(read(other).graph, kept))
    torch.testing.assert_close(small(X), expected(X), **EXACT)
    torch.testing.assert_close(state, before, **EXACT)


def test_the_same_checkpoint_gives_the_pruned_model() -> None:
    reading, result, kept = pruned()
    small = reading.write(result.graph)
    torch.testing.assert_close(apply_manifest(Net().state_dict(), kept), dict(small.state_dict()), **EXACT)
    again = reading.write(apply_manifest(reading.graph, kept))
    torch.testing.assert_close(dict(again.state_dict()), dict(small.state_dict()), **EXACT)


def fused(seed: int) -> fx.GraphModule:
    """Exporters to ONNX fold batch norms into convs of new names, so they are folded before."""
    return reparam_compiler.fuse(fx.symbolic_trace(Net(seed)), verify=False)


def native_of(kind: str, model: fx.GraphModule, folder: Path) -> Any:
    if kind == "export":
        return torch.export.export(model, (X,))
    return model if kind == "fx" else exported(model, X, folder, dynamo=kind == "dynamo", dynamic=False)


def outputs(model: Any) -> Tensor:
    if isinstance(model, onnx.ModelProto):
        return torch.from_numpy(run(model, {model.graph.input[0].name: X.numpy()})[0])
    return (model if isinstance(model, nn.Module) else model.module())(X)


@pytest.mark.parametrize("kind", ["fx", "export", "torchscript", pytest.param("dynamo", marks=pytest.mark.slow)])
def test_a_manifest_goes_through_every_frontend(kind: str, tmp_path: Path) -> None:
    small = read(fused(0))
    result = prune(small.graph, ratio=0.5, round_to=1)
    kept, expected = Manifest.of(small.graph, result), small.write(result.graph)
    expected.load_state_dict(apply_manifest(fused(7).state_dict(), kept))
    native = native_of(kind, fused(7), tmp_path)
    reading = frontend_for(native).read(native, (X,))
    torch.testing.assert_close(outputs(reading.write(apply_manifest(reading.graph, kept))), expected(X), **FLOAT32)

    native = native_of(kind, fused(0), tmp_path)  # and each makes the manifest that the others make
    graph = frontend_for(native).read(native, (X,)).graph
    theirs = Manifest.of(graph, prune(graph, ratio=0.5, round_to=1))
    assert {name: param.kept for name, param in theirs.params.items()} == {n: p.kept for n, p in kept.params.items()}
    assert theirs.fingerprint == kept.fingerprint


def test_arrays_and_half_precision_are_cut_as_they_are() -> None:
    state = Net(3).state_dict()
    expected = apply_manifest(state, manifest())
    arrays = apply_manifest({name: tensor.numpy() for name, tensor in state.items()}, manifest())
    halves = apply_manifest({name: tensor.bfloat16() for name, tensor in state.items()}, manifest())
    for name, tensor in expected.items():
        np.testing.assert_array_equal(arrays[name], tensor.numpy())
        torch.testing.assert_close(halves[name], tensor.bfloat16(), **EXACT)


def test_what_the_graph_does_not_read_is_passed_on() -> None:
    state = Net().state_dict() | {"auxiliary.weight": torch.ones(12, 12)}
    found = apply_manifest(state, manifest())
    assert list(found) == list(state)
    assert found["auxiliary.weight"] is state["auxiliary.weight"]
    assert found["stem.1.num_batches_tracked"] is state["stem.1.num_batches_tracked"]


def test_a_tied_weight_is_cut_under_all_of_its_names() -> None:
    state = Net().state_dict()
    for source in (state, {name: tensor.numpy() for name, tensor in state.items()}):
        found = apply_manifest(
            {**source, "again.weight": source["side.weight"], "like.weight": source["side.weight"] + 0}, manifest()
        )
        assert found["again.weight"] is found["side.weight"]
        assert found["like.weight"].shape == source["side.weight"].shape  # equal, but another tensor


def test_what_was_cut_has_no_gradient_history() -> None:
    found = apply_manifest({**Net().state_dict(), **dict(Net().named_parameters())}, manifest())
    assert not any(found[name].requires_grad for name, param in manifest().params.items() if param.kept)


class ComputedWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.weight = nn.Parameter(torch.randn(8, 6))
        self.last = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x).mean((2, 3)) @ (self.weight * 0.5)))


def test_a_weight_that_is_computed_is_cut_in_the_graph_alone() -> None:
    model = ComputedWeight()
    reading = read(model)
    result = prune(reading.graph, ratio=0.5, round_to=1)
    kept = Manifest.of(reading.graph, result)
    assert kept.params["matmul[1]"] == KeptParam((6, 8), kept.params["matmul[1]"].kept)
    assert kept.params["matmul[1]"].after == (3, 4)
    torch.testing.assert_close(reading.write(apply_manifest(reading.graph, kept))(X), reading.write(result.graph)(X), **EXACT)
    with pytest.raises(InfeasiblePruneError, match=r"matmul\[1\]: not in the state_dict.*cut through the graph alone"):
        apply_manifest(model.state_dict(), kept)


# Another architecture


def other_weights(**changes: Tensor) -> dict[str, Tensor]:
    return {**Net().state_dict(), **{name.replace("__", "."): tensor for name, tensor in changes.items()}}


def test_the_first_parameter_that_differs_is_named() -> None:
    state = Net(width=14).state_dict()
    with pytest.raises(
        InfeasiblePruneError, match=r"stem\.0\.weight: found the shape \(14, 3, 3, 3\).*expects \(12, 3, 3, 3\)"
    ):
        apply_manifest(state, manifest())
    with pytest.raises(InfeasiblePruneError, match=r"stem\.0\.weight: found the shape \(14, 3, 3, 3\)"):
        apply_manifest(read(Net(width=14)).graph, manifest())


def test_weights_that_are_pruned_already_say_so() -> None:
    reading, result, kept = pruned()
    with pytest.raises(InfeasiblePruneError, match=r"stem\.0\.weight: .*it is pruned already"):
        apply_manifest(reading.write(result.graph).state_dict(), kept)
    with pytest.raises(InfeasiblePruneError, match=r"stem\.0\.weight: .*it is pruned already"):
        apply_manifest(result.graph, kept)


def test_a_missing_parameter_is_named() -> None:
    state = Net().state_dict()
    del state["side.bias"]
    with pytest.raises(InfeasiblePruneError, match=r"side\.bias: not in the state_dict; expected a tensor of shape \(8,\)"):
        apply_manifest(state, manifest())
    model = Net()
    model.side.bias = None
    with pytest.raises(InfeasiblePruneError, match=r"side\.bias: the model has no such parameter"):
        apply_manifest(read(model).graph, manifest())


def test_a_parameter_too_many_is_named() -> None:
    model = Net()
    model.stem.append(nn.Conv2d(12, 12, 1))
    with pytest.raises(InfeasiblePruneError, match=r"stem\.3\.weight: found a parameter of shape .*does not know"):
        apply_manifest(read(model).graph, manifest())


class Coupled(Net):
    """The parameters of `Net`, joined in another way: the sum of the stem and the body is gone."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(self.body(x))
        return self.head(torch.flatten(torch.relu(self.depthwise(torch.cat([x, self.side(x)], 1))), 1))


def test_cuts_that_the_model_allows_are_made_whatever_the_wiring() -> None:
    graph = read(Coupled()).graph
    assert shapes(apply_manifest(graph, manifest())) == {name: param.after for name, param in manifest().params.items()}


def test_a_cut_that_breaks_a_coupling_is_refused() -> None:
    graph = read(Coupled()).graph
    result = prune(graph, ratio=0.5, round_to=1, importance="random")
    with pytest.raises(
        InfeasiblePruneError, match=r"the manifest keeps index \d+ of axis \d.*couples its channels in another way"
    ):
        apply_manifest(read(Net()).graph, Manifest.of(graph, result))


def test_a_cut_of_what_must_stay_is_refused() -> None:
    head = KeptParam((5, 400), {0: (0, 1)})
    kept = {name: replace(param, kept={}) for name, param in manifest().params.items()}
    bias = KeptParam((5,), {0: (0, 1)})
    with pytest.raises(InfeasiblePruneError, match="is a model output"):
        apply_manifest(read(Net()).graph, replace(manifest(), params=kept | {"head.weight": head, "head.bias": bias}))
    stem = KeptParam((12, 3, 3, 3), {1: (0, 1)})
    with pytest.raises(InfeasiblePruneError, match=r"stem\.0\.weight: the manifest keeps index 0 of axis 1"):
        apply_manifest(read(Net()).graph, replace(manifest(), params=kept | {"stem.0.weight": stem}))
    taps = KeptParam((12, 3, 3, 3), {2: (0, 1)})
    with pytest.raises(InfeasiblePruneError, match=r"stem\.0\.weight: the manifest cuts axis 2, which no channel"):
        apply_manifest(read(Net()).graph, replace(manifest(), params=kept | {"stem.0.weight": taps}))


def shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    return {str(param.origin): param.shape for param in graph.param_users}


# What it says


def test_it_holds_the_indices_of_every_parameter() -> None:
    _, result, kept = pruned()
    assert shapes(result.graph) == {name: param.after for name, param in kept.params.items()}
    for name, param in Net().named_parameters():
        cut = param.detach()
        for axis, indices in kept.params[name].kept.items():
            cut = cut.index_select(axis, torch.tensor(indices))
        found = next(p for p in result.graph.param_users if p.origin == name)
        np.testing.assert_array_equal(found.load(), cut.numpy())


def test_families_hold_the_outputs_that_stay_by_layer() -> None:
    families = manifest().families
    assert list(families) == ["stem.0", "body.0", "side"]
    stem = families["stem.0"]
    assert (stem.before, stem.after, list(stem.layers)) == (12, 6, ["stem.0", "body.2"])
    assert stem.layers["stem.0"] == stem.layers["body.2"] == manifest().params["stem.0.weight"].kept[0]


def test_all_checkpoints_of_an_architecture_have_one_fingerprint() -> None:
    prints = {pruned(seed=seed)[2].fingerprint for seed in range(3)}
    assert len(prints) == 1
    changed = {**manifest().params, "side.bias": KeptParam((9,), {})}
    assert replace(manifest(), params=changed).fingerprint not in prints


def test_text_is_a_plain_table() -> None:
    families = {
        "stem": KeptFamily(8, 5, {"stem": (0, 1, 2, 5, 7)}),
        "blocks.0.conv": KeptFamily(128, 64, {"blocks.0.conv": tuple(range(0, 128, 2)), "blocks.1.conv": tuple(range(64))}),
        "side": KeptFamily(4, 4, {"side": (0, 1, 2, 3)}),
        "constant 3": KeptFamily(4, 2, {}),
    }
    assert Manifest({}, families, "0.1.0").to_text() == (
        "layer          before  after  kept\n"
        "stem                8      5  0-2, 5, 7\n"
        "blocks.0.conv     128     64  0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, …\n"
        "blocks.1.conv     128     64  0-63\n"
        "side                4      4  all\n"
        "constant 3          4      2"
    )


# The file


@FEW
@given(ratio=st.floats(0.1, 0.9), seed=st.integers(0, 99))
def test_what_was_saved_is_loaded(ratio: float, seed: int, tmp_path: Path) -> None:
    kept = pruned(round(ratio, 2), seed, "random")[2]
    kept.save(tmp_path / "kept.json")
    assert Manifest.load(tmp_path / "kept.json") == kept
    assert os.listdir(tmp_path) == ["kept.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "kept.json"
    target.write_text("old")

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        manifest().save(target)
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["kept.json"]


@FEW
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused(share: float, tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    text = manifest().to_json().rstrip()
    path.write_text(text[: int(share * len(text))])
    with pytest.raises(UnsupportedModelError, match=r"kept\.json: found no JSON.*cut off"):
        Manifest.load(path)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[" * 100_000, b"", b"{'a': 1}"])
def test_what_is_no_json_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "kept.json").write_bytes(content)
    with pytest.raises(UnsupportedModelError, match=r"kept\.json: found no JSON"):
        Manifest.load(tmp_path / "kept.json")


@pytest.mark.parametrize("content", ["[]", "3", "null", "{}", '{"format": "another"}'])
def test_a_foreign_file_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "kept.json").write_text(content)
    with pytest.raises(UnsupportedModelError, match="format is not 'reparam_compiler pruning manifest'"):
        Manifest.load(tmp_path / "kept.json")


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Manifest.load(tmp_path / "none.json")


Edit = Callable[[dict[str, Any]], object]
EDITS: dict[str, tuple[Edit, type[Exception], str]] = {
    "newer": (lambda m: m.update(version=2, tool="9.9"), UnsupportedModelError, r"version 2, by .* 9\.9; .*update it"),
    "no version": (lambda m: m.pop("version"), UnsupportedModelError, r"version and tool: found \(None"),
    "text for a version": (lambda m: m.update(version="1"), UnsupportedModelError, "version and tool"),
    "no params": (lambda m: m.pop("params"), UnsupportedModelError, "params: found None; expected an object"),
    "a list of params": (lambda m: m.update(params=[]), UnsupportedModelError, r"params: found \[\]"),
    "a param gone": (lambda m: m["params"].pop("side.weight"), InfeasiblePruneError, "shapes_sha256.*edited or is not whole"),
    "no shape": (lambda m: m["params"]["side.bias"].pop("before"), UnsupportedModelError, r"side\.bias: found None"),
    "a size of text": (lambda m: m["params"]["side.bias"].update(before=["8"]), UnsupportedModelError, r"found \['8'\]"),
    "a true index": (
        lambda m: m["params"]["side.bias"]["kept"].update({"0": [True]}), UnsupportedModelError, r"found \[True\]",
    ),
    "another size": (lambda m: m["params"]["side.bias"].update(before=[9]), InfeasiblePruneError, "shapes_sha256"),
    "another width": (
        lambda m: m["params"]["side.bias"].update(after=[9]), InfeasiblePruneError,
        r"side\.bias: found the shape \(9,\) after, while its indices leave \(4,\)",
    ),
    "an index gone": (lambda m: m["params"]["side.bias"]["kept"]["0"].pop(), InfeasiblePruneError, r"leave \(3,\)"),
    "an index out of bounds": (
        lambda m: m["params"]["side.bias"]["kept"].update({"0": [0, 1, 2, 8]}), InfeasiblePruneError,
        r"side\.bias: found the indices 0-2, 8, which are not one or more in order below 8",
    ),
    "indices out of order": (
        lambda m: m["params"]["side.bias"]["kept"].update({"0": [0, 2, 1, 3]}), InfeasiblePruneError, "in order below 8",
    ),
    "no index": (lambda m: m["params"]["side.bias"]["kept"].update({"0": []}), InfeasiblePruneError, "one or more"),
    "an axis too many": (
        lambda m: m["params"]["side.bias"]["kept"].update({"1": [0]}), InfeasiblePruneError, "axis '1' of 1 axes",
    ),
    "an axis below 0": (lambda m: m["params"]["side.bias"]["kept"].update({"-1": [0]}), InfeasiblePruneError, "axis '-1'"),
    "a wider family": (lambda m: m["families"]["side"].update(after=9), InfeasiblePruneError, "side: found 9 of 8 channels"),
    "an empty family": (lambda m: m["families"]["side"].update(after=0), InfeasiblePruneError, "side: found 0 of 8 channels"),
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_file_is_refused_with_what_is_wrong(name: str, tmp_path: Path) -> None:
    edit, kind, said = EDITS[name]
    edited = json.loads(manifest().to_json())
    edit(edited)
    (tmp_path / "kept.json").write_text(json.dumps(edited))
    with pytest.raises(kind, match=said):
        Manifest.load(tmp_path / "kept.json")
