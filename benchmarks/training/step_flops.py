"""
Counts the operations of a training step of the paper's HAWAII (`hawaii_vicuna_7b`) and of LLaVA's with the same batch,
on the real modules without weights. The images of ConvNeXt and EVA-02, which are most of a teacher's cost, have the
sizes of the presets and 320 and 448 pixels. Also counts two other ways to learn from the same features. Needs timm,
but no download.

    python benchmarks/training/step_flops.py
"""

from collections.abc import Iterator

from hawaii.benchmarks.measuring.command import make_parser, print_comparisons
from hawaii.benchmarks.measuring.comparison import Comparison
from hawaii.training.counting.costs import teacher_step_flops
from hawaii.training.counting.recipes import OutlinedRecipe
from hawaii.training.counting.step import BatchShape, StepCost, trace_outline
from hawaii.training.recipes.recipe import read_recipe


RECIPE = "hawaii_vicuna_7b"
SMALL = "teachers=[clip, {preset: convnext, image_size: 320}, {preset: eva02, image_size: 448}]"
# The paper names no resolution of the teachers. Their goals are for the small ones.
GOALS = {"pretrain": (1.30, 1.20), "finetune": (1.24, 1.18)}
OTHERS = {"HAWAII, coarse-grained distillation alone": "distillation=[coarse]", "RADIO": "objective=radio"}


def count_steps(tokens: int, *overrides: str) -> Iterator[tuple[StepCost, int]]:
    """Yields the costs of a sample of `tokens` positions in each stage, and the operations of the teachers."""
    plan = read_recipe(RECIPE, overrides, use_cpu=True)
    recipe = OutlinedRecipe.of(plan)
    grids = [teacher.grid for teacher in recipe.teachers]
    teachers = teacher_step_flops(recipe.teachers, num_squares=1)
    for _, module in recipe.outline_stages():
        num_text = tokens - module.student.config.vision_config.num_patches
        yield trace_outline(module, grids, BatchShape(1, 1, tokens, num_text, num_text)), teachers


def measure_flops(tokens: int = 640) -> Iterator[Comparison]:
    """Compares steps of samples with one image and `tokens` positions."""
    step = f"a step of a sample of {tokens} tokens"
    baseline = [cost.flops / 1e12 for cost, _ in count_steps(tokens, "objective=llava")]
    for teachers, sizes in ((SMALL, "320 and 448"), ("teachers=hawaii", "768 and 448")):
        for (stage, goals), theirs, (cost, seen) in zip(GOALS.items(), baseline, count_steps(tokens, teachers)):
            ours = {f"teachers that see {sizes} pixels": (cost.flops + seen, goals[0] if teachers == SMALL else None)}
            if teachers == SMALL:
                ours["features from a cache"] = (cost.flops, goals[1])
            for name, (flops, goal) in ours.items():
                subject = f"{stage}: {step}, {name}"
                yield Comparison(subject, "HAWAII", "LLaVA", [(flops / 1e12, theirs)], "TFLOP", at_most=goal)
    for name, override in OTHERS.items():
        for stage, theirs, (cost, _) in zip(GOALS, baseline, count_steps(tokens, SMALL, override)):
            subject = f"{stage}: {step}, features from a cache"
            yield Comparison(subject, name, "LLaVA", [(cost.flops / 1e12, theirs)], "TFLOP")


def main() -> None:
    arguments = make_parser(__doc__, tokens=640).parse_args()
    print_comparisons(measure_flops(**vars(arguments)), arguments)


if __name__ == "__main__":
    main()
