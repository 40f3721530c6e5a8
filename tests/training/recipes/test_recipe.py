"""Recipes become typed stages, and an error names the option, the value and the correction."""

import re

import pytest
import yaml

from hawaii.files.user_error import UserError
from hawaii.training.recipes.arguments import TRAINABLE_PARTS
from hawaii.training.recipes.recipe import first_difference, read_recipe


RECIPE = {
    "output_dir": "runs/tiny",
    "data_path": "${output_dir}/data.json",
    "image_folder": "images",
    "tokenizer": "tokenizer",
    "text_config": {},
    "vision_config": {},
    "learning_rate": 0.5,
    "report_to": "none",
    "use_cpu": True,
    "stages": {"pretrain": {"chat_template": "plain"}, "align": {"learning_rate": 0.25}, "finetune": None},
}


@pytest.fixture
def write(tmp_path):
    """Writes a recipe with other shared keys, or a text, and returns its path."""

    def write(text=None, **changes):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({**RECIPE, **changes}, sort_keys=False) if text is None else text)
        return str(path)

    return write


def read_options(path, overrides=()):
    """The typed options of each stage, by name."""
    return {
        name: {**vars(stage.model), **vars(stage.data), **vars(stage.training), **vars(stage.options)}
        for name, stage in read_recipe(path, overrides).stages.items()
    }


def parse(path, *overrides, stage="finetune"):
    """The typed options of one stage."""
    return read_options(path, overrides)[stage]


def test_stages_keep_their_order(write):
    assert list(read_recipe(write()).stages) == ["pretrain", "align", "finetune"]


def test_the_options_of_a_stage_replace_the_shared_ones(write):
    stages = read_options(write())
    assert [stage["learning_rate"] for stage in stages.values()] == [0.5, 0.25, 0.5]
    assert [stage["chat_template"] for stage in stages.values()] == ["plain", None, None]


def test_each_stage_has_a_separate_folder(write):
    assert parse(write(), stage="align")["output_dir"] == "runs/tiny/align"


def test_output_dir_is_interpolated_in_every_value(write):
    teachers = ["${output_dir}/a", {"checkpoint": "${output_dir}/b"}]
    path = write(teachers=teachers, stages={"one": {"tokenizer": "${output_dir}"}})
    options = read_options(path, ["output_dir=elsewhere"])["one"]
    assert options["data_path"] == "elsewhere/data.json"
    assert options["teachers"] == ["elsewhere/a", {"checkpoint": "elsewhere/b"}]
    assert options["tokenizer"] == "elsewhere"


def test_overrides_replace_shared_keys_stage_keys_and_fields(write):
    path = write(vision_config={"hidden_size": 8, "image_size": 16})
    overrides = ["max_steps=3", "stages.align.learning_rate=0.125", "stages.finetune.seed=7"]
    stages = read_options(path, [*overrides, "vision_config.hidden_size=32"])
    assert [stage["max_steps"] for stage in stages.values()] == [3, 3, 3]
    assert [stage["learning_rate"] for stage in stages.values()] == [0.5, 0.125, 0.5]
    assert [stage["seed"] for stage in stages.values()] == [42, 42, 7]
    assert stages["align"]["vision_config"] == {"hidden_size": 32, "image_size": 16}


def test_an_override_can_create_a_mapping(write):
    overrides = ["vision_config.num_teacher_adapters=0", "vision_config.lora_rank=4", "text_config.hidden_size=8"]
    options = read_options(write(), overrides)["pretrain"]
    assert options["vision_config"] == {"num_teacher_adapters": 0, "lora_rank": 4}
    assert options["text_config"] == {"hidden_size": 8}


def test_an_override_that_a_mapping_of_a_stage_would_hide_is_an_error(write):
    path = write(stages={"a": {"vision_config": {"lora_rank": 2}}, "b": {}})
    problem = "'vision_config', which stage a replaces: write stages.a.vision_config.lora_rank=4"
    with pytest.raises(ValueError, match=problem):
        read_recipe(path, ["vision_config.lora_rank=4"])
    stages = read_options(path, ["stages.a.vision_config.lora_rank=4"])
    # A later stage continues with the encoder of the first.
    assert stages["a"]["vision_config"] == stages["b"]["vision_config"] == {"lora_rank": 4}


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("objective", ("hawaii", "llava")),
        ("grid_matching", ("unshuffle", "learned")),
    ],
)
def test_options_that_decide_which_modules_exist_are_equal_in_all_stages(write, key, values):
    default, other = values
    assert read_options(write(stages={"a": {}, "b": {key: default}}))["b"][key] == default
    assert read_options(write(**{key: other}))["finetune"][key] == other
    with pytest.raises(ValueError, match=f"stage b: {key} is .* here and .* in stage a, .*; use the same value"):
        read_recipe(write(stages={"a": {}, "b": {key: other}}))


