"""2:4 pruning: of every four weights along the inputs two become zeros, which NVIDIA's sparse kernels skip."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from edgeopt.core import registry
from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import StepError
from edgeopt.core.protocols import Context, Pass
from edgeopt.formats import torch as torch_format
from edgeopt.passes.prune_magnitude_weights import matrices, note_zeros
from edgeopt.passes.quantize_int8_samples import FEWEST, refuse_few

if TYPE_CHECKING:
    from torch import Tensor, nn

# modelopt's own rules: outputs and inputs of a layer are multiples of these, for its kernels.
_MULTIPLES = {"magnitude": (8, 16), "sparsegpt": (4, 4)}
_BATCH = 16


class Prune24(
    Pass,
    accepts="torch",
    produces="torch",
    needs=("torch", "nvidia-modelopt"),
    data=("calibrate?",),
    changes_function=True,
):
    """Set two of every four weights to zero along the inputs of linear layers and 2-D convolutions (Mishra et al., arXiv:2104.08378).

    For TensorRT's sparse kernels on NVIDIA GPUs from Ampere on; CPUs gain nothing. `sparsegpt` chooses by the inputs
    that the samples of `calibrate` give a layer (Frantar and Alistarh, arXiv:2301.00774), in linear layers and 1 × 1
    convolutions; other convolutions go by magnitude. Layers whose channels are no multiples of what these kernels
    want stay. Fine-tune afterwards: fine-tune and train-int8 keep the zeros.
    """

    extra: ClassVar[str] = "modelopt"

    method: Literal["magnitude", "sparsegpt"] = Field(
        default="magnitude", description="which two go: the smallest, or those that matter least on data"
    )
    samples: int = Field(default=128, ge=FEWEST, description="sparsegpt: at most so many calibration samples")
    keep: list[str] = Field(default_factory=list, description="names or patterns of layers that keep their weights: head, blocks.0.*")

    def splits(self) -> tuple[str, ...]:
        return ("calibrate",) if self.method == "sparsegpt" else ()

    def run(self, model: Artifact, ctx: Context) -> Path:
        torch = registry.need("torch", "torch")
        registry.need("modelopt.torch.sparsity", "modelopt")
        module = torch_format.load(model.path)
        chosen, left = self._layers(module)
        by_data = [name for name, (_, how) in chosen.items() if how == "sparsegpt"]
        by_size = [name for name in chosen if name not in by_data]
        if by_size:
            self._prune(module, by_size, "sparse_magnitude", {})
        if by_data:
            refuse_few(ctx.data["calibrate"], "method: sparsegpt", "method: magnitude needs none")
            loop = {"data_loader": self._feeds(model, ctx), "collect_func": tuple, "device": "cpu"}
            self._prune(module, by_data, "sparsegpt", loop)
        found = {f"{name}.weight": one for name, (one, _) in chosen.items()}
        with torch.no_grad():
            wrong = [name for name, one in found.items() if not _is_2_4(one)]
        if wrong or not found:
            why = f"{wrong[0]} has other zeros" if wrong else "; ".join(f"{name}: {reason}" for name, reason in list(left.items())[:5])
            raise StepError(
                f"no layer can be pruned 2:4 ({why or 'there is no linear layer and no 2-D convolution'})", remedy="leave prune-2-4 out"
            )
        note_zeros(found, ctx)
        ctx.note("left_alone", left)
        ctx.note("warning", "2:4 zeros give speed in TensorRT's sparse kernels only, on NVIDIA GPUs from Ampere on, and none on CPUs")
        return torch_format.save(module, ctx.folder, model.path, sparse=found)

    def _layers(self, module: nn.Module) -> tuple[dict[str, tuple[Tensor, str]], dict[str, str]]:
        """Weights by layer with the method that prunes them, and the layers that stay, with the reason."""
        from torch import nn

        chosen: dict[str, tuple[Tensor, str]] = {}
        left = dict.fromkeys(
            (name.rpartition(".")[0] for name in matrices(module, []).keys() - matrices(module, self.keep).keys()), "named under `keep`"
        )
        for parameter, weight in matrices(module, self.keep).items():
            name = parameter.rpartition(".")[0]
            layer = module.get_submodule(name)
            if type(layer) not in (nn.Linear, nn.Conv2d):
                left[name] = "only linear layers and 2-D convolutions have sparse kernels"
                continue
            plain = isinstance(layer, nn.Linear) or (
                layer.kernel_size == (1, 1) and layer.groups == 1 and layer.padding in ((0, 0), "valid")
            )
            method = self.method if plain else "magnitude"
            outputs, inputs = _MULTIPLES[method]
            if weight.shape[0] % outputs or weight.shape[1] % inputs:
                left[name] = f"its {weight.shape[0]} outputs and {weight.shape[1]} inputs are no multiples of {outputs} and {inputs}"
            else:
                chosen[name] = (weight, method)
        return chosen, left

    def _prune(self, module: nn.Module, names: list[str], mode: str, config: dict[str, Any]) -> None:
        """Take the zeros over that modelopt makes in a copy: it leaves marks of its own on what it works on."""
        import torch
        from modelopt.torch import sparsity

        copy = deepcopy(module)
        rules: dict[str, Any] = {"*": None} | {name: {} for name in names}
        try:
            sparsity.sparsify(copy, [(mode, {"nn.Linear": rules, "nn.Conv2d": rules})], config={"verbose": False, **config})
        except Exception as error:
            raise StepError(
                f"modelopt cannot prune these layers: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
                remedy="choose method: magnitude, or name the layers under `keep`",
            ) from error
        with torch.no_grad():
            for name in names:
                weight: Any = module.get_submodule(name).weight
                weight.mul_(copy.get_submodule(name).weight != 0)

    def _feeds(self, model: Artifact, ctx: Context) -> Iterator[Any]:
        record = torch_format.Record.read(model.path)
        done = 0
        for feeds, labels in ctx.data["calibrate"].batches(_BATCH):
            if done >= self.samples:
                return
            yield [torch_format.tensor(feeds[spec.name]) for spec in record.inputs]
            done += len(labels)
            ctx.progress(min(done, self.samples), self.samples, "looking at layers' inputs")


def _is_2_4(weight: Tensor) -> bool:
    """Whether of every four neighbours along the inputs at most two are not zero."""
    groups = weight.movedim(1, -1).reshape(-1, 4)
    return bool(((groups != 0).sum(dim=1) <= 2).all())
