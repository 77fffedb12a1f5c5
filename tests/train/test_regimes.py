"""Training splits with redrawn labels and with a long tail."""

import numpy as np
import pytest

from tests.train.conftest import even, write_folders
from train.data import Request, load_data
from train.errors import UserError
from train.objective import FixedWeights, build_objective
from train.ranks import ALONE
from train.settings import Settings


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_folders(tmp_path_factory.mktemp("regimes"), even(40, 2, 2)))


def test_labels_are_redrawn_in_training_alone(faces: str) -> None:
    plain = load_data(faces, Request())
    noisy = load_data(faces, Request(label_noise=0.5))
    changed = plain.train.labels != noisy.train.labels
    # 140 of 280 labels are redrawn, one in seven to the same label: 120 change, with a deviation of 4.1.
    assert 100 <= changed.sum() <= 140
    assert (noisy.test.fingerprint, noisy.validation.fingerprint) == (
        plain.test.fingerprint,
        plain.validation.fingerprint,
    )
    assert noisy.train.fingerprint != plain.train.fingerprint
    assert f"50% of the training labels redrawn ({changed.sum()} of 280 differ)" in noisy.report
    again, other = load_data(faces, Request(label_noise=0.5)), load_data(faces, Request(label_noise=0.5, seed=1))
    assert again.train.fingerprint == noisy.train.fingerprint
    assert (other.train.labels != noisy.train.labels).any()
    assert noisy.train.name(3) == plain.train.name(3)


def test_a_long_tail_falls_geometrically(faces: str) -> None:
    """Worked by hand: 40 · 8^(-r / 6) of seven equal classes."""
    tail = load_data(faces, Request(long_tail=8))
    counts = np.bincount(tail.train.labels, minlength=7)
    assert sorted(counts.tolist(), reverse=True) == [40, 28, 20, 14, 10, 7, 5]
    assert len(tail.test) == 14
    limited = load_data(faces, Request(long_tail=8, limit=70))
    assert np.bincount(limited.train.labels).max() == 10
    assert len(load_data(faces, Request(long_tail=1)).train) == 280


def test_a_ratio_below_one_is_refused(faces: str) -> None:
    with pytest.raises(UserError, match=r"--long-tail 0.5: expected 0 \(off\) or at least 1"):
        load_data(faces, Request(long_tail=0.5))


def test_lambda_rises_and_falls() -> None:
    loss = Settings().replace({"lambd": 0.5, "lambd_warmup": 10, "lambd_cooldown": 20}).loss
    assert [loss.lambd_at(step) for step in (0, 5, 10, 20, 30, 40)] == pytest.approx([0, 0.25, 0.5, 0.25, 0, 0])


def test_one_weight_for_all_classes(faces: str) -> None:
    import torch

    settings = Settings().replace({"class_weight": 0.5, "k": 2, "d": 4})
    loss = build_objective(settings.loss, settings.model, load_data(faces, Request()).train, torch.device("cpu"), ALONE)
    assert isinstance(loss.attention_map, FixedWeights)
    torch.manual_seed(0)
    x, y = torch.randn(14, 2, 4), torch.arange(14) % 7
    out = loss(torch.randn(14, 7), x, y)
    assert out.attention.tolist() == [0.5] * 7
    torch.testing.assert_close(out.fd, out.nfd)  # NFD is FD at w = 1/2
    assert loss.attention_map.latest()[1].tolist() == [2] * 7
