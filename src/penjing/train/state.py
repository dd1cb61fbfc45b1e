"""Everything a training run is made of: student, teacher, loss, optimizer, mean of the weights; and its checkpoint."""

import copy
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._pytree import tree_map

from penjing import ranks
from penjing.distill.lesson import Lesson, TeacherLoss
from penjing.errors import ModelError, TrainingError
from penjing.files import digest_of, read_tensors, write_tensors
from penjing.graph.taps import Taps
from penjing.quant.correct import round_trained_biases
from penjing.quant.learned import rounded_weights, trained_steps
from penjing.task import Loss
from penjing.train.freeze import FreezeRun
from penjing.train.layout import channels_last
from penjing.train.optimizers import OPTIMIZERS, grouped, load_optimizer_state, optimizer_state
from penjing.train.settings import Training
from penjing.train.share import own_statistics, share_statistics
from penjing.train.sparse import SparseRun, Sparsity, describe
from penjing.train.tensors import fill, state_of, tensors_of


class Learner:
    """Student, teacher and loss, set up on the device: what one step needs, and all that a checkpoint must hold.

    Attributes:
        model: The student itself, without what Fabric wraps around it.
        average: Its mean over the steps (``Training.ema``), or None.
        best: The weights of the best epoch so far (``Training.keep``), or None.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: Training,
        few: tuple[Tensor, ...] = (),
        *,
        teacher: nn.Module | None = None,
        loss: TeacherLoss | None = None,
        sparsity: Sparsity | None = None,
    ) -> None:
        self.settings = settings
        precision = settings.precision if settings.precision != "auto" else native_precision()
        ranks.join()
        self.fabric = make_fabric(precision)
        self.model = channels_last(_in_train(copy.deepcopy(model)), few)
        self.loss = loss
        trained = [p for p in self.model.parameters() if p.requires_grad]
        if not trained:
            raise ModelError(f"no parameter of {type(model).__name__} is trained; set requires_grad of those that are to be")
        self.kinds = {name: t.dtype for name, t in tensors_of(self.model).items()}
        learned = [p for p in loss.parameters() if p.requires_grad] if loss is not None else []
        groups = grouped([*trained, *learned], trained_steps(self.model), settings.weight_decay, settings.scale_lr)
        self.optimizer: Any = OPTIMIZERS[settings.optimizer](groups, settings.lr, settings.momentum)
        if ranks.world() > 1:
            share_statistics(self.model)
        self.student, self.optimizer = self.fabric.setup(self.model, self.optimizer)
        self.trained = [*trained, *learned]
        if loss is not None:  # features are compared in float32 at least
            loss.to(self.fabric.device, dtype=torch.float64 if precision == "64-true" else None)
        ranks.alike((*self.model.parameters(), *self.model.buffers(), *(tensors_of(loss).values() if loss is not None else ())))
        self.average = _average(self.model, settings.ema) if settings.ema else None
        self.best: dict[str, Tensor] | None = None
        self.sparse = SparseRun(self.model, self.optimizer, sparsity, hold=settings.hold_zeros)
        for name in rounded_weights(self.model):
            self.sparse.masks.pop(name, None)
        self.freeze = FreezeRun(self.model, self.optimizer, settings.freezing)
        self.teacher: Any = None
        if teacher is not None:
            self.frozen = channels_last(copy.deepcopy(teacher).eval().requires_grad_(False), few)
            self.teacher = make_fabric(precision).setup_module(self.frozen)
        self.taught_by = None if teacher is None else digest_of(state_of(teacher))
        pairs = loss.taps if loss is not None else ()
        self.taps = Taps(self.model, [p.student for p in pairs], call=self.student)
        self.shown = Taps(self.frozen, [p.teacher for p in pairs], call=self.teacher) if teacher is not None else None

    def taught(self, inputs: tuple[Tensor, ...]) -> tuple[Any, Mapping[str, Tensor]]:
        """What the teacher says, and shows at the taps."""
        assert self.shown is not None
        with torch.no_grad():
            return self.shown(*inputs)

    def value(self, inputs: tuple[Tensor, ...], target: Any, task_loss: Loss, said: Any, done: float) -> Tensor:
        """The loss of a batch; ``said`` is what ``taught`` gave for it."""
        output, features = self.taps(*inputs)
        if self.loss is None:
            return task_loss(output, target)
        taught, shown = said
        value: Tensor = self.loss(Lesson(output, taught, target, features, shown, done))
        return value

    def backward(self, value: Tensor) -> None:
        """Add to the gradients."""
        self.fabric.backward(value)

    def step(self, lr: float, step: int, total: int) -> None:
        """Move the weights along the gradients of all processes, at ``step`` of ``total``."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["share"]
        ranks.mean_gradients(self.trained)
        for follower in (self.sparse, self.freeze):
            follower.at(step, total)
            follower.before_step()
        if self.settings.clip:
            self.fabric.clip_gradients(self.student, self.optimizer, max_norm=self.settings.clip, error_if_nonfinite=False)
        self.optimizer.step()
        self.sparse.after_step()
        self.freeze.after_step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.optimizer.zero_grad()

    def current(self) -> nn.Module:
        """The network as it would be handed back now, on its device: the mean of the weights where there is one.

        All processes must call this together: statistics of their own, as instance norms keep, become those of the first.
        """
        ranks.alike(self.model.buffers())
        if self.average is None:
            return self.model
        net: nn.Module = self.average.module
        with torch.no_grad():
            for name, mask in self.sparse.masks.items():
                net.get_parameter(name).masked_fill_(~mask, 0)
        return net

    @staticmethod
    def answering(net: nn.Module) -> Any:
        """The network as a function of inputs of any device and of float32, whose answers are on the CPU, for a metric."""
        own = next((p for p in net.parameters() if p.is_floating_point()), None)

        def answer(*inputs: Tensor) -> Any:
            if own is not None:
                inputs = tuple(x.to(own.device, own.dtype if x.is_floating_point() else None) for x in inputs)
            return tree_map(_readable, net(*inputs))

        return answer

    def remember(self) -> None:
        """Keep the present weights as the best so far."""
        self.best = {name: t.clone() for name, t in tensors_of(self.current()).items()}

    def finished(self) -> nn.Module:
        """The network to hand back, on the CPU, in eval mode and torch's own memory format."""
        net = self.current()
        if self.best is not None:
            fill(net, self.best)
        own_statistics(net)
        self.taps.close()
        for name, t in (*net.named_parameters(), *net.named_buffers()):
            t.data = t.data.to(self.kinds.get(name, t.dtype))
        model: nn.Module = net.to("cpu").to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
        if isinstance(model, fx.GraphModule):
            round_trained_biases(model)
        return model

    def save(self, path: Path, about: Mapping[str, Any]) -> None:
        """Write all of it, whole or not at all; ``about`` is what the loop must know to go on."""
        tensors = {f"optimizer.{k}": v for k, v in optimizer_state(self.optimizer).items()}
        for kind, kept in (("sparse", self.sparse), ("freeze", self.freeze)):
            tensors |= {f"{kind}.{name}": t for name, t in kept.state().items()}
        for kind, module in self._modules().items():
            tensors |= {f"{kind}.{name}": t for name, t in tensors_of(module).items()}
        tensors |= {f"best.{name}": t for name, t in (self.best or {}).items()}
        if ranks.is_writer():
            write_tensors(path, tensors, {**self.identity(), **about})
        ranks.wait()

    def load(self, path: Path, about: Mapping[str, Any]) -> dict[str, Any]:
        """Go on from what ``save`` wrote; gives what the loop said then.

        Raises:
            TrainingError: It is the checkpoint of another run.
        """
        tensors, held = read_tensors(path)
        mine = {**self.identity(), **about}
        if differ := [k for k in mine if mine[k] != held.get(k)]:
            raise TrainingError(
                f"{path} belongs to another run, with other {' and '.join(differ)}; delete it or choose another place"
            )

        def part(kind: str) -> dict[str, Tensor]:
            return {k.removeprefix(f"{kind}."): v for k, v in tensors.items() if k.startswith(f"{kind}.")}

        for kind, module in self._modules().items():
            fill(module, part(kind))
        load_optimizer_state(self.optimizer, part("optimizer"))
        self.sparse.load(part("sparse"))
        self.freeze.load(part("freeze"))
        if best := part("best"):
            self.best = {name: t.to(self.fabric.device) for name, t in best.items()}
        return held

    def check_kept(self) -> None:
        """Refuse what a checkpoint cannot hold.

        Raises:
            ModelError: The state of the network or of the loss has something that is not a tensor.
        """
        for module in self._modules().values():
            for name, value in module.state_dict().items():
                if not isinstance(value, Tensor):
                    raise ModelError(
                        f"{name} in the state of {type(module).__name__} is {type(value).__name__}, and a checkpoint holds "
                        "tensors alone; keep it as a buffer, or train without a checkpoint"
                    )

    def _modules(self) -> dict[str, nn.Module]:
        """All that has weights or buffers of its own and changes."""
        found = {"model": self.model, "loss": self.loss, "average": self.average}
        return {kind: module for kind, module in found.items() if module is not None}

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree in to be this run's."""
        shapes = {name: list(value.shape) for name, value in state_of(self.model).items()}
        trained = [name for name, p in self.model.named_parameters() if p.requires_grad]
        return {
            "settings": asdict(self.settings),
            "model": {"shapes": shapes, "trained": trained},
            "sparsity": describe(self.sparse.way),
            "loss": None if self.loss is None else repr(self.loss),
            "teacher": self.taught_by,
        }


