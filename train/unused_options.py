"""Options that were given and that no setting of the run makes use of: nothing is ignored in silence."""

from collections.abc import Iterator, Mapping
from typing import Any

from train.settings import Settings, flag


def unused_notes(given: Mapping[str, Any], settings: Settings) -> list[str]:
    """A note for each of the user's options, by field name, that changes nothing under these settings."""
    return [
        f"note: {flag(name)} changes nothing {reason}"
        for names, reason in _unused(settings)
        for name in names
        if name in given
    ]


def _unused(settings: Settings) -> Iterator[tuple[tuple[str, ...], str]]:
    """Options that are not used, and beside which others."""
    loss, optimizer, model = settings.loss, settings.optimizer, settings.model
    of_terms = "lambd", "lambd_warmup", "lambd_cooldown", "class_weight", "window", "pairs"
    targets = {"fd": "between_target", "md": "mean_target", "ed": "embedding_target"}
    if loss.objective != "adcorre":
        yield (*of_terms, *targets.values(), "components"), f"with --objective {loss.objective}"
    elif not loss.components:
        yield (*of_terms, *targets.values()), "with --components none"
    else:
        for term, target in targets.items():
            if not {term, "nfd" if term == "fd" else term} & set(loss.components):
                yield (target,), f"without {term} among the --components"
        if "fd" not in loss.components:
            yield ("class_weight", "window"), "without fd among the --components"
        elif loss.class_weight:
            yield ("window",), f"with --class-weight {loss.class_weight:g}"
    if loss.objective == "adcorre":
        yield ("objective_weight",), "with --objective adcorre"
    if optimizer.optimizer != "sgd":
        yield ("momentum",), f"with --optimizer {optimizer.optimizer}"
    else:
        yield ("beta1", "beta2"), "with --optimizer sgd"
    if optimizer.schedule != "inverse":
        yield ("lr_decay",), f"with --schedule {optimizer.schedule}"
    if optimizer.schedule not in ("step", "plateau"):
        yield ("lr_drop", "lr_drop_epochs"), f"with --schedule {optimizer.schedule}"
    if model.freeze == "backbone":
        yield ("lr_backbone",), "with --freeze backbone"
    if not model.weights:
        yield ("weights_by_order",), "without --weights"
