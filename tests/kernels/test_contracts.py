"""What every operator promises beside its numbers: torch's own checks, one graph, the layout, and plain refusals."""

import pytest
import torch

import kernels
from kernels import Prologue, batch_norm
from kernels.conv import conv_op
from kernels.excited_pointwise import excited_pointwise_op
from kernels.norm_act import norm_act_op
from kernels.shuffle import shuffle_op
from kernels.squeeze_excite import squeeze_excite_op


def leaf(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(len(shape))).requires_grad_()


def vectors(channels, dtype=torch.float64):
    return [leaf(channels, dtype=dtype) for _ in range(3)]


CONVOLUTIONS = {
    "depthwise": lambda x, w: ([2, 2], [1, 1], [1, 1], 8, 1, True, "depthwise"),
    "pointwise": lambda x, w: ([1, 1], [0, 0], [1, 1], 2, 2, True, "pointwise"),
    "aten": lambda x, w: ([1, 2], [1, 0], [1, 1], 1, 1, False, "aten"),
}
WEIGHTS = {"depthwise": (8, 1, 3, 3), "pointwise": (6, 4, 1, 1), "aten": (6, 8, 3, 2)}


@pytest.mark.parametrize("path", CONVOLUTIONS)
def test_convolutions_pass_opcheck_and_gradcheck(path):
    x, weight = leaf(2, 8, 5, 4), leaf(*WEIGHTS[path])
    arguments = (x, weight, *vectors(8), "silu", 0.1, *CONVOLUTIONS[path](x, weight))
    torch.library.opcheck(conv_op, arguments)
    torch.autograd.gradcheck(lambda *tensors: conv_op(*tensors, *arguments[5:]), arguments[:5])


def test_a_depthwise_network_of_float32_passes_opcheck():
    x = leaf(2, 8, 5, 4, dtype=torch.float32)
    torch.library.opcheck(
        conv_op,
        (x, leaf(8, 1, 3, 3, dtype=torch.float32), None, None, None, "relu", 0.1, *CONVOLUTIONS["depthwise"](x, x)),
    )


@pytest.mark.parametrize("place", ["none", "before", "after"])
def test_norm_act_passes_opcheck_and_gradcheck(place):
    residual = None if place == "none" else leaf(2, 4, 3, 2)
    tensors = (leaf(2, 4, 3, 2), *vectors(4), residual)
    torch.library.opcheck(norm_act_op, (*tensors, "hardswish", 0.1, place))
    torch.autograd.gradcheck(lambda *t: norm_act_op(*t, "silu", 0.1, place), tensors)


def test_shuffle_and_squeeze_excite_pass_opcheck_and_gradcheck():
    torch.library.opcheck(shuffle_op, (leaf(2, 12, 3, 2), 3))
    tensors = (leaf(2, 4, 3, 2), *vectors(4), leaf(3, 4), leaf(3), leaf(4, 3), leaf(4))

    def excite(x, center, scale, shift, *weights):
        return squeeze_excite_op(x, center, scale, shift, "silu", 0.1, *weights, "silu", "sigmoid")[0]

    torch.library.opcheck(squeeze_excite_op, (*tensors[:4], "silu", 0.1, *tensors[4:], "silu", "sigmoid"))
    torch.autograd.gradcheck(excite, tensors)


@pytest.mark.parametrize("statistics", [True, False])
def test_an_excited_convolution_passes_opcheck_and_gradcheck(statistics):
    tensors = (leaf(2, 4, 3, 2), leaf(5, 4, 1, 1), *vectors(4), leaf(3, 4), leaf(3), leaf(4, 3), leaf(4))

    def excited(*tensors):
        results = excited_pointwise_op(*tensors[:5], "silu", 0.1, *tensors[5:], "silu", "sigmoid", statistics)
        return results[: 3 if statistics else 1]

    torch.library.opcheck(
        excited_pointwise_op, (*tensors[:5], "silu", 0.1, *tensors[5:], "relu", "hardsigmoid", statistics)
    )
    torch.autograd.gradcheck(excited, tensors)


def test_an_empty_batch_goes_through_an_excited_convolution():
    x, weight = leaf(0, 4, 3, 2), leaf(5, 4, 1, 1)
    y, statistics = kernels.excited_pointwise_conv2d(
        x, weight, leaf(3, 4), leaf(3), leaf(4, 3), leaf(4), statistics=True
    )
    y.sum().backward()
    assert y.shape == (0, 5, 3, 2) and statistics.count == 0
    assert torch.equal(weight.grad, torch.zeros(5, 4, 1, 1, dtype=torch.float64))


