"""Penjing: prune, distil and quantize a trained CNN under one budget; get back a proven file that runs fast."""

from penjing import data as data
from penjing import distill as distill
from penjing import errors as errors
from penjing import measure as measure
from penjing import quant as quant
from penjing import score as score
from penjing import zoo as zoo
from penjing.errors import PenjingError as PenjingError
from penjing.export import Artifact as Artifact
from penjing.export import export as export
from penjing.graph import load_onnx as load_onnx
from penjing.measure import Measurement as Measurement
from penjing.measure import inspect as inspect
from penjing.plan import ChannelPlan as ChannelPlan
from penjing.prune import RewrittenWarning as RewrittenWarning
from penjing.prune import Selection as Selection
from penjing.prune import load as load
from penjing.prune import plan_blocks as plan_blocks
from penjing.prune import plan_channels as plan_channels
from penjing.prune import prune as prune
from penjing.prune import prune_channels as prune_channels
from penjing.prune import prune_iteratively as prune_iteratively
from penjing.prune import repair as repair
from penjing.prune import save as save
from penjing.prune import sparsify as sparsify
from penjing.prune import sparsify_textbook as sparsify_textbook
from penjing.quant import Quantizer as Quantizer
from penjing.quant import Scheme as Scheme
from penjing.quant import learn_steps as learn_steps
from penjing.quant import quantize as quantize
from penjing.result import Result as Result
from penjing.run import Settings as Settings
from penjing.run import compress as compress
from penjing.search import Budget as Budget
from penjing.search import Mix as Mix
from penjing.search import MixSettings as MixSettings
from penjing.search import fastest_mix as fastest_mix
from penjing.task import Score as Score
from penjing.task import Task as Task
from penjing.train import ACDC as ACDC
from penjing.train import Freezing as Freezing
from penjing.train import GradualMagnitude as GradualMagnitude
from penjing.train import GradualMovement as GradualMovement
from penjing.train import Lessons as Lessons
from penjing.train import RigL as RigL
from penjing.train import Taught as Taught
from penjing.train import Training as Training
from penjing.train import fit as fit
from penjing.train import teach as teach

__version__ = "0.1.0"

__all__ = [
    "ACDC",
    "Artifact",
    "Budget",
    "ChannelPlan",
    "Freezing",
    "GradualMagnitude",
    "GradualMovement",
    "Lessons",
    "Measurement",
    "Mix",
    "MixSettings",
    "PenjingError",
    "Quantizer",
    "Result",
    "RewrittenWarning",
    "RigL",
    "Scheme",
    "Score",
    "Selection",
    "Settings",
    "Task",
    "Taught",
    "Training",
    "__version__",
    "compress",
    "data",
    "distill",
    "errors",
    "export",
    "fastest_mix",
    "fit",
    "inspect",
    "learn_steps",
    "load",
    "load_onnx",
    "measure",
    "plan_blocks",
    "plan_channels",
    "prune",
    "prune_channels",
    "prune_iteratively",
    "quant",
    "quantize",
    "repair",
    "save",
    "score",
    "sparsify",
    "sparsify_textbook",
    "teach",
    "zoo",
]
