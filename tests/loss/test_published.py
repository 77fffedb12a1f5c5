"""The three terms against values printed by the paper authors' published TensorFlow code."""

import numpy as np
import pytest
import torch

from adcorre import adcorre_terms
from tests.loss.tools import LINEAR

# Inputs: rng = numpy.random.default_rng(seed); x = rng.standard_normal((n, k, d)) in float32, each vector divided by
# its L2 norm; y = rng.integers(0, 7, n). Values: the code's unweighted FD (Eq. 5), MD and ED.
PUBLISHED = (
    # seed, n, k, d, fd, md, ed, sum of x, sum of i y_i
    (0, 60, 7, 256, 0.9827372431755066, 0.8493668437004089, 0.859275758266449, -8.290639332565547, 5814),
    (1, 60, 10, 256, 0.9828490614891052, 0.8528209328651428, 0.9009323120117188, -20.800156403794517, 5727),
    (2, 50, 3, 128, 0.980583131313324, 0.8579028844833374, 0.6678308844566345, 12.7383445129135, 4001),
    (3, 120, 7, 64, 0.990770697593689, 0.8467584252357483, 0.8586193323135376, 31.52601128676588, 19307),
)


@pytest.mark.parametrize("seed, n, k, d, fd, md, ed, x_checksum, y_checksum", PUBLISHED)
@pytest.mark.parametrize("backend", [*LINEAR, "reference"])
def test_values_of_the_published_code(backend, seed, n, k, d, fd, md, ed, x_checksum, y_checksum) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, k, d)).astype("float32")
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    y = rng.integers(0, 7, n)
    assert x.astype(np.float64).sum() == pytest.approx(x_checksum, abs=1e-9)  # the same inputs as the published code's
    assert (y * np.arange(n)).sum() == y_checksum
    half = torch.full((7,), 0.5, dtype=torch.float64)
    terms = adcorre_terms(torch.from_numpy(x).double(), torch.from_numpy(y), half, backend=backend)
    assert torch.stack(terms).tolist() == pytest.approx([fd, md, ed], abs=1e-6)
