"""Each run has its share of the machine and knows nothing of other processes."""

import pytest

from hawaii.ablation.places import Rank, leave_group, make_places, visible_devices


ALONE = Rank(0, 0, 1)


def devices_of(places):
    return [place.training.get("CUDA_VISIBLE_DEVICES") for place in places]


def test_a_process_outside_any_group_is_the_first_and_keeps_its_environment():
    environment = {"PATH": "/bin", "OMP_NUM_THREADS": "2", "ACCELERATE_MIXED_PRECISION": "bf16"}
    before = {**environment}
    assert leave_group(environment) == ALONE
    assert environment == before


def test_a_group_is_left():
    environment = {"RANK": "9", "LOCAL_RANK": "1", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "MASTER_PORT": "29500"}
    environment |= {
        "TORCHELASTIC_RUN_ID": "a",
        "ACCELERATE_MIXED_PRECISION": "no",
        "FSDP_VERSION": "2",
        "OMP_NUM_THREADS": "1",  # set by accelerate and by torch, asked or not
        "HOME": "/root",
    }
    assert leave_group(environment) == Rank(everywhere=9, here=1, num_here=8)
    assert environment == {"HOME": "/root"}


def test_a_process_that_accelerate_starts_alone_is_told_no_rank():
    environment = {"ACCELERATE_DYNAMO_USE_FULLGRAPH": "False", "OMP_NUM_THREADS": "1", "HOME": "/root"}
    assert leave_group(environment) == ALONE
    assert environment == {"HOME": "/root"}


def test_a_group_of_mpi_is_left_too():
    environment = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
    assert leave_group({**environment}) == Rank(everywhere=3, here=1, num_here=2)
    leave_group(environment)
    assert environment == {}


@pytest.mark.parametrize(
    ("jobs", "devices", "expected"),
    [
        (1, [], [None]),
        (2, [], [None, None]),
        (1, ["4", "5"], ["4"]),
        (3, ["4", "5"], ["4", "5", "4"]),
    ],
)
def test_each_run_has_one_device_in_turn(jobs, devices, expected):
    places = make_places({}, devices, 8, ALONE, jobs, has_launcher=False)
    assert devices_of(places) == expected
    assert {place.num_processes for place in places} == {1}


def test_with_a_launcher_each_run_has_all_that_are_its_and_evaluates_on_them():
    places = make_places({}, list("0123"), 8, ALONE, 2, has_launcher=True)
    assert devices_of(places) == ["0,2", "1,3"]
    assert [place.num_processes for place in places] == [2, 2]
    assert [place.evaluation["CUDA_VISIBLE_DEVICES"] for place in places] == ["0,2", "1,3"]


def test_a_launcher_without_a_device_for_each_run_shares_them():
    assert devices_of(make_places({}, ["0"], 8, ALONE, 2, has_launcher=True)) == ["0", "0"]


def test_processes_of_one_launcher_have_each_their_device():
    ranks = [Rank(here, here, 2) for here in range(2)]
    places = [make_places({}, list("0123"), 8, rank, 2, has_launcher=False) for rank in ranks]
    assert [devices_of(each) for each in places] == [["0", "1"], ["2", "3"]]


def test_cores_are_shared_by_all_that_run_at_once():
    (place,) = make_places({}, [], 8, ALONE, 1, has_launcher=False)
    assert place.training["OMP_NUM_THREADS"] == place.evaluation["OMP_NUM_THREADS"] == "8"
    place, *_ = make_places({}, [], 8, Rank(0, 0, 2), 2, has_launcher=False)
    assert place.training["OMP_NUM_THREADS"] == "2"
    place, *_ = make_places({}, [], 2, ALONE, 4, has_launcher=False)
    assert place.training["OMP_NUM_THREADS"] == "1"


def test_threads_are_the_users_or_the_launchers_if_they_say():
    (place,) = make_places({"OMP_NUM_THREADS": "5"}, [], 8, ALONE, 1, has_launcher=False)
    assert place.training["OMP_NUM_THREADS"] == "5"
    (place,) = make_places({}, [], 8, ALONE, 1, has_launcher=True)
    assert "OMP_NUM_THREADS" not in place.training and place.evaluation["OMP_NUM_THREADS"] == "8"


def test_devices_go_by_the_names_that_the_user_gave(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert visible_devices({}) == ["0", "1"]
    assert visible_devices({"CUDA_VISIBLE_DEVICES": "3,GPU-7"}) == ["3", "GPU-7"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert visible_devices({"CUDA_VISIBLE_DEVICES": "0"}) == []
