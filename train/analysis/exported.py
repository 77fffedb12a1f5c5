"""The three formats of `python -m train.export`."""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from train.command import device_of, made
from train.errors import UserError
from train.hub import HubClassifier, model_card
from train.run_folder import Trained, load_trained, write_json

TOLERANCE = 1e-4
BATCHES = (1, 2, 5)


class Deployed(nn.Module):
    """RGB images (n, 3, s, s) with values 0 to 1 -> (logits (n, C), embeddings (n, k, d)); normalises by itself."""

    mean: Tensor
    std: Tensor

    def __init__(self, trained: Trained) -> None:
        super().__init__()
        self.model = trained.model
        shape = trained.preprocessing
        device = next(trained.model.parameters()).device
        self.register_buffer("mean", torch.tensor(shape.mean, device=device)[:, None, None])
        self.register_buffer("std", torch.tensor(shape.std, device=device)[:, None, None])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, embeddings = self.model((images - self.mean) / self.std)
        return logits, embeddings


def export(options: Any) -> None:
    """`options` as `train.export.parser` gives them. Raises UserError."""
    trained = load_trained(options.run, device_of(options.device))
    if options.out.is_file() or (options.out.is_dir() and any(options.out.iterdir())):
        raise UserError(f"{options.out}: expected a new or an empty folder")
    if options.to == "hub":
        to_hub(trained, options.run, made(options.out))
        return
    deployed = Deployed(trained).eval()
    images = drawn_images(max(BATCHES), trained.preprocessing.image_size, options.seed).to(deployed.mean.device)
    write = to_onnx if options.to == "onnx" else to_torch_export
    with understandable(options.to, trained):
        path, run = write(deployed, images[:2], made(options.out), options)
        worst = largest_difference(deployed, run, images)
    if not worst <= TOLERANCE:
        path.unlink()
        raise UserError(
            f"the exported model's logits differ by {worst:.2g} from PyTorch's, at most {TOLERANCE:g} is right"
        )
    description = {
        name: trained.description[name] for name in ("model", "epoch", "validation") if name in trained.description
    }
    size = trained.preprocessing.image_size
    write_json(
        options.out / "model.json",
        description
        | {
            "class_names": list(trained.class_names),
            "input": {"name": "images", "shape": ["batch", 3, size, size], "dtype": "float32", "values": "RGB, 0 to 1"},
            "resize": trained.preprocessing.as_dict()["resize"],
            "outputs": ["logits", "embeddings"],
            "largest difference of logits": worst,
        },
    )
    print(f"{path}: logits within {worst:.2g} of PyTorch's on batches of {', '.join(map(str, BATCHES))}")


def drawn_images(n: int, size: int, seed: int) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def largest_difference(model: nn.Module, run: Callable[[Tensor], Tensor], images: Tensor) -> float:
    """Between the logits of the two, over batches of several sizes."""
    differences = [(run(images[:n]).cpu() - model(images[:n])[0].cpu()).abs().max() for n in BATCHES]
    return float(torch.stack(differences).max())


def to_onnx(model: nn.Module, example: Tensor, out: Path, options: Any) -> tuple[Path, Callable[[Tensor], Tensor]]:
    import onnx
    import onnxruntime

    path = out / "model.onnx"
    program = torch.onnx.export(
        model,
        (example,),
        input_names=["images"],
        output_names=["logits", "embeddings"],
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        opset_version=options.opset,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(path)
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return path, lambda images: torch.from_numpy(session.run(["logits"], {"images": images.cpu().numpy()})[0])


def to_torch_export(
    model: nn.Module, example: Tensor, out: Path, options: Any
) -> tuple[Path, Callable[[Tensor], Tensor]]:
    path = out / "model.pt2"
    program = torch.export.export(model, (example,), dynamic_shapes={"images": {0: torch.export.Dim("batch")}})
    torch.export.save(program, path)
    loaded = torch.export.load(path).module()
    return path, lambda images: loaded(images)[0]


def to_hub(trained: Trained, run: Path, out: Path) -> None:
    """The folder of a model, loaded again from there and compared, bit by bit."""
    saved = HubClassifier.of(trained)
    saved.save_pretrained(out)
    (out / "README.md").write_text(model_card(trained, run), encoding="utf-8")
    with contextlib.redirect_stdout(io.StringIO()):  # which says where it found the weights
        loaded = HubClassifier.from_pretrained(out).to(next(trained.model.parameters()).device).eval()
    images = drawn_images(2, trained.preprocessing.image_size, 0).to(next(loaded.parameters()).device)
    with torch.inference_mode():
        if not torch.equal(loaded(images)[0], saved.eval()(images)[0]):
            raise UserError(f"{out}: the model loads back with other logits")
    print(f"{out}: model.safetensors, config.json, README.md; loads back with the same logits")


@contextmanager
def understandable(to: str, trained: Trained) -> Iterator[None]:
    """Exporters are noisy, and fail in ways of their own for backbones that they cannot follow."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        nowhere = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except Exception as error:
        words = f"{' '.join(str(error).split())[:300]} ({type(error).__name__})"
        backbone = trained.description["model"]["backbone"]
        raise UserError(f"--to {to}: {backbone} cannot be exported: {words}") from error
    finally:
        logging.disable(disabled)