def _in_train(model: nn.Module) -> nn.Module:
    """The model in train mode, but for norms whose scale and shift are frozen: their statistics are, too."""
    model.train()
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, nn.modules.batchnorm._NormBase) and own and not any(p.requires_grad for p in own):
            module.eval()
    return model


def _readable(value: Any) -> Any:
    """As numpy takes it: on the CPU, and of no narrow floats."""
    if not isinstance(value, Tensor):
        return value
    narrow = value.dtype in (torch.bfloat16, torch.float16)
    return value.detach().to("cpu", torch.float32 if narrow else None)


def make_fabric(precision: str) -> Any:
    """Lightning Fabric on this process's device, whatever started it; of several processes ``ranks`` shares the gradients.

    Not torch's DistributedDataParallel: it wants every weight that the output depends on to get a gradient, and a loss that
    compares features reaches none behind them.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment

    logger = logging.getLogger("lightning_fabric")
    level = logger.level
    logger.setLevel(logging.WARNING)  # it announces the precision at every run
    try:
        local = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))
        devices = [local] if torch.cuda.is_available() else 1
        return Fabric(accelerator="auto", devices=devices, precision=precision, plugins=[LightningEnvironment()])
    finally:
        logger.setLevel(level)


def native_precision() -> str:
    """bfloat16 where the device computes in it; elsewhere it would only be slower than float32."""
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    return "bf16-mixed" if torch.cpu._is_avx512_bf16_supported() else "32-true"


def _average(model: nn.Module, decay: float) -> AveragedModel:
    """A running mean that follows fast at first: after n steps the decay is at most (1 + n) / (10 + n).

    Buffers of whole numbers (counts, indices, zero points) have no mean: they are the model's.
    """

    def follow(means: Any, values: Any, steps: Tensor | int) -> None:
        if not means[0].is_floating_point():  # torch gives tensors of one type at a time
            torch._foreach_copy_(means, values)
            return
        n = int(steps)
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(means, values, steps)

    return AveragedModel(model, multi_avg_fn=follow, use_buffers=True)
