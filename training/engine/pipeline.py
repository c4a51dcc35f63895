"""The engine for `parallel.pipeline` above 1: DeepSpeed's pipeline engine on the flat list of layers."""

import contextlib
import io
import logging
from collections.abc import Container, Iterator

from torch import Tensor, nn

from model.cost import stage_costs
from model.stages import EmbeddingStage, Layer, flat_layers, tied_head
from training.batches import StepBatch, iterate
from training.config import RunConfig
from training.distributed.topology import Topology
from training.engine.base import Engine
from training.engine.deepspeed_library import LayerSpec, PipelineModule, PipeModelDataParallelTopology, TiedLayerSpec
from training.planning.stages import cut_stages

log = logging.getLogger("memtrain")


class PipelineEngine(Engine):
    """The engine that divides the flat list of layers into pipeline stages."""

    def _build_module(self) -> nn.Module:
        config, topology = self.config, self.topology
        layers = flat_layers(config.model, topology.parallel, self.phase.memory)
        self._layers = layers
        specs = [_Spec(layer, config, topology, self.loaded_later) for layer in layers]

        def loss(head: tuple[Tensor, Tensor], labels: tuple[Tensor, Tensor]) -> Tensor:
            return self.guard(self.loss(*head, *labels))

        with contextlib.redirect_stdout(io.StringIO()):
            cut = cut_stages(stage_costs(config.model, self.phase.memory), topology.pipeline_size)
            module = _Stages(
                [_TiedSpec(spec, last=spec is specs[-1]) if spec.layer.tied else spec for spec in specs],
                topology=PipeModelDataParallelTopology(
                    topology.pipeline_size, topology.tensor.size, topology.data_parallel_group.size()
                ),
                loss_fn=loss,
                partition_method=",".join(map(str, cut)),
                activation_checkpoint_interval=1 if config.training.activation_checkpointing == "full" else 0,
            )
        log.info("stages of the flat list: %s", cut)
        return module

    def _canonical_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for child_name, child in self.module.named_children():
            if child_name == "tied_modules":
                found = [(self._layers[0], tied) for tied in child.children()]
            else:
                found = [(self._layers[int(child_name)], child)]
            for layer, module in found:
                for name, parameter in module.get_submodule(layer.attribute).named_parameters():
                    yield f"{layer.prefix}.{name}", parameter

    def _forward_backward(self, batch: StepBatch) -> Tensor:
        return self.ds.train_batch(iterate(batch, self.topology.device))

    def _forward(self, batch: StepBatch) -> Tensor:
        micro_batches = iterate(batch, self.topology.device)
        return self.ds.eval_batch(micro_batches, num_micro_batches=len(batch.micro_batches))


class _Stages(PipelineModule):
    """A pipeline cut at given boundaries of the flat list; DeepSpeed can only balance layers or parameters."""

    def _partition_layers(self, method: str) -> None:
        """Set this stage's first and last layer.  method: the boundaries, such as "0,3,6" for two stages."""
        self.parts = [int(boundary) for boundary in method.split(",")]
        stage = self._topo.get_coord(self.global_rank).pipe
        self._set_bounds(start=self.parts[stage], stop=self.parts[stage + 1])


class _Spec(LayerSpec):
    """A layer of the flat list; only the stage that owns it builds it and draws its initial weights."""

    def __init__(self, layer: Layer, config: RunConfig, topology: Topology, loaded_later: Container[str]) -> None:
        super().__init__(layer.type)
        self.layer, self.config, self.topology, self.loaded_later = layer, config, topology, loaded_later

    def build(self, log: bool = False) -> nn.Module:
        return self.layer.build(self.config.model, self.config.run.seed, self.topology.tensor, self.loaded_later)


class _TiedSpec(TiedLayerSpec):
    """The embedding; with `last`, the output head that shares its weight."""

    def __init__(self, spec: _Spec, last: bool) -> None:
        super().__init__(
            spec.layer.prefix,
            EmbeddingStage,
            forward_fn=tied_head if last else None,
            tied_weight_attr=["embedding.weight"],
        )
        self.build = spec.build
