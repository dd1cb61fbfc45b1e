"""A large network teaches a small one: `penjing distill`."""

import inspect
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from penjing import ranks
from penjing.cli.app import Data, Json, Weights, app, bars, console, errors, images_of, network, print_json, say, table_of
from penjing.cli.launch import Devices, Nodes, together
from penjing.distill import LOSSES, TeacherLoss, loss_named
from penjing.distill.student import plan_student, student_of
from penjing.errors import RecipeError
from penjing.measure import parameters
from penjing.plan import ChannelPlan
from penjing.progress import silent
from penjing.prune.store import plan_of, save
from penjing.recipe import load_task
from penjing.task import Task, as_tuple, check_task
from penjing.train import Lessons, Taught, Training, teach

DERIVED = "distilled.safetensors"  # a student made from its teacher, with the plan, for penjing.load


@app.command("distill")
def distill_command(  # noqa: PLR0913 - one parameter an option
    teacher: Annotated[str, typer.Option(help="The large network's factory, as package.module:function.")],
    data: Data,
    out: Annotated[Path, typer.Option(help="A folder for the results, or that of the run to go on with.")],
    weights: Weights = None,
    student: Annotated[str | None, typer.Option(help="The small network's factory; or give --width or --depth.")] = None,
    width: Annotated[float, typer.Option(help="A student of the teacher's kind: share of its channels, 0.5.")] = 1.0,
    depth: Annotated[float, typer.Option(help="And share of its residual blocks, 0.5.")] = 1.0,
    fresh: Annotated[bool, typer.Option(help="Do not let such a student inherit the teacher's weights.")] = False,
    target_data: Annotated[
        str | None, typer.Option(help="The task to fine-tune on, package.module:function; without it, that of --data.")
    ] = None,
    loss: Annotated[str, typer.Option(help="What is learned from the teacher: kl, dist, kl:temperature=2 ...")] = "imitate",
    teacher_epochs: Annotated[int, typer.Option(help="First train the teacher so long; 0 where it is trained.")] = 0,
    pretrain_epochs: Annotated[int, typer.Option(help="Epochs of learning from the teacher; needs no labels.")] = 10,
    finetune_epochs: Annotated[int, typer.Option(help="Epochs on the labels of the target data; 0 for none.")] = 2,
    lr: Annotated[float, typer.Option(help="Learning rate at its peak; a tenth of it for fine-tuning.")] = 0.1,
    seed: Annotated[int, typer.Option(help="What all chance follows from.")] = 0,
    devices: Devices = 1,
    nodes: Nodes = 1,
    as_json: Json = False,
) -> None:
    """Train a large network, pre-train a small one from it, fine-tune the small one. What is in --out already is taken up.

    Example: `penjing distill --teacher my_net:big --weights big.safetensors --student my_net:small --data my_net:task
    --pretrain-epochs 20 --out runs/small`
    """
    together(devices, nodes)
    torch.manual_seed(seed)  # from here on: a factory may draw the weights that training starts from
    big, task = network(teacher, weights, what="--teacher"), load_task(data)
    learned = _loss(loss)  # which the modules of both may have added
    small = _Student(big, task, student, width, depth, fresh=fresh, seed=seed)
    lessons = Lessons(
        teacher_epochs=teacher_epochs,
        pretrain_epochs=pretrain_epochs,
        finetune_epochs=finetune_epochs,
        teacher=Training(lr=lr, keep="best", seed=seed),
        pretrain=Training(lr=lr, seed=seed),
        finetune=Training(lr=lr / 10, keep="best", seed=seed),
        loss=learned,
    )
    goal = load_task(target_data, what="--target-data") if target_data else None
    talks = ranks.is_writer()
    taught = teach(
        big, small.given or small.derived, task, out, target=goal, lessons=lessons,
        say=lambda words: errors.print(words, highlight=False) if talks else None, progress=bars if talks else silent,
    )  # fmt: skip
    if talks:
        file = next((s.file for s in reversed(taught.steps[1:]) if s.file), None)
        if small.plan is not None:
            earlier, file = plan_of(weights) if weights else None, out / DERIVED
            save(file, taught.student, earlier.then(small.plan) if earlier else small.plan, _example(task))
        _tell(taught, file, as_json)
    ranks.leave()


class _Student:
    """The small network: ``given`` by its factory, or ``derived`` from the teacher as that is once it is trained."""

    def __init__(
        self, big: nn.Module, task: Task, factory: str | None, width: float, depth: float, *, fresh: bool, seed: int
    ) -> None:
        if (factory is None) != (width != 1 or depth != 1):
            raise RecipeError("give the student's factory with --student, or make it from the teacher with --width or --depth")
        if fresh and factory is not None:
            raise RecipeError("--fresh is for a student that is made from its teacher; leave it out beside --student")
        self.task, self.width, self.depth, self.fresh, self.seed = task, width, depth, fresh, seed
        self.given = network(factory, None, what="--student") if factory is not None else None
        self.plan: ChannelPlan | None = None
        if self.given is None:
            check_task(task, big, labels=False)

    def derived(self, big: nn.Module) -> nn.Module:
        """One made of the teacher; ``plan`` is then how."""
        example = _example(self.task)
        self.plan = plan_student(big, example, width=self.width, depth=self.depth, data=images_of(self.task))
        return student_of(big, example, self.plan, inherit=not self.fresh, seed=self.seed)


def _example(task: Task) -> tuple[Any, ...]:
    return tuple(x[:1] for x in as_tuple(next(iter(task.search))[0]))


def _loss(text: str) -> TeacherLoss:
    """``kl:temperature=2`` or ``hint:student=layer3,teacher=features.12`` as a loss."""
    name, _, rest = text.partition(":")
    settings: dict[str, float | str] = {}
    takes = inspect.signature(LOSSES[name]).parameters if name in LOSSES else {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not (equals and key and value):
            raise RecipeError(f"--loss {text!r} is not understood at {part!r}; write e.g. kl:temperature=2")
        module = key in takes and takes[key].annotation is str  # whose name may be a number
        try:
            settings[key] = value if module else float(value)
        except ValueError:  # told where the loss is made
            settings[key] = value
    return loss_named(name, **settings)


def _tell(taught: Taught, file: Path | None, as_json: bool) -> None:
    if as_json:
        print_json(taught.to_json())
        return
    rows = [
        {
            "step": s.name,
            "score": f"{s.score.value:.4f}",
            "epochs": str(len(s.epochs)),
            "": "was there" if s.was_there else "" if s.epochs else "not trained",
        }
        for s in taught.steps
    ]
    console.print(table_of("scores on the task's confirm split", rows))
    sizes = [parameters(net) for net in (taught.teacher, taught.student)]
    console.print(f"{sizes[1]:,} parameters, {sizes[1] / sizes[0]:.3f} of the teacher's {sizes[0]:,}", highlight=False)
    say(f"the student: {file}")
