"""Settings of the training loop, each with its range."""

from dataclasses import dataclass

from penjing.errors import RecipeError
from penjing.train.freeze import Freezing
from penjing.train.optimizers import OPTIMIZERS
from penjing.train.schedules import SCHEDULES

PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true")
KEEP = ("last", "best")


@dataclass(frozen=True, kw_only=True)
class Training:
    """Settings of the loop; by default stochastic gradient descent with Nesterov momentum, warm-up and cosine decay."""

    lr: float = 0.05  # at the peak; about a hundredth of that for "adamw"
    optimizer: str = "sgd"  # or "adamw"
    momentum: float = 0.9  # of "sgd"; the first of the two averages of "adamw"
    weight_decay: float = 5e-4  # of weights; biases and norms have none
    schedule: str = "cosine"  # "one_cycle", "linear" or "constant"
    warmup: float = 0.1  # share of all steps
    precision: str = "auto"  # "32-true", "bf16-mixed" (Lightning Fabric's names), or bf16 where the device computes in it
    accumulate: int = 1  # batches a step: their gradients are averaged
    clip: float = 5.0  # largest norm of the whole gradient; 0: no limit
    ema: float = 0.0  # decay of a running mean of the weights, e.g. 0.999, which is what is handed back; 0: none
    mixup: float = 0.0  # the most of another sample that is mixed into each
    cutmix: float = 0.0  # share of batches that get a rectangle of another sample instead
    smoothing: float = 0.0  # of labels: so much of the probability is spread over all classes
    watch: bool = False  # take the metric on task.search after every epoch
    patience: int = 0  # stop after so many epochs without a better metric; 0: never
    keep: str = "last"  # or "best": hand back the epoch with the best metric
    hold_zeros: bool = True  # weights that are exactly zero, where not all of their tensor are, stay zero: they are a mask
    scale_lr: float = 1.0  # share of lr for the steps, offsets and bounds that learn_steps made
    freezing: Freezing | None = None  # of weights that swing between two integers; for quantized networks
    seed: int = 0  # of all chance

    def __post_init__(self) -> None:
        for name, low, high in (
            ("lr", 0, 100),
            ("momentum", 0, 1),
            ("weight_decay", 0, 1),
            ("warmup", 0, 1),
            ("accumulate", 1, 1_000_000),
            ("clip", 0, 1e9),
            ("ema", 0, 1),
            ("mixup", 0, 1),
            ("cutmix", 0, 1.000001),
            ("smoothing", 0, 1),
            ("patience", 0, 1_000_000),
            ("scale_lr", 0, 100),
        ):
            if not low <= getattr(self, name) < high:
                raise RecipeError(f"training.{name} is {getattr(self, name)}; give a number from {low} up to {high:g}")
        for name, choices in (
            ("precision", PRECISIONS),
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("keep", KEEP),
        ):
            if getattr(self, name) not in choices:
                raise RecipeError(f"training.{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}")
        if self.ema and self.precision == "bf16-true":  # a step of a mean is too small a share of it for 8 bits
            raise RecipeError(
                f"training.ema is {self.ema}, and a mean does not move in bf16-true; choose bf16-mixed, or ema: 0"
            )

    @property
    def watched(self) -> bool:
        """Whether the metric is taken after every epoch."""
        return self.watch or self.patience > 0 or self.keep == "best"
