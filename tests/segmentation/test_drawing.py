"""Drawing on plain arrays: colors, legends, and label files."""

import numpy as np
from PIL import Image

from tcl_d2.segmentation import drawing


def test_distinct_colors_are_pascal_vocs():
    assert drawing.distinct_colors(4) == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
    assert len(set(drawing.distinct_colors(200))) == 200


def test_class_colors_are_distinct_and_black_is_the_background():
    for num_classes in (1, 10, 11, 12, 200):
        for background in (False, True):
            colors = drawing.class_colors(num_classes, background)
            assert len(set(colors)) == num_classes and ((0, 0, 0) in colors) == background
    assert drawing.class_colors(3, background=True)[0] == (0, 0, 0)


def test_legend_bears_line_breaks():
    assert drawing.draw_legend([("two\nlines", (0, 0, 0))], 300).shape == (30, 300, 3)


def test_legend_of_many_classes_is_broken_into_lines():
    strip = drawing.draw_legend([(f"class number {index}", (0, 0, 0)) for index in range(40)], 300)
    assert strip.shape[1] == 300 and strip.shape[0] > 20 * 24


def test_label_files_keep_the_indices_of_any_number_of_classes(tmp_path):
    for num_classes in (256, 1203):
        labels = np.array([[0, 255], [num_classes - 1, 7]])
        drawing.save_picture(
            drawing.draw_palette(labels, drawing.distinct_colors(num_classes)), tmp_path / "labels.png"
        )
        with Image.open(tmp_path / "labels.png") as image:
            assert np.array_equal(np.array(image), labels)


def test_groups_have_their_mean_color_and_outlines():
    """In every place where they lie; a number that no pixel has changes nothing."""
    image = np.zeros((4, 480, 3), np.uint8)
    image[:, :100], image[:, 400:] = (10, 20, 30), (30, 40, 50)
    groups = np.full((4, 480), 2)
    groups[:, :100] = groups[:, 400:] = 4
    picture = drawing.draw_groups(image, groups)
    assert picture.shape == image.shape and (picture[:, 99] == 255).all() and (picture[:, 399] == 255).all()
    expected = (np.array([10, 20, 30]) * 100 + np.array([30, 40, 50]) * 80) // 180
    assert (picture[:, :99] == expected).all() and (picture[:, 400:] == expected).all()
    assert not picture[:, 100:399].any()
