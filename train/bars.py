"""Progress bars where somebody is looking."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def bar(items: Iterable[Any], title: str, **extra: Any) -> Any:
    """The items, behind a bar that is gone at the end; nothing where stdout is no terminal."""
    return tqdm(
        items,
        title,
        bar_format="{desc} {bar:10} {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}",
        leave=False,
        dynamic_ncols=True,
        disable=not sys.stdout.isatty(),
        file=sys.stdout,
        **extra,
    )
