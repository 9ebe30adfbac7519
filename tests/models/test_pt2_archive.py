"""What a .pt2 file may hold: each value of its graph is looked at, and only what torch.export writes is let through."""

import io
import json
import pickle
import zipfile
from typing import Any

import pytest
import torch

from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.models import pt2_archive

TREE = [1, {"type": "builtins.tuple", "context": "null", "children_spec": []}]


def archive(records: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(buffer)
    writer.set_min_version(6)
    for name, data in records.items():
        writer.write_record(name, data, len(data))
    writer.write_end_of_file()
    return buffer.getvalue()


def of_graph(value: Any) -> bytes:
    return archive({"models/model.json": json.dumps(value).encode()})


def tree(**changes: Any) -> str:
    return json.dumps([1, {**TREE[1], **changes}])  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "value",
    [
        {"target": "torch.ops.aten.conv2d.default"},
        {"target": "torch.ops.higher_order.cond"},
        {"target": "_operator.floordiv"},
        {"as_operator": "torch.sym_max"},
        {"expr_str": "Max(2, 3*s0 + Mod(s1, 4)) // 2"},
        {"guards_code": "L['x'].size()[0] >= 2"},
        {"in_spec": tree(children_spec=[TREE[1]])},
        {"out_spec": tree(type="builtins.dict", context='["logits", 3]', children_spec=[TREE[1], TREE[1]])},
        {"name": "conv_1", "as_int": 3, "as_float": "Infinity", "as_bool": True},
        {"fqn": "stages.0.conv-1", "as_string": "reflect, twice"},
        {"metadata": {"stack_trace": "File 'model.py', line 3: x = __import__(\"os\")"}},
        {"nodes": [{"inputs": [{"arg": {"as_tensor": {"name": "x"}}}]}], "version": None},
    ],
)
def test_what_torch_writes_is_let_through(value: Any) -> None:
    pt2_archive.check(of_graph(value), "net.pt2")


@pytest.mark.parametrize(
    "value",
    [
        {"target": "torch.ops.aten.from_file.default"},
        {"target": "torch.ops.mylib.add.default"},
        {"target": "torch.hub.load"},
        {"target": "_operator.attrgetter"},
        {"as_operator": "os.system"},
        {"expr_str": "__import__('os').system('true')"},
        {"expr_str": "s0.__class__"},
        {"expr_str": "open('x')"},
        {"expr_str": "[s0 for s0 in range(9)]"},
        {"expr_str": "s0 +"},
        {"guards_code": "L['x'].evil() > 2"},
        {"guards_code": "(lambda: 1)()"},
        {"in_spec": tree(type="os.system")},
        {"in_spec": tree(context='["not an identifier"]')},
        {"in_spec": "no JSON"},
        {"name": "x; import os"},
        {"as_string": "quoted ' here"},
        {"as_string": "two\nlines"},
        {"fqn": "back\\slash"},
        {"as_int": "3"},
        {"as_int": {"name": "x"}},
        {"target": 3},
        {"custom_obj": "x"},
        {"a key": 1},
        {"metadata": {"nn_module_stack": ["print"], "target": "os.system"}},
        {"anything": "a word, and more"},
    ],
)
def test_anything_else_is_refused_and_named(value: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=r"net\.pt2: refused for its record 'models/model\.json': .*unsafe=True"):
        pt2_archive.check(of_graph(value), "net.pt2")


@pytest.mark.parametrize(
    ("record", "data", "why"),
    [
        ("models/model.json", b"{", "it is no JSON"),
        ("data/weights/weight_0.pkl", b"", "it is no raw tensor"),
        ("data/aotinductor/model.so", b"\x7fELF", "it is no raw tensor"),
        ("data/sample_inputs/model.pt", pickle.dumps(print), "it is a pickle that holds more than tensors"),
        ("data/weights/model_config.json", b"[]", "it lists no tensors"),
    ],
)
def test_other_records_are_refused_by_what_they_are(record: str, data: bytes, why: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"refused for its record '{record}': {why}"):
        pt2_archive.check(archive({record: data}), "net.pt2")


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({"path_name": "weight_0", "use_pickle": True}, "w is stored there as a pickle"),
        ({"path_name": "weight_0", "use_pickle": 0}, "w is stored there as a pickle"),
        ({"path_name": "weight_0"}, "w is stored there as a pickle"),
        ({"path_name": "custom_obj_0", "use_pickle": False}, "w is an object there"),
        ("weight_0", "w is stored there as a pickle"),
    ],
)
def test_a_tensor_that_is_no_raw_one_is_refused(entry: Any, why: str) -> None:
    config = json.dumps({"config": {"w": entry}}).encode()
    with pytest.raises(UnsupportedModelError, match=why):
        pt2_archive.check(archive({"data/weights/model_weights_config.json": config}), "net.pt2")
    raw = {"path_name": "weight_0", "use_pickle": False}
    fine = json.dumps({"config": {"w": raw}}).encode()
    pt2_archive.check(archive({"data/weights/model_weights_config.json": fine, "data/weights/weight_0": b"1234"}), "net.pt2")


def test_sample_inputs_of_tensors_and_containers_are_let_through() -> None:
    buffer = io.BytesIO()
    torch.save(((torch.zeros(1, 3),), {"scale": torch.ones(1)}), buffer)
    pt2_archive.check(archive({"data/sample_inputs/model.pt": buffer.getvalue()}), "net.pt2")


def test_what_is_no_archive_is_said_to_be_none() -> None:
    with pytest.raises(UnsupportedModelError, match=r"net\.pt2: found no archive of torch\.export\.save"):
        pt2_archive.check(b"not an archive", "net.pt2")


def test_a_record_that_is_larger_than_the_file_is_refused() -> None:
    """torch compresses none, so what is compressed is there to be unpacked."""
    buffer = io.BytesIO(archive({"models/model.json": b"{}"}))
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as writer:
        writer.writestr("archive/data/weights/weight_0", bytes(2**20))
    with pytest.raises(UnsupportedModelError, match="its records take more than the file"):
        pt2_archive.check(buffer.getvalue(), "net.pt2")


def test_a_record_that_torch_cannot_read_is_named() -> None:
    content = of_graph({"target": "torch.ops.aten.conv2d.default"})
    damaged = content.replace(b"PK\x03\x04", b"PK\x03\x05", 1)  # the local header of the first record; the directory is sound
    with pytest.raises(UnsupportedModelError, match=r"net\.pt2: .*(cannot be read|no archive)"):
        pt2_archive.check(damaged, "net.pt2")
