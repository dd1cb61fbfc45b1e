"""ONNX files as ordinary torch modules."""

from penjing.graph.onnx.load import load_onnx as load_onnx
from penjing.graph.onnx.load import onnx_example as onnx_example
from penjing.graph.onnx.load import onnx_inputs as onnx_inputs
