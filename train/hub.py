"""A trained model as a folder for the Hugging Face hub: model.safetensors, config.json, README.md.

from train.hub import HubClassifier
model = HubClassifier.from_pretrained("a folder, or a repository on the hub").eval()
model.predict(image)  # {"Happy": 0.93, ...}
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCardData, PyTorchModelHubMixin
from PIL import Image
from torch import Tensor, nn

from train.analysis.templates import render
from train.command import read_run_file
from train.data.decode import to_rgb
from train.evaluation import percent
from train.model import build_model
from train.run_folder import Trained
from train.settings import ModelSettings
from train.transforms import Preprocessing


class HubClassifier(nn.Module, PyTorchModelHubMixin):
    """images (n, 3, s, s), normalized as `preprocessing` says -> (logits (n, C), embeddings (n, k, d))."""

    def __init__(
        self,
        backbone: str,
        k: int,
        d: int,
        dropout: float,
        class_names: Sequence[str],
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.class_names = tuple(class_names)
        self.preprocessing = Preprocessing(image_size, tuple(mean), tuple(std))
        settings = ModelSettings(backbone, pretrained=False, k=k, d=d, dropout=dropout)
        self.model, _ = build_model(settings, len(self.class_names), image_size)

    @classmethod
    def of(cls, trained: Trained) -> "HubClassifier":
        shape = asdict(trained.preprocessing)
        result = cls(**trained.description["model"], class_names=list(trained.class_names), **shape)
        result.model = trained.model
        return result

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, embeddings = self.model(images)
        return logits, embeddings

    @torch.inference_mode()
    def predict(self, image: Image.Image) -> dict[str, float]:
        """The probability of each class, of one picture of a face, as `Image.open` gives it.

        In eval mode, whichever mode the model is in, which it keeps. Raises TypeError for what is no picture.
        """
        if not isinstance(image, Image.Image):
            raise TypeError(f"image: expected a PIL image, as Image.open gives it; got {type(image).__name__}")
        device = next(self.parameters()).device
        training = [module for module in self.modules() if module.training]  # frozen layers may be in eval mode
        images = self.preprocessing.evaluation()(to_rgb(image))[None].to(device)
        try:
            logits = self.eval()(images)[0][0]
        finally:
            for module in training:
                module.training = True
        return dict(zip(self.class_names, logits.double().softmax(0).tolist(), strict=True))


def model_card(trained: Trained, run: Path) -> str:
    """README.md: what the hub reads, and what a person wants to know. Nothing in it names the user's machine."""
    description, shape = trained.description, trained.preprocessing
    results = read_run_file(run, "results.json")
    layout = str(description.get("data", {}).get("layout", "the training data"))
    split = "test" if "test" in results else "validation"
    shown = results.get("test") or description["validation"]
    data = ModelCardData(
        library_name="adcorre",
        pipeline_tag="image-classification",
        tags=["facial-expression-recognition", "ad-corre", "model_hub_mixin", "pytorch_model_hub_mixin"],
        model_name="adcorre",
        eval_results=[
            EvalResult(
                "image-classification",
                layout.lower().replace(" ", "-"),
                layout,
                metric,
                shown[metric],
                dataset_split=split,
            )
            for metric in ("accuracy", "average_accuracy")
        ],
    )
    settings = read_run_file(run, "settings.json").get("settings", {})
    return render(
        "model_card.md.j2",
        {"percent": percent, "numbers": _numbers, "described": _describe_group},
        data=data.to_yaml(),
        model=description["model"],
        loss=describe_loss(settings.get("loss", {})),
        class_names=trained.class_names,
        shape=shape.as_dict(),
        layout=layout,
        split=split,
        shown=shown,
        epoch=description["epoch"],
        settings={group: settings[group] for group in ("data", "model", "loss", "optimizer") if group in settings},
    )


def describe_loss(loss: dict[str, Any]) -> str:
    """What a run was trained on, in words; `loss` is that group of its settings."""
    kind = {"balanced": "balanced ", "effective": "class-balanced ", "none": ""}.get(str(loss.get("ce_weight", "none")))
    text = f"{'weighted ' if kind is None else kind}{'logit-adjusted ' if loss.get('logit_adjustment') else ''}CE"
    if loss.get("objective", "adcorre") != "adcorre":
        return f"{text} and {loss['objective']} loss"
    chosen = loss.get("components", ("fd", "md", "ed"))
    weights = chosen if isinstance(chosen, dict) else dict.fromkeys(chosen, 1)
    components = [f"{'' if weight == 1 else f'{weight:g} '}{name.upper()}" for name, weight in weights.items()]
    return f"{text} + {loss.get('lambd', '?')} ({' + '.join(components)})" if components else text


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _describe_group(group: dict[str, Any]) -> str:
    """A group of settings; paths, which are this machine's, are left out."""
    words = {key: ",".join(map(str, value)) if isinstance(value, list) else str(value) for key, value in group.items()}
    named = {key: value for key, value in words.items() if key != "data" and "/" not in value and "\\" not in value}
    return ", ".join(f"{key} {value or 'none'}" for key, value in named.items())
