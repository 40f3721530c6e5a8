"""Facts about a training for the report of its stage and the model card."""

from typing import Any

from transformers.trainer_utils import has_length


def report_training(trainer) -> dict[str, Any]:
    """
    Args:
        trainer (`HawaiiTrainer`):
            After training.

    Returns:
        `dict[str, Any]`: JSON values, such as the numbers of steps and samples (`None` if they are streamed), seconds,
            teachers and the last log entry.
    """
    args = trainer.args
    dataset: Any = trainer.train_dataset
    # Without weight a distillation loss has no effect.
    used = trainer.teachers if trainer.options.lambda_1 else []
    return {
        "steps": trainer.state.global_step,
        "samples": len(dataset) if has_length(trainer.train_dataset) else None,
        "seconds": round(trainer.timer.seconds, 1),
        "learning_rate": args.learning_rate,
        "batch_size": trainer.samples_per_step,
        "epochs": round(trainer.state.epoch, 2),
        "objective": args.objective,
        "teachers": {teacher.name: {"image_size": teacher.image_size, "grid": teacher.grid} for teacher in used},
        "num_parameters": trainer.student.num_parameters(),
        "hardware": trainer.sessions,
        "question": dataset.question,
        "log": next((entry for entry in reversed(trainer.state.log_history) if "loss" in entry), {}),
    }
