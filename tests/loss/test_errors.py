"""Invalid input: one clear error that names the value and what was expected."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from adcorre import AdaptiveAttentionMap, AdCorreLoss, EmbeddingSpace, VirtualBatch, adcorre_loss, adcorre_terms
from tests.loss.tools import LINEAR

X = torch.randn(6, 3, 8)
Y = torch.tensor([0, 1, 2, 3, 0, 1])
W = torch.full((4,), 0.5)
LOGITS = torch.randn(6, 4)


@pytest.mark.parametrize(
    "x, y, w, error, words",
    [
        (X[0, 0], Y, W, ValueError, r"embeddings: expected shape \(n, k, d\).* got \(8,\)"),
        (X[:, :0], Y, W, ValueError, r"embeddings: .*at least 1; got \(6, 0, 8\)"),
        (X[..., :0], Y, W, ValueError, r"embeddings: .*at least 1; got \(6, 3, 0\)"),
        (X.int(), Y, W, TypeError, "embeddings: expected dtype float64, float32, bfloat16 or float16, got int32"),
        (X, Y[:5], W, ValueError, r"targets: expected shape \(6,\).* got \(5,\)"),
        (X, Y[:, None], W, ValueError, r"targets: expected shape \(6,\).* got \(6, 1\)"),
        (X, Y.float(), W, TypeError, "targets: expected integer class labels .*got float32"),
        (X, Y.bool(), W, TypeError, "targets: expected integer class labels .*got bool"),
        (X, Y.to("meta"), W, ValueError, "targets: expected device cpu as the embeddings', got meta"),
        (X, Y, W[None], ValueError, r"attention: expected shape \(C,\).* got \(1, 4\)"),
        (X, Y, W[:0], ValueError, r"attention: expected shape \(C,\).* got \(0,\)"),
        (X, Y, W.long(), TypeError, "attention: expected a floating dtype, got int64"),
        (X, Y, W.clone().requires_grad_(), ValueError, "attention: carries no gradient"),
        (
            X,
            Y,
            W[:3],
            IndexError,
            r"targets: label 3 at position 3 is outside \[0, 3\) and is not ignore_index \(-100\)",
        ),
        (X, Y - 1, W, IndexError, "targets: label -1 at position 0"),
    ],
)
def test_errors_name_given_and_expected_values(x, y, w, error, words) -> None:
    for backend in ("auto", *LINEAR, "reference"):
        with pytest.raises(error, match=words):
            adcorre_terms(x, y, w, backend=backend)


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"backend": "cuda"}, ValueError, "backend: expected one of auto, triton, numba, torch, reference; got 'cuda'"),
        ({"between_target": "Simplex"}, ValueError, "between_target: expected \"simplex\" or a number .* 'Simplex'"),
        ({"mean_target": 1.5}, ValueError, r"mean_target: .*\[-1, 1\], got 1.5"),
        ({"embedding_target": float("nan")}, ValueError, "embedding_target: .*got nan"),
        ({"embedding_target": None}, TypeError, "embedding_target: .*got NoneType"),
        ({"between_target": True}, TypeError, "between_target: .*got bool"),
        ({"ignore_index": 1.0}, TypeError, "ignore_index: expected an int, got float"),
    ],
)
def test_options(options, error, words) -> None:
    with pytest.raises(error, match=words):
        adcorre_terms(X, Y, W, **options)
    if "ignore_index" not in options:
        with pytest.raises(error, match=words):
            AdCorreLoss(4, **options)


def test_a_remembered_call_excuses_no_other() -> None:
    """Calls are remembered by their settings, where True == 1 == 1.0, and by the properties of their tensors."""
    adcorre_terms(X, Y, W, between_target=1, ignore_index=1, backend="torch")
    for options in ({"between_target": True, "ignore_index": 1}, {"between_target": 1, "ignore_index": True}):
        with pytest.raises(TypeError, match="got bool"):
            adcorre_terms(X, Y, W, **options, backend="torch")
    with pytest.raises(ValueError, match="attention: carries no gradient"):
        adcorre_terms(X, Y, W.clone().requires_grad_(), between_target=1, ignore_index=1, backend="torch")


def test_triton_on_a_cpu_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match='backend="triton": .*(CUDA|GPU|interpreter|Triton)'):
        adcorre_terms(X, Y, W, backend="triton")


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"num_classes": 0}, ValueError, "num_classes: expected at least 1, got 0"),
        ({"num_classes": 4.0}, TypeError, "num_classes: expected an int, got float"),
        ({"window": 0}, ValueError, "window: expected at least 1, got 0"),
        ({"components": ("fd", "xd")}, ValueError, "components: expected a collection of names out of .*xd"),
        ({"components": "fd"}, ValueError, "components: expected a collection"),
        ({"components": (name for name in ("fd", "md"))}, ValueError, "components: expected a collection.*generator"),
        ({"components": None}, ValueError, "components: expected a collection.*got None"),
        ({"components": [["fd", 0.5]]}, ValueError, r"components: expected a collection.*\['fd', 0.5\]"),
        ({"components": {"fd": -1}}, ValueError, "components: weight of fd: expected a finite number of at least 0"),
        ({"components": {"md": float("nan")}}, ValueError, "components: weight of md: .*got nan"),
        ({"components": {"md": "1"}}, TypeError, "components: weight of md: expected a number, got str"),
        ({"components": {"xd": 1}}, ValueError, "components: expected a collection of names out of .*xd"),
        ({"logit_adjustment": torch.ones(3)}, ValueError, r"logit_adjustment: expected shape \(4,\)"),
        ({"components": ("fd", "nfd")}, ValueError, '"nfd" .*stands in place of "fd"'),
        ({"ce_weight": torch.ones(3)}, ValueError, r"ce_weight: expected shape \(4,\)"),
        ({"ce_weight": torch.ones(4).long()}, ValueError, "ce_weight: .*floating dtype, got .*int64"),
        ({"ce_weight": torch.tensor([1, -1, 1, 1.0])}, ValueError, "ce_weight: .*at least 0, got -1"),
        ({"ce_weight": torch.tensor([1, 1, torch.nan, 1])}, ValueError, "ce_weight: expected finite numbers.*got nan"),
        ({"ce_weight": torch.full((4,), torch.inf)}, ValueError, "ce_weight: expected finite numbers.*got inf"),
        ({"logit_adjustment": torch.full((4,), torch.nan)}, ValueError, "logit_adjustment: .*below inf, got nan"),
        ({"label_smoothing": -0.1}, ValueError, r"label_smoothing: expected a number in \[0, 1\], got -0.1"),
        ({"label_smoothing": float("nan")}, ValueError, r"label_smoothing: .*got nan"),
        ({"label_smoothing": "0.1"}, TypeError, r"label_smoothing: expected a number in \[0, 1\], got str"),
        ({"ignore_index": True}, TypeError, "ignore_index: expected an int, got bool"),
        ({"ce_weight": torch.ones(4, requires_grad=True)}, ValueError, r"ce_weight: carries no gradient.*detach\(\)"),
        ({"logit_adjustment": torch.ones(4, requires_grad=True)}, ValueError, "logit_adjustment: carries no gradient"),
    ],
)
def test_loss_settings(options, error, words) -> None:
    with pytest.raises(error, match=words):
        AdCorreLoss(**{"num_classes": 4, **options})


@pytest.mark.parametrize(
    "logits, x, y, error, words",
    [
        (LOGITS[:, :3], X, Y, ValueError, r"logits: expected shape \(n, 4\).* got \(6, 3\)"),
        (LOGITS.long(), X, Y, TypeError, "logits: expected a floating dtype, got int64"),
        (LOGITS[:5], X, Y, ValueError, "logits and embeddings: expected the same samples .*5 on cpu and 6 on cpu"),
        (LOGITS, X, Y + 1, IndexError, "targets: label 4 at position 3"),
    ],
)
def test_a_refused_batch_leaves_the_attention_map_alone(logits, x, y, error, words) -> None:
    loss = AdCorreLoss(4)
    with pytest.raises(error, match=words):
        loss(logits, x, y)
    assert int(loss.attention_map.counts.sum()) == 0
    assert int(loss.attention_map.position) == 0
    with pytest.raises(error, match=words):
        adcorre_loss(logits, x, y, W)


@pytest.mark.parametrize("convert, words", [(lambda t: t.numpy(), r"numpy\.ndarray"), (lambda t: t.tolist(), "list")])
@pytest.mark.parametrize("name", ["logits", "embeddings", "targets", "attention"])
def test_objects_that_are_no_tensor_are_named(name, convert, words) -> None:
    """A NumPy dtype prints like a tensor's, so "expected int64, got int64" must not appear."""
    given = {"logits": LOGITS, "embeddings": X, "targets": Y, "attention": W}
    given[name] = convert(given[name])
    words = rf"{name}: expected a torch.Tensor, got {words}; convert it with torch.as_tensor"
    terms = {key: value for key, value in given.items() if key != "logits"}
    calls = [lambda: adcorre_loss(**given)]
    calls += [lambda: adcorre_terms(**terms)] if name != "logits" else []
    if name != "attention":
        calls += [lambda: AdCorreLoss(4)(given["logits"], given["embeddings"], given["targets"])]
    if name in ("logits", "targets"):
        calls += [lambda: AdaptiveAttentionMap(4)(given["logits"], given["targets"])]
    for call in calls:
        with pytest.raises(TypeError, match=words):
            call()
    for setting in ("ce_weight", "logit_adjustment"):
        with pytest.raises(TypeError, match=f"{setting}: expected a torch.Tensor"):
            AdCorreLoss(4, **{setting: convert(W)})
    with pytest.raises(TypeError, match="features: expected a torch.Tensor"):
        EmbeddingSpace(8, 4)(convert(LOGITS))
    with pytest.raises(TypeError, match="targets: expected a torch.Tensor"):
        VirtualBatch(EmbeddingSpace(8, 4), AdCorreLoss(4))(X[:, 0], convert(Y))


