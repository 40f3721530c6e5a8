"""Both ways to make a sample give equal pixels, with and without an image for teachers, and are compared."""

from hawaii.benchmarks.training import data_loader


def test_four_samples_are_compared(run_command):
    found = run_command(data_loader, image_size=56, teacher_image_size=96, rounds=1)
    assert [each["subject"] for each in found] == [
        f"a sample of a photo of {size}, {teachers}"
        for size in ("640 x 480", "480 x 640")
        for teachers in ("with 96 pixels for teachers", "without teachers")
    ]
