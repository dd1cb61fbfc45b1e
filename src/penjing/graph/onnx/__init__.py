"""ONNX files as ordinary torch modules."""

from penjing.graph.onnx.load import load_onnx as load_onnx
