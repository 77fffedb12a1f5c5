"""The three formats of `python -m train.export`."""

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from train.disk import write_json
from train.errors import UserError
from train.hub import HubClassifier, model_card
from train.owned_folder import check_vacant
from train.ranks import ALONE
from train.run_folder import Trained, load_trained

TOLERANCE = 1e-4
BATCHES = (1, 2, 5)


class ExportedModel(nn.Module):
    """RGB images (n, 3, s, s) with values 0 to 1 -> (logits (n, C), embeddings (n, k, d)); normalizes by itself."""

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


def export(run: Path, out: Path, *, to: str, opset: int = 18, seed: int = 0, device: str = "auto") -> Path:
    """Export the run's best checkpoint in the format `to` into the folder `out`, new or empty; returns the file.

    Nothing is left in it where that fails: the exporter does not follow the backbone, does not write the ONNX opset
    that was asked for, or the result's logits are not PyTorch's. Raises UserError.
    """
    trained = load_trained(run, ALONE.device(device))
    check_vacant(out)
    with _atomic_folder(out) as partial:
        if to == "hub":
            to_hub(trained, run, partial)
            summary = "model.safetensors, config.json, README.md; loads back with the same logits"
        else:
            summary = _to_program(trained, partial, to, opset, seed)
    print(f"{out}: {summary}")
    return out


@contextmanager
def _atomic_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place at the end, and is gone where that is not reached."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{out.name}.", suffix=".partial", dir=out.parent) as outer:
            partial = Path(outer) / out.name
            partial.mkdir()
            yield partial
            if out.is_dir():
                out.rmdir()
            partial.rename(out)
    except OSError as error:
        raise UserError(f"{out}: cannot write the export: {error.strerror or error}") from error


def _to_program(trained: Trained, out: Path, to: str, opset: int, seed: int) -> str:
    """The model in the format `to` with model.json beside it. Returns what to say about it."""
    deployed = ExportedModel(trained).eval()
    images = random_images(max(BATCHES), trained.preprocessing.image_size, seed).to(deployed.mean.device)
    with readable_errors(to, trained):
        path, run = to_onnx(deployed, images[:2], out, opset) if to == "onnx" else to_pt2(deployed, images[:2], out)
        worst = largest_difference(deployed, run, images)
    if not worst <= TOLERANCE:
        raise UserError(
            f"the exported model's logits differ by {worst:.2g} from PyTorch's, at most {TOLERANCE:g} is right"
        )
    description = {
        name: trained.description[name] for name in ("model", "epoch", "validation") if name in trained.description
    }
    size = trained.preprocessing.image_size
    write_json(
        out / "model.json",
        description
        | {
            "class_names": list(trained.class_names),
            "input": {"name": "images", "shape": ["batch", 3, size, size], "dtype": "float32", "values": "RGB, 0 to 1"},
            "resize": trained.preprocessing.as_dict()["resize"],
            "outputs": ["logits", "embeddings"],
            "largest difference of logits": worst,
        },
    )
    return f"{path.name}: logits within {worst:.2g} of PyTorch's on batches of {', '.join(map(str, BATCHES))}"


def random_images(n: int, size: int, seed: int) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def largest_difference(model: nn.Module, run: Callable[[Tensor], Tensor], images: Tensor) -> float:
    """Between the logits of the two, over batches of several sizes."""
    differences = [(run(images[:n]).cpu() - model(images[:n])[0].cpu()).abs().max() for n in BATCHES]
    return float(torch.stack(differences).max())


def to_onnx(model: nn.Module, example: Tensor, out: Path, opset: int) -> tuple[Path, Callable[[Tensor], Tensor]]:
    import onnx
    import onnxruntime

    path = out / "model.onnx"
    program = torch.onnx.export(
        model,
        (example,),
        input_names=["images"],
        output_names=["logits", "embeddings"],
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        opset_version=opset,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(path)
    onnx.checker.check_model(path, full_check=True)
    versions = {entry.domain: entry.version for entry in onnx.load(path, load_external_data=False).opset_import}
    if versions.get("") != opset:
        raise UserError(f"--opset {opset}: PyTorch wrote opset {versions.get('')} for this model; choose that one")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return path, lambda images: torch.from_numpy(session.run(["logits"], {"images": images.cpu().numpy()})[0])


def to_pt2(model: nn.Module, example: Tensor, out: Path) -> tuple[Path, Callable[[Tensor], Tensor]]:
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
    images = random_images(2, trained.preprocessing.image_size, 0).to(next(loaded.parameters()).device)
    with torch.inference_mode():
        if not torch.equal(loaded(images)[0], saved.eval()(images)[0]):
            raise UserError(f"{out}: the model loads back with other logits")


@contextmanager
def readable_errors(to: str, trained: Trained) -> Iterator[None]:
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