def test_a_later_stage_may_leave_out_a_distillation_and_add_none(write):
    options = read_options(
        write(stages={"a": {}, "b": {"distillation": ["coarse"]}, "c": {"distillation": ["coarse"]}})
    )
    assert [stage["distillation"] for stage in options.values()] == [["fine", "coarse"], ["coarse"], ["coarse"]]
    with pytest.raises(ValueError, match="stage b: distillation is .*'fine'.* here and .'coarse'. in stage a"):
        read_recipe(write(stages={"a": {"distillation": ["coarse"]}, "b": {}}))
    with pytest.raises(ValueError, match="stage c: distillation is .*'fine'.* here and .'coarse'. in stage b"):
        read_recipe(write(stages={"a": {}, "b": {"distillation": ["coarse"]}, "c": {}}))


def test_num_teacher_adapters_can_be_set_to_zero(write):
    options = read_options(write(vision_config={"num_teacher_adapters": 0}))["align"]
    assert options["vision_config"] == {"num_teacher_adapters": 0}


def test_an_override_is_yaml_and_can_contain_an_equals_sign(write):
    assert parse(write(), "trainable=[projector, adapters]")["trainable"] == ["projector", "adapters"]
    assert parse(write(), "run_name=a=b")["run_name"] == "a=b"


@pytest.mark.parametrize("written", ["1e-3", "'1e-3'", "0.001", "1.0e-3"])
def test_a_learning_rate_is_a_number_in_every_notation(write, written):
    text = yaml.safe_dump({name: value for name, value in RECIPE.items() if name != "learning_rate"}, sort_keys=False)
    assert parse(write(f"learning_rate: {written}\n{text}"))["learning_rate"] == 0.001
    assert parse(write(), f"learning_rate={written}")["learning_rate"] == 0.001


def test_a_number_inside_a_configuration_is_a_number(write):
    vision_config = "vision_config={layer_norm_eps: 1e-6, hidden_act: gelu}"
    options = parse(write(), vision_config, "lr_scheduler_kwargs={min_lr: 1e-5}")
    assert options["vision_config"] == {"layer_norm_eps": 1e-6, "hidden_act": "gelu"}
    assert options["lr_scheduler_kwargs"] == {"min_lr": 1e-5}


def test_a_whole_number_in_float_notation_is_an_int(write):
    assert parse(write(), "max_steps=1e3")["max_steps"] == 1000
    for written in ("1e3", "2.0"):
        assert isinstance(parse(write(), f"max_steps={written}")["max_steps"], int)
    assert parse(write(), "max_steps=2.0")["max_steps"] == 2


def test_a_number_inside_a_list_inside_a_configuration_is_a_number(write):
    teacher = "{checkpoint: '1e3', name: '2024', image_mean: [1e-1, 2e-1, 0.5]}"
    expected = [{"checkpoint": "1e3", "name": "2024", "image_mean": [0.1, 0.2, 0.5]}]
    assert parse(write(), f"teachers=[{teacher}]")["teachers"] == expected
    text_config = "text_config={model_type: qwen3, layer_types: [full_attention], rope_parameters: {factors: [1e1]}}"
    assert parse(write(), text_config)["text_config"] == {
        "model_type": "qwen3",
        "layer_types": ["full_attention"],
        "rope_parameters": {"factors": [10]},
    }


@pytest.mark.parametrize("name", ["2024", "'1e3'", "'1e-3'", "'0.5'", "'007'", "inf", "nan"])
@pytest.mark.parametrize("key", ["data_path", "vision_tower", "tokenizer", "run_name"])
def test_text_that_looks_like_a_number_stays_text(write, key, name):
    assert parse(write(), f"{key}={name}")[key] == name.strip("'")


