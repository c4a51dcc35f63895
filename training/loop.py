"""The training loop: phases, steps, evaluations, checkpoints.  It knows no parallelism and no model."""

import importlib.metadata
import logging
import math
import time
from collections import deque
from pathlib import Path

from model.cost import flops_per_token
from training.batches import Prefetcher, evaluation_shares, rank_share, read
from training.checkpoint import CheckpointFolder, RunState, read_run_state, restore
from training.config import Phase, RunConfig
from training.devices import peak_flops
from training.engine import Engine, StepResult, build_engine
from training.errors import EXIT_FINISHED, EXIT_RUN_AGAIN, TrainingError
from training.hf_weights import load_backbone
from training.logs import without_secrets
from training.preflight import open_stream
from training.records import EvalRecord, StepRecord
from training.reporting import Reporter
from training.schedule import Position, learning_rate, position
from training.topology import Topology, broadcast
from training.tracking import Tracker

log = logging.getLogger("memtrain")


class Trainer:
    """One run on one rank, from wherever its folder says it stands to its end."""

    def __init__(self, config: RunConfig, topology: Topology, tracker: Tracker | None) -> None:
        self.config, self.topology = config, topology
        self.folder = config.run.folder
        keep = config.checkpoint.keep_last, config.checkpoint.keep_every_steps
        self.checkpoints = CheckpointFolder(self.folder / "checkpoints", topology, keep)
        self.stream, self.valid = open_stream(config, "train"), open_stream(config, "valid")
        self.last = self.checkpoints.choose()
        self.step = read_run_state(self.last).step if self.last else 0
        self.run_id = broadcast(tracker.run_id if tracker else "")
        self.reporter = Reporter(config, self.step, tracker)
        self.prefetcher = Prefetcher(self.stream, config.training.micro_batch_size, topology.segment_share)
        self.speeds: deque[float] = deque(maxlen=20)

    def run(self) -> int:
        """Train until the end or `training.stop_after_steps`; the exit code.  Collective."""
        status = "FAILED"
        try:
            if self.last is not None:
                self.reporter.note(f"resuming after step {self.step} from {self.last}")
            while not self._done() and not self._stopped():
                self._run_phase(self._position())
            status = "FINISHED" if self._done() else "KILLED"
            self._farewell()
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            self.prefetcher.close()
            self.reporter.close(status)  # type: ignore[arg-type]
        return EXIT_FINISHED if self._done() else EXIT_RUN_AGAIN

    def _position(self) -> Position:
        return position(self.config.phases, self.config.data.sequence_length, self.step)

    def _done(self) -> bool:
        return self.step >= self.config.total_steps

    def _stopped(self) -> bool:
        stop = self.config.training.stop_after_steps
        return stop is not None and self.step >= stop

    def _run_phase(self, at: Position) -> None:
        """Build the phase's engine, bring it to `at`, train to the phase's end or to the stop."""
        phase = self.config.phases[at.phase_index]
        engine = build_engine(self.config, phase, self.topology)
        self._bring_in_weights(engine, phase, at)
        counts = ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in engine.counts().items())
        self.reporter.note(f"phase {phase.name}: {phase.steps} steps; on this rank: {counts}")
        end = self.step - at.phase_step + phase.steps
        every = self.config.checkpoint.every_steps
        while self.step < end and not self._stopped():
            self._train_step(engine, phase)
            at_end = self.step == end
            eval_every = self.config.training.eval_every_steps
            if at_end or (eval_every and self.step % eval_every == 0):
                self._evaluate(engine, phase, at_end)
            if at_end or self.step % every == 0 or self._stopped():
                self._save(engine, phase)
        engine.close()

    def _bring_in_weights(self, engine: Engine, phase: Phase, at: Position) -> None:
        kind, _, path = phase.init_from.partition(":")
        if at.phase_step > 0:
            assert self.last is not None
            restore(engine, self.last, self.topology, moments=True, rng=True)
        elif kind == "hf":
            load_backbone(engine.parameters, Path(path), self.config.model, self.topology.tensor, engine.write_state)
        elif kind == "checkpoint":
            restore(engine, Path(path), self.topology, moments=False, rng=False)
        elif kind == "previous" and self.last is not None:
            restore(engine, self.last, self.topology, moments=True, rng=True)

    def _train_step(self, engine: Engine, phase: Phase) -> None:
        at, started = self._position(), time.perf_counter()
        batch = self.prefetcher.get(self._share(at), self._following(at))
        waited = time.perf_counter() - started
        tokens_in_phase = (at.phase_step + 1) * phase.tokens_per_step
        lr = learning_rate(phase.lr, tokens_in_phase, phase.steps * phase.tokens_per_step)
        result = engine.train_step(batch, lr)
        self.step += 1
        if not (math.isfinite(result.loss) and math.isfinite(result.grad_norm)):
            raise TrainingError(
                f"step {self.step} ({phase.name}): loss {result.loss}, gradient norm {result.grad_norm}; samples "
                f"{at.samples}..{at.samples + phase.tokens_per_step // self.config.data.sequence_length - 1}; "
                "the last checkpoint is from before it: start a new run.name with a lower learning rate, its first "
                f"phase with init_from: checkpoint:{self.last}"
            )
        self._report(result, phase, lr, waited, time.perf_counter() - started)

    def _share(self, at: Position) -> range:
        samples = self.config.phases[at.phase_index].tokens_per_step // self.config.data.sequence_length
        return rank_share(at.samples, samples, self.topology.data_rank, self.topology.data_size)

    def _following(self, at: Position) -> range | None:
        following = position(self.config.phases, self.config.data.sequence_length, at.step + 1)
        return self._share(following) if following.phase_index < len(self.config.phases) else None

    def _report(self, result: StepResult, phase: Phase, lr: float, waited: float, seconds: float) -> None:
        at = self._position()
        speed = phase.tokens_per_step / seconds
        self.speeds.append(speed)
        peak = peak_flops(self.topology.device, self.config.training.precision)
        mfu = None
        if peak:
            flops = flops_per_token(self.config.model, phase.memory) * speed / self.topology.info.world_size
            mfu = flops / peak
        average = len(self.speeds) / sum(1 / s for s in self.speeds)
        self.reporter.step(
            StepRecord(
                step=self.step,
                tokens=at.tokens,
                phase=phase.name,
                loss=result.loss,
                grad_norm=result.grad_norm,
                lr=lr,
                tokens_per_second=speed,
                mfu=mfu,
                gates=result.gates,
                data_wait=waited / seconds,
                eta_seconds=(self.config.total_tokens - at.tokens) / average,
            )
        )

    def _evaluate(self, engine: Engine, phase: Phase, at_phase_end: bool) -> None:
        """Validation loss; at the end of a memory phase also with the memory wiped."""
        training, topology = self.config.training, self.topology
        samples = min(training.eval_samples, len(self.valid))
        share = evaluation_shares(samples, topology.data_rank, topology.data_size, training.micro_batch_size)
        batch = read(self.valid, share, training.micro_batch_size, topology.segment_share)
        loss = engine.evaluate(batch)
        wiped = engine.evaluate(batch, wipe_memory=True) if phase.memory and at_phase_end else None
        self.reporter.evaluation(EvalRecord(self.step, self._position().tokens, phase.name, loss, wiped))

    def _save(self, engine: Engine, phase: Phase) -> None:
        at = self._position()
        state = RunState(
            step=self.step,
            tokens=at.tokens,
            samples=at.samples,
            phase=phase.name,
            phase_step=at.phase_step,
            optimizer_steps=engine.optimizer_steps(),
            stream=self.stream.fingerprint,
            mlflow_run_id=self.run_id,
            config=without_secrets(self.config.model_dump(mode="json")),
            versions={name: importlib.metadata.version(name) for name in ("torch", "deepspeed", "megatron-core")},
        )
        self.last = self.checkpoints.save(engine, state)

    def _farewell(self) -> None:
        if self._done():
            self.reporter.note(f"finished: {self.step} steps, {self._position().tokens:,} tokens")
        else:
            self.reporter.note(
                f"stopped after step {self.step} of {self.config.total_steps}, saved; run the same again"
            )
        self.reporter.note(f"checkpoint: {self.last}")
        if command := self.reporter.ui_command:
            self.reporter.note(f"MLflow:     {command}")
