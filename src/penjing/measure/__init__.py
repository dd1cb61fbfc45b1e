"""Measurement: how well, how large, how fast."""

from penjing.measure.corruptions import CORRUPTIONS as CORRUPTIONS
from penjing.measure.corruptions import Corruption as Corruption
from penjing.measure.footprint import Layer as Layer
from penjing.measure.footprint import layers as layers
from penjing.measure.footprint import macs as macs
from penjing.measure.footprint import parameters as parameters
from penjing.measure.generalization import Generalization as Generalization
from penjing.measure.generalization import generalization as generalization
from penjing.measure.inspect import Inspection as Inspection
from penjing.measure.inspect import inspect as inspect
from penjing.measure.latency import compare as compare
from penjing.measure.latency import latency as latency
from penjing.measure.machine import cores as cores
from penjing.measure.machine import machine as machine
from penjing.measure.measurement import Measurement as Measurement
from penjing.measure.memory import peak_memory as peak_memory
from penjing.measure.metrics import top1 as top1
from penjing.measure.paired import Judgement as Judgement
from penjing.measure.paired import Paired as Paired
from penjing.measure.paired import judged as judged
from penjing.measure.paired import paired as paired
from penjing.measure.sparsity import SparsityReport as SparsityReport
from penjing.measure.sparsity import sparsity as sparsity
