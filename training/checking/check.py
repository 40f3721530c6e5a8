"""Reads all data of a recipe once before training."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...files.atomic import write_json, write_text
from ...files.run_contents import CHECK_FILE, CHECK_TABLES_FILE
from ...files.user_error import UserError
from ...files.write_errors import explain_write_errors
from ...processing.encoder_processor import EncoderProcessor, load_image_processor
from ...processing.processing_hawaii import HawaiiProcessor
from ..counting.recipes import outline_vision
from ..data.checked import CheckedRows, image_states, save_checked
from ..recipes.arguments import DataArguments
from ..recipes.recipe import Recipe, Stage, read_recipe
from ..sources.source import Source
from ..students.language_models import register_code
from ..students.processor import build_processor, find_pinpoints
from ..students.student import vision_fields
from ..students.tokenizer import load_tokenizer
from .pool import inspect_rows
from .report import NUM_SHOWN, SourceReport, find_lines, write_markdown
from .rows import AllConversations, AllImages, AllQuestions, AllRows


def build_stage_processor(recipe: Recipe, stage: Stage) -> HawaiiProcessor | EncoderProcessor:
    """Builds the processor that training has in a stage, without the student."""
    first = next(iter(recipe.stages.values()))
    fields = vision_fields(first.model, len(first.distilled_teachers), first.training.objective)
    vision_config = outline_vision(first.model, fields)
    if recipe.is_encoder_alone:
        original = load_image_processor(first.model.vision_tower)
        return EncoderProcessor(original, vision_config, stage.data.image_aspect_ratio)
    own = stage.data.image_grid_pinpoints
    pinpoints = find_pinpoints(recipe)[stage.name] if own is None else None
    return build_processor(stage.model, stage.data, vision_config, load_tokenizer(stage.model), pinpoints)


def _open_data(data: DataArguments, source: Source | None, processor: HawaiiProcessor | EncoderProcessor) -> AllRows:
    options: dict[str, Any] = {"follow_links": data.follow_links}
    if isinstance(processor, EncoderProcessor):
        return AllImages(source, data.image_folder, processor, **options)
    assert source is not None  # without one, an encoder is trained alone
    return AllConversations(source, None, processor, max_length=data.max_length, **options)


def _check_rows(report: SourceReport, dataset: AllRows, num_processes: int, checked: dict[str, CheckedRows]) -> None:
    key, states = dataset.check_key(dataset.records), image_states(dataset.images, dataset.records.without_messages())
    rows = checked.get(key, dataset.checked)
    report.is_cached = rows is not None and rows.all_states == states
    if rows is None or not report.is_cached:
        # No progress bar if the output is a log file, where it would fill thousands of lines.
        with tqdm(total=len(dataset), desc=report.data_path, unit="rows", disable=None) as bar:
            inspected = inspect_rows(dataset, num_processes, bar.update)
        images, turns, tokens, tiles, problems = (list(values) for values in zip(*inspected))
        bad = {index: problem for index, problem in enumerate(problems) if problem is not None}
        bad_states = {index: image_states(dataset.images, [dataset.records[index]]) for index in bad}
        rows = CheckedRows(images, turns, tokens, tiles, bad, bad_states, states)
        if image_states(dataset.images, dataset.records.without_messages()) != states:
            raise UserError(f"Files of {report.data_path} changed while they were read: run the check again.")
        save_checked(key, rows)
    checked[key] = report.rows = rows
    if rows.problems:
        lines = find_lines(Path(report.data_path), len(dataset))
        for index in rows.problems:
            line = None if lines is None else lines[index]
            report.places[index] = {"line": line, "id": dataset.records[index].id}


def check_stages(recipe: Recipe, num_processes: int) -> list[SourceReport]:
    """
    Checks the training data, and the questions, of every stage. Rows with equal contents and options are read once.
    """
    reports, checked = [], {}
    for stage in recipe.stages.values():
        processor, data = build_stage_processor(recipe, stage), stage.data
        max_length = None if recipe.is_encoder_alone else data.max_length
        uses = []
        for source in data.sources or [None]:
            path = data.image_folder if source is None else source.path
            report = SourceReport(path, f"{stage.name}, training", data.bad_records, max_length)
            uses.append((report, partial(_open_data, data, source, processor)))
        if data.eval_data_path is not None:
            options = (data.eval_data_path, data.image_folder, processor)
            report = SourceReport(data.eval_data_path, f"{stage.name}, questions", "error")
            uses.append((report, partial(AllQuestions, *options, follow_links=data.follow_links)))
        for report, open_data in uses:
            try:
                _check_rows(report, open_data(), num_processes, checked)
            except UserError as error:
                report.problem = str(error)
            reports.append(report)
    return reports


def check(recipe: str, overrides: Sequence[str] | None = None, num_processes: int | None = None) -> str:
    """
    Reads every row of a recipe's data once: decodes every image and tokenizes every conversation. Writes `check.json`
    and `check.md` into the recipe's `output_dir`. Training uses the result and does not search for bad rows again.

    Args:
        recipe (`str`):
            A YAML file, or the name of a built-in recipe.
        overrides (`Sequence[str]`, *optional*):
            `key=value` or `stages.NAME.key=value`.
        num_processes (`int`, *optional*):
            Number of processes; the number of CPU cores if not given.

    Returns:
        `str`: the summary.

    Raises:
        UserError: training would stop, as there are bad rows and `bad_records` is `error`, or a file cannot be read.
    """
    plan = read_recipe(recipe, overrides, use_cpu=True)
    start = next(iter(plan.stages.values())).model
    if start.trust_remote_code and start.language_model is not None:
        register_code(start.language_model)
    if num_processes is None:
        num_processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    sources = check_stages(plan, max(1, num_processes))
    refused = [source for source in sources if source.is_refused]
    content = {"name": plan.name, "is_usable": not refused, "sources": [source.to_dict() for source in sources]}
    tables = plan.output_dir / CHECK_TABLES_FILE
    with explain_write_errors(plan.output_dir, "run the same command again."):
        write_json(plan.output_dir / CHECK_FILE, content)
        write_text(tables, f"# Check of the data of {plan.name}\n\n{write_markdown(sources)}\n")
    summary = f"{write_markdown(sources, NUM_SHOWN)}\n\nThe report: {tables}"
    if not refused:
        return summary
    print(summary)
    first = refused[0]
    if first.rows is None:
        raise UserError(str(first.problem))
    num_bad = len(first.rows.problems)
    way_out = "set bad_records: skip" if first.bad_records == "error" and "training" in first.use else "remove them"
    raise UserError(
        f"{num_bad} of {len(first.rows.num_images)} rows of {first.data_path} cannot be used, so training would stop; "
        f"{tables} lists them. Fix them, or {way_out}."
    )
