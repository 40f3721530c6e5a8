"""What figures of training and of models share: style, saving and the curves of a log."""
