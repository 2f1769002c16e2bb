"""Answers as JSON: what numbers lose on the way, and what JSON cannot say."""

import json
from dataclasses import replace

import numpy as np
import pytest

from cnn.classifier import Classifier
from cnn.serve.payload import INCLUDES, family, matrix, numbers, outline, v1
from tests.standins.asking import DOG


def test_a_click_is_seen_in_the_outline_of_a_minute():
    samples = np.zeros(44_100 * 60, np.float32)
    samples[1_234_567], samples[1_234_570] = -0.5, 1.0
    points = outline(samples)
    assert 7000 < len(points) <= 8100
    low, high = int(points.argmin()), int(points.argmax())
    assert (points[low], points[high]) == (-0.5, 1.0) and high == low + 1
    assert outline(samples[:8000]).shape == (8000,)


@pytest.mark.parametrize("values", [[[0.25]], [[np.nan, 1.0, -3.0]], [[np.inf, -np.inf, 0.0, 2.0]], [[np.nan]]])
def test_a_matrix_survives_what_json_cannot_say(values: list):
    given = np.array(values, np.float32)
    back = numbers(json.loads(json.dumps(matrix(given), allow_nan=False)))
    finite = np.isfinite(given)
    assert back.shape == given.shape and np.isfinite(back).all()
    np.testing.assert_allclose(back[finite], given[finite], atol=1e-4)


def test_numbers_that_are_none_are_no_numbers_in_json(tiny_classifier: Classifier):
    seen = tiny_classifier.predict(DOG, maps="all")
    odd = replace(seen, logits=np.full(50, np.nan, np.float32), maps={"conv1": np.full((2, 2), np.nan, np.float32)})
    json.dumps([family(odd), v1(odd, 3, INCLUDES)], allow_nan=False)
