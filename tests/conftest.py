"""How all tests run: hypothesis without deadlines, one torch thread, seeded generators, third parties' warnings named."""

import functools
import gc
import importlib.util
import os
from collections.abc import Iterator

import pytest
import torch
import torch.fx.config
from hypothesis import HealthCheck, settings
from threadpoolctl import threadpool_limits

from tests.support import quick_decompositions

if importlib.util.find_spec("beartype") is not None:
    # the dtypes and axes that annotations state are checked, in all rooms that have some
    rooms = [f"reparam_compiler.{room}" for room in ("core", "ir", "lowering", "models", "passes", "training")]
    importlib.import_module("tests.support.typechecker").install(rooms)

quick_decompositions.install()
# that each node says where in the code of its model it is from takes a sixth of an export; nothing here reads it
torch.fx.config.do_not_emit_stack_traces = True

if not torch.accelerator.is_available():
    # torch.manual_seed keeps a stack trace for each kind of device that may come yet: a millisecond, at every test
    for device in (torch.cuda, torch.mtia, torch.xpu):
        device.manual_seed_all = lambda seed: None

settings.register_profile("local", max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("local"), derandomize=True)
settings.register_profile("stress", parent=settings.get_profile("local"), max_examples=3000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "local"))
torch.set_num_threads(1)
threadpool_limits(1, "blas")  # two workers with two threads each slow one another down

THIRD_PARTY_WARNINGS = (
    # beartype looks at one random item of a list, also where hypothesis draws
    "ignore:Do not use the `random` module inside strategies",
    # torch's own graphs hold the tree specs that torch deprecates
    "ignore:.*LeafSpec.* is deprecated:FutureWarning",
)


def pytest_configure(config: pytest.Config) -> None:
    """Warnings are errors (pyproject.toml), but for these."""
    for line in THIRD_PARTY_WARNINGS:
        config.addinivalue_line("filterwarnings", line)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests go first: one that begins last leaves a worker alone with it."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """What the imports made stays to the end: the collector need not walk its millions of objects again and again.

    What an export makes by the ten thousand is mostly gone soon after: looked at less often, it takes a tenth of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session")
def one_process() -> Iterator[None]:
    """All searches of a run that are asked for the same measurements share their processes, which take seconds to start."""
    from reparam_compiler.lowering.search import net_search

    with pytest.MonkeyPatch.context() as patch:
        for name in ("Builders", "Meter"):
            kind = getattr(net_search, name)
            patch.setattr(kind, "close", lambda self: None)
            patch.setattr(net_search, name, functools.cache(kind))
        yield


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Every test draws the same weights, whatever ran before it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
