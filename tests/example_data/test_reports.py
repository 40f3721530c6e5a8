"""A report is returned only if it has all wanted entries."""

import pytest

from hawaii.example_data.reports import read_report
from hawaii.files.atomic import write_json
from hawaii.files.user_error import UserError


def test_a_report_is_returned_if_it_has_all_wanted_entries(tmp_path):
    path = tmp_path / "expert.json"
    assert read_report(path, {"num_steps": 3}) is None
    report = {"num_steps": 3, "seed": 0, "seconds": 1.5}
    write_json(path, report)
    assert read_report(path, {"num_steps": 3, "seed": 0}) == report
    assert read_report(path, {"num_steps": 4, "seed": 0}) is None
    assert read_report(path, {"num_steps": 3, "batch_size": 8}) is None


def test_a_damaged_report_is_named(tmp_path):
    path = tmp_path / "expert.json"
    path.write_text('{"num_steps"')
    with pytest.raises(UserError, match="expert.json is damaged"):
        read_report(path, {"num_steps": 3})