def test_modules() -> None:
    with pytest.raises(ValueError, match="k: expected at least 1, got 0"):
        EmbeddingSpace(16, 4, k=0)
    with pytest.raises(ValueError, match=r"features: expected shape \(n, 16\), got \(2, 16, 1\)"):
        EmbeddingSpace(16, 4)(torch.zeros(2, 16, 1))
    with pytest.raises(ValueError, match=r"logits: expected shape \(n, 4\)"):
        AdaptiveAttentionMap(4)(torch.zeros(2, 5), torch.zeros(2).long())


@pytest.mark.parametrize("backend", LINEAR)
def test_double_backward_jvp_and_vmap_raise_an_error(backend) -> None:
    """No silent second derivative, no zeros from jvp, no vmap."""
    x = X.double().requires_grad_()
    total = sum(adcorre_terms(x, Y, W, backend=backend))
    (gradient,) = torch.autograd.grad(total, x, create_graph=True)
    with pytest.raises(RuntimeError, match=f'backend "{backend}" has no double backward; backend="reference" has one'):
        gradient.sum().backward()

    def fd(x: torch.Tensor) -> torch.Tensor:
        return adcorre_terms(x, Y, W, backend=backend).fd

    with pytest.raises(RuntimeError):
        torch.func.jvp(fd, (X,), (X,))
    with pytest.raises(RuntimeError):
        torch.func.vmap(fd)(torch.stack((X, X)))
    torch.testing.assert_close(torch.func.grad(fd)(X), torch.autograd.grad(fd(x.float()), x)[0].float())


@pytest.mark.parametrize("number", [np.float32, np.float16, np.float64, Fraction])
def test_numbers_of_any_type_are_accepted(number) -> None:
    logits, x, y = torch.randn(6, 4), torch.randn(6, 2, 8), torch.arange(6) % 4
    settings = {"lambd": 0.5, "between_target": -0.5, "label_smoothing": 0.25, "components": {"fd": 0.5, "md": 1.0}}
    converted = {name: number(value) for name, value in settings.items() if name != "components"}
    converted["components"] = {name: number(weight) for name, weight in settings["components"].items()}
    whole = {"num_classes": 4, "window": 3, "ignore_index": 2}
    reference = AdCorreLoss(**whole, **settings)
    loss = AdCorreLoss(**{name: np.int64(value) for name, value in whole.items()}, **converted)
    for a, b in zip(reference(logits, x, y), loss(logits, x, y), strict=True):
        assert torch.equal(a, b)
    assert type(loss.num_classes) is type(loss.ignore_index) is int
    assert torch.equal(loss(logits, x, y, lambd=number(0.25)).loss, reference(logits, x, y, lambd=0.25).loss)
