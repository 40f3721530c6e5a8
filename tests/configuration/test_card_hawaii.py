"""What a push changes in a card that somebody has edited."""

import pytest

from hawaii.configuration.card_hawaii import add_tags, remove_record


@pytest.mark.parametrize("before", ["", "\ufeff"], ids=["plain", "Windows"])
def test_all_else_in_a_card_stays_as_its_author_wrote_it(before):
    kept = [
        "---\nlicense: mit # mine\nlanguage: no\n",
        'base_model: "a/b"\n---\n# Café\n\nThe `model-index` is:\n\ntags:\n- c\n',
    ]
    scores, tags = "model-index:\n- name: x\n  results:\n\n  - task: {type: a}\n", "tags: [a, b]\n"
    card = before + kept[0] + scores + tags + kept[1]
    assert remove_record(card) == before + kept[0] + tags + kept[1]
    assert remove_record(kept[1]) == kept[1]
    assert add_tags(card, ["a"]) == card
    start, end = kept[1].split("---\n", 1)
    assert add_tags(card, ["a", "c"]) == f"{before}{kept[0]}{scores}{start}tags:\n- a\n- b\n- c\n---\n{end}"
    assert add_tags("# My model\n", ["a"]) == "---\ntags:\n- a\n---\n\n# My model\n"
