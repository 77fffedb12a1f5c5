"""Without pytorch-metric-learning the loss is a plain module; `import adcorre` never imports that library."""

import subprocess
import sys
from pathlib import Path

CODE = """
import sys
{block}
import torch
import adcorre
assert "pytorch_metric_learning" not in {{name for name, module in sys.modules.items() if module}}
from adcorre import AdCorreMetricLoss
assert adcorre.metric.AdCorreMetricLoss is AdCorreMetricLoss
loss_fn = AdCorreMetricLoss()
x, labels = torch.randn(40, 8, requires_grad=True), torch.arange(40) % 5 * 9
optimizer = torch.optim.Adam([x], lr=0.1)
before = loss_fn(x, labels, None, x, labels).item()
for _ in range(10):
    optimizer.zero_grad()
    loss_fn(x, labels).backward()
    optimizer.step()
assert loss_fn(x, labels).item() < before - 0.1
try:
    loss_fn(x, labels, (labels, labels, labels))
except ValueError as error:
    assert "indices_tuple" in str(error)
else:
    raise AssertionError("indices_tuple was taken")
print([base.__module__ for base in type(loss_fn).__mro__])
"""


def test_without_the_library() -> None:
    root = Path(__file__).parents[2]
    code = CODE.format(block='sys.modules["pytorch_metric_learning"] = None')
    paths = f"import sys; sys.path[:0] = [{str(root)!r}, {str(root / 'kernels')!r}]"
    result = subprocess.run([sys.executable, "-c", paths + code], capture_output=True, text=True, cwd=root)
    assert result.returncode == 0, result.stderr
    assert "pytorch_metric_learning" not in result.stdout
