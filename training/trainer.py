"""The training loop: phases, steps, evaluations, checkpoints.

It depends neither on how the model is parallelised nor on what the model computes.
"""

import importlib.metadata
import logging
import signal
import statistics
import time
from collections import deque
from pathlib import Path

from data_prep import TokenStream
from model.cost import flops_per_token
from training.batches import Prefetcher, Share, evaluation_shares, rank_share, read
from training.checkpoint.folder import CheckpointFolder, RunState, read_run_state, restore, stored_names
from training.checkpoint.manifest import step_of
from training.checkpoint.remote import local_copy
from training.config import Phase, RunConfig
from training.distributed.devices import peak_flops
from training.distributed.topology import Topology, broadcast
from training.engine import Engine, StepResult, build_engine
from training.errors import EXIT_FINISHED, EXIT_RUN_AGAIN, TrainingError
from training.faults.anomalies import AnomalyDetector, read_skipped, write_skipped
from training.faults.postmortem import gather_nonfinite_report
from training.faults.signals import StopSignal
from training.faults.stragglers import StragglerDetector
from training.faults.watchdog import Watchdog
from training.huggingface.weights import load_folder
from training.logs import without_secrets
from training.monitoring.records import EvalRecord, StepRecord
from training.monitoring.run_lock import RunLock
from training.reporter import Reporter
from training.schedule import Position, learning_rate, position
from training.streams import open_references, open_stream, open_validation
from training.tracking import Status, Tracker
from training.tracking.facts import End
from training.version import __version__

log = logging.getLogger("memtrain")