@pytest.mark.parametrize("name", ["1e3", "1e-3", "0.50", ".inf"])
def test_text_that_yaml_would_change_must_be_quoted(write, name):
    with pytest.raises(UserError, match="data_path is the number .*; it must be text: put it in quotes"):
        read_recipe(write(), [f"data_path={name}"])


def test_text_that_looks_like_a_date_stays_text(write):
    assert parse(write(), "run_name=2024-01-31")["run_name"] == "2024-01-31"


def test_tokens_are_always_averaged_across_devices(write):
    assert parse(write(), "average_tokens_across_devices=false")["average_tokens_across_devices"]


def test_no_is_text_unless_the_option_is_a_boolean(write):
    assert parse(write(), "save_strategy=no")["save_strategy"] == "no"
    assert parse(write("save_strategy: no\n" + yaml.safe_dump(RECIPE)))["save_strategy"] == "no"
    assert parse(write(), "bf16=no")["bf16"] is False


def test_one_stage_can_be_evaluated_and_another_not(write):
    evaluated = {"eval_data_path": "${output_dir}/questions.json", "eval_strategy": "steps", "eval_steps": 5}
    stages = read_options(write(eval_strategy=False, stages={"a": {}, "b": evaluated}))
    assert stages["a"]["eval_data_path"] is None and stages["b"]["eval_data_path"].endswith("/questions.json")


@pytest.mark.parametrize("stage", ["2", "007", "nan"])
def test_a_stage_whose_name_looks_like_a_number_keeps_it(write, stage):
    assert read_options(write(output_dir=".", stages={stage: {}}))[stage]["output_dir"] == stage


def test_a_stage_or_run_named_by_a_number_keeps_its_name(write):
    stages = read_options(write(output_dir=2024, stages={1: {}, 2: {}}))
    assert list(stages) == ["1", "2"]
    assert stages["1"]["output_dir"] == "2024/1"
    assert stages["1"]["data_path"] == "2024/data.json"


def test_the_defaults_are_those_of_the_paper(write):
    options = parse(write())
    assert (options["lambda_1"], options["lambda_2"]) == (0.5, 0.05)
    assert options["grid_matching"] == "unshuffle"
    assert (options["token_scoring"], options["score_gradient"]) == (True, "text")
    assert options["distillation"] == ["fine", "coarse"]
    assert options["trainable"] == list(TRAINABLE_PARTS)
    options = parse(write(), "objective=move_kd")
    assert (options["lambda_2"], options["single_softmax"], options["detached_teacher_weights"]) == (
        0.01,
        False,
        False,
    )


def test_an_empty_option_of_an_objective_has_its_default(write):
    assert parse(write(), "lambda_2=")["lambda_2"] == 0.05
    assert parse(write(), "lambda_2=null", "objective=move_kd")["lambda_2"] == 0.01


