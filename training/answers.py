"""The student's answers while it trains: generated, gathered, scored."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils.data import DataLoader, Subset

from ..metrics.answer_accuracy.answer_accuracy import AnswerAccuracy
from ..modeling_hawaii.modeling_hawaii import HawaiiForConditionalGeneration
from .data.questions import PromptCollator, QuestionDataset


def load_questions(
    questions: QuestionDataset, batch_size: int, num_workers: int, process_index: int, num_processes: int
) -> DataLoader:
    """The batches that one of several processes answers; every question is in one batch of one process."""
    # Neighbours of equal length need little padding; the longest come first: memory runs out at once or never.
    order = sorted(range(len(questions)), key=lambda index: -len(questions.prompts[index]))
    return DataLoader(
        Subset(questions, order[process_index::num_processes]),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=PromptCollator(questions.processor.tokenizer.pad_token_id),
    )


@contextmanager
def undisturbed(student: HawaiiForConditionalGeneration) -> Iterator[None]:
    """Puts a student into eval mode; afterwards it, and the random numbers, are as if nothing had been."""
    is_training = student.training
    student.eval()
    try:
        # A data loader draws one on the CPU; greedy answers need none on the accelerator.
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        student.train(is_training)


def answer_questions(
    student: HawaiiForConditionalGeneration, inputs: dict[str, torch.Tensor], questions: QuestionDataset
) -> list[str]:
    """
    Answers a batch greedily.

    Args:
        student (`HawaiiForConditionalGeneration`):
            In eval mode.
        inputs (`dict`):
            What [`PromptCollator`] makes, on the student's device.
        questions (`QuestionDataset`):
            Gives the tokenizer and the greatest length of an answer.
    """
    tokenizer = questions.processor.tokenizer
    tokens = student.generate(
        **inputs,
        max_new_tokens=questions.max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
        num_beams=1,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
    )
    return tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def score_answers(answers: dict[int, str], questions: QuestionDataset) -> dict[str, float]:
    """
    The accuracy of all answers.

    Args:
        answers (`dict[int, str]`):
            To every question, by its number.
        questions (`QuestionDataset`):
            Knows the right ones.

    Returns:
        `dict` with `accuracy`; where the questions have types, `accuracy/TYPE` of each; and `num_questions`.
    """
    predictions = [answers[index] for index in range(len(questions))]
    result = AnswerAccuracy().compute(
        predictions=predictions, references=questions.references, question_types=questions.question_types
    )
    assert result is not None  # as it would be where other processes compute
    by_type = {f"accuracy/{name}": value for name, value in result.get("accuracy_by_type", {}).items()}
    return {"accuracy": result["accuracy"], **by_type, "num_questions": len(predictions)}