def block(x, depthwise, pointwise, gammas, betas, project, *layers):
    """Depthwise, shuffled pointwise, excited pointwise, each with BatchNorm and activation, and a sum."""
    y, statistics = kernels.depthwise_conv2d(x, depthwise, 1, 1, statistics=True)
    opened = batch_norm(statistics, gammas[0], betas[0], 1e-5, "silu")
    y, statistics = kernels.pointwise_conv2d(y, pointwise, 2, prologue=opened, statistics=True, shuffle=2)
    opened = batch_norm(statistics, gammas[1], betas[1], 1e-5, "silu")
    y, statistics = kernels.excited_pointwise_conv2d(y, project, *layers, prologue=opened, statistics=True)
    return kernels.norm_act(y, batch_norm(statistics, gammas[2], betas[2], 1e-5, "relu"), x)


def test_a_block_compiles_to_one_graph_and_stays_channels_last():
    tensors = [leaf(2, 8, 5, 4), leaf(8, 1, 3, 3), leaf(8, 4, 1, 1), leaf(3, 8), leaf(3, 8), leaf(8, 8, 1, 1)]
    tensors += [leaf(4, 8), leaf(4), leaf(8, 4), leaf(8)]
    tensors = [tensor.detach().float().requires_grad_() for tensor in tensors]
    explained = torch._dynamo.explain(block)(*tensors)
    assert explained.graph_break_count == 0
    results = []
    for run in (block, torch.compile(block, fullgraph=True, dynamic=False)):
        y = run(*tensors)
        assert y.is_contiguous(memory_format=torch.channels_last)
        results.append([y, *torch.autograd.grad((y * y).sum(), tensors)])
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)


