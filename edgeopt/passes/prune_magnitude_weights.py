"""The weights of a torch model that can be made sparse, by name."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgeopt.core.errors import UsageError, did_you_mean
from edgeopt.core.protocols import Context

if TYPE_CHECKING:
    from torch import Tensor, nn


def matrices(module: nn.Module, keep: list[str]) -> dict[str, Tensor]:
    """Weights of two and more axes by the name of the parameter, each once; `keep` names layers. Raises UsageError when it names none.

    Those of convolutions, linear and recurrent layers and attention; not embeddings, whose rows are looked up.
    """
    from torch import nn
    from torch.nn.modules.conv import _ConvNd

    layers = {
        name: one
        for name, one in module.named_modules()
        if isinstance(one, (_ConvNd, nn.Linear, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention))
    }
    kept: set[str] = set()
    for pattern in keep:
        hits = [name for name in layers if fnmatch.fnmatchcase(name, pattern) or name.startswith(pattern + ".")]
        if not hits:
            raise UsageError(f"keep: no layer with weights is named '{pattern}'", remedy=did_you_mean(pattern, layers))
        kept.update(hits)
    tables = {id(one.weight) for one in module.modules() if isinstance(one, nn.Embedding)}
    found: dict[str, Tensor] = {}
    seen = set(tables)
    for name, layer in layers.items():
        for leaf, one in layer.named_parameters(recurse=False):
            if name not in kept and one.ndim > 1 and id(one) not in seen:
                found[f"{name}.{leaf}".lstrip(".")] = one
                seen.add(id(one))
    return found


def note_zeros(found: Mapping[str, Tensor], ctx: Context) -> None:
    """Note the share of zeros, in all of these weights and by layer."""
    zeros = {name: int((one == 0).sum()) for name, one in found.items()}
    ctx.note("zeros", round(sum(zeros.values()) / sum(one.numel() for one in found.values()), 4))
    ctx.note("zeros_by_weight", {name: round(count / found[name].numel(), 4) for name, count in zeros.items()})
