"""The page of `python -m train.demo`: Gradio on 127.0.0.1, without its analytics or anything from a network."""

import base64
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from train.analysis.outputs import random_positions
from train.analysis.predict import MARGIN, frame, is_small
from train.bars import bar
from train.data.base import FaceDataset, Subset, broken, png
from train.data.crop import Detector, face_boxes, find_detector
from train.data.decode import read_picture
from train.data.loading import evaluation_batches
from train.errors import UserError
from train.ranks import ALONE
from train.run_data import load_run_data
from train.run_folder import Trained, find_checkpoint, load_trained

NEAREST = 8
SHOWN = 1024, 1024  # pixels of the picture on the page, at most
HOST = "127.0.0.1"
NO_FACE = "No face seen. If the picture is a face already, tick the box."


@dataclass(frozen=True)
class TrainingFaces:
    """Some of the training faces, with `directions` (n, k * d) of their embeddings."""

    faces: FaceDataset
    directions: Tensor

    def nearest(self, embeddings: Tensor, count: int) -> list[tuple[Image.Image, str]]:
        """(image, class and correlation) of the faces whose embeddings (1, k, d) correlate most, mean over k."""
        correlations = self.directions @ directions(embeddings)[0]
        values, places = correlations.topk(min(count, len(self.faces)))
        names, labels = self.faces.class_names, self.faces.labels
        return [
            (self.faces.image(place), f"{names[labels[place]]} {value:z.2f}")
            for value, place in zip(values.tolist(), places.tolist(), strict=True)
        ]


def directions(embeddings: Tensor) -> Tensor:
    """(n, k, d) -> (n, k * d): two rows' product is the correlation of their embeddings, mean over k (Eq. 2)."""
    centred = embeddings.float() - embeddings.float().mean(-1, keepdim=True)
    return (nn.functional.normalize(centred, dim=-1) / embeddings.shape[1] ** 0.5).flatten(1).cpu()


@torch.inference_mode()
def embed_faces(trained: Trained, faces: FaceDataset, count: int, device: torch.device) -> TrainingFaces:
    some = Subset(faces, random_positions(len(faces), count, seed=0), "train")
    batches = evaluation_batches(some, trained.preprocessing.evaluation(), 64, 0, device.type == "cuda")
    shown = bar(batches, f"embedding {len(some):,} training faces")
    return TrainingFaces(some, torch.cat([directions(trained.model(images.to(device))[1]) for images, _ in shown]))


@dataclass(frozen=True)
class Page:
    """What the page shows of a picture."""

    trained: Trained
    detect: Detector
    training_faces: TrainingFaces | None
    device: torch.device

    def look(self, file: str | None, whole: bool) -> tuple[Any, dict[str, float] | None, Any, str]:
        """(the picture with the face framed, probability by class, nearest training faces, a note)."""
        if not file:
            return None, None, None, ""
        try:
            picture = read_picture(Path(file))
        except Exception as error:  # Pillow raises many kinds
            return None, None, None, str(broken(Path(file).name, error))
        size = self.trained.preprocessing.image_size
        whole = whole or is_small(picture, size)
        boxes = [(0, 0, *picture.size)] if whole else face_boxes(picture, self.detect, MARGIN)
        if not boxes:
            return None, None, None, NO_FACE
        box = boxes[0]
        image = self.trained.preprocessing.evaluation()(picture.crop(box))[None].to(self.device)
        with torch.inference_mode():
            logits, embeddings = self.trained.model(image)
        row = dict(zip(self.trained.class_names, logits[0].double().softmax(0).tolist(), strict=True))
        nearest = self.training_faces.nearest(embeddings, NEAREST) if self.training_faces else None
        note = f"{len(boxes)} faces seen; this is the largest. " if len(boxes) > 1 else ""
        note += f"Predicted on {'the whole picture, ' if whole else ''}{box[2] - box[0]} x {box[3] - box[1]} pixels."
        return frame(picture, box, SHOWN), row, nearest, note


