"""A LoRA names layers and parameters that the language model has."""

import pytest
from peft.tuners.lora import LoraLayer

from hawaii.files.user_error import UserError
from hawaii.tests.tiny.models import make_model
from hawaii.training.students.lora import add_lora


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_modules": ["q_proj", "qproj"]}, "target_modules of lora names 'qproj', but the language model has"),
        ({"exclude_modules": ["q_proj", "typo"]}, "exclude_modules of lora names 'typo', but the language model has"),
        ({"exclude_modules": ".*typo"}, "exclude_modules of lora is '.*typo', but this matches no layer"),
        ({"target_parameters": ["q_proj.wait"]}, "target_parameters of lora names 'q_proj.wait', but the language"),
        ({"rank_pattern": {"nope": 2}}, "rank_pattern of lora names 'nope', but no layer with an adapter has this"),
        (
            {"target_modules": ["q_proj"], "alpha_pattern": {"v_proj": 2}},
            "with an adapter has this name: name some of q",
        ),
        (
            {"target_modules": ["q_proj"], "layers_to_transform": [0, 7]},
            "names layer 7, but the language model has the",
        ),
        ({"rank_pattern": {"(": 2}}, "PEFT cannot add the lora of the recipe to the language model"),
    ],
)
def test_a_name_that_the_language_model_does_not_have_is_refused(fields, message):
    with pytest.raises(UserError) as error:
        add_lora(make_model(), {"r": 4, **fields})
    assert message in str(error.value)


def test_patterns_are_those_of_peft():
    fields = {"target_modules": ["q_proj", "v_proj"], "exclude_modules": r".*1\.self_attn\.q_proj"}
    lora = add_lora(make_model(), {"r": 4, **fields, "rank_pattern": {r"layers\.0\..*v_proj": 2}})
    layers = [module.r["default"] for module in lora.modules() if isinstance(module, LoraLayer)]
    assert layers == [4, 2, 4]  # the second layer's q_proj has no adapter