def test_options_of_another_objective_are_allowed_and_ignored(write):
    options = parse(write(token_scoring=False, sequential_passes=True), "objective=llava")
    assert "token_scoring" not in options and options["lambda_1"] == 0.5


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"learning_rat": 1}, "yaml, stage pretrain: there is no option 'learning_rat'. Did you mean learning_rate?"),
        ({"stages": {"b": {"lamda_1": 1}}}, "yaml, stage b: there is no option 'lamda_1'. Did you mean lambda_1?"),
        ({"xyzzy": 1}, "there is no option 'xyzzy'.$"),
        ({"output_dir": None}, "recipe.yaml names no output_dir"),
        ({"stages": {}}, "is not a recipe: it needs `stages`"),
        ({"stages": ["pretrain"]}, "is not a recipe: it needs `stages`"),
        ({"stages": {"a": "plain"}}, "stage a: its options are 'plain'; they must be a mapping"),
        ({"stages": {"a": {"output_dir": "b"}}}, "stage a: output_dir belongs to the complete run"),
        ({"stages": {"a": {"eval_tasks": "b"}}}, "stage a: eval_tasks belongs to the complete run"),
        ({"stages": {"hub": {}}}, "stage hub: a stage is a folder of the run next to `hub`; give it another name"),
        ({"stages": {"../a": {}}}, "stage ../a: a stage is a folder of the run"),
        ({"stages": {"..": {}}}, "stage ..: .* give it another name, of letters, digits, _ and -"),
        ({"stages": {"hub.incomplete": {}}}, "stage hub.incomplete: .* give it another name"),
        ({"stages": {"": {}}}, "stage : a stage is a folder of the run"),
        (
            {"vision_config": {"lora_rnk": 2}},
            "stage pretrain, vision_config: there is no field 'lora_rnk'. Did you mean lora_rank?",
        ),
        (
            {"stages": {"a": {"vision_config": {"num_teacher_adapters": 2}}}},
            "vision_config: num_teacher_adapters is the number of teachers; leave it out, or set it to 0 for none",
        ),
        (
            {"text_config": {"hidden_sise": 2}},
            "stage pretrain, text_config: there is no field 'hidden_sise'. Did you mean hidden_size?",
        ),
        (
            {"text_config": {"model_type": "gpt2", "rope_theta": 2}},
            "stage pretrain, text_config: there is no field 'rope_theta'",
        ),
        ({"text_config": {"model_type": "lama"}}, "text_config: there is no model_type 'lama'. Did you mean llama?"),
        (
            {"eval_strategy": "steps"},
            "stage pretrain: eval_strategy is steps but no eval_data_path names",
        ),
        ({"eval_on_start": True}, "stage pretrain: eval_on_start is True but no eval_data_path names"),
        (
            {"stages": {"a": {"eval_data_path": "b.json"}}},
            "stage a: eval_data_path b.json would not be used; add eval_strategy: steps and",
        ),
        ({"eval_data_path": "b.json", "eval_strategy": False}, "eval_data_path b.json would not be used"),
    ],
)
def test_an_invalid_recipe_is_an_error(write, changes, problem):
    with pytest.raises(ValueError, match=problem.replace("?", r"\?").replace("..", r"\.\.")):
        read_recipe(write(**changes))


@pytest.mark.parametrize(
    "text_config",
    [
        {"model_type": "llama", "num_key_value_heads": 2, "rope_theta": 1e6, "tie_word_embeddings": True},
        {"hidden_size": 8, "dtype": "bfloat16"},
        {"model_type": "gpt2", "n_embd": 8, "num_attention_heads": 2},  # n_embd is GPT-2's name of hidden_size
    ],
)
def test_the_fields_of_a_language_model_are_known(write, text_config):
    assert read_options(write(text_config=text_config))["align"]["text_config"] == text_config


@pytest.mark.parametrize("key", ["vision_tower", "vision_config", "language_model", "text_config"])
def test_student_options_in_a_later_stage_are_an_error(write, key):
    value = {"hidden_size": 8} if key.endswith("config") else "x"
    assert read_options(write(stages={"a": {key: value}, "b": {}}))["a"][key] == value
    problem = f"stage b: {key} has no effect, because a later stage starts from the stage before it; move it to"
    with pytest.raises(ValueError, match=problem):
        read_recipe(write(stages={"a": {}, "b": {key: value}}))


@pytest.mark.parametrize("text", ["", "- a\n", "just text", "stages: 3"])
def test_a_file_without_stages_is_not_a_recipe(write, text):
    with pytest.raises(ValueError, match="is not a recipe: it needs `stages`"):
        read_recipe(write(text))


def test_the_error_for_invalid_yaml_names_the_line(write):
    with pytest.raises(ValueError, match=r"(?s)recipe.yaml is not valid YAML: .*line 2"):
        read_recipe(write("a: 1\nb: [1\n"))


def test_a_recipe_that_is_not_utf_8_is_an_error(write, tmp_path):
    (tmp_path / "recipe.yaml").write_bytes("stages: é".encode("latin-1"))
    with pytest.raises(ValueError, match=r"recipe\.yaml is not UTF-8 text"):
        read_recipe(str(tmp_path / "recipe.yaml"))