def serve(
    run: Path,
    *,
    data: str | None = None,
    faces: int = 1000,
    detector: Path | None = None,
    port: int = 0,
    open: bool = False,
    device: str = "auto",
) -> None:
    """Serve the page until SIGINT or SIGTERM. Raises UserError where the port is taken, or there is no model."""
    find_checkpoint(run)  # these errors do not wait for Gradio
    free_port(port)
    with gradio_folder():
        import gradio  # noqa: F401  # first: where it is not installed, nothing else is worth waiting for

        on = ALONE.device(device)
        trained = load_trained(run, on)
        detect = find_detector(detector)
        training_faces = None
        try:
            if faces:
                training_faces = embed_faces(trained, load_run_data(run, trained, "train", data=data)[0], faces, on)
        except UserError as error:
            print(f"no nearest training faces: {error}", file=sys.stderr)
        page = build(Page(trained, detect, training_faces, on), run)
        _, url, _ = page.launch(
            server_name=HOST,
            server_port=free_port(port),
            inbrowser=open,
            prevent_thread_lock=True,
            share=False,
            quiet=True,
            ssr_mode=False,
            show_error=True,
            footer_links=[],
        )
        print(f"serving {run} at {url} (this machine alone); Ctrl-C ends it", flush=True)
        ended = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: ended.set())
        ended.wait()
        page.close(verbose=False)


@contextmanager
def gradio_folder() -> Iterator[None]:
    """Before Gradio's import: no analytics, and a folder for uploads that is deleted at the end."""
    with tempfile.TemporaryDirectory(prefix="adcorre-demo-") as folder:
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_TEMP_DIR": folder}
        yield


def free_port(port: int) -> int:
    """`port`, or the first free one from 7860 for 0. Raises UserError where it is taken."""
    reason = "all from 7860 to 7959 are taken"
    for candidate in [port] if port else range(7860, 7960):
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((HOST, candidate))
            except (OSError, OverflowError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                continue
            return candidate
    raise UserError(f"--port {port}: {reason}; leave it out for a free one")


def faces_html(faces: Sequence[tuple[Image.Image, str]]) -> str:
    """The faces with their captions, as many in a row as the window has room for."""
    cells = []
    for image, caption in faces:
        data = base64.b64encode(png(image)[1]).decode()
        cells.append(
            f'<figure style="margin:0;width:7rem"><img alt="" src="data:image/png;base64,{data}" '
            f'style="width:100%;border-radius:.4rem"><figcaption>{escape(caption)}</figcaption></figure>'
        )
    return f'<div style="display:flex;flex-wrap:wrap;gap:.75rem">{"".join(cells)}</div>'


def build(page: Page, run: Path) -> Any:
    """The Gradio page."""
    import gradio as gr

    def look(file: str | None, whole: bool) -> tuple[Any, dict[str, float] | None, str, str]:
        shown, row, nearest, note = page.look(file, whole)
        return shown, row, faces_html(nearest or ()), note

    about = page.trained.description
    with gr.Blocks(title=f"adcorre: {run.resolve().name}", analytics_enabled=False) as blocks:
        gr.Markdown(
            f"## {run.resolve().name}\n{about['model']['backbone']}, epoch {about['epoch']}; validation: "
            f"{about.get('summary', '–')}. Pictures stay on this machine."
        )
        with gr.Row():
            with gr.Column():
                picture = gr.Image(
                    label="Drop, paste or take a picture",
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "webcam", "clipboard"],
                    height=360,
                )
                # Any file, as it is: Gradio's own reading shows no message for one that is no picture.
                picture.preprocess = lambda payload: payload.path if payload else None  # type: ignore[method-assign]
                whole = gr.Checkbox(label="The picture is a face already")
            face = gr.Image(label="Face found", interactive=False, height=360, format="png", buttons=["fullscreen"])
            with gr.Column():
                classes = gr.Label(label="Expression", num_top_classes=len(page.trained.class_names))
                note = gr.Markdown()
        if page.training_faces:
            gr.Markdown(
                f"Nearest of {len(page.training_faces.faces):,} training faces, by correlation of the embeddings"
            )
        nearest = gr.HTML()
        gr.on(
            [picture.change, whole.change],
            look,
            [picture, whole],
            [face, classes, nearest, note],
            api_name="look",
            show_progress="hidden",
        )
    return blocks
