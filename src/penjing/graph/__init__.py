"""What the model computes and which of its channels live or die together."""

from penjing.graph.capture import Graph as Graph
from penjing.graph.capture import as_inputs as as_inputs
from penjing.graph.capture import capture as capture
from penjing.graph.capture import check_weights as check_weights
from penjing.graph.capture import free_batch as free_batch
from penjing.graph.capture import is_captured as is_captured
from penjing.graph.capture import repeated as repeated
from penjing.graph.capture import takes_any_batch as takes_any_batch
from penjing.graph.channels import Axis as Axis
from penjing.graph.channels import Channels as Channels
from penjing.graph.channels import Group as Group
from penjing.graph.channels import find_channels as find_channels
from penjing.graph.kept import own_tensors as own_tensors
from penjing.graph.kept import reading_once as reading_once
from penjing.graph.onnx import load_onnx as load_onnx
