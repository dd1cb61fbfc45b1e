"""Quantization: integers instead of floats, placed for the runtime they will run on."""

from penjing.quant.grids import GRIDS as GRIDS
from penjing.quant.grids import Grid as Grid
from penjing.quant.learned import learn_steps as learn_steps
from penjing.quant.learned import settle as settle
from penjing.quant.observers import OBSERVERS as OBSERVERS
from penjing.quant.observers import Observer as Observer
from penjing.quant.place import Placement as Placement
from penjing.quant.quantize import Quantizer as Quantizer
from penjing.quant.quantize import quantize as quantize
from penjing.quant.rounding import ROUNDINGS as ROUNDINGS
from penjing.quant.scheme import Scheme as Scheme
from penjing.quant.sensitivity import sensitivity as sensitivity
from penjing.quant.targets import TARGETS as TARGETS
from penjing.quant.targets import Target as Target
from penjing.quant.targets import joined as joined
from penjing.quant.targets import target_named as target_named
from penjing.quant.targets import variants as variants
