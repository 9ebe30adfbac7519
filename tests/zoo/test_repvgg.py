"""The nets have the shapes, widths, groups and parameter counts that the paper gives."""

from itertools import chain
from math import floor

import pytest
import torch

from reparam_compiler.zoo import REPVGG, RESNET, Architecture, RepVGG, randomise_batch_norm, repvgg_a0, repvgg_b0
from reparam_compiler.zoo.repvgg import place_layers
from tests.support.loaded_packages import loaded

# Millions of weights and biases of the fused nets, cut to two decimals: Tables 4 and 5 of the paper.
PAPER = {
    "A0": 8.30,
    "A1": 12.78,
    "A2": 25.49,
    "B0": 14.33,
    "B1": 51.82,
    "B1g2": 41.36,
    "B1g4": 36.12,
    "B2": 80.31,
    "B2g4": 55.77,
    "B3": 110.96,
    "B3g4": 75.62,
}
# The published nets' counts, biases and batch norms included.
RESNET_PARAMS = {
    "ResNet-18": 11_689_512,
    "ResNet-34": 21_797_672,
    "ResNet-50": 25_557_032,
    "ResNet-101": 44_549_160,
    "ResNet-152": 60_192_808,
}
SMALL = Architecture((1, 2, 3, 4, 1), (4, 4, 8, 12, 16))


def count_by_rule(a: float, b: float, layers: tuple[int, ...], groups: int) -> int:
    """Fused parameters from the paper's text alone: 9 Ci Co / g + Co a layer, and the linear layer."""
    widths = list(
        chain.from_iterable([w] * n for w, n in zip([min(64, 64 * a), 64 * a, 128 * a, 256 * a, 512 * b], layers, strict=True))
    )
    total = 1000 * (widths[-1] + 1)
    for number, (into, out) in enumerate(zip([3, *widths], widths, strict=False), start=1):
        grouped = number in {3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27}
        total += 9 * into * out / (groups if grouped else 1) + out
    return int(total)


def count_in_model(model: RepVGG) -> int:
    """What the fused net will hold: of each block, the 3x3 kernel and a bias."""
    convs = [block.branches["dense"].conv for stage in model.stages for block in stage]
    kernels = sum(conv.weight.numel() + conv.out_channels for conv in convs)
    return kernels + model.linear.weight.numel() + model.linear.bias.numel()


@pytest.mark.parametrize("name", REPVGG)
def test_fused_parameters_are_the_papers(name: str) -> None:
    with torch.device("meta"):
        model = REPVGG[name]()
    a, b = {"A0": (0.75, 2.5), "A1": (1, 2.5), "A2": (1.5, 2.75), "B0": (1, 2.5), "B1": (2, 4), "B2": (2.5, 5), "B3": (3, 5)}[
        name[:2]
    ]
    layers = (1, 2, 4, 14, 1) if name[0] == "A" else (1, 4, 6, 16, 1)
    count = count_by_rule(a, b, layers, groups=int(name[3:] or 1))
    assert count_in_model(model) == count
    assert floor(count / 1e4) / 100 == PAPER[name]


@pytest.mark.parametrize("name", RESNET)
def test_resnet_parameters_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        model = RESNET[name]()
    assert sum(parameter.numel() for parameter in model.parameters()) == RESNET_PARAMS[name]


def test_both_branches_of_a_grouped_layer_are_grouped() -> None:
    model = RepVGG(Architecture(SMALL.layers, SMALL.widths, groups=4))
    blocks = [block for stage in model.stages for block in stage]
    for number, block in enumerate(blocks, start=1):
        expected = 4 if number in (3, 5, 7, 9, 11) else 1
        assert {branch.conv.groups for name, branch in block.branches.items() if name != "identity"} == {expected}


def test_stages_halve_the_image_five_times() -> None:
    x = torch.randn(1, 3, 64, 96)
    shapes = []
    for stage in RepVGG(SMALL).eval().stages:
        x = stage(x)
        shapes.append(tuple(x.shape))
    assert shapes == [(1, 4, 32, 48), (1, 4, 16, 24), (1, 8, 8, 12), (1, 12, 4, 6), (1, 16, 2, 3)]


def test_dilating_the_last_two_stages_replaces_their_strides_by_dilation_2_and_4() -> None:
    stages = place_layers(Architecture.scaled("A", 0.75, 2.5), dilated="last_two_stages")
    assert [{(site.stride, site.dilation) for site in stage} for stage in stages[3:]] == [{(1, 2)}, {(1, 4)}]
    assert [site.stride for stage in stages[:3] for site in stage] == [2, 2, 1, 2, 1, 1, 1]
    assert all(site.dilation == 1 for stage in stages[:3] for site in stage)


def test_dilating_the_last_five_spares_the_earlier_layers_at_the_same_resolution() -> None:
    stages = place_layers(Architecture.scaled("B", 2, 4), dilated="last_five")
    assert [site.dilation for site in stages[3]] == [1] * 12 + [2] * 4
    assert [site.dilation for site in stages[4]] == [4]
    assert all(site.stride == 1 for stage in stages[3:] for site in stage)


@pytest.mark.parametrize("dilated", ["last_two_stages", "last_five"])
def test_dilated_backbones_have_output_stride_8(dilated: str) -> None:
    features = RepVGG(SMALL, dilated=dilated).eval().stages(torch.randn(1, 3, 64, 40))
    assert features.shape == (1, 16, 8, 5)


def test_unknown_dilation_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="dilated='all': choose 'last_two_stages', 'last_five' or None"):
        repvgg_a0(dilated="all")  # type: ignore[arg-type]


def test_an_architecture_needs_as_many_widths_as_stages() -> None:
    with pytest.raises(ValueError, match="2 layer counts, 1 widths and 5 strides"):
        Architecture((1, 1), (8,))


@pytest.mark.parametrize("name", ["A0", "B1g4"])
def test_random_nets_neither_die_nor_explode_at_depth(name: str) -> None:
    torch.manual_seed(0)
    model = randomise_batch_norm(REPVGG[name](num_classes=16)).eval()
    with torch.no_grad():
        logits = model(torch.randn(4, 3, 64, 96))
    assert logits.isfinite().all()
    assert 1e-3 < logits.std(dim=0).mean().item() < 1e3


def test_options_reach_the_net() -> None:
    model = repvgg_b0(num_classes=7, block="without_both", dilated="last_five")
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    assert not any("pointwise" in name for name, _ in model.named_parameters())


def test_importing_the_zoo_loads_neither_data_nor_compilers() -> None:
    assert not loaded("the zoo") & {"sklearn", "scipy", "safetensors", "onnx", "onnxruntime", "tvm"}
