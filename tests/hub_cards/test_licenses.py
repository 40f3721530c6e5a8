"""Licenses, languages and repositories of a card are those that the Hub accepts."""

import pytest

from hawaii.files.user_error import UserError
from hawaii.hub_cards.card_options import CardOptions
from hawaii.hub_cards.licenses import IDENTIFIERS, KNOWN, License, check_license
from hawaii.training.teachers.presets import PRESETS


@pytest.mark.parametrize("identifier", sorted(set(IDENTIFIERS) - {"other"}))
def test_every_identifier_of_the_hub_is_accepted(identifier):
    assert check_license({"license": identifier}) == License(identifier)


def test_another_license_has_a_name_and_an_address():
    given = {"license": "other", "license_name": "my-license-1.0", "license_link": "https://example.org/license"}
    assert check_license(given).metadata == given


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"license": "Apache 2.0"}, "license is 'Apache 2.0'; .* Did you mean apache-2.0"),
        ({"license": "LLAMA2"}, "Did you mean llama2"),
        ({"license": None, "license_name": "x"}, "license is None"),
        ({"license": "mit", "license_name": "x"}, "license_name and license_link are for a license that the Hub"),
        ({"license": "other"}, "license is other, so a license_name"),
        ({"license": "other", "license_name": "x"}, "license is other, so a license_name"),
        ({"license": "other", "license_name": "My License", "license_link": "https://a.org"}, "lower-case letters"),
        ({"license": "other", "license_name": "x", "license_link": "LICENSE"}, "license_link is 'LICENSE'"),
        ({"license": "other", "license_name": "x", "license_link": "javascript:x"}, "it must be an address"),
    ],
)
def test_a_license_that_the_hub_would_refuse_is_refused(given, problem):
    with pytest.raises(UserError, match=problem):
        check_license(given)


def test_the_licenses_of_all_presets_are_known():
    assert {preset["checkpoint"] for preset in PRESETS.values()} <= KNOWN.keys()
    for license in KNOWN.values():
        assert check_license(license.metadata) == license


@pytest.mark.parametrize("code", ["en", "de", "yue", "deu", "ger", "multilingual", "code"])
def test_a_language_has_a_code(code):
    assert CardOptions(language=code).language == [code]


def test_norwegian_is_not_a_truth_value():
    assert CardOptions(language=["en", False]).language == ["en", "no"]


@pytest.mark.parametrize("code", ["English", "english", "EN", "jp", "xx", "en-US", "", 5, True, None])
def test_a_name_or_a_country_is_no_language(code):
    with pytest.raises(UserError, match=f"language names {code!r}; it must be an ISO 639 code"):
        CardOptions(language=[code])


@pytest.mark.parametrize("option", ["datasets", "base_model"])
@pytest.mark.parametrize("name", ["/home/x/data", "data", "a/b/c", "../data", "a/b.git", "a b/c"])
def test_a_card_names_only_repositories_of_the_hub(option, name):
    with pytest.raises(UserError, match=f"{option} names '.*'; it must be a repository of the Hub"):
        CardOptions(**{option: name})


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        (
            {"licence": "mit"},
            "An item of datasets has no field 'licence'; it must be a repository of the Hub, or a map",
        ),
        (5, "An item of datasets is 5"),
        ({}, "without name and repository"),
        ({"name": ""}, "without name and repository"),
        ({"name": 5}, "name of an item of datasets is 5; it must be text"),
        ({"name": "a", "url": "LICENSE"}, "url of an item of datasets is 'LICENSE'"),
        ({"name": "a", "url": 5}, "url of an item of datasets is 5"),
        ({"name": "a", "url": "https://me:pass@example.org/a"}, "must be an address without a login"),
    ],
)
def test_an_item_of_the_data_that_is_no_data_is_named(item, problem):
    with pytest.raises(UserError, match=problem):
        CardOptions(datasets=[item])


@pytest.mark.parametrize("url", ["https://a.org", "http://a.org:8080/b", "https://a.org/@b?c=d@e", "https://a.org#b"])
def test_data_may_have_any_page(url):
    assert CardOptions(datasets=[{"name": "a", "url": url}]).datasets[0].facts["url"] == url


def test_data_of_the_hub_link_their_page():
    first, second = CardOptions(datasets=["a/b", {"name": "c", "url": "https://c.org", "license": "mine"}]).datasets
    assert first.facts["url"] == "https://huggingface.co/datasets/a/b" and first.facts["name"] == "a/b"
    assert second.facts == {"name": "c", "repository": None, "license": "mine", "url": "https://c.org"}
