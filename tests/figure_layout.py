"""The layout of a drawn figure."""


def check_labels(figure) -> None:
    """A figure fits a page, and its titles, labels and panels are within it and do not overlap."""
    figure.draw_without_rendering()
    assert figure.get_figwidth() <= 7.2 + 1e-9
    labels = [text for axis in figure.axes for text in (axis.title, axis.xaxis.label) if text.get_text()]
    boxes = [label.get_window_extent() for label in labels] + [axis.get_window_extent() for axis in figure.axes]
    assert not [(i, j) for i, one in enumerate(boxes) for j, other in enumerate(boxes[:i]) if one.overlaps(other)]
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
