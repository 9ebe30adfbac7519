"""Real models of timm and transformers: fused they give the same values, with no more convs than after their own conversion."""

import re

import pytest
import torch
from torch import Tensor, nn

import reparam_compiler
from reparam_compiler.api.report import FuseReport
from reparam_compiler.interpreter.difference import difference
from tests.support.foreign_models import timm_model, transformers_model

TOLERANCE = 1e-6
"""float64, the fused weights rounded to float32 on the way into the model."""
TIMM = {
    "mobileone_s0": (191, 43),
    "coat_tiny": (109, 109),
    "csatv2": (52, 52),
    "davit_tiny": (28, 28),
    "efficientvim_m1": (66, 66),
    "fastvit_t8": (68, 52),
    "lcnetv2_small": (46, 36),
    "repghostnet_050": (95, 95),
    "efficientformerv2_s0": (83, 83),
    "shvit_s1": (77, 77),
    "efficientvit_m0": (116, 116),
    "iformer_t": (74, 74),
    "twins_svt_small": (15, 15),
    "repvit_m0_9": (126, 103),
    "ghostnet_050": (95, 95),
    "repvgg_a0": (44, 22),
}
"""For each model the convs before, and those that timm's own `reparameterize_model` leaves."""
TRANSFORMERS = {"textnet": (40, 16), "rt_detr": (57, 45), "efficientloftr": (17, 10), "d_fine": (117, 93)}
"""For each model the convs before and after `fuse`; these have no conversion of their own."""


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
    model, x = timm_model(name)
    result, report = fused(model, x)
    before, own = TIMM[name]
    assert report.before.convs == before
    assert report.after.convs <= own
    assert not [refusal for refusal in report.refusals if not STAYS.search(refusal.reason)]
    with torch.no_grad():
        expected, found = (m.double()(x.double()) for m in (model, result))
    assert difference(expected, found).relative < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_transformers_model_is_fused(name: str) -> None:
    model, x = transformers_model(name)
    _, report = fused(model, x)
    assert (report.before.convs, report.after.convs) == TRANSFORMERS[name]
    assert report.whole_model is not None
    assert report.whole_model.difference.relative < TOLERANCE
