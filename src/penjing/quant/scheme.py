"""What grids a network gets, and how they are found: the settings of ``quantize``."""

from dataclasses import dataclass

from penjing.errors import RecipeError, entry
from penjing.quant.grids import GRIDS, levels
from penjing.quant.observers import OBSERVERS
from penjing.quant.rounding import ROUNDINGS


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """Integers of 8 bits by default; all that kernels need is in the target's profile, not here.

    Grouped and transposed convolutions have a scale for each channel also where ``block`` is a number.
    """

    weight_bits: int = 8  # 2 to 8; fewer than 8 make the file smaller, not faster
    value_bits: int = 8  # 2 to 8, of what layers read and give; fewer than 8 make nothing faster
    edge_bits: int = 8  # of the first and the last layer's weights, and at least of what they read: they suffer most
    weights: str = "symmetric"  # a name in GRIDS
    values: str | None = None  # the same of values; by default what the target's kernels run fastest on
    outputs: str | None = None  # also put such a grid on what the network gives
    block: str | int = "channel"  # weights that share a scale: "tensor", "channel", or so many input channels of one
    weight_observer: str = "minmax"  # a name in OBSERVERS: how the range of weights is chosen
    observer: str = "cautious_mse"  # the same of values
    equalize: bool = False  # even out channel ranges between layers first; needed where block is "tensor"
    rounding: str = "nearest"  # a name in ROUNDINGS; "gptq" is the best that we measured at 4 bits and fewer
    correct_bias: bool = True  # keep the mean of every channel
    lost: float = 0.9  # where more than this share of what is not zero would become zero, a layer's input stays in float
    noise: float = 0.1  # where rounding what a layer reads to 8 bits makes noise of more than this share of the power of what
    # it gives, it stays in float; float("inf"): none does
    exclude: tuple[str, ...] = ()  # patterns of parameter names; those layers stay in float

    def __post_init__(self) -> None:
        for bits in (self.weight_bits, self.value_bits, self.edge_bits):
            levels(bits, signed=True)
        for name in (self.weights, self.values or "affine", self.outputs or "affine"):
            entry(GRIDS, name, "grid")
        for name in (self.weight_observer, self.observer):
            entry(OBSERVERS, name, "observer")
        entry(ROUNDINGS, self.rounding, "rounding")
        if isinstance(self.exclude, str) or not all(isinstance(p, str) for p in self.exclude):
            raise RecipeError(f"exclude is {self.exclude!r}; give a tuple of patterns of parameter names, as ('head.*',)")
        if not 0 < self.lost <= 1:
            raise RecipeError(f"lost is {self.lost}; give a share, more than 0 and at most 1")
        if not self.noise > 0:
            raise RecipeError(f"noise is {self.noise}; give a share of what layers give, more than 0, e.g. 0.1")
        whole = isinstance(self.block, int) and not isinstance(self.block, bool)
        if not (self.block in ("tensor", "channel") or (whole and int(self.block) > 0)):
            raise RecipeError(f"block is {self.block!r}; give 'tensor', 'channel' or a number of input channels")
