"""Real models of timm and transformers: fused they give the same values, with no more convs than after their own conversion."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam_compiler
from reparam_compiler.api.report import FuseReport
from reparam_compiler.frontends.torch.tracing import exporting
from reparam_compiler.interpreter.difference import difference
from tests.support.foreign_models import timm_model, transformers_model

TOLERANCE = 1e-6
"""In float64, the fused weights rounded to float32 on the way into the model."""
GHOSTS = ["blocks.2.0", "blocks.4.0", "blocks.6.1", "blocks.6.2", "blocks.8.2", "blocks.8.3"]
GATED = [f"stages.2.blocks.{i}" for i in (*range(1, 6), *range(9, 15))]
EFFICIENTVIT_WIDTHS = {"embed_dim": (64, 128), "key_dim": (16, 16), "window_size": (7, 7)}
TWINS_WIDTHS = {"embed_dims": (64, 128), "mlp_ratios": (4, 4)}
TIMM: dict[str, tuple[int, int, dict[str, Any]]] = {
    "mobileone_s0": (65, 15, {"without": [f"stages.{s}.{i}" for s, end in ((1, 16), (2, 20)) for i in range(4, end)]}),
    "coat_tiny": (33, 21, {"serial_depths": (1, 1, 1, 1), "parallel_depth": 1}),
    "csatv2": (17, 17, {"depths": (1, 1, 2, 1), "transformer_depths": (0, 0, 1, 1)}),
    "davit_tiny": (10, 10, {"depths": (1, 1), "embed_dims": (96, 192), "num_heads": (3, 6)}),
    "efficientvim_m1": (50, 50, {"depths": (1, 1, 2)}),
    "fastvit_t8": (38, 28, {"layers": (1, 1, 1, 1)}),
    "lcnetv2_small": (28, 22, {"depths": (1, 1, 2, 2)}),
    "repghostnet_050": (67, 67, {"without": GHOSTS}),
    "efficientformerv2_s0": (44, 44, {"depths": (1, 1, 2, 2), "num_vit": 1}),
    "shvit_s1": (39, 39, {"depth": (1, 1, 1)}),
    "efficientvit_m0": (37, 37, {"depth": (1, 1), "num_heads": (2, 2), "kernels": (5, 5)} | EFFICIENTVIT_WIDTHS),
    "iformer_t": (39, 39, {"without": ["stages.0.blocks.1", "stages.1.blocks.1", *GATED]}),
    "twins_svt_small": (5, 5, {"depths": (2, 1), "num_heads": (2, 4), "sr_ratios": (8, 4), "wss": (7, 7)} | TWINS_WIDTHS),
    "repvit_m0_9": (54, 46, {"depth": (1, 1, 2, 1)}),
    "ghostnet_050": (67, 67, {"without": GHOSTS}),
    "repvgg_a0": (16, 8, {"without": [f"stages.{s}.{i}" for s, end in ((1, 4), (2, 14)) for i in range(2, end)]}),
}
"""For each model the convs before, those that timm's own `reparameterize_model` leaves, and what makes it shallow: each kind of
block once or twice, since many alike show nothing more. A module that is called several times is one conv here."""
TRANSFORMERS = {"textnet": (40, 16), "rt_detr": (34, 28), "efficientloftr": (14, 7)}
"""For each model the convs before and after `fuse`, of efficientloftr in its parts; these have no conversion of their own.

D-FINE, which has RT-DETR's blocks and takes a minute to export, is one of `benchmarks/fuse_zoo.py`."""


STAYS = re.compile(r"is not linear$|one conv would |^axes \[1, 2\] meet|^linear layers and ops whose channels")
"""Why a merge or norm may stay: it is not linear, it is slower as one conv, or (CoaT's class token beside the others,
efficientformer's norm before a mean) it is no conv's."""


def fused(model: nn.Module, x: Tensor) -> tuple[nn.Module, FuseReport]:
    result, report = reparam_compiler.fuse(model, (x,), return_report=True)
    assert report.max_error is not None
    assert report.max_error.relative < 1e-9  # float64
    return result, report


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_a_timm_model_has_no_more_convs_than_after_its_own_conversion(name: str) -> None:
    before, own, depths = TIMM[name]
    model, x = timm_model(name, **depths)
    result, report = fused(model, x)
    assert report.before.convs == before
    assert report.after.convs <= own
    assert not [refusal for refusal in report.refusals if not STAYS.search(refusal.reason)]
    with torch.no_grad():
        expected, found = (m.double()(x.double()) for m in (model, result))
    assert difference(expected, found).relative < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_transformers_model_is_fused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a fixed batch where dynamo alone would open it, as `test_exporting.py` does: half a minute for RT-DETR."""
    monkeypatch.setattr(exporting, "_by_dynamo", lambda *_: None)
    model, x = transformers_model(name)
    _, report = fused(model, x)
    assert (report.before.convs, report.after.convs) == TRANSFORMERS[name]
    assert report.whole_model is not None
    assert report.whole_model.difference.relative < TOLERANCE
