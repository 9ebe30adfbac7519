"""Models in and out of files: what is opened, what is refused before any of it can run, and files that are whole or absent."""

import contextlib
import io
import json
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import reparam_compiler
from reparam_compiler import UnsupportedModelError
from reparam_compiler.models.io import load_model, save_model
from reparam_compiler.models.stated import inputs_of_shapes
from reparam_compiler.zoo.random_weights import randomise_batch_norm
from tests.support.onnx_models import run_on

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
]
SHAPE = (2, 3, 9, 7)


class Plant:
    """A pickle of this creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return SmallNet().eval()


class SmallNet(nn.Module):
    """A conv, its batch norm and a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`N 3 H W` to `N 8 H W`."""
        return torch.relu(self.bn(self.conv(x)))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .pt2 as torch.export.save writes it, example inputs included."""
    path = tmp_path_factory.mktemp("archive") / "net.pt2"
    torch.export.save(torch.export.export(small_net(), (torch.randn(SHAPE),)), path)
    return path


def doctored(source: Path, target: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """The archive with its records changed, written by the writer that torch itself uses."""
    reader = torch._C.PyTorchFileReader(str(source))
    internal = (".data/version", ".data/serialization_id", "byteorder")
    records = {name: reader.get_record(name) for name in reader.get_all_records() if name not in internal}
    change(records)
    writer = torch._C.PyTorchFileWriter(str(target))
    writer.set_min_version(6)
    for name, data in records.items():
        writer.write_record(name, data, len(data))
    writer.write_end_of_file()
    return target


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def edit_json(records: dict[str, bytes], name: str, edit: Callable[[Any], None]) -> None:
    content = json.loads(records[name])
    edit(content)
    records[name] = json.dumps(content).encode()


def plant_sample_inputs(records: dict[str, bytes], marker: Path) -> None:
    records["data/sample_inputs/model.pt"] = saved(((Plant(marker),), {}))


def plant_bare_pickle_of_sample_inputs(records: dict[str, bytes], marker: Path) -> None:
    records["data/sample_inputs/model.pt"] = pickle.dumps(((Plant(marker),), {}), protocol=2)


def plant_weight(records: dict[str, bytes], marker: Path) -> None:
    records["data/weights/weight_0"] = saved(Plant(marker))
    edit_json(
        records, "data/weights/model_weights_config.json", lambda c: next(iter(c["config"].values())).update(use_pickle=True)
    )


def plant_weight_marked_by_a_number(records: dict[str, bytes], marker: Path) -> None:
    plant_weight(records, marker)
    edit_json(
        records, "data/weights/model_weights_config.json", lambda c: next(iter(c["config"].values())).update(use_pickle=1)
    )


def plant_legacy_weights(records: dict[str, bytes], marker: Path) -> None:
    records["data/weights/model.pt"] = saved({"conv.weight": Plant(marker)})


def plant_legacy_constants(records: dict[str, bytes], marker: Path) -> None:
    records["data/constants/model.pt"] = saved({"c": Plant(marker)})


def constant(path_name: str, use_pickle: bool) -> Callable[[Any], None]:
    entry = {"path_name": path_name, "is_param": False, "use_pickle": use_pickle, "tensor_meta": None}
    return lambda content: content["config"].update(planted=entry)


def plant_tensor_constant(records: dict[str, bytes], marker: Path) -> None:
    records["data/constants/tensor_0"] = saved(Plant(marker))
    edit_json(records, "data/constants/model_constants_config.json", constant("tensor_0", True))


def plant_opaque_object(records: dict[str, bytes], marker: Path) -> None:
    records["data/constants/opaque_obj_0"] = pickle.dumps(Plant(marker))
    edit_json(records, "data/constants/model_constants_config.json", constant("opaque_obj_0", True))


def plant_opaque_object_in_a_record_of_another_name(records: dict[str, bytes], marker: Path) -> None:
    records["data/constants/opaque_obj_/../tensor_0"] = pickle.dumps(Plant(marker))
    edit_json(records, "data/constants/model_constants_config.json", constant("opaque_obj_/../tensor_0", True))


def code(marker: Path) -> str:
    return f"__import__('pathlib').Path('{marker}').touch()"


def plant_size_expression(records: dict[str, bytes], marker: Path) -> None:
    def edit(content: Any) -> None:
        values = content["graph_module"]["graph"]["tensor_values"]
        values["conv2d"]["sizes"][0] = {"as_expr": {"expr_str": code(marker), "hint": None}}

    edit_json(records, "models/model.json", edit)


def plant_in_use(records: dict[str, bytes], edit: Callable[[Any], None]) -> None:
    edit_json(records, "models/model.json", edit)


def plant_guard(records: dict[str, bytes], marker: Path) -> None:
    plant_in_use(records, lambda content: content["guards_code"].append(code(marker)))


def plant_operator(records: dict[str, bytes], marker: Path) -> None:
    call = {"name": "", "arg": {"as_string": f"touch {marker}"}, "kind": 1}

    def edit(content: Any) -> None:
        nodes = content["graph_module"]["graph"]["nodes"]
        nodes.insert(
            0,
            {"target": "torch.os.system", "inputs": [call], "outputs": [{"as_none": True}], "metadata": {}, "name": "planted"},
        )

    plant_in_use(records, edit)


def plant_name(records: dict[str, bytes], marker: Path) -> None:
    text = records["models/model.json"].decode()
    name = f"relu = [{code(marker)}]; relu"
    records["models/model.json"] = (
        text.replace('{"name": "relu"}', json.dumps({"name": name})).replace('"relu":', f'"{name}":').encode()
    )


LOADING = [
    (plant_sample_inputs, "data/sample_inputs/model.pt"),
    (plant_bare_pickle_of_sample_inputs, "data/sample_inputs/model.pt"),
    (plant_weight, "data/weights/weight_0"),
    (plant_weight_marked_by_a_number, "data/weights/weight_0"),
    (plant_legacy_weights, "data/weights/model.pt"),
    (plant_legacy_constants, "data/constants/model.pt"),
    (plant_tensor_constant, "data/constants/tensor_0"),
    (plant_opaque_object, "data/constants/opaque_obj_0"),
    (plant_opaque_object_in_a_record_of_another_name, "data/constants/opaque_obj_/../tensor_0"),
    (plant_size_expression, "models/model.json"),
]
RUNNING = [(plant_guard, "models/model.json")]
NOT_KNOWN_TO_RUN = [(plant_operator, "models/model.json"), (plant_name, "models/model.json")]


def name_of(value: object) -> str | None:
    return value.__name__ if callable(value) else None


@pytest.mark.parametrize(("plant", "record"), [*LOADING, *RUNNING, *NOT_KNOWN_TO_RUN], ids=name_of)
def test_planted_code_does_not_run_and_its_record_is_named(plant: Any, record: str, archive: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = doctored(archive, tmp_path / "net.pt2", lambda records: plant(records, marker))
    with pytest.raises(UnsupportedModelError, match="unsafe=True") as refused:
        load_model(str(path))
    assert repr(record) in str(refused.value)
    assert not marker.exists()


@pytest.mark.parametrize(("plant", "record"), [*LOADING, *RUNNING], ids=name_of)
@pytest.mark.filterwarnings("ignore")  # whatever torch says while it is being abused
def test_the_same_plants_do_run_where_they_are_trusted(plant: Any, record: str, archive: Path, tmp_path: Path) -> None:
    """The control: without it, the test above could pass on plants that are duds."""
    marker = tmp_path / "marker"
    path = doctored(archive, tmp_path / "net.pt2", lambda records: plant(records, marker))
    with contextlib.suppress(Exception):
        load_model(str(path), unsafe=True).module()(torch.zeros(SHAPE))
    assert marker.exists()


@pytest.mark.parametrize(
    "record", ["data/aotinductor/model/model.so", "data/constants/custom_obj_0", "constants.pkl", "data.pkl"]
)
def test_a_record_of_an_unknown_kind_is_refused_unread(record: str, archive: Path, tmp_path: Path) -> None:
    path = doctored(archive, tmp_path / "net.pt2", lambda records: records.update({record: b"anything"}))
    with pytest.raises(UnsupportedModelError, match=record):
        load_model(path)


def test_extra_files_are_text_and_never_unpickled(archive: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    text = pickle.dumps(Plant(marker), protocol=0)
    path = doctored(archive, tmp_path / "net.pt2", lambda records: records.update({"extra/notes": text}))
    load_model(path)
    assert not marker.exists()


def test_the_format_of_old_torch_is_refused(tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "old.pt2"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("version", "8.16")
        for part in ("state_dict", "constants", "example_inputs"):
            file.writestr(f"serialized_{part}.pt", saved({"a": Plant(marker)}))
    with pytest.raises(UnsupportedModelError):
        load_model(path)
    assert not marker.exists()


def test_records_that_only_one_reader_sees_are_refused(archive: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    path.write_bytes(archive.read_bytes())
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("version", "8.16")
    with pytest.raises(UnsupportedModelError, match=r"net\.pt2"):
        load_model(path)


def test_a_fused_program_loads_without_unsafe_with_its_example_inputs(tmp_path: Path) -> None:
    net, x = small_net(), torch.randn(SHAPE)
    randomise_batch_norm(net)
    batch = torch.export.Dim("batch", max=64)
    fused = reparam_compiler.fuse(torch.export.export(net, (x,), dynamic_shapes=({0: batch, 2: torch.export.Dim.AUTO},)))
    save_model(fused, tmp_path / "fused.pt2")
    loaded = load_model(tmp_path / "fused.pt2")
    assert torch.equal(loaded.example_inputs[0][0], x)
    assert torch.equal(loaded.module()(x), fused.module()(x))


def test_a_program_with_guards_trees_and_derived_sizes_loads(tmp_path: Path) -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor, more: dict[str, torch.Tensor], *, scale: torch.Tensor) -> dict[str, Any]:
            torch._check(x.shape[2] % 2 == 0)
            return {"pooled": nn.functional.avg_pool2d(x, 2).flatten(1), "rest": [more["a"] * scale]}

    auto, x, more = torch.export.Dim.AUTO, torch.randn(2, 3, 10, 12), {"a": torch.randn(2, 3)}
    shapes = {"x": {0: auto, 2: auto, 3: auto}, "more": {"a": {0: auto}}, "scale": None}
    program = torch.export.export(Net(), (x, more), {"scale": torch.ones(1)}, dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "net.pt2")
    found = load_model(tmp_path / "net.pt2").module()(x, more, scale=torch.ones(1))
    assert found["pooled"].shape == (2, 90)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt"])
def test_a_pickle_is_opened_only_where_it_is_trusted(suffix: str, tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / f"net{suffix}"
    path.write_bytes(saved(Plant(marker)))
    with pytest.raises(UnsupportedModelError, match="unsafe=True"):
        load_model(path)
    assert not marker.exists()
    torch.save(small_net(), path)
    assert isinstance(load_model(path, unsafe=True), SmallNet)


def test_weights_alone_are_no_model(tmp_path: Path) -> None:
    torch.save(small_net().state_dict(), tmp_path / "net.pt")
    with pytest.raises(UnsupportedModelError, match="Weights alone"):
        load_model(tmp_path / "net.pt", unsafe=True)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere.onnx", "no such file"),
        ("nowhere.pt2", "no such file"),
        ("model.h5", r"expected a path that ends in \.onnx or \.pt2"),
        ("reparam_compiler.nowhere:net", "no module reparam_compiler.nowhere"),
        ("reparam_compiler.zoo:nothing", "has no nothing"),
        ("math:tau", "found a builtins.float"),
        ("platform:machine", "found a builtins.str"),
    ],
)
def test_what_cannot_be_a_model_is_refused_in_words(spec: str, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        load_model(spec)


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x05\x06" + bytes(18)])
def test_a_damaged_archive_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "net.pt2").write_bytes(content)
    with pytest.raises(UnsupportedModelError, match=r"net\.pt2"):
        load_model(tmp_path / "net.pt2")


def test_a_program_without_a_signature_is_refused_as_it_is_opened(tmp_path: Path) -> None:
    program = torch.export.export(nn.Conv2d(3, 4, 3).eval(), (torch.zeros(SHAPE),))
    program.module_call_graph[0].signature = None
    torch.export.save(program, tmp_path / "model.pt2")
    with pytest.raises(UnsupportedModelError, match=r"model\.pt2: the program does not say how it is called; expected"):
        load_model(tmp_path / "model.pt2")


def test_a_factory_comes_from_the_working_folder_in_its_own_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("from torch import nn\ndef net():\n    return nn.Sequential(nn.Conv2d(1, 1, 1))\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", ".", str(tmp_path))])
    monkeypatch.setitem(sys.modules, "mine", None)
    del sys.modules["mine"]  # and so it is gone afterwards as well
    model: Any = load_model("mine:net")
    assert model.training


def identity_onnx() -> onnx.ModelProto:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def test_onnx_round_trip(tmp_path: Path) -> None:
    save_model(identity_onnx(), tmp_path / "net.onnx")
    assert load_model(tmp_path / "net.onnx") == identity_onnx()


def test_a_module_becomes_a_program_or_onnx_of_the_shapes_of_its_inputs(tmp_path: Path) -> None:
    net, x = small_net(), torch.randn(SHAPE)
    save_model(net, tmp_path / "net.pt2", example_inputs=(x,))
    torch.testing.assert_close(load_model(tmp_path / "net.pt2").module()(x), net(x))
    save_model(net, tmp_path / "net.onnx", example_inputs=(x,))
    (found,) = run_on(tmp_path / "net.onnx", x)
    np.testing.assert_allclose(found, net(x).detach().numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("model", "name", "message"),
    [
        (identity_onnx, "net.pt2", "ONNX model cannot become"),
        (small_net, "net.pt2", "needs its input shapes: save_model"),
        (small_net, "net.onnx", "needs its input shapes: save_model"),
        (small_net, "net.pt", r"expected \.onnx or \.pt2"),
        (dict, "net.pt2", "builtins.dict"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_no_file(model: Any, name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        save_model(model(), tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("old", [None, b"older"])
def test_a_write_that_fails_leaves_what_was_there(old: bytes | None, archive: Path, tmp_path: Path, monkeypatch: Any) -> None:
    program, target = load_model(archive), tmp_path / "net.pt2"
    if old is not None:
        target.write_bytes(old)

    def failing(program: object, file: Any) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch.export, "save", failing)
    with pytest.raises(OSError, match="disk full"):
        save_model(program, target)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == ([] if old is None else [old])


def test_inputs_come_in_the_order_of_the_model() -> None:
    class Two(nn.Module):
        def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
            return first + second

    found = inputs_of_shapes(Two(), {"second": (1, 2), "first": (3, 2)})
    assert [tuple(tensor.shape) for tensor in found] == [(3, 2), (1, 2)]
    assert inputs_of_shapes(identity_onnx(), {"x": (4, 2)})[0].shape == (4, 2)
    with pytest.raises(UnsupportedModelError, match="z is no input of the model; the inputs are first, second"):
        inputs_of_shapes(Two(), {"z": (1,)})


class Optional(nn.Module):
    def forward(self, a: torch.Tensor, b: Any = None, c: Any = None, *, scale: Any = None) -> torch.Tensor:
        return a


def test_an_input_never_lands_in_the_place_of_another() -> None:
    assert len(inputs_of_shapes(Optional(), {"b": (1,), "a": (2,)})) == 2
    for shapes, said in (
        ({"a": (2,), "c": (1,)}, "no shape for b; the inputs are a, b, c, in this order"),
        ({"b": (1,)}, "no shape for a"),
        ({"a": (2,), "scale": (1,)}, "scale is no input of the model, which takes it by keyword only"),
    ):
        with pytest.raises(UnsupportedModelError, match=said):
            inputs_of_shapes(Optional(), shapes)


def test_inputs_are_of_the_dtypes_that_a_model_states() -> None:
    class Look(nn.Module):
        def forward(self, table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            return table[index]

    program = torch.export.export(Look(), (torch.zeros(4, 2).double(), torch.zeros(3, dtype=torch.int64)))
    table, index = inputs_of_shapes(program, {"index": (3,), "table": (4, 2)})
    assert (table.dtype, index.dtype) == (torch.float64, torch.int64)
    assert set(index.tolist()) <= {0, 1}
    with pytest.raises(UnsupportedModelError, match="no shape for index; the inputs are table, index"):
        inputs_of_shapes(program, {"table": (4, 2)})
    by_keyword = torch.export.export(Look(), (torch.zeros(4, 2),), {"index": torch.zeros(3, dtype=torch.int64)})
    with pytest.raises(UnsupportedModelError, match="index is no input of the model, which takes it by keyword only"):
        inputs_of_shapes(by_keyword, {"table": (4, 2), "index": (3,)})
    proto = identity_onnx()
    proto.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT32
    proto.graph.input[0].name = "input:0"
    assert inputs_of_shapes(proto, {"input:0": (4, 2)})[0].dtype == np.int32