class Trainer:
    """The training of one run on one rank, from its last checkpoint to its end. Building one is collective.

    Args:
        config: the run.
        topology: process groups of this rank.
        lock: rank 0's lock of the run's folder; None elsewhere.
        tracker: rank 0's MLflow tracker; None elsewhere.
        stop_signal: which signal this process received.
        watchdog: gets a heartbeat at every change of activity.
    """

    def __init__(
        self,
        config: RunConfig,
        topology: Topology,
        lock: RunLock | None,
        tracker: Tracker | None,
        stop_signal: StopSignal,
        watchdog: Watchdog,
    ) -> None:
        self.config, self.topology, self.signal, self.watchdog = config, topology, stop_signal, watchdog
        self.folder = config.run.folder
        keep = config.checkpoint.keep_last, config.checkpoint.keep_every_steps
        confirm = lock.confirm if lock else lambda: None
        self.checkpoints = CheckpointFolder(self.folder / "checkpoints", topology, keep, confirm)
        self.stream, self.valid = open_stream(config, "train"), open_validation(config)
        last = self.checkpoints.choose()
        self.step = read_run_state(last).step if last else 0
        self.run_id = broadcast(tracker.run_id if tracker else "")
        self.reporter = Reporter(config, self.step, tracker, lock)
        self.references = open_references(config, self.stream)
        micro_batch_size, share = config.training.micro_batch_size, topology.segment_share
        self.prefetcher = Prefetcher(self.stream, micro_batch_size, share, self.references)
        self.anomalies = AnomalyDetector(config.faults)
        self.skipped = set(read_skipped(self.folder))
        self.stopping = 0  # number of a signal that all ranks know of
        self.engine: Engine | None = None
        self.speeds: deque[float] = deque(maxlen=20)

    def run(self) -> int:
        """Train until the last step, a signal or `training.stop_after_steps`; return the exit code. Collective.

        Raises `TrainingError` when training cannot go on.
        """
        try:
            if self.last is not None:
                self.reporter.note(f"resuming after step {self.step} from {self.last}")
            if self.valid is None:
                self.reporter.note("no evaluation: no document is held out (data.prepare.valid_fraction: 0)")
            while not self._done() and not self._stopped():
                self._run_phase(self._position())
            status: Status = "FINISHED" if self._done() else "KILLED"
            code = EXIT_FINISHED if self._done() else EXIT_RUN_AGAIN
            state = "finished" if self._done() else self._stopped_how()
            end = End(status, state, code, signal=self._signal_name)
            self._farewell()
        except BaseException as error:
            end = End.of(error, self.step)
            raise
        finally:
            self._beat("closing")
            self.checkpoints.close()  # after a failure too: the run continues from the checkpoint being written
            self.prefetcher.close()
            self.reporter.close(end, self.step)
        return code

    @property
    def last(self) -> Path | None:
        """The newest checkpoint known to be whole."""
        return self.checkpoints.last

    def _position(self) -> Position:
        return position(self.config.phases, self.config.data.sequence_length, self.step)

    def _done(self) -> bool:
        return self.step >= self.config.total_steps

    def _stopped(self) -> bool:
        stop = self.config.training.stop_after_steps
        return bool(self.stopping) or (stop is not None and self.step >= stop)

    def _beat(self, doing: str, phase: Phase | None = None, step: int | None = None) -> None:
        self.watchdog.beat(self.step if step is None else step, phase.name if phase else "", doing)

    def _run_phase(self, at: Position) -> None:
        """Build the phase's engine, load its state at `at`, and train. Collective.

        It ends at the phase's end, at a stop, or when the run went back to a checkpoint.
        """
        phase = self.config.phases[at.phase_index]
        self._beat("building", phase)
        origin = self._origin(phase, at)
        loaded_later = stored_names(origin) if origin else frozenset()
        self.engine = engine = build_engine(self.config, phase, self.topology, loaded_later)
        self._bring_in_weights(engine, phase, at, origin)
        counts = ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in engine.counts().items())
        self.reporter.note(f"phase {phase.name}: {phase.steps} steps; on this rank: {counts}")
        self.anomalies.new_phase()
        self.stragglers = StragglerDetector(engine.module, self.topology, self.config.faults.slow_factor)
        end = self.step - at.phase_step + phase.steps
        while self.step < end and not self._stopped():
            if not self._train_step(engine, phase):
                break
            self._after_step(engine, phase, at_end=self.step == end)
        self.stragglers.close()
        engine.close()
        self.engine = None

    def _after_step(self, engine: Engine, phase: Phase, at_end: bool) -> None:
        """Evaluate and save when a step count or the phase's end asks for it. Collective."""
        eval_every = self.config.training.eval_every_steps
        if self.valid is not None and (at_end or (eval_every and self.step % eval_every == 0)):
            self._beat("evaluation", phase)
            self._evaluate(engine, self.valid, phase, at_end)
        must_be_on_disk = at_end or self._stopped()
        if must_be_on_disk or self.step % self.config.checkpoint.every_steps == 0:
            self._beat("saving", phase)
            self._save(engine, phase)
            if must_be_on_disk or not self.config.checkpoint.asynchronous:
                self.checkpoints.wait()

    def _origin(self, phase: Phase, at: Position) -> Path | None:
        """Return the checkpoint that the phase's engine loads at `at`; None when it loads none. Collective.

        Raises `TrainingError` when a checkpoint named in `init_from` is damaged.
        """
        kind, _, path = phase.init_from.partition(":")
        if at.phase_step > 0:
            assert self.last is not None
            return self.last
        if kind == "previous":
            return self.last
        if kind != "checkpoint":
            return None
        origin = local_copy(path, "init_from")
        self.checkpoints.check(origin)
        return origin

    def _bring_in_weights(self, engine: Engine, phase: Phase, at: Position, origin: Path | None) -> None:
        """Load the weights, and on a resume also optimizer and random state, into the engine. Collective."""
        kind, _, path = phase.init_from.partition(":")
        if origin is not None:
            resumes = at.phase_step > 0 or kind == "previous"
            restore(engine, origin, self.topology, moments=resumes, rng=resumes)
        elif kind == "hf":
            load_folder(engine.parameters, Path(path), self.config.model, self.topology.tensor, engine.write_weights)

    def _train_step(self, engine: Engine, phase: Phase) -> bool:
        """Take one step, or pass one over; return False when the run went back to its last checkpoint. Collective."""
        if self.step + 1 in self.skipped:
            self.step += 1
            self.reporter.passed_over(self.step)
            return True
        self._beat("data", phase, self.step + 1)
        at, started = self._position(), time.perf_counter()
        share = self._share(at)
        batch = self.prefetcher.get(share, self._following(at))
        waited = time.perf_counter() - started
        tokens_in_phase = (at.phase_step + 1) * phase.tokens_per_step
        lr = learning_rate(phase.lr, tokens_in_phase, phase.steps * phase.tokens_per_step)
        self._beat("step", phase, self.step + 1)
        result = engine.train_step(batch, lr)
        if slow := self.stragglers.compare_ranks():
            self.reporter.note(slow)
        decision = self.anomalies.decide(self.step + 1, result.loss, result.grad_norm, self.signal.number)
        self.stopping = self.stopping or decision.stop
        self.step += 1
        if decision.spike:
            self._roll_back(result.loss)
            return False
        if not decision.finite:
            text = gather_nonfinite_report(
                self.step, phase.name, result, engine.guard, share.indices, self.config, self.topology
            )
            if self.anomalies.too_many_bad:
                raise TrainingError(f"{text}; {self._way_out()}")
            self.reporter.note(f"{text}; the update of this step is left out")
        self._report(result, phase, lr, waited, time.perf_counter() - started)
        return True

    def _way_out(self) -> str:
        return (
            f"more than {self.config.faults.nonfinite_steps} (faults.nonfinite_steps) of 100 steps were not finite: "
            "start a new run.name with a lower learning rate, its first phase with init_from: "
            f"checkpoint:{self.checkpoints.wait()}"
        )

    def _roll_back(self, loss: float) -> None:
        """Go back to the last checkpoint, and record the steps that led to the spike as skipped. Collective.

        Later attempts of the run skip them too.
        """
        last = self.checkpoints.wait()
        spike, back_to = self.step, step_of(last) if last else 0
        self.skipped |= set(self.anomalies.roll_back(spike, back_to))
        if self.topology.is_main:
            self.reporter.confirm()
            write_skipped(self.folder, sorted(self.skipped))
        self.step = back_to
        self.reporter.rewind(back_to, spike, loss)
        self.reporter.note(
            f"step {spike}: the loss spiked to {loss:.3f}; back to step {back_to}, the steps that led to it are skipped"
        )

    def _share(self, at: Position) -> Share:
        """Return the samples of this rank in the step after `at`."""
        phase = self.config.phases[at.phase_index]
        samples = phase.tokens_per_step // self.config.data.sequence_length
        indices = rank_share(at.samples, samples, self.topology.data_rank, self.topology.data_size)
        return Share(indices, references=phase.memory and self.references is not None)

    def _following(self, at: Position) -> Share | None:
        """Return this rank's share of the step after `at`, for the prefetcher; None after the last step."""
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
                seconds=seconds,
                eta_seconds=(self.config.total_tokens - at.tokens) / statistics.harmonic_mean(self.speeds),
            )
        )

    def _evaluate(self, engine: Engine, valid: TokenStream, phase: Phase, at_phase_end: bool) -> None:
        """Measure the validation loss, at the end of a memory phase also with the memory ablated. Collective."""
        training, topology = self.config.training, self.topology
        samples = min(training.eval_samples, len(valid))
        share = evaluation_shares(samples, topology.data_rank, topology.data_size, training.micro_batch_size)
        references = open_references(self.config, valid) if phase.memory else None
        batch = read(valid, share, training.micro_batch_size, topology.segment_share, references)
        loss = engine.evaluate(batch)
        ablated = engine.evaluate(batch, ablate_memory=True) if phase.memory and at_phase_end else None
        self.reporter.evaluation(EvalRecord(self.step, self._position().tokens, phase.name, loss, ablated))

    def _save(self, engine: Engine, phase: Phase) -> None:
        """Start writing a checkpoint of the present step. Collective."""
        at = self._position()
        state = RunState(
            step=self.step,
            tokens=at.tokens,
            samples=at.samples,
            phase=phase.name,
            phase_step=at.phase_step,
            optimizer_steps=engine.optimizer_steps(),
            stream=self.stream.fingerprint,
            tokenizer=self.stream.manifest.tokenizer.fingerprint,
            mlflow_run_id=self.run_id,
            config=without_secrets(self.config.model_dump(mode="json")),
            skipped=sorted(step for step in self.skipped if step <= self.step),
            versions={"memtrain": __version__}
            | {name: importlib.metadata.version(name) for name in ("torch", "deepspeed", "megatron-core")},
        )
        self.checkpoints.start(engine, state)

    @property
    def _signal_name(self) -> str:
        return signal.Signals(self.stopping).name if self.stopping else ""

    def _stopped_how(self) -> str:
        why = f" by {self._signal_name}" if self.stopping else ""
        return f"stopped after step {self.step} of {self.config.total_steps}{why}, saved; run the same command again"

    def _farewell(self) -> None:
        if self._done():
            self.reporter.note(f"finished: {self.step} steps, {self._position().tokens:,} tokens")
        else:
            self.reporter.note(self._stopped_how())
        self.reporter.note(f"checkpoint: {self.last}")
        if command := self.reporter.ui_command:
            self.reporter.note(f"MLflow:     {command}")
