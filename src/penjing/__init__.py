"""Penjing: prune, distil and quantize a trained CNN under one budget; get back a proven file that runs fast."""

from penjing.task import Score as Score
from penjing.task import Task as Task
from penjing.train import Training as Training
from penjing.train import fit as fit

__version__ = "0.1.0.dev0"

__all__ = ["Score", "Task", "Training", "__version__", "fit"]
