"""Make the files that benchmarks/quant_latency.py times; runs under the peers' interpreter, one file in one process.

    PYTHONPATH=src PEERS/bin/python benchmarks/quant_peers.py NET WAY FOLDER [--cases FOLDER]

writes FOLDER/WAY.onnx (FOLDER/WAY.xml for NNCF) and, for what we export, FOLDER/WAY.json with what ``export`` told.
``float`` is the net with random weights; the peers start from that file, ``ours-openvino`` and ``ours-onnxruntime`` from the
same module. All calibrate with the same few random images: a grid's range does not change how long its kernel takes.
"""

import argparse
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import penjing as pj
from penjing.files import write_json

TIMM = (
    "resnet18", "resnet50", "mobilenetv2_100", "mobilenetv3_small_100", "tf_efficientnet_lite0", "densenet121", "regnetx_004",
    "vgg11_bn", "ghostnet_100", "inception_v3", "repvgg_a0", "mixnet_s", "convnext_atto",
)  # fmt: skip
DENOISER = "FFDNet"
NETS = (*TIMM, DENOISER)
IMAGES = 16
NNCF = ("nncf-performance", "nncf-mixed")
QUANTIZE_STATIC: dict[str, dict[str, Any]] = {
    # By name, so that this table can be read without ONNX Runtime. Its default, signed values, is slower: 1.4 to 2.6 times.
    "ort-u8": {"activation_type": "QUInt8", "weight_type": "QInt8"},
    "ort-u8-channels": {"activation_type": "QUInt8", "weight_type": "QInt8", "per_channel": True},
}  # fmt: skip
OURS = ("ours-openvino", "ours-onnxruntime")
Inputs = tuple[Tensor, ...]


def build(name: str, cases: Path | None) -> tuple[nn.Module, Inputs]:
    """The net in eval mode and an example, batch 1; weights of the denoiser are its own, all others random."""
    torch.manual_seed(0)
    if name == DENOISER:
        if cases is None:
            raise SystemExit(f"{DENOISER} comes from realdata.py; give --cases FOLDER")
        spec = importlib.util.spec_from_file_location("realdata", cases / "realdata.py")
        assert spec is not None and spec.loader is not None
        real = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(real)
        return real.ffdnet(), (torch.rand(1, 3, 256, 256), torch.full((1, 1, 1, 1), real.SIGMA))
    library = torch.library.Library("torchvision", "DEF")  # timm imports torchvision, which does not fit the CPU build of torch
    for op in ("nms", "qnms"):
        library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm  # type: ignore[import-not-found, unused-ignore]

    model: nn.Module = timm.create_model(name, pretrained=False).eval()
    _as_if_trained(model)
    _, height, width = model.default_cfg["input_size"]  # type: ignore[index]
    return model, (torch.randn(1, 3, height, width),)


def _as_if_trained(model: nn.Module) -> None:
    """Draw what initialization sets to 0 or 1: timm starts residual branches at zero, which runtimes then remove."""
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.LayerNorm):
            for value, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.2, 0.2),
                (getattr(module, "running_mean", None), -0.2, 0.2),
                (getattr(module, "running_var", None), 0.5, 1.5),
            ):
                if value is not None:
                    value.data.uniform_(low, high, generator=generator)
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):  # the scale of a residual branch
            parameter.data.uniform_(0.1, 1.0, generator=generator)


def calibration(example: Inputs) -> list[Inputs]:
    """Images like the example's first input; further inputs as they are."""
    generator = torch.Generator().manual_seed(1)
    draw = torch.rand if len(example) > 1 else torch.randn
    return [(draw(example[0].shape, generator=generator), *example[1:]) for _ in range(IMAGES)]


def save_float(model: nn.Module, example: Inputs, out: Path) -> None:
    write_json(out.with_suffix(".json"), pj.export(model, example, out).to_json())


def save_ours(model: nn.Module, example: Inputs, out: Path) -> None:
    """What ``fastest_mix`` takes when only time counts; weights are random, so there is nothing to lose."""
    target = pj.quant.target_named(out.stem.removeprefix("ours-"))
    quantizer = pj.Quantizer(model, example, calibration(example), target=target)
    mix = pj.fastest_mix(quantizer, model, example, out, evaluate=lambda _: 0.0, least=0.0)
    told = {"chosen": mix.chosen.name, "placement": mix.placement, "precision": mix.chosen.precision}
    write_json(out.with_suffix(".json"), mix.chosen.artifact.to_json() | told)


def save_nncf(source: Path, example: Inputs, out: Path) -> None:
    import nncf  # type: ignore[import-not-found, unused-ignore]
    import openvino

    model = openvino.Core().read_model(source)
    names = [i.get_any_name() for i in model.inputs]
    batches = [dict(zip(names, (x.numpy() for x in inputs), strict=True)) for inputs in calibration(example)]
    preset = nncf.QuantizationPreset.MIXED if out.stem.endswith("mixed") else nncf.QuantizationPreset.PERFORMANCE
    quantized = nncf.quantize(model, nncf.Dataset(batches), preset=preset, subset_size=IMAGES)
    openvino.save_model(quantized, out, compress_to_fp16=False)


def save_quantize_static(source: Path, example: Inputs, out: Path) -> None:
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    settings = dict(QUANTIZE_STATIC[out.stem])
    for key in ("activation_type", "weight_type"):
        settings[key] = getattr(quantization.QuantType, settings[key])
    prepared = out.with_suffix(".prepared")
    quant_pre_process(str(source), str(prepared))
    quantization.quantize_static(str(prepared), str(out), _Reader(prepared, calibration(example)), **settings)
    prepared.unlink()


class _Reader:
    """Calibration data as ``quantize_static`` asks for it."""

    def __init__(self, path: Path, batches: list[Inputs]) -> None:
        import onnxruntime

        names = [i.name for i in onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).get_inputs()]
        self._feeds: Iterator[dict[str, np.ndarray]] = iter(
            [dict(zip(names, (x.numpy() for x in inputs), strict=True)) for inputs in batches]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", choices=NETS)
    parser.add_argument("way", choices=("float", *OURS, *NNCF, *QUANTIZE_STATIC))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cases", type=Path, help="a folder with realdata.py")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    model, example = build(given.net, given.cases)
    out = given.folder / (given.way + (".xml" if given.way in NNCF else ".onnx"))
    part = given.folder / ".part" / out.name
    part.parent.mkdir(parents=True, exist_ok=True)
    makers: dict[str, Callable[[], None]] = {
        "float": lambda: save_float(model, example, part),
        **{way: lambda: save_ours(model, example, part) for way in OURS},
        **{way: lambda: save_nncf(given.folder / "float.onnx", example, part) for way in NNCF},
        **{way: lambda: save_quantize_static(given.folder / "float.onnx", example, part) for way in QUANTIZE_STATIC},
    }
    makers[given.way]()
    for made in sorted(part.parent.glob(f"{given.way}.*")):  # NNCF's .bin before the .xml that names it
        made.replace(given.folder / made.name)


if __name__ == "__main__":
    main()
