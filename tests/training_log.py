"""Entries of a training log."""

ENTRIES = [
    {
        "step": step,
        "loss": 2.0 / step,
        "text": 1.0 / step,
        "fine/vit": 0.5,
        "grad_norm": 1.0,
        "learning_rate": 1e-3,
        "samples_per_second": 10.0,
        "load/teacher/vit": 0.25,
        "load/teacher/convnext": 0.75,
        "load_entropy/teacher": 0.8,
        "variance/student": 1.0,
        "time": 1.0,
    }
    for step in (1, 2, 3)
]
EVALUATION = {
    "step": 3,
    "eval_accuracy": 0.5,
    "eval_accuracy/color": 0.75,
    "eval_num_questions": 4,
    "train_seconds": 9.0,
}
