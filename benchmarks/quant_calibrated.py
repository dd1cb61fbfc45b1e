"""Quantize a float file as a peer does, with given data; runs under the peers' interpreter, one file in one process.

    PEERS/bin/python benchmarks/quant_calibrated.py WAY FLOAT.onnx CALIBRATION.npz OUT

CALIBRATION.npz has one array for every input of the network, in order, samples first. A peer sees them one by one, which is
what NNCF's statistics and ONNX Runtime's examples are made for. NNCF writes OpenVINO's .xml and .bin, ONNX Runtime .onnx.
"""

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

NNCF = ("nncf-performance", "nncf-mixed")
ORT = {"ort-minmax": "MinMax", "ort-percentile": "Percentile", "ort-entropy": "Entropy"}
Feed = dict[str, np.ndarray]


def feeds(names: list[str], path: Path) -> list[Feed]:
    arrays = list(np.load(path).values())
    return [{name: a[i : i + 1] for name, a in zip(names, arrays, strict=True)} for i in range(len(arrays[0]))]


def by_nncf(way: str, source: Path, calibration: Path, out: Path) -> None:
    import nncf  # type: ignore[import-not-found, unused-ignore]
    import openvino

    model = openvino.Core().read_model(source)
    samples = feeds([i.get_any_name() for i in model.inputs], calibration)
    preset = nncf.QuantizationPreset.MIXED if way.endswith("mixed") else nncf.QuantizationPreset.PERFORMANCE
    quantized = nncf.quantize(model, nncf.Dataset(samples), preset=preset, subset_size=len(samples))
    openvino.save_model(quantized, out, compress_to_fp16=False)


def by_onnxruntime(way: str, source: Path, calibration: Path, out: Path) -> None:
    import onnxruntime
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared))
        session = onnxruntime.InferenceSession(str(prepared), providers=["CPUExecutionProvider"])
        reader = _Reader(feeds([i.name for i in session.get_inputs()], calibration))
        quantize_static(
            str(prepared),
            str(out),
            reader,
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=getattr(CalibrationMethod, ORT[way]),
        )


class _Reader:
    """Calibration data as ``quantize_static`` asks for it."""

    def __init__(self, samples: list[Feed]) -> None:
        self._feeds: Iterator[Feed] = iter(samples)

    def get_next(self) -> Feed | None:
        return next(self._feeds, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=(*NNCF, *ORT))
    parser.add_argument("source", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.out.parent) as folder:
        part = Path(folder) / given.out.name
        (by_nncf if given.way in NNCF else by_onnxruntime)(given.way, given.source, given.calibration, part)
        for made in sorted(Path(folder).iterdir()):  # NNCF's .bin before the .xml that names it
            shutil.move(made, given.out.parent / made.name)


if __name__ == "__main__":
    main()
