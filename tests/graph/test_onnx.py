"""Networks read from ONNX files: against the outputs that onnx ships for its operators, onnxruntime, and the torch original."""

import copy
import functools
import importlib
import itertools
import pkgutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.case import node as onnx_cases
from torch import Tensor, nn

import penjing as pj
from penjing.errors import ModelError
from penjing.graph import capture
from penjing.graph.onnx import load_onnx
from penjing.graph.onnx.layers import LAYERS
from penjing.graph.onnx.network import OnnxNetwork
from penjing.graph.onnx.ops import OPERATIONS
from penjing.zoo import ZOO
from tests.oracle import randomized

EXCLUDED = {  # parts of the names of onnx's cases -> why they are not for us
    "uint16": "torch does not add integers of this kind",
    "uint32": "torch does not add integers of this kind",
    "uint64": "torch does not add integers of this kind",
    "bfloat16": "numpy has no such type",
    "string": "not a network's values",
    "sequence": "not tensors",
    "identity_opt": "not tensors",
    "empty_set": "no network reduces nothing",
    "_training_mode": "refused: the file was exported before model.eval()",
    "training_dropout": "random",
    "with_argmax": "refused: torch counts places otherwise",
    "averagepool_2d_dilations": "refused: torch's pools do not have it",
    "averagepool_3d_dilations": "refused: torch's pools do not have it",
    "antialias": "refused",
    "tf_crop_and_resize": "refused",
    "exclude_outside": "refused",
    "not_larger": "refused: needs the ratio of the sides",
    "not_smaller": "refused: needs the ratio of the sides",
    "cubic": "refused unless it is torch's; see test_cubic_as_torch_has_it",
    "downsample_scales_linear_align_corners": "onnxruntime differs too: the last place is the last element",
    "blackmanwindow": "its size is computed by tensors",
    "test_if": "on a condition that is an input",
    "cast": "own types, given as protos; see test_types_change",
}  # fmt: skip


