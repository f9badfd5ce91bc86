"""Scores, by hand and as laws."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasnorm.inspection.evaluation import (
    at_once,
    confusion,
    log_softmax,
    predict,
    score,
    worst_mistakes,
)

LOGITS = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 0.5]], np.float32)
LABELS = np.array([0, 1, 1, 0], np.int32)


def test_scores_by_hand():
    loss, accuracy = score(LOGITS, LABELS)
    expected = np.log1p(np.exp([-2.0, -1.0, 3.0, 0.5])).mean()
    assert np.isclose(loss, expected)
    assert accuracy == 0.5


def test_confusion_rows_are_true_classes():
    assert confusion(LOGITS, LABELS).tolist() == [[1, 1], [1, 1]]
    assert confusion(LOGITS[:1], np.array([1])).tolist() == [[0, 0], [1, 0]]


def test_the_surest_mistake_comes_first():
    worst = worst_mistakes(LOGITS, LABELS)
    assert [(m.index, m.true, m.predicted) for m in worst] == [(2, 1, 0), (3, 0, 1)]
    assert np.isclose(worst[0].confidence, 1 / (1 + np.exp(-3)))
    assert worst_mistakes(LOGITS, LABELS, count=1) == worst[:1]


@given(st.lists(st.lists(st.floats(-1e4, 1e4), min_size=3, max_size=3), min_size=1, max_size=9))
def test_probabilities_sum_to_one_however_large_the_logits(rows):
    logits = np.array(rows, np.float32)
    assert np.allclose(np.exp(log_softmax(logits)).sum(axis=1), 1)
    assert np.allclose(log_softmax(logits + 100), log_softmax(logits), atol=0.01)


def test_a_model_that_ends_in_softmax_scores_as_its_logits_do():
    import keras

    from kerasnorm.inspection.output_graph import model_logits

    pixels = keras.Input((8, 8, 3))
    x = keras.layers.Rescaling(1 / 255)(pixels)
    logits = keras.layers.Dense(4)(keras.layers.Flatten()(x))
    plain = keras.Model(pixels, logits)
    activated = keras.Model(pixels, keras.layers.Softmax()(logits))
    dense = keras.layers.Dense(4, activation="softmax")
    inside = keras.Model(pixels, dense(keras.layers.Flatten()(x)))
    dense.set_weights(plain.layers[-1].get_weights())
    operation = keras.Model(pixels, keras.ops.softmax(logits))
    row = keras.Input((4,))
    head = keras.Sequential([keras.Input((4,)), keras.layers.Softmax()])
    nested = keras.Model(pixels, head(logits))
    functional = keras.Model(row, keras.layers.Dropout(0.5)(keras.layers.Softmax()(row)))
    dropped = keras.Model(pixels, functional(logits))
    images = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (6, 8, 8, 3), np.uint8)
    labels = np.array([0, 1, 2, 3, 0, 1])
    expected = score(predict(plain, images), labels)
    for model in (activated, inside, operation, nested, dropped):
        logits = model_logits(model, partial(predict, model), images)
        assert np.allclose(score(logits, labels), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(32, 32, 500), (96, 96, 500), (96, 192, 250), (9000, 9000, 1)]
)
def test_large_images_are_predicted_in_smaller_batches(height, width, expected):
    assert at_once(np.empty((0, height, width, 3), np.uint8), 500) == expected