def test_a_missing_recipe_is_an_error():
    with pytest.raises(UserError, match="There is no recipe nowhere.yaml: name a YAML file or one of easy_vqa, "):
        read_recipe("nowhere.yaml")


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("max_steps", "'max_steps' is not an override; write key=value"),
        ("stages.tune.seed=1", "changes stage 'tune', which the recipe does not have"),
        ("max_stepz=1", "there is no option 'max_stepz'. Did you mean max_steps?"),
        ("seed=[1", r"value of the override 'seed=\[1' is not valid YAML"),
    ],
)
def test_an_invalid_override_is_an_error(write, override, problem):
    with pytest.raises(ValueError, match=problem.replace("?", r"\?")):
        read_recipe(write(), [override])


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("learning_rate=fast", "learning_rate is 'fast'; it must be a number"),
        ("learning_rate=", "learning_rate is empty; give it a value, or leave the key out"),
        ("max_steps=2.5", "max_steps is 2.5; it must be a whole number"),
        ("max_steps=true", "max_steps is True; it must be a whole number"),
        ("seed=[1]", r"seed is \[1\]; it must be a whole number"),
        ("seed={a: 1}", "seed is {'a': 1}; it must be a whole number"),
        ("data_path=[a]", r"data_path is \['a'\]; it must be text"),
        ("bf16=1", "bf16 is 1; it must be true or false"),
        ("vision_config=[a]", r"vision_config is \['a'\]; it must be a mapping"),
        ("token_scoring='false'", "token_scoring is 'false'; it must be true or false"),
        ("teachers={checkpoint: experts/vit}", "teachers is {'checkpoint': 'experts/vit'}; it must be a list or text"),
        ("objective=hawai", "objective is 'hawai'; it must be one of hawaii, llava, move_kd, radio"),
        ("distillation=[]", r"distillation is \[\]; it must name fine, coarse or both, each once"),
        ("distillation=[fine, fine]", r"distillation is \['fine', 'fine'\]; it must name fine, coarse or both, each"),
        ("distillation=[fine, rough]", "distillation is 'rough'; it must be one of fine, coarse"),
        ("distillation=fine", "distillation is 'fine'; it must be a list"),
        ("grid_matching=nearest", "grid_matching is 'nearest'; it must be one of unshuffle, interpolate, learned"),
        ("score_gradient=half", "score_gradient is 'half'; it must be one of text, full, none"),
        ("trainable=[projector, head]", "trainable is 'head'; it must be one of vision_tower, adapters"),
        ("bad_records=ignore", "bad_records is 'ignore'; it must be one of error, skip"),
        ("image_folder=", "image_folder is empty; give it a value"),
        ("data_path=", "stage pretrain: there is no data_path; name a data file"),
        ("image_share=0", "image_share is 0; it must be above 0 and at most 1"),
        ("image_share=1.5", "image_share is 1.5; it must be above 0 and at most 1"),
        ("image_share=.nan", "image_share is nan; it must be above 0 and at most 1"),
        ("image_share=half", "image_share is 'half'; it must be a number"),
        ("data_path=''", "stage pretrain: there is no data_path"),
        ("image_folder=''", "there is no image_folder; name the folder"),
        ("save_only_model=true", "training cannot continue from a checkpoint without the state of the optimizer"),
        ("push_to_hub=true", "push_to_hub and load_best_model_at_end are not supported"),
        ("label_smoothing_factor=0.1", "label_smoothing_factor is not part of the objective"),
        ("dtype=half", "dtype is 'half'; it must be one of float32, bfloat16, float16"),
        ("image_aspect_ratio=stretch", "image_aspect_ratio is 'stretch'; it must be one of pad, crop"),
    ],
)
def test_an_invalid_value_is_an_error(write, override, problem):
    with pytest.raises(ValueError, match=problem):
        parse(write(), override)


@pytest.mark.parametrize("override", ["stages=3", "stages={}"])
def test_an_override_cannot_remove_the_stages(write, override):
    with pytest.raises(ValueError, match="it needs `stages`, a mapping of names to options"):
        read_recipe(write(), [override])


def extend(tmp_path, name, **content):
    (tmp_path / name).write_text(yaml.safe_dump(content, sort_keys=False))
    return str(tmp_path / name)


def test_a_recipe_that_extends_another_contains_only_the_differences(write, tmp_path):
    write()
    path = extend(tmp_path, "other.yaml", extends="recipe.yaml", output_dir="runs/other", learning_rate=2.0)
    stages = read_options(path)
    assert [stage["learning_rate"] for stage in stages.values()] == [2.0, 0.25, 2.0]
    assert {stage["data_path"] for stage in stages.values()} == {"runs/other/data.json"}


