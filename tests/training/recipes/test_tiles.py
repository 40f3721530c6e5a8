"""The recipes with tiles differ from those they extend in the tiles and in what these need."""

from dataclasses import asdict

from hawaii.training.recipes.built_in import BUILT_IN
from hawaii.training.recipes.recipe import read_recipe


def stages_of(name, *overrides):
    return read_recipe(str(BUILT_IN[name]), list(overrides), use_cpu=True).stages


def test_the_encoder_learns_at_2e_6_in_the_second_stage_of_hawaii_next():
    stages, base = stages_of("hawaii_next_vicuna_7b", "bf16=false"), stages_of("hawaii_vicuna_7b", "bf16=false")
    first, second = stages.values()
    assert asdict(first.data) == asdict(base["pretrain"].data)
    assert first.training.learning_rates == base["pretrain"].training.learning_rates
    assert second.training.learning_rates == dict.fromkeys(("vision_tower", "adapters", "routers"), 2e-6)
    assert second.training.learning_rate == 2e-5
    per_step = [
        stage.training.per_device_train_batch_size * stage.training.gradient_accumulation_steps * 8
        for stage in (first, second)
    ]
    assert per_step == [256, 128]


def test_emoji_vqa_tiles_has_the_data_and_steps_of_emoji_vqa():
    for tiles, base in zip(stages_of("emoji_vqa_tiles").values(), stages_of("emoji_vqa").values(), strict=True):
        data = asdict(tiles.data)
        assert data.pop("image_grid_pinpoints") == [[64, 64]]
        expected = asdict(base.data)
        assert expected.pop("image_grid_pinpoints") is None
        text = str(data).replace("emoji_vqa_tiles/../", "")
        assert text == str(expected)
        for name in ("max_steps", "learning_rate", "per_device_train_batch_size", "seed"):
            assert getattr(tiles.training, name) == getattr(base.training, name)
