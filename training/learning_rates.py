"""Learning rates of single parts of a student, in the groups of an optimizer."""

from torch.optim import Optimizer

from ..files.user_error import UserError
from .distribution.finite_checks import trained_parts
from .recipes.objectives import StudentWithObjective
from .students.trainable import check_rates


def split_groups(optimizer: Optimizer, module: StudentWithObjective, rates: dict[str, float]) -> list[str | None]:
    """
    Splits each group of a new optimizer by the parts that have their own learning rate. All other options of a group,
    such as its weight decay, are kept; a scheduler scales all rates by the same factor.

    Args:
        optimizer (`Optimizer`):
            Optimizer before its first step.
        module (`StudentWithObjective`):
            Module that it trains.
        rates (`dict[str, float]`):
            Learning rate of each part, see [`HawaiiTrainingArguments`].

    Returns:
        `list[str | None]`: the part of each group; `None` for those with the common learning rate, which come first.

    Raises:
        UserError: the optimizer has no groups, such as one that DeepSpeed makes from its own configuration,
            or none of its parameters belongs to a part in `rates`.
    """
    if not getattr(optimizer, "param_groups", None):
        raise UserError(
            "learning_rates needs an optimizer of PyTorch, but DeepSpeed's configuration names one: remove optimizer "
            "and scheduler from it."
        )
    parts = {id(parameter): part for part, parameter in trained_parts(module)}
    check_rates(rates, {parts[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]})
    split = []
    for part in (None, *rates):
        for group in optimizer.param_groups:
            of_part = [
                parameter
                for parameter in group["params"]
                if (parts[id(parameter)] if parts[id(parameter)] in rates else None) == part
            ]
            if of_part:
                rate = group["lr"] if part is None else rates[part]
                split.append((part, {**group, "params": of_part, "lr": rate}))
    optimizer.param_groups[:] = [group for _, group in split]
    return [part for part, _ in split]
