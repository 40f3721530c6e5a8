"""Prompt and score of easy-VQA. lmms-eval loads this file by its path, so its imports are absolute."""

from hawaii.metrics.answer_accuracy.answer_accuracy import is_right, mean_by_type


def doc_to_visual(document):
    """Returns the image of a question."""
    return [document["image"].convert("RGB")]


def doc_to_messages(document):
    """Returns the image, then the question without an instruction, as in training."""
    content = [{"type": "image", "url": image} for image in doc_to_visual(document)]
    return [{"role": "user", "content": [*content, {"type": "text", "text": document["question"]}]}]


def process_results(document, results):
    """Scores one answer with 1 or 0 for both metrics."""
    score = float(is_right(results[0], document["answer"]))
    return {"accuracy": score, "accuracy_by_type": {"question_type": document["question_type"], "score": score}}


def accuracy_by_type(items):
    """Returns the mean score of each question type."""
    return mean_by_type([item["score"] for item in items], [item["question_type"] for item in items])
