"""Evaluation during training: the student's answers and their scores."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch.utils.data import DataLoader, Subset

from ..metrics.answer_accuracy.answer_accuracy import AnswerAccuracy
from ..modeling_hawaii.modeling_hawaii import HawaiiForConditionalGeneration
from .data.questions import QuestionDataset, collate_prompts


def load_questions(
    questions: QuestionDataset, batch_size: int, num_workers: int, process_index: int, num_processes: int
) -> DataLoader:
    """Returns the batches of one of several processes; each question is in exactly one batch of one process."""
    # Sorted by length to need little padding. The longest come first, so that too little memory shows in the first
    # batch.
    order = sorted(range(len(questions)), key=lambda index: -len(questions.prompts[index]))
    return DataLoader(
        Subset(questions, order[process_index::num_processes]),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=partial(collate_prompts, pad_token_id=questions.processor.tokenizer.pad_token_id),
    )


@contextmanager
def evaluation_mode(student: HawaiiForConditionalGeneration) -> Iterator[None]:
    """Puts a student into eval mode; restores its training mode and the RNG state afterwards."""
    is_training = student.training
    student.eval()
    try:
        # A data loader draws from the CPU's generator; greedy decoding draws nothing on the accelerator.
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        student.train(is_training)


def answer_questions(
    student: HawaiiForConditionalGeneration, inputs: dict[str, torch.Tensor], questions: QuestionDataset
) -> list[str]:
    """
    Answers a batch of questions with greedy decoding.

    Args:
        student (`HawaiiForConditionalGeneration`):
            Student in eval mode.
        inputs (`dict`):
            Batch of [`collate_prompts`], on the student's device.
        questions (`QuestionDataset`):
            Source of the tokenizer and the maximum length of an answer.
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
    Computes the accuracy of all answers.

    Args:
        answers (`dict[int, str]`):
            Answer to every question, by its index.
        questions (`QuestionDataset`):
            Questions with reference answers.

    Returns:
        `dict` with `accuracy`, `num_questions` and, if the questions have types, `accuracy/TYPE` of each.
    """
    predictions = [answers[index] for index in range(len(questions))]
    result = AnswerAccuracy().compute(
        predictions=predictions, references=questions.references, question_types=questions.question_types
    )
    assert result is not None  # `compute` returns `None` on processes other than the main one
    by_type = {f"accuracy/{name}": value for name, value in result.get("accuracy_by_type", {}).items()}
    return {"accuracy": result["accuracy"], **by_type, "num_questions": len(predictions)}
