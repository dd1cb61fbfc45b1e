"""Export: files that real runtimes load, and what these execute."""

from penjing.export.artifact import RUNTIMES as RUNTIMES
from penjing.export.artifact import Agreement as Agreement
from penjing.export.artifact import Artifact as Artifact
from penjing.export.artifact import Runner as Runner
from penjing.export.artifact import Runtime as Runtime
from penjing.export.artifact import agreements as agreements
from penjing.export.artifact import fixed_batch as fixed_batch
from penjing.export.artifact import may_overflow as may_overflow
from penjing.export.kernels import Kernel as Kernel
from penjing.export.kernels import left_in_float as left_in_float
from penjing.export.onnx import export as export
from penjing.export.profiles import Profile as Profile
from penjing.export.profiles import Spent as Spent
