"""A report is given for what was made as wanted, and for nothing else."""

from hawaii.example_data.reports import read_report
from hawaii.files.atomic import write_json


def test_a_report_is_given_where_all_that_is_wanted_is_as_it_was(tmp_path):
    path = tmp_path / "expert.json"
    assert read_report(path, {"num_steps": 3}) is None
    report = {"num_steps": 3, "seed": 0, "seconds": 1.5}
    write_json(path, report)
    assert read_report(path, {"num_steps": 3, "seed": 0}) == report
    assert read_report(path, {"num_steps": 4, "seed": 0}) is None
    assert read_report(path, {"num_steps": 3, "batch_size": 8}) is None
