"""The classifier: a timm backbone with the paper's embedding space on its pooled features."""

import difflib
from typing import Any

import timm
import torch
from torch import Tensor, nn

import train.small_resnet  # noqa: F401  registers it with timm
from adcorre import EmbeddingSpace
from train.errors import UserError
from train.settings import ModelSettings
from train.transforms import Preprocessing


class FaceClassifier(nn.Module):
    """images (n, 3, h, w) -> (logits (n, num_classes), embeddings (n, k, d))."""

    def __init__(self, backbone: nn.Module, head: EmbeddingSpace) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.frozen = False

    def freeze_backbone(self) -> None:
        """Keep the backbone's parameters, and its BatchNorm statistics, as they are."""
        self.frozen = True
        self.backbone.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "FaceClassifier":
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, embeddings = self.head(self.backbone(images))
        return logits, embeddings


def build_model(settings: ModelSettings, num_classes: int, image_size: int) -> tuple[FaceClassifier, Preprocessing]:
    """The model and the preprocessing that its backbone was made for.

    Raises UserError for an unknown backbone, weights that cannot be fetched, or images that do not fit the backbone.
    """
    backbone = _backbone(settings)
    features = _pooled_features(backbone, settings.backbone, image_size)
    head = EmbeddingSpace(features, num_classes, k=settings.k, d=settings.d, dropout=settings.dropout)
    cfg: dict[str, Any] = backbone.pretrained_cfg  # type: ignore[assignment]
    return FaceClassifier(backbone, head), Preprocessing(image_size, tuple(cfg["mean"]), tuple(cfg["std"]))


def _backbone(settings: ModelSettings) -> nn.Module:
    name = settings.backbone
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=5)
        hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() has the names"
        raise UserError(f"--backbone {name}: timm {timm.__version__} has no such model; {hint}")
    if settings.pretrained:
        print(f"loading timm's pretrained weights of {name}", flush=True)
    try:
        return timm.create_model(name, pretrained=settings.pretrained, num_classes=0)
    except Exception as error:
        if not settings.pretrained:
            raise UserError(f"--backbone {name}: timm cannot build it without its classifier: {error}") from error
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--pretrained: timm cannot get the weights of {name}; is there a network? "
            f"({type(error).__name__}: {reason})"
        ) from error


def _pooled_features(backbone: nn.Module, name: str, image_size: int) -> int:
    """How many features the backbone gives for an image of this size: `num_features` does not tell for every model."""
    training = backbone.training
    try:
        with torch.no_grad():
            features = backbone.eval()(torch.zeros(1, 3, image_size, image_size))
    except Exception as error:
        raise UserError(f"--backbone {name} does not take images of --image-size {image_size}: {error}") from error
    backbone.train(training)
    if features.ndim != 2:
        raise UserError(f"--backbone {name} gives features of shape {tuple(features.shape)[1:]}, expected pooled ones")
    return int(features.shape[1])