def test_a_stage_of_the_same_name_keeps_its_other_options(write, tmp_path):
    write()
    changes = {"pretrain": {"learning_rate": 3.0}, "finetune": None, "last": {"seed": 1}}
    stages = read_options(extend(tmp_path, "other.yaml", extends="recipe.yaml", stages=changes))
    assert list(stages) == ["pretrain", "align", "finetune", "last"]
    assert (stages["pretrain"]["chat_template"], stages["pretrain"]["learning_rate"]) == ("plain", 3.0)
    assert stages["last"]["seed"] == 1


def test_a_recipe_can_extend_one_that_extends_another_in_another_folder(write, tmp_path):
    write()
    (tmp_path / "deeper").mkdir()
    extend(tmp_path, "middle.yaml", extends="recipe.yaml", learning_rate=2.0)
    path = extend(tmp_path / "deeper", "last.yaml", extends="../middle.yaml", seed=4)
    options = parse(path)
    assert (options["learning_rate"], options["seed"]) == (2.0, 4)


@pytest.mark.parametrize(
    ("extends", "message"),
    [
        ("recipe.yaml", "is the same file"),
        (3, "must be the file"),
        ("missing.yaml", "There is no recipe .*missing.yaml"),
    ],
)
def test_an_invalid_extends_is_an_error(tmp_path, extends, message):
    with pytest.raises(UserError, match=message):
        read_recipe(extend(tmp_path, "recipe.yaml", extends=extends))


def test_recipes_that_extend_each_other_are_an_error(tmp_path):
    extend(tmp_path, "one.yaml", extends="two.yaml")
    with pytest.raises(ValueError, match="one.yaml extends .*two.yaml"):
        read_recipe(extend(tmp_path, "two.yaml", extends="one.yaml"))


def test_mappings_of_an_extended_recipe_are_merged_and_lists_are_replaced(write, tmp_path):
    write(vision_config={"hidden_size": 8, "lora_rank": 2}, teachers=["./a", "./b"])
    path = extend(tmp_path, "other.yaml", extends="recipe.yaml", vision_config={"lora_rank": 4}, teachers=["./c"])
    options = parse(path)
    assert options["vision_config"] == {"hidden_size": 8, "lora_rank": 4} and options["teachers"] == ["./c"]


def test_an_override_replaces_a_mapping(write):
    path = write(text_config={"model_type": "gpt2", "n_embd": 8})
    assert parse(path, "text_config={model_type: llama}")["text_config"] == {"model_type": "llama"}


def test_a_recipe_can_extend_a_built_in_one_by_name(tmp_path):
    path = extend(tmp_path, "mine.yaml", extends="easy_vqa", output_dir="mine")
    assert read_recipe(path).stages["pretrain"].data.data_path == "mine/data/pretrain.json"


@pytest.mark.parametrize("value", ["${output_dirr}", "${run_name}", "${unknown:x}"])
def test_a_value_that_cannot_be_interpolated_is_an_error(write, value):
    with pytest.raises(UserError, match=rf"recipe.yaml: {re.escape(value)} is not a shared key of the recipe whose"):
        read_recipe(write(run_name=value))


def test_aliases_that_expand_exponentially_are_an_error(write):
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi")]
    with pytest.raises(UserError, match="recipe.yaml is not valid YAML: .*expansion exceeds"):
        read_recipe(write("\n".join(lines)))


def test_the_error_of_a_later_stage_is_found_when_the_recipe_is_read(write):
    with pytest.raises(UserError, match="recipe.yaml, stage finetune: .*grid_matching is 'nearest'"):
        read_recipe(write(), ["stages.finetune.grid_matching=nearest"])


def test_eval_tasks_are_a_list_in_every_notation(write):
    assert read_recipe(write(eval_tasks="gqa, pope")).eval_tasks == ["gqa", "pope"]
    assert read_recipe(write(eval_tasks=["gqa", "pope"])).eval_tasks == ["gqa", "pope"]
    assert read_recipe(write()).eval_tasks == []


