"""The small CLIP learns which caption is a picture's."""

import torch

from hawaii.example_data.clip import CaptionedPictures, make_image_processor, train_clip
from hawaii.example_data.word_tokenizer import build_tokenizer


def test_pictures_are_shifted_and_mirrored_unless_there_is_a_word():
    pixels = torch.zeros(2, 3, 32, 32)
    pixels[..., :16] = torch.arange(1.0, 17)  # brighter to the right, but the right half is black
    captions = ["fox", "fox, word sun"]
    dataset = CaptionedPictures(pixels, captions, build_tokenizer(captions), is_augmented=True)

    def shifts(index):
        """Whether a picture is mirrored, and the column of its brightest place if not."""
        found = set()
        for picture, _ in (dataset[index] for _ in range(64)):
            is_mirrored = not picture[..., 0].any()
            row = (picture.flip(-1) if is_mirrored else picture)[0, 0]
            found.add((is_mirrored, int((row == 16).nonzero()[0])))
        return found

    places = set(range(15 - 3, 15 + 3 + 1))
    assert shifts(0) == {(False, place) for place in places} | {(True, place) for place in places}
    assert {place for _, place in shifts(1)} == places
    unchanged = CaptionedPictures(pixels, captions, dataset.tokenizer, is_augmented=False)
    assert all(torch.equal(unchanged[0][0], pixels[0]) for _ in range(8))


def test_it_learns_which_caption_is_a_pictures():
    colors = torch.rand(80, 3, 1, 1)
    pixels = colors.expand(80, 3, 32, 32) * 2 - 1
    words = "red green blue".split()
    captions = [
        " ".join(word if part > 0.5 else f"no {word}" for word, part in zip(words, color))
        for color in colors.flatten(1)
    ]
    tokenizer = build_tokenizer(captions)
    model, accuracy = train_clip(pixels, captions, tokenizer, 20)

    def share_found(pixels, captions):
        """The share of pictures whose own caption is the most similar of all, where equal ones are one."""
        distinct = sorted(set(captions))
        tokens = tokenizer([f"{caption}</s>" for caption in distinct], padding=True, return_tensors="pt")
        with torch.no_grad():
            similarity = model(tokens["input_ids"], pixels, tokens["attention_mask"]).logits_per_image
        found = [distinct[index] for index in similarity.argmax(dim=-1)]
        return sum(map(str.__eq__, found, captions)) / len(captions)

    assert share_found(pixels, captions) > 0.6  # a guess among eight is right in an eighth
    assert len(set(captions[-8:])) < 8 and accuracy == share_found(pixels[-8:], captions[-8:])
    assert not model.training and make_image_processor().size["shortest_edge"] == 32
