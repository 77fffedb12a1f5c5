"""The examples of docs/integrations.md, as their files: two steps, the attention map checkpointed and restored."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "integrations.md"
COUNTS = "loss_fn.attention_map.counts"


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder with the page's files, on the path."""
    folder = tmp_path_factory.mktemp("examples")
    for name, code in re.findall(r"(?ms)^```python\n# (\w+\.py)\n(.*?)^```$", PAGE.read_text()):
        (folder / name).write_text(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder
        for name in list(sys.modules):
            if getattr(sys.modules[name], "__file__", None) and str(folder) in str(sys.modules[name].__file__):
                del sys.modules[name]


def seen(counts: torch.Tensor) -> list[int]:
    """The number of samples counted in each step of the window."""
    return sorted(counts[:, 1].sum(1).tolist())


def test_lightning(examples: Path, tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    example = importlib.import_module("lightning_example")
    model = example.main(str(tmp_path))
    assert seen(model.loss_fn.attention_map.counts) == [0, 0, 0, 8, 8]
    state = torch.load(tmp_path / "last.ckpt", weights_only=False)["state_dict"]
    assert torch.equal(state[f"model.{COUNTS}"], model.loss_fn.attention_map.counts)
    resumed = example.main(str(tmp_path), steps=3, ckpt_path=str(tmp_path / "last.ckpt"))
    assert seen(resumed.loss_fn.attention_map.counts) == [0, 0, 8, 8, 8]


def test_compiled_lightning(examples: Path, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")
    example, images = importlib.import_module("lightning_example"), importlib.import_module("model").Images()
    module = example.LightningClassifier()
    trainer = lightning.Trainer(
        max_steps=2, accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_progress_bar=False
    )
    before = module.model.head.classifier.weight.detach().clone()
    trainer.fit(torch.compile(module, backend="aot_eager"), torch.utils.data.DataLoader(images, batch_size=8))
    assert seen(module.model.loss_fn.attention_map.counts) == [0, 0, 0, 8, 8]
    assert module.model.head.classifier.weight.isfinite().all()
    assert not torch.equal(module.model.head.classifier.weight, before)


def test_trainer(examples: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    example = importlib.import_module("trainer_example")
    model = example.main(str(tmp_path))
    assert seen(model.loss_fn.attention_map.counts) == [0, 0, 0, 8, 8]
    resumed = example.main(str(tmp_path), steps=3, resume=True)
    assert seen(resumed.loss_fn.attention_map.counts) == [0, 0, 8, 8, 8]


def test_accelerate(examples: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    example = importlib.import_module("accelerate_example")
    loss = example.main(str(tmp_path))
    assert seen(loss.attention_map.counts) == [0, 0, 0, 8, 8]
    resumed = example.main(str(tmp_path), steps=1, resume=True)
    assert seen(resumed.attention_map.counts) == [0, 0, 8, 8, 8]


RANK = """
import sys
import {module} as example
result = example.main(sys.argv[1]{options})
loss = getattr(result, "loss_fn", result)
assert loss.process_group == "world"
print("seen", sorted(loss.attention_map.counts[:, 1].sum(1).tolist()), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "package, module, options, ranks",
    [
        ("lightning", "lightning_example", ", devices=2", 1),
        ("transformers", "trainer_example", "", 2),
        ("accelerate", "accelerate_example", "", 2),
    ],
)
def test_two_processes(examples: Path, tmp_path: Path, package: str, module: str, options: str, ranks: int) -> None:
    """Each process counts the predictions of both: 16 samples a step. Lightning starts the second one by itself."""
    pytest.importorskip(package)
    script = tmp_path / "rank.py"
    script.write_text(RANK.format(module=module, options=options))
    paths = os.pathsep.join((str(examples), str(ROOT), str(ROOT / "kernels")))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if ranks == 2 else []
    command = [sys.executable, *launcher, str(script), str(tmp_path / "out")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-4000:]
    assert result.stdout.count("seen [0, 0, 0, 16, 16]") >= 1, result.stdout
