"""Every block of code in README.md and docs/ runs, or is named here with the reason why it does not.

A page is read from top to bottom in a folder of its own: what one block makes, the next one uses. What a page takes for granted
(the reader's own model, files with the names that it uses) stands in `READERS`.
"""

import doctest
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("tvm")
pytest.importorskip("onnx")

import onnx

from reparam_compiler import fuse
from reparam_compiler.models.io import save_model
from reparam_compiler.passes.fusion import registry
from reparam_compiler.passes.pruning.coupling import registry as coupling
from reparam_compiler.passes.pruning.criteria import base
from reparam_compiler.zoo import Architecture, RepVGG, randomise_batch_norm
from tests.support import doc_blocks
from tests.support.doc_blocks import PAGES, Block, blocks

pytestmark = [pytest.mark.tvm, pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")]

SEARCH = "a search takes minutes; tests/lowering/test_tuning.py and tests/commands/test_tvmc_tune.py run small ones"
BUILT = "needs a C++ compiler and the wheels' headers; tests/lowering/test_artifact.py builds it so"
NOT_RUN = {
    "README.md: make demo": "installs; tests/commands/test_cli_programs.py runs the demo",
    'README.md: rc.tune(plain, example, database="records/", trials=256)': SEARCH,
    "docs/fleet.md": "needs a board; tests/lowering/test_rpc.py and test_fleet.py have the same on the loopback",
    "docs/lowering.md: reparam records list records/ shipped.jsonl.gz": (
        "needs what a search found; tests/commands/test_records_commands.py"
    ),
    "docs/tuning.md": SEARCH,
    'docs/tvmc.md: tvmc tune --target "llvm" --trials 256 --output records resn': SEARCH,
    'docs/tvmc.md: tvmc compile repvgg.onnx -o model.so --target "llvm -mtriple': (
        "needs a cross compiler; tests/lowering/test_cross.py runs the result under qemu"
    ),
    'docs/tvmc.md: TVM=$(python -c "import tvm, pathlib; print(pathlib.Path(tvm': BUILT,
}
"""The blocks that cannot run in a test, by their names, or all of a page; and why."""

BLOCKS = [block for page in PAGES for block in blocks(page)]
NAMES = {name for block in BLOCKS for name in (block.name, block.page)}
RUN = {block.page: [b for b in BLOCKS if b.page == block.page and not NOT_RUN.keys() & {b.name, b.page}] for block in BLOCKS}
IMAGE = (1, 3, 224, 224)


def small_net(classes: int = 10) -> nn.Module:
    """A RepVGG in training form that a test can afford: three blocks, of which two have an identity branch."""
    torch.manual_seed(0)
    return randomise_batch_norm(RepVGG(Architecture((2, 2), (8, 16), strides=(8, 4)), num_classes=classes)).eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages call model.onnx, averaged.onnx (another checkpoint of it) and images.npz."""
    folder = tmp_path_factory.mktemp("files")
    save_model(small_net(), folder / "model.onnx", example_inputs=(torch.zeros(IMAGE),))
    save_model(randomise_batch_norm(small_net(), seed=1), folder / "averaged.onnx", example_inputs=(torch.zeros(IMAGE),))
    np.savez(folder / "images.npz", x=np.random.default_rng(0).standard_normal((32, *IMAGE[1:])).astype("float32"))
    return folder


def of_readme() -> Mapping[str, Any]:
    """The reader's class, and somebody's conversion of it."""
    return {"MyCheckpoint": small_net, "plain_of_yours": small_net()}


def of_api() -> Mapping[str, Any]:
    """A model, what it is called with, and images like those that it will see."""
    return {"model": small_net(), "example_inputs": (torch.zeros(IMAGE),), "images": torch.randn(32, *IMAGE[1:])}


def of_compared() -> Mapping[str, Any]:
    """A model in training form, and what it is called with."""
    return {"model": small_net(), "example": (torch.zeros(IMAGE),)}


def of_equivalent() -> Mapping[str, Any]:
    """A model in both forms, and an image."""
    return {"training_form": small_net(), "deployed_form": fuse(small_net()), "images": torch.randn(IMAGE)}


def of_serving() -> Mapping[str, Any]:
    """A file that leaves its batch open."""
    save_model(small_net(), Path("model.onnx"), example_inputs=(torch.zeros(2, *IMAGE[1:]),), open_sizes=({0: "N"},))
    return {}


def of_tvmc() -> Mapping[str, Any]:
    """The files of the old tutorial: a model whose input is called data, and a picture."""
    model = onnx.load("model.onnx")
    (given,) = model.graph.input
    for node in model.graph.node:
        node.input[:] = ["data" if name == given.name else name for name in node.input]
    given.name = "data"
    onnx.save(model, "resnet50.onnx")
    np.savez("cat.npz", data=np.zeros(IMAGE, "float32"))
    return {}


READERS: Mapping[str, Callable[[], Mapping[str, Any]]] = {
    "README.md": of_readme,
    "docs/api.md": of_api,
    "docs/compared.md": of_compared,
    "docs/equivalent.md": of_equivalent,
    "docs/serving.md": of_serving,
    "docs/tvmc.md": of_tvmc,
}
"""What a page takes for granted; made in its folder."""


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    """What a page registers is forgotten after it."""
    tables: list[dict[str, Any]] = [registry.RULES, base.CRITERIA, coupling.COUPLING_RULES]
    before = [dict(table) for table in tables]
    yield
    for table, rows in zip(tables, before, strict=True):
        table.clear()
        table.update(rows)


@pytest.mark.parametrize("page", sorted(page for page, found in RUN.items() if found))
def test_every_block_of_a_page_runs(page: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in files.iterdir():
        (tmp_path / path.name).hardlink_to(path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__", **READERS.get(page, dict)()}
    for block in RUN[page]:
        try:
            doc_blocks.run(block, names)
        except Exception as error:
            error.add_note(f"{block.place}, in:\n{block.text}")
            raise


@pytest.mark.parametrize("name", sorted(NOT_RUN))
def test_what_does_not_run_says_why(name: str) -> None:
    assert name in NAMES, "no page has this block any more"
    pytest.skip(NOT_RUN[name])


def test_a_block_that_says_another_thing_than_is_printed_fails() -> None:
    with pytest.raises(AssertionError, match="Expected"):
        doc_blocks.run(Block("page.md", 3, "pycon", ">>> 1 + 1\n3\n"), {})
    with pytest.raises(ValueError, match="no way to run rm"):
        doc_blocks.run(Block("page.md", 3, "sh", "rm -r everything\n"), {})


def test_the_examples_of_the_runner_hold() -> None:
    assert doctest.testmod(doc_blocks).failed == 0
