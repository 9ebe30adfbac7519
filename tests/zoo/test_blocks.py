"""Each block type computes the equation in its docstring, written out here once more by hand, in float64."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d, relu
from torch.nn.utils import parametrize

from reparam_compiler.zoo import randomise_batch_norm, repvgg_b0
from reparam_compiler.zoo.blocks import BLOCKS, BlockName, BranchBlock, ConvBN, Site, stage_of_blocks
from reparam_compiler.zoo.random_weights import initialise_convs

EXACT = {"rtol": 1e-12, "atol": 1e-12}  # float64
FLOAT32 = {"rtol": 1e-5, "atol": 1e-5}  # float32, the same ops in another order
KEEPS = Site(8, 8)


def build(block: BlockName, site: Site, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomise_batch_norm(BLOCKS[block](site), seed).double().eval()


def image(site: Site, height: int = 9, width: int = 6) -> Tensor:
    return torch.randn(2, site.in_channels, height, width, dtype=torch.float64)


def bn(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """Eq. 2."""
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return (x - norm.running_mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)


def conv(x: Tensor, weight: Tensor, site: Site) -> Tensor:
    """The conv of `site` with this kernel: the pads are the dilation for an extent of 3 and nothing for one of 1."""
    pads = tuple(site.dilation * (size - 1) // 2 for size in weight.shape[2:])
    return conv2d(x, weight, stride=site.stride, padding=pads, dilation=site.dilation, groups=site.groups)


@st.composite
def sites(draw: st.DrawFn) -> Site:
    groups = draw(st.sampled_from([1, 2, 4]))
    into, out = (groups * draw(st.integers(1, 3)) for _ in range(2))
    return Site(into, draw(st.sampled_from([into, out])), draw(st.sampled_from([1, 2])), draw(st.integers(1, 4)), groups)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(site=sites(), height=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 99))
def test_block_is_equation_1(site: Site, height: int, width: int, seed: int) -> None:
    block, x = build("repvgg", site, seed), image(site, height, width)
    dense, pointwise = block.branches["dense"], block.branches["pointwise"]
    expected = bn(conv(x, dense.conv.weight, site), dense.bn) + bn(conv(x, pointwise.conv.weight, site), pointwise.bn)
    if site.stride == 1 and site.in_channels == site.out_channels:
        expected = expected + bn(x, block.branches["identity"])
    else:
        assert "identity" not in block.branches
    torch.testing.assert_close(block(x), relu(expected), **EXACT)


@pytest.mark.parametrize("site", [KEEPS, Site(8, 12, 2), Site(8, 8, 1, 2), Site(8, 8, 1, 1, 2)], ids=str)
class TestAblations:
    """Tables 6 and 7."""

    def test_without_identity_and_without_1x1_each_lack_one_branch(self, site: Site) -> None:
        identity = {"identity"} if site.keeps_shape else set()
        assert set(build("repvgg", site).branches) == {"dense", "pointwise"} | identity
        assert set(build("without_identity", site).branches) == {"dense", "pointwise"}
        assert set(build("without_1x1", site).branches) == {"dense"} | identity
        assert set(build("without_both", site).branches) == {"dense"}

    def test_identity_without_bn_adds_the_input_itself(self, site: Site) -> None:
        block, x = build("identity_without_bn", site), image(site)
        total = block.branches["dense"](x) + block.branches["pointwise"](x)
        torch.testing.assert_close(block(x), relu(total + x if site.keeps_shape else total), **EXACT)

    def test_post_addition_bn_norms_the_sum_of_bare_convs(self, site: Site) -> None:
        block, x = build("post_addition_bn", site), image(site)
        total = conv(x, block.branches["dense"].weight, site) + conv(x, block.branches["pointwise"].weight, site)
        torch.testing.assert_close(block(x), relu(bn(total + x if site.keeps_shape else total, block.after)), **EXACT)

    def test_relu_in_branches_adds_what_is_not_negative(self, site: Site) -> None:
        block, x = build("relu_in_branches", site), image(site)
        plain = BranchBlock({name: branch[0] for name, branch in block.branches.items()})
        expected = sum(relu(branch(x)) for branch in plain.branches.values())
        torch.testing.assert_close(block(x), expected, **EXACT)
        assert not torch.allclose(block(x), plain(x))

    def test_acb_adds_a_column_and_a_row_to_the_square(self, site: Site) -> None:
        block, x = build("acb", site), image(site)
        layers = [block.branches[name] for name in ("dense", "vertical", "horizontal")]
        assert [tuple(layer.conv.weight.shape[2:]) for layer in layers] == [(3, 3), (3, 1), (1, 3)]
        torch.testing.assert_close(
            block(x), relu(sum(bn(conv(x, layer.conv.weight, site), layer.bn) for layer in layers)), **EXACT
        )

    def test_trivial_convolves_by_w_plus_identity(self, site: Site) -> None:
        block, x = build("trivial", site), image(site)
        layer = block.branches["dense"]
        assert parametrize.is_parametrized(layer.conv) == site.keeps_shape
        raw = layer.conv.parametrizations.weight.original if site.keeps_shape else layer.conv.weight
        before = conv(x, raw, site)
        torch.testing.assert_close(block(x), relu(bn(before + x if site.keeps_shape else before, layer.bn)), **EXACT)

    def test_diracnet_adds_a_scaled_input_to_scaled_unit_filters(self, site: Site) -> None:
        block, x = build("diracnet", site), image(site)
        layer = block.branches["dense"]
        if site.keeps_shape:
            dirac, raw = layer.conv.parametrizations.weight[0], layer.conv.parametrizations.weight.original
            torch.nn.init.normal_(dirac.a)
            torch.nn.init.normal_(dirac.b)
            unit = raw / raw.pow(2).sum((1, 2, 3), keepdim=True).sqrt()
            total = dirac.a.view(-1, 1, 1) * x + dirac.b.view(-1, 1, 1) * conv(x, unit, site)
        else:
            total = conv(x, layer.conv.weight, site)
        torch.testing.assert_close(block(x), relu(bn(total, layer.bn)), **EXACT)


def test_residual_reorg_pairs_layers_and_adds_what_went_round_them() -> None:
    torch.manual_seed(0)
    stage = stage_of_blocks([Site(6, 8, 2), KEEPS, KEEPS, KEEPS], "residual_reorg")
    randomise_batch_norm(stage).double().eval()
    first, second = stage
    x = torch.randn(2, 6, 9, 7, dtype=torch.float64)
    middle = relu(first.residual.second(relu(first.residual.first(x))) + first.shortcut(x))
    torch.testing.assert_close(first(x), middle, **EXACT)
    assert isinstance(first.shortcut, ConvBN)
    torch.testing.assert_close(
        second(middle), relu(second.residual.second(relu(second.residual.first(middle))) + middle), **EXACT
    )


def test_residual_reorg_of_b0_has_2_3_and_8_blocks_in_stages_2_to_4() -> None:
    stages = repvgg_b0(block="residual_reorg", num_classes=2).stages
    assert [len(stage) for stage in stages] == [1, 2, 3, 8, 1]


def test_an_unknown_block_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"block='dbb': choose one of repvgg, .*acb"):
        stage_of_blocks([KEEPS], "dbb")  # type: ignore[arg-type]


def test_our_batch_norm_is_the_one_of_torch() -> None:
    norm = randomise_batch_norm(nn.BatchNorm2d(8)).double().eval()
    x = image(KEEPS)
    expected = batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    torch.testing.assert_close(bn(x, norm), expected, **EXACT)


@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_traces_exports_and_trains(block: BlockName) -> None:
    torch.manual_seed(0)
    sites = [Site(3, 8, 2), *(Site(before, after) for before, after in pairwise([8, 8, 8]))]
    net = randomise_batch_norm(nn.Sequential(stage_of_blocks(sites[:1], block), stage_of_blocks(sites[1:], block))).eval()
    x = torch.randn(2, 3, 9, 14)
    expected = net(x)
    torch.testing.assert_close(torch.fx.symbolic_trace(net)(x), expected, **FLOAT32)
    torch.testing.assert_close(torch.export.export(net, (x,)).module()(x), expected, **FLOAT32)
    net.train()(x).square().mean().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_initial_weights_have_variance_2_over_fan_in_whatever_the_groups() -> None:
    layer = ConvBN(Site(256, 256, groups=4))
    torch.manual_seed(0)
    initialise_convs(layer)
    assert layer.conv.weight.var().item() == pytest.approx(2 / (9 * 64), rel=0.02)