def test_a_saved_recipe_equals_the_original(write, tmp_path):
    changes = {
        "vision_config": {"lora_rank": 2},
        "teachers": ["owner/teacher"],
        "run_name": r"\${literal}\\\${a}",
        "eval_tasks": "gqa",
    }
    recipe = read_recipe(write(**changes), ["stages.align.lambda_2=", "output_dir=2024", "hub_model_id='1e3'"])
    assert recipe.stages["align"].training.run_name == r"${literal}\${a}"
    recipe.save(tmp_path / "saved.yaml")
    saved = read_recipe(tmp_path / "saved.yaml")
    assert saved == recipe and first_difference(saved, recipe) is None
    assert [stage.options for stage in saved.stages.values()] == [stage.options for stage in recipe.stages.values()]
    content = yaml.safe_load((tmp_path / "saved.yaml").read_text())
    assert content["tokenizer"] == "tokenizer" and "tokenizer" not in content["stages"]["align"]


def test_with_options_changes_every_stage(write):
    recipe = read_recipe(write(vision_config={"lora_rank": 2}))
    changed = recipe.with_options({"vision_config.hidden_size": 8, "learning_rate": 2.0, "objective": "llava"}, "new")
    assert [stage.training.output_dir for stage in changed.stages.values()] == [
        "new/pretrain",
        "new/align",
        "new/finetune",
    ]
    for stage in changed.stages.values():
        assert stage.model.vision_config == {"lora_rank": 2, "hidden_size": 8}
        assert (stage.training.learning_rate, stage.training.objective) == (2.0, "llava")
        assert stage.data.data_path == "runs/tiny/data.json"
    assert recipe.stages["align"].model.vision_config == {"lora_rank": 2}
    with pytest.raises(UserError, match="max_steps is 'many'"):
        recipe.with_options({"max_steps": "many"})


def test_the_first_difference_names_the_option(write):
    there = read_recipe(write(vision_config={"lora_rank": 2}))
    assert first_difference(there, read_recipe(write(vision_config={"lora_rank": 2}, output_dir="runs/tiny"))) is None
    here = read_recipe(write(vision_config={"lora_rank": 4}))
    assert first_difference(there, here) == "stages.pretrain.vision_config.lora_rank is 2 there and 4 here"
    here = there.with_options({"lambda_1": 5})
    assert first_difference(there, here) == "stages.pretrain.lambda_1 is not given there and 5 here"
    assert first_difference(here, there) == "stages.pretrain.lambda_1 is 5 there and not given here"


def test_the_first_difference_ignores_folders_and_tasks(write):
    there = read_recipe(write(data_path="data.json"))
    here = read_recipe(write(data_path="data.json", eval_tasks="gqa"), ["output_dir=elsewhere"])
    assert first_difference(there, here) is None


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ("{lora_rank: 0}", "vision_config: lora_rank is 0; it must be at least 1"),
        ("{num_general_adapters: -1}", "vision_config: num_general_adapters is -1; it must be at least 0"),
        ("{hidden_size: wide}", "vision_config: hidden_size is 'wide'; it must be a whole number"),
        ("{lora_alpha: .nan}", "vision_config: lora_alpha is nan; it must be at least 0"),
        ("{has_class_token: 1}", "vision_config: has_class_token is 1; it must be true or false"),
        ("{router_hidden_size: 0}", "vision_config: router_hidden_size is 0; it must be at least 1"),
    ],
)
def test_a_value_of_the_encoder_that_no_model_can_have_is_an_error(write, fields, problem):
    with pytest.raises(UserError, match=problem):
        read_recipe(write(), [f"vision_config={fields}"])


def test_a_router_can_be_a_single_linear_layer(write):
    assert parse(write(), "vision_config.router_hidden_size=null")["vision_config"] == {"router_hidden_size": None}


def test_output_dir_is_text(write):
    with pytest.raises(UserError, match="output_dir is {'x': 3}; it must be text"):
        read_recipe(write(data_path="data.json"), ["output_dir.x=3"])


def test_a_path_beside_the_run_needs_no_folder_of_the_run(write):
    path = write(output_dir="runs/new", language_model="${output_dir}/../data/lm", teachers=["${output_dir}/../a/b"])
    stage = read_recipe(path, ["image_folder=runs/newer/../images"]).stages["align"]
    assert stage.model.language_model == "runs/data/lm" and stage.teachers[0].checkpoint == "runs/a/b"
    assert stage.data.image_folder == "runs/newer/../images"