@functools.cache
def shipped() -> dict[str, list[Any]]:
    """The cases that onnx ships, of one operator of the table alone, by that operator. They come to be at import."""
    modules = {m.name.replace("_", ""): m.name for m in pkgutil.iter_modules(onnx_cases.__path__)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for op in OPERATIONS:
            name = modules.get({"Range": "rangeop"}.get(op, op.lower()))
            if name is not None:
                importlib.import_module(f"{onnx_cases.__name__}.{name}")
    found: dict[str, list[Any]] = {op: [] for op in OPERATIONS}
    for case in onnx_cases._NodeTestCases:
        operators = {n.op_type for n in case.model.graph.node}
        if len(operators) == 1 and operators <= OPERATIONS.keys() and not any(part in case.name for part in EXCLUDED):
            found[operators.pop()].append(case)
    return found


def read(model: onnx.ModelProto, folder: Path) -> OnnxNetwork:
    path = folder / "net.onnx"
    path.write_bytes(model.SerializeToString())
    net = load_onnx(path)
    assert isinstance(net, OnnxNetwork)
    return net


def frozen(model: onnx.ModelProto, given: Sequence[np.ndarray], left: int) -> onnx.ModelProto:
    """The same model with its inputs as weights, but for the first ones that are left."""
    model = copy.deepcopy(model)
    names = [i.name for i in model.graph.input]
    weights = (numpy_helper.from_array(np.asarray(a), n) for n, a in zip(names, given, strict=True))
    model.graph.initializer.extend(list(weights)[left:])
    return model


def differences(net: nn.Module, given: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    with torch.no_grad():
        got = net(*(torch.from_numpy(np.array(a)) for a in given))
    got = got if isinstance(got, tuple) else (got,)
    assert [tuple(g.shape) for g in got] == [np.shape(e) for e in expected]
    pairs = [(g.double().numpy(), np.asarray(e, np.float64)) for g, e in zip(got, expected, strict=True)]
    with np.errstate(invalid="ignore"):  # infinite where it should be
        return max(float(np.max(np.abs(g - e) / (1 + np.abs(e)), initial=0, where=g != e)) for g, e in pairs)


WITHOUT_CASE = {"Cast"}  # onnx ships none that is read here


@pytest.mark.parametrize("op", sorted(OPERATIONS))
def test_every_operator_computes_what_onnx_says(op: str, tmp_path: Path) -> None:
    cases = shipped()[op]
    assert bool(cases) != (op in WITHOUT_CASE)
    left = 0 if op in ("ConstantOfShape", "Range") else 1  # what follows the input is a weight, as in nearly every file
    for case in cases:
        for given, expected in case.data_sets:
            if len(given) > left:
                assert differences(read(frozen(case.model, given, left), tmp_path), given[:left], expected) < 1e-4, case.name
            try:
                assert differences(read(case.model, tmp_path), given, expected) < 1e-4, case.name
            except ModelError as e:
                assert len(given) > left and "depend on values" in str(e), case.name


def test_a_wrong_attribute_would_be_seen(tmp_path: Path) -> None:
    case = next(c for c in shipped()["LeakyRelu"] if c.model.graph.node[0].attribute)
    (given, expected), *_ = case.data_sets
    model = copy.deepcopy(case.model)
    model.graph.node[0].attribute[0].f += 0.1
    assert differences(read(model, tmp_path), given, expected) > 1e-3


def network(
    nodes: Sequence[Any],
    weights: dict[str, np.ndarray] | None = None,
    shape: Sequence[Any] = ("N", 3, 8, 8),
    *,
    opset: int = 17,
    inputs: Sequence[str] = ("x",),
) -> onnx.ModelProto:
    """A model from inputs of one shape to ``y``."""
    given = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in inputs]
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    held = [numpy_helper.from_array(v, n) for n, v in (weights or {}).items()]
    graph = helper.make_graph(nodes, "net", given, out, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def by_onnxruntime(model: onnx.ModelProto, *given: Tensor) -> list[np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, {i.name: x.numpy() for i, x in zip(session.get_inputs(), given, strict=True)})
    return found


def agree(model: onnx.ModelProto, folder: Path, *given: Tensor, tolerance: float = 1e-5) -> OnnxNetwork:
    """The network of a model, which computes what onnxruntime does."""
    net = read(model, folder)
    assert differences(net, [x.numpy() for x in given], by_onnxruntime(model, *given)) < tolerance
    return net


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def image(*shape: int) -> Tensor:
    return torch.from_numpy(drawn(*(shape or (2, 3, 8, 8))))


node = helper.make_node


@functools.cache
def zoo_file(name: str) -> tuple[nn.Module, Tensor, Path]:
    """A network of the zoo, inputs for it, and the file that we wrote of it; the export takes seconds."""
    make, shape = ZOO[name]
    model, x = randomized(make()), torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    path = Path(_FILES.name) / f"{name}.onnx"
    pj.export(model, x, path)
    return model, x, path


_FILES = tempfile.TemporaryDirectory()


@pytest.mark.parametrize("name", [name for name in ZOO if name != "resnet20"])  # sums are in the mobilenet, which is smaller
def test_our_own_files_come_back(name: str) -> None:
    model, x, path = zoo_file(name)
    net = load_onnx(path)
    with torch.no_grad():
        expected = model(x)
        assert ((net(x) - expected).abs() / (1 + expected.abs())).max() < 1e-5
        original, wide = copy.deepcopy(model).double(), copy.deepcopy(net).double()
        expected = original(x.double())
        assert ((wide(x.double()) - expected).abs() / (1 + expected.abs())).max() < 1e-5
    assert capture(net, x[:1]).dynamic


def test_what_was_read_is_written_again(tmp_path: Path) -> None:
    _, x, path = zoo_file("two_convolutions")
    net = load_onnx(path)
    again = pj.export(net, x, tmp_path / "again.onnx").load(threads=1)
    assert np.allclose(np.asarray(again(x)), net(x).detach().numpy(), rtol=1e-5, atol=1e-5)


def test_a_network_that_was_read_can_be_cut_and_trained() -> None:
    _, x, path = zoo_file("mobilenet")
    net = load_onnx(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pj.RewrittenWarning)
        small = pj.prune(net, x, ratio=0.5)
    assert sum(p.numel() for p in small.parameters()) < 0.6 * sum(p.numel() for p in net.parameters())
    small.train()(x).square().sum().backward()
    assert all(p.grad is not None for p in small.parameters())


def test_names_are_those_of_the_file(tmp_path: Path) -> None:
    weights = {
        "layer1.0.conv.weight": drawn(4, 3, 3, 3),
        "bn/gamma": drawn(4), "bn/beta": drawn(4), "bn/mean": drawn(4), "bn/variance": np.abs(drawn(4)) + 1,
        "onnx::Conv_12": drawn(5, 4, 1, 1),
        "fc_weights": drawn(5, 2),
        "layer_scale": drawn(1, 5, 1, 1),
    }  # fmt: skip
    nodes = [
        node("Conv", ["x", "layer1.0.conv.weight"], ["a"], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["a", "bn/gamma", "bn/beta", "bn/mean", "bn/variance"], ["b"], epsilon=1e-3),
        node("Conv", ["b", "onnx::Conv_12"], ["c"], name="/head/head.2/proj/Conv"),
        node("Mul", ["c", "layer_scale"], ["d"]),
        node("GlobalAveragePool", ["d"], ["e"]),
        node("Flatten", ["e"], ["f"]),
        node("MatMul", ["f", "fc_weights"], ["y"]),
    ]
    net = agree(network(nodes, weights), tmp_path, image())
    assert {n for n, _ in net.named_parameters()} == {
        "layer1.0.conv.weight", "bn.weight", "bn.bias", "head.2.proj.weight", "layer_scale", "fc.weight",
    }  # fmt: skip
    assert isinstance(net.get_submodule("layer1.0.conv"), nn.Conv2d)
    norm = net.get_submodule("bn")
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.eps == 1e-3 and norm.momentum == 0.1
    assert "layer1" in repr(net) and not net.training


def test_every_linear_layer_keeps_its_own_weights(tmp_path: Path) -> None:
    sizes = [192, 40, 30, 20, 10]
    weights = {f"w{i}": drawn(a, b) / 10 for i, (a, b) in enumerate(itertools.pairwise(sizes))}
    weights |= {f"b{i}": drawn(n) for i, n in enumerate(sizes[1:])}
    nodes = [node("Flatten", ["x"], ["h0"])]
    nodes += [node("Gemm", [f"h{i}", f"w{i}", f"b{i}"], [f"h{i + 1}" if i < 3 else "y"], alpha=0.5, beta=2.0) for i in range(4)]
    agree(network(nodes, weights), tmp_path, image())


def test_a_shared_weight_stays_shared(tmp_path: Path) -> None:
    nodes = [node("Conv", ["x", "w"], ["a"], pads=[1] * 4), node("Conv", ["a", "w"], ["y"], dilations=[2, 2])]
    net = agree(network(nodes, {"w": drawn(3, 3, 3, 3)}), tmp_path, image())
    assert len(list(net.parameters())) == 1 and len(net.state_dict()) == 2


def test_constants_are_weights_and_what_depends_on_them_alone_is_computed(tmp_path: Path) -> None:
    """As old paddle2onnx writes them."""
    held = {"conv.w_0": drawn(4, 3, 3, 3), "conv.b_0": drawn(4), "shape": np.array([1, 4, 1, 1])}
    nodes = [node("Constant", [], [name], value=numpy_helper.from_array(v, name)) for name, v in held.items()]
    nodes += [
        node("Conv", ["x", "conv.w_0"], ["a"], pads=[1] * 4),
        node("Reshape", ["conv.b_0", "shape"], ["b"]),
        node("Add", ["a", "b"], ["y"]),
    ]
    net = agree(network(nodes, opset=11), tmp_path, image())
    layer = net.get_submodule("conv")
    assert isinstance(layer, nn.Conv2d) and layer.bias is not None, "what is added a channel is the layer's bias"
    assert [n for n, _ in net.named_parameters()] == ["conv.weight", "conv.bias"]


@pytest.mark.parametrize("added", [drawn(8), drawn(1, 4, 8, 8), drawn(1, 1, 8, 1)], ids=["columns", "values", "rows"])
def test_what_is_not_added_a_channel_is_no_bias(added: np.ndarray, tmp_path: Path) -> None:
    nodes = [node("Conv", ["x", "w"], ["a"]), node("Add", ["added", "a"], ["y"])]
    net = agree(network(nodes, {"w": drawn(4, 3, 1, 1), "added": added}), tmp_path, image())
    assert "added" in dict(net.named_parameters())


def test_an_output_that_others_read_gets_no_bias(tmp_path: Path) -> None:
    nodes = [node("Conv", ["x", "w"], ["a"]), node("Add", ["a", "b"], ["c"]), node("Mul", ["a", "c"], ["y"])]
    agree(network(nodes, {"w": drawn(4, 3, 1, 1), "b": drawn(4, 1, 1)}), tmp_path, image())


def head(*middle: Any) -> tuple[list[Any], dict[str, np.ndarray]]:
    """A convolution, what comes between, and a linear layer of 256 inputs."""
    nodes = [node("Conv", ["x", "w"], ["a"], pads=[1] * 4), *middle, node("Gemm", ["flat", "v", "u"], ["y"], transB=1)]
    return nodes, {"w": drawn(4, 3, 3, 3), "v": drawn(7, 256), "u": drawn(7)}


def test_sizes_that_are_computed_leave_the_batch_free(tmp_path: Path) -> None:
    nodes, weights = head(
        node("Shape", ["a"], ["s"]),
        node("Cast", ["s"], ["s32"], to=TensorProto.INT32),
        node("Slice", ["s32", "zero", "one"], ["n"]),
        node("Concat", ["n", "rest"], ["sizes32"], axis=0),
        node("Cast", ["sizes32"], ["sizes"], to=TensorProto.INT64),
        node("Reshape", ["a", "sizes"], ["flat"]),
    )
    weights |= {"zero": np.array([0]), "one": np.array([1]), "rest": np.array([256], np.int32)}
    net = agree(network(nodes, weights), tmp_path, image())
    graph = capture(net, image(1, 3, 8, 8))
    assert graph.dynamic
    assert graph.module(image(5, 3, 8, 8)).shape == (5, 7)


def test_gather_and_unsqueeze_of_sizes_leave_the_batch_free(tmp_path: Path) -> None:
    """As torch's older exporter writes ``x.view(x.size(0), -1)``."""
    nodes, weights = head(
        node("Shape", ["a"], ["s"]),
        node("Gather", ["s", "first"], ["n"], axis=0),
        node("Unsqueeze", ["n", "axes"], ["n1"]),
        node("Concat", ["n1", "rest"], ["sizes"], axis=0),
        node("Reshape", ["a", "sizes"], ["flat"]),
    )
    weights |= {"first": np.array(0), "axes": np.array([0]), "rest": np.array([-1])}
    net = agree(network(nodes, weights), tmp_path, image())
    assert capture(net, image()).dynamic


@pytest.mark.parametrize("sizes", [[1, -1], [1, 256], [0, -1], [-1, 256]])
def test_a_file_for_a_batch_of_one_is_read_for_any(sizes: list[int], tmp_path: Path) -> None:
    nodes, weights = head(node("Reshape", ["a", "sizes"], ["flat"]))
    model = network(nodes, weights | {"sizes": np.array(sizes)}, (1, 3, 8, 8))
    net = agree(model, tmp_path, image(1, 3, 8, 8))
    assert capture(net, image(1, 3, 8, 8)).dynamic
    x = image(3, 3, 8, 8)
    assert torch.allclose(net(x), torch.cat([net(x[i : i + 1]) for i in range(3)]), atol=1e-5)


def test_a_leading_one_of_a_free_batch_is_meant(tmp_path: Path) -> None:
    model = network([node("Reshape", ["x", "sizes"], ["y"])], {"sizes": np.array([1, -1])})
    assert agree(model, tmp_path, image())(image()).shape == (1, 384)


@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize(("kernel", "stride", "size"), [(3, 2, 8), (3, 2, 7), (2, 1, 8), (3, 1, 8), (5, 3, 8)])
@pytest.mark.parametrize("op", ["Conv", "MaxPool", "AveragePool"])
def test_padding_that_depends_on_the_input(auto: str, kernel: int, stride: int, size: int, op: str, tmp_path: Path) -> None:
    how = {"auto_pad": auto, "strides": [stride] * 2, "kernel_shape": [kernel] * 2}
    inputs = ["x", "w"] if op == "Conv" else ["x"]
    weights = {"w": drawn(4, 3, kernel, kernel)} if op == "Conv" else {}
    net = agree(network([node(op, inputs, ["y"], **how)], weights, ("N", 3, size, size)), tmp_path, image(2, 3, size, size))
    assert capture(net, image(2, 3, size, size)).dynamic


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("ceil", [0, 1])
@pytest.mark.parametrize("pads", [[0, 0, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1]])
def test_uneven_padding_of_pools(op: str, ceil: int, pads: list[int], tmp_path: Path) -> None:
    for include in (0, 1) if op == "AveragePool" else (None,):
        how = {} if include is None else {"count_include_pad": include}
        pool = node(op, ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], pads=pads, ceil_mode=ceil, **how)
        agree(network([pool], opset=19), tmp_path, image())


def test_uneven_padding_of_convolutions(tmp_path: Path) -> None:
    weights = {"w": drawn(6, 1, 3, 3), "b": drawn(6), "t": drawn(6, 2, 3, 3), "c": drawn(4)}
    nodes = [
        node("Conv", ["x", "w", "b"], ["a"], group=3, pads=[0, 1, 1, 2], strides=[2, 1]),
        node("ConvTranspose", ["a", "t", "c"], ["y"], group=2, pads=[0, 1, 1, 0], strides=[2, 2], output_padding=[1, 1]),
    ]
    net = agree(network(nodes, weights), tmp_path, image())
    assert capture(net, image()).dynamic


@pytest.mark.parametrize("where", ["half_pixel", "align_corners"])
def test_cubic_as_torch_has_it(where: str, tmp_path: Path) -> None:
    how = {"mode": "cubic", "coordinate_transformation_mode": where}
    agree(network([node("Resize", ["x", "", "", "to"], ["y"], **how)], {"to": np.array([2, 3, 13, 16])}), tmp_path, image())


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resize_to_the_size_of_another_value(mode: str, tmp_path: Path) -> None:
    nodes = [
        node("MaxPool", ["x"], ["small"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Shape", ["x"], ["s"]),
        node("Slice", ["s", "two", "four"], ["places"]),
        node("Shape", ["small"], ["t"]),
        node("Slice", ["t", "none", "two"], ["before"]),
        node("Concat", ["before", "places"], ["to"], axis=0),
        node("Resize", ["small", "", "", "to"], ["up"], mode=mode, coordinate_transformation_mode="half_pixel"),
        node("Add", ["up", "x"], ["y"]),
    ]
    weights = {"none": np.array([0]), "two": np.array([2]), "four": np.array([4])}
    assert capture(agree(network(nodes, weights), tmp_path, image()), image()).dynamic


def test_softmax_before_opset_13_is_over_all_that_follows(tmp_path: Path) -> None:
    for opset in (11, 13):
        model = network([node("Softmax", ["x"], ["y"], axis=1)], opset=opset)
        agree(model, tmp_path, image())


def test_a_branch_on_sizes_is_taken(tmp_path: Path) -> None:
    """As torch's older exporter writes ``squeeze`` of what may be 1."""
    sides = []
    for op in ("Neg", "Abs"):
        out = helper.make_tensor_value_info(op, TensorProto.FLOAT, None)
        sides.append(helper.make_graph([node(op, ["a"], [op])], op, [], [out]))
    nodes = [
        node("Relu", ["x"], ["a"]),
        node("Shape", ["a"], ["s"]),
        node("Gather", ["s", "one"], ["n"]),
        node("Equal", ["n", "three"], ["c"]),
        node("If", ["c"], ["y"], then_branch=sides[0], else_branch=sides[1]),
    ]
    for channels in (3, 4):
        weights = {"one": np.array(1), "three": np.array(channels)}
        agree(network(nodes, weights), tmp_path, image())


def test_types_change(tmp_path: Path) -> None:
    nodes = [
        node("Cast", ["x"], ["whole"], to=TensorProto.INT64),
        node("Cast", ["whole"], ["a"], to=TensorProto.FLOAT),
        node("Cast", ["x"], ["b"], to=TensorProto.FLOAT),
        node("Sub", ["b", "a"], ["y"]),
    ]
    net = agree(network(nodes), tmp_path, image() * 5)
    assert net.double()(image().double()).dtype == torch.float64


def test_several_inputs_and_outputs_in_the_order_of_the_file(tmp_path: Path) -> None:
    model = network(
        [node("Sub", ["q", "p"], ["y"]), node("Mul", ["y", "w"], ["z"])], {"w": drawn(3, 8, 8)}, inputs=("p", "w", "q")
    )
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    net, p, q = load_onnx(path), image(), image().flip(0)
    y, z = net(p, q)
    assert torch.equal(y, q - p) and torch.equal(z, y * torch.from_numpy(drawn(3, 8, 8)))
    with pytest.raises(ModelError, match=r"takes 2 inputs \(p, q\), and was given 1"):
        net(p)


def saved(model: onnx.ModelProto) -> Callable[[Path], None]:
    return lambda path: onnx.save(model, path)


WITH_EXTERNAL = network([node("Conv", ["x", "w"], ["y"])], {"w": drawn(4, 3, 3, 3)})
BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda _path: None, "there is no file .*net.onnx; give"),
    "no onnx": (lambda path: path.write_text("not a network" * 9), "cannot be read as ONNX"),
    "empty": (lambda path: path.write_bytes(b""), "holds no ONNX network"),
    "external": (
        lambda path: (
            onnx.save(copy.deepcopy(WITH_EXTERNAL), path, save_as_external_data=True, location="w.bin", size_threshold=0),
            (path.parent / "w.bin").unlink(),
        ),
        "cannot be read as ONNX: .*weights beside it",
    ),
    "quantized": (
        saved(network([node("QuantizeLinear", ["x", "s"], ["y"], name="q")], {"s": np.array(0.1, np.float32)})),
        r"QuantizeLinear \(node 'q'\); it is quantized already: give the float model",
    ),
    "unknown": (saved(network([node("NonZero", ["x"], ["y"])])), r"NonZero \(node 'y'\); export it with"),
    "foreign": (
        saved(network([node("FusedConv", ["x", "x"], ["y"], domain="com.microsoft")])),
        r"com.microsoft.FusedConv \(node 'y'\)",
    ),
    "rank": (saved(network([node("Conv", ["x", "w"], ["y"])], {"w": drawn(2, 2, 1, 1, 1, 1)})), "'y' .Conv.*4 dimensions"),
    "training": (
        saved(network([node("BatchNormalization", ["x", *"abcd"], ["y"], training_mode=1)], {n: drawn(3) for n in "abcd"})),
        "in training mode; export the network after model.eval",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_says_why(name: str, tmp_path: Path) -> None:
    write, message = BAD[name]
    write(tmp_path / "net.onnx")
    with pytest.raises(ModelError, match=message):
        load_onnx(tmp_path / "net.onnx")


@pytest.mark.parametrize("what", ["starts", "sizes"])
def test_shapes_that_only_values_tell_are_refused(what: str, tmp_path: Path) -> None:
    whole = node("Cast", ["x"], ["n"], to=TensorProto.INT64)
    last = node("Slice", ["x", "n", "n"], ["y"]) if what == "starts" else node("Reshape", ["x", "n"], ["y"])
    with pytest.raises(ModelError, match=f"its {what} depend on values"):
        read(network([whole, last]), tmp_path)(image())


def test_every_layer_is_an_operation_too() -> None:
    assert LAYERS.keys() <= OPERATIONS.keys()


def test_resize_of_opset_10(tmp_path: Path) -> None:
    weights = {"by": np.array([1, 1, 2, 2], np.float32)}
    for mode in ("nearest", "linear"):
        agree(network([node("Resize", ["x", "by"], ["y"], mode=mode)], weights, opset=10), tmp_path, image())


@pytest.mark.parametrize("by", [1.3, 0.7, 0.9, 2.3])
def test_scales_that_are_no_binary_fractions(by: float, tmp_path: Path) -> None:
    nodes = [node("Resize", ["x", "", "by"], ["y"], mode="linear")]
    weights = {"by": np.array([1, 1, by, by], np.float32)}
    agree(network(nodes, weights, shape=("N", 3, 10, 10)), tmp_path, image(2, 3, 10, 10))


def test_outputs_that_are_named_and_not_used(tmp_path: Path) -> None:
    norm = [node("LayerNormalization", ["x", "w"], ["y", "mean", "inv"])]
    agree(network(norm, {"w": drawn(8)}, opset=17), tmp_path, image())
    for named in (["p", "places"], ["p", ""]):
        pool = [node("MaxPool", ["x"], named, kernel_shape=[2, 2]), node("Clip", ["p", "", "most"], ["y"])]
        agree(network(pool, {"most": np.array(0.5, np.float32)}), tmp_path, image())


def test_parts_that_are_not_used_count(tmp_path: Path) -> None:
    nodes = [node("Split", ["x"], ["a", "b", "c"], axis=1), node("Add", ["a", "b"], ["y"])]
    agree(network(nodes, opset=13), tmp_path, image())
    one = [node("Split", ["x"], ["a"], axis=1), node("Relu", ["a"], ["y"])]
    agree(network(one, opset=13), tmp_path, image())
