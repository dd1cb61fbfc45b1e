"""The table of losses that know a teacher, by name."""

import inspect
from collections.abc import Callable
from typing import Any

from penjing.distill.features import attention, contrastive, hint, mimic, relations, similarity
from penjing.distill.lesson import TeacherLoss
from penjing.distill.logits import dist, dkd, imitate, kl, logit_mse, standardized_kl
from penjing.errors import RecipeError, entry

LOSSES: dict[str, Callable[..., TeacherLoss]] = {
    made.__name__: made
    for made in (
        imitate, kl, logit_mse, standardized_kl, dkd, dist, hint, mimic, attention, similarity, relations, contrastive,
    )
}  # fmt: skip


def loss_named(name: str, **settings: Any) -> TeacherLoss:
    """The loss of that name with these settings.

    Raises:
        RecipeError: There is no such loss, or it has no such setting, or lacks one; says what there is.
    """
    make = entry(LOSSES, name, "loss")
    try:
        bound = inspect.signature(make).bind(**settings)
    except TypeError as e:
        takes = ", ".join(inspect.signature(make).parameters) or "none"
        raise RecipeError(f"loss {name}: {e}; its settings: {takes}") from e
    return make(*bound.args, **bound.kwargs)
