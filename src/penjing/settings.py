"""How ``compress`` goes about it: everything but the limits, which are the ``Budget``."""

from dataclasses import dataclass, field

from penjing.errors import RecipeError
from penjing.train import Training

LEAST = {
    "attempts": 1, "calibration": 1, "batch": 1, "probes": 0, "generalization": 0, "samples": 4, "threads": 1, "round_to": 1,
    "seed": 0,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How ``compress`` goes about it. Training ends with what comes first, ``minutes`` or ``epochs``."""

    epochs: float | None = None  # of training, for all attempts together; 0: what needs none; None: 12, or as `minutes` say
    minutes: float | None = None  # of training, wall-clock, for all attempts together; None: no limit
    probes: int = 4  # networks that are tried without training, at most, once one held, to see how fast it can be for nothing
    attempts: int = 3  # networks that are trained, at most; the training is shared among them
    training: Training = field(default_factory=lambda: Training(lr=0.02, mixup=0.5))  # how the loop trains
    temperature: float = 4.0  # of the teacher's softened classes
    labels: float = 0.1  # weight of the task's own loss; the rest follows the teacher. 0 needs no labels
    qat: float = 0.15  # share of an attempt's training that is kept for training in integers, where these cost too much
    calibration: int = 512  # samples that integer ranges, refits and error tables are taken from
    batch: int = 1  # the batch size that latency is judged at
    report_batches: tuple[int, ...] = (1, 32)  # the batch sizes in the report
    cut_sums: bool = True  # also cut channels that are added to one another (residual streams)
    drop_blocks: bool = True  # also leave out whole residual blocks
    round_to: int | None = None  # channels are kept in multiples of this; None for the target's
    floor: float = 0.1  # share of the channels of every group that always stays
    exclude: tuple[str, ...] = ()  # patterns of parameter names to leave whole
    threads: int | None = None  # of the runtimes; None for all cores
    seconds: float = 0.5  # to time each contender
    samples: int = 8  # networks of other widths that layers are priced by, where this machine does not know them yet
    generalization: int = 1000  # samples that are corrupted to see whether the network generalizes as before; 0: none
    control: bool = True  # also train the original on for as many steps as the result, to stand beside it in the report
    fresh: bool = False  # measure again instead of taking what was measured on this machine before
    seed: int = 0  # of all chance

    @property
    def needs_labels(self) -> bool:
        """Whether anything is trained with the labels of the training split."""
        return self.labels > 0 and self.epochs != 0 and self.minutes != 0

    def __post_init__(self) -> None:
        for name in ("epochs", "minutes"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise RecipeError(f"{name} is {value}; give how much to train in all, 0 for not at all")
        for name in ("labels", "qat", "floor"):
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f"{name} is {getattr(self, name)}; give a share from 0 to 1")
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise RecipeError(f"{name} is {value}; give at least {least}")
        if not 0 < self.temperature < float("inf"):
            raise RecipeError(f"temperature is {self.temperature}; give a number above 0, e.g. 4")
        if not self.report_batches or min(self.report_batches) < 1:
            raise RecipeError(f"report_batches is {self.report_batches}; give batch sizes of at least 1, e.g. 1,32")
        if not 0 < self.seconds < float("inf"):
            raise RecipeError(f"seconds is {self.seconds}; give how long to time each contender, e.g. 0.5")
