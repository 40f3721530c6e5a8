"""How easy-VQA is asked and scored. lmms-eval reads this file by its path, so it imports nothing of the package."""

from collections import defaultdict


def doc_to_visual(document):
    """The one image of a question."""
    return [document["image"].convert("RGB")]


def doc_to_messages(document):
    """The image, then the question as it was asked in training: no instruction is added."""
    content = [{"type": "image", "url": image} for image in doc_to_visual(document)]
    return [{"role": "user", "content": [*content, {"type": "text", "text": document["question"]}]}]


def normalize(answer):
    """Forgives surrounding space, case and one trailing period, nothing else: the answer must be the word itself."""
    return answer.strip().lower().removesuffix(".").strip()


def process_results(document, results):
    """Scores one answer, 1 or 0, for both metrics."""
    score = float(normalize(results[0]) == normalize(document["answer"]))
    return {"accuracy": score, "accuracy_by_type": {"question_type": document["question_type"], "score": score}}


def accuracy_by_type(items):
    """The mean score of each question type."""
    scores = defaultdict(list)
    for item in items:
        scores[item["question_type"]].append(item["score"])
    return {question_type: sum(values) / len(values) for question_type, values in sorted(scores.items())}