images = torch.zeros(1, 8, 6, 6)
REFUSED = {
    "even K": (lambda: kernels.depthwise_conv2d(images, torch.zeros(8, 1, 4, 4)), "K must be one of"),
    "stride 3": (lambda: kernels.depthwise_conv2d(images, torch.zeros(8, 1, 3, 3), 3), "stride must be one of"),
    "two strides": (lambda: kernels.depthwise_conv2d(images, torch.zeros(8, 1, 3, 3), (1, 2)), "both axes"),
    "channels": (lambda: kernels.depthwise_conv2d(images, torch.zeros(4, 1, 3, 3)), "one filter each"),
    "weight": (lambda: kernels.depthwise_conv2d(images, torch.zeros(8, 2, 3, 3)), r"\[C, 1, K, K\]"),
    "padding": (lambda: kernels.depthwise_conv2d(images, torch.zeros(8, 1, 3, 3), 1, -1), "padding 0 or more"),
    "too small": (lambda: kernels.depthwise_conv2d(images, torch.zeros(8, 1, 7, 7)), "does not fit"),
    "integers": (lambda: kernels.depthwise_conv2d(images.int(), torch.zeros(8, 1, 3, 3)), "must be fp32"),
    "three axes": (lambda: kernels.depthwise_conv2d(images[0], torch.zeros(8, 1, 3, 3)), r"must be \[N, C, H, W\]"),
    "groups": (lambda: kernels.pointwise_conv2d(images, torch.zeros(9, 2, 1, 1), 3), "3 groups do not divide 8"),
    "channels a group": (lambda: kernels.pointwise_conv2d(images, torch.zeros(4, 8, 1, 1), 2), "channels a group"),
    "not pointwise": (lambda: kernels.pointwise_conv2d(images, torch.zeros(8, 8, 3, 3)), "1, 1"),
    "shuffle": (lambda: kernels.pointwise_conv2d(images, torch.zeros(8, 8, 1, 1), shuffle=3), "does not divide"),
    "channel shuffle": (lambda: kernels.channel_shuffle(images, 3), "3 groups do not divide 8"),
    "activation": (lambda: kernels.norm_act(images, Prologue(act="mish")), "unknown activation"),
    "half prologue": (lambda: kernels.norm_act(images, Prologue(torch.zeros(8))), "go together"),
    "prologue's size": (lambda: kernels.norm_act(images, Prologue(*[torch.zeros(7)] * 3)), "one value a channel"),
    "prologue's dtype": (
        lambda: kernels.norm_act(images.bfloat16(), Prologue(*[torch.zeros(8, dtype=torch.bfloat16)] * 3)),
        "whatever x is",
    ),
    "residual's dtype": (lambda: kernels.norm_act(images, Prologue(act="relu"), images.bfloat16()), "residual must be"),
    "gate": (lambda: kernels.squeeze_excite(images, *[images] * 4, gate="tanh"), "gate must be"),
    "excited weight": (
        lambda: kernels.excited_pointwise_conv2d(images, torch.zeros(4, 8, 3, 3), *[images] * 4),
        r"weight must be \[O, 8, 1, 1\]",
    ),
    "excitation": (lambda: kernels.squeeze_excite(images, *[torch.zeros(2, 2)] * 4), "for 8 channels"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_by_the_rule(case):
    call, rule = REFUSED[case]
    with pytest.raises(ValueError, match=rule):
        call()


def test_relabelled_parameters_make_a_shuffle_free():
    """Depthwise after a shuffle is a shuffle after the depthwise convolution with permuted weights."""
    x, weight = torch.randn(1, 12, 4, 4), torch.randn(12, 1, 3, 3)
    shuffled = kernels.depthwise_conv2d(kernels.channel_shuffle(x, 3), weight, 1, 1)
    relabelled = kernels.depthwise_conv2d(x, weight[kernels.shuffle_order(12, 4)], 1, 1)
    torch.testing.assert_close(kernels.channel_shuffle(relabelled, 3), shuffled)


def test_raw_outputs_are_all_that_is_kept():
    """Three layers keep their input and one tensor a layer; torch's own keep two."""
    torch.manual_seed(0)
    x = torch.randn(2, 8, 8, 8).contiguous(memory_format=torch.channels_last)
    weights = [torch.randn(8, 8, 3, 3).requires_grad_() for _ in range(3)]
    gammas, betas = (torch.ones(3, 8).requires_grad_() for _ in range(2))

    def fused():
        y, opened = x, None
        for index, weight in enumerate(weights):
            y, statistics = kernels.conv2d(y, weight, 1, 1, prologue=opened, statistics=True)
            opened = batch_norm(statistics, gammas[index], betas[index], 1e-5, "leaky_relu")
        return kernels.norm_act(y, opened)

    def plain():
        y = x
        for weight, gamma, beta in zip(weights, gammas, betas, strict=True):
            y = torch.nn.functional.conv2d(y, weight, padding=1)
            y = torch.nn.functional.leaky_relu(torch.nn.functional.batch_norm(y, None, None, gamma, beta, True), 0.01)
        return y

    def maps_kept(run):
        kept = set()

        def pack(tensor):
            if tensor.numel() == x.numel():
                kept.add(tensor.untyped_storage().data_ptr())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = run()
        return len(kept), y

    count, y = maps_kept(fused)
    count_plain, reference = maps_kept(plain)
    assert count == 4 and count_plain >= 9
    torch.testing.assert_close(y, reference)


@pytest.mark.gpu
@pytest.mark.real_gpu
def test_tensors_of_more_than_two_to_the_31_elements_on_a_gpu():
    """The last image of a large tensor comes out as it does alone; its gradient too."""
    if not torch.cuda.is_available() or torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("no GPU with 40 GiB free")
    count = 2**31 // (64 * 8 * 8) + 1
    x = torch.zeros(count, 64, 8, 8, dtype=torch.bfloat16, device="cuda").to(memory_format=torch.channels_last)
    x[-1:] = torch.randn(1, 64, 8, 8, device="cuda").bfloat16()
    weights = [torch.randn(shape, device="cuda") for shape in ((64, 1, 3, 3), (64, 64, 1, 1))]
    vectors = [torch.rand(64, device="cuda") for _ in range(3)]
    results = []
    for images in (x, x[-1:].contiguous(memory_format=torch.channels_last)):
        leaf = images.detach().requires_grad_()
        y = kernels.depthwise_conv2d(leaf, weights[0], 1, 1, prologue=Prologue(*vectors, "silu"))
        y = kernels.pointwise_conv2d(y, weights[1], prologue=Prologue(*vectors, "silu"))
        (gradient,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
        results.append([y[-1:], gradient[-1:]])
        del y, gradient
    for large, alone in zip(*results, strict=True):
        torch.testing.assert_close(large, alone)


@pytest.mark.parametrize("fused", ["squeeze_excite", "excited_pointwise_conv2d"])
def test_autocast_does_not_reach_into_an_operator(fused):
    """Eager, its products of vectors would else be rounded to 16 bits, as they are not within torch.compile."""
    x = leaf(2, 16, 5, 4, dtype=torch.bfloat16).detach().requires_grad_()
    weight = [leaf(6, 16, 1, 1, dtype=torch.float32)] if fused == "excited_pointwise_conv2d" else []
    layers = [leaf(*shape, dtype=torch.float32) for shape in ((3, 16), (3,), (16, 3), (16,))]
    prologue = Prologue(*vectors(16, dtype=torch.float32), "silu")
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = getattr(kernels, fused)(x, *weight, *layers, prologue=prologue)
            found.append([out, *torch.autograd.grad(out.float().sum(), [x, *weight, *layers])])
    assert all(torch.equal(plain, cast) for plain, cast in zip(*found, strict=True))
