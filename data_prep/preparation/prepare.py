"""`prepare` makes a folder of token shards from a configuration; finished tasks survive a kill."""

import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console

from data_prep.config import CacheConfig, PrepareConfig
from data_prep.errors import DataError
from data_prep.files import write_text
from data_prep.preparation.changes import check_inputs
from data_prep.preparation.merge import merge
from data_prep.preparation.plan import PLAN_FILE, Plan, Planner, load_plan, open_cache
from data_prep.preparation.progress import ByteProgress, print_summary
from data_prep.preparation.task import load_result, made_of, run_task
from data_prep.preparation.tokenize import Pool, available_cores
from data_prep.shards.manifest import MANIFEST_FILE, Manifest
from data_prep.sources.places import is_remote


class Preparation:
    """The steps of preparing one folder: plan, tasks, merge. Each writes its result into the folder `work`.

    Every step can be repeated on any machine that has the folder. Finished work is not repeated, and the result's bytes
    do not depend on the number of processes or on interruptions.
    """

    def __init__(
        self,
        config: PrepareConfig,
        folder: Path | str,
        console: Console | None = None,
        cache: CacheConfig | None = None,
    ) -> None:
        if is_remote(folder):
            raise DataError(f"data.path: {folder} is a URL; prepare a local folder, then copy it there")
        self.config, self.cache = config, cache or CacheConfig()
        self.folder = Path(folder).expanduser().resolve()
        self.work = self.folder.with_name(f"{self.folder.name}.work")
        self.console = console or Console(stderr=True)
        self._workers = config.workers or available_cores()

    def finished(self) -> Manifest | None:
        """Returns the manifest when `folder` is the result of the configuration, or None when it is missing or empty.

        Raises DataError when the folder has other content, or was made with other settings or from other input.
        """
        folder = self.folder
        if folder.exists() and not folder.is_dir():
            raise DataError(f"{folder}: is a file; choose another folder")
        if not folder.exists() or not any(folder.iterdir()):
            return None
        if not (folder / MANIFEST_FILE).is_file():
            raise DataError(
                f"{folder}: exists and is not a prepared folder (no {MANIFEST_FILE}); choose another folder"
            )
        manifest = Manifest.load(folder)
        if manifest.config_hash != self.config.hash:
            raise DataError(
                f"{folder}: was prepared with other settings (hash {manifest.config_hash}, now {self.config.hash}); "
                "choose another folder, or delete that one"
            )
        check_inputs(self.folder, self.config.sources, self.console)
        shutil.rmtree(self.work, ignore_errors=True)  # left by a merge that was killed before it removed this folder
        return manifest

    def plan(self, pool: Pool | None = None) -> Plan:
        """Returns the plan: lists the input and makes the tokenizer, or renews the plan of an earlier call."""
        plan = load_plan(self.config, self.work)
        if plan is not None:
            return self._renewed(plan, pool)
        try:
            self.work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{self.work}: cannot make it ({error.strerror}); choose another folder") from error
        with self._planner(pool) as planner:
            return planner.make()

    @contextmanager
    def _planner(self, pool: Pool | None = None) -> Iterator[Planner]:
        cache = open_cache(self.config, self.cache)
        try:
            yield Planner(self.config, self.work, self.console, pool, cache)
        finally:
            if cache is not None:
                cache.close()

    def _renewed(self, plan: Plan, pool: Pool | None = None) -> Plan:
        """Returns the plan for the present input, and writes it when it has changed."""
        with self._planner(pool) as planner:
            renewed = planner.renew(plan, lambda task: made_of(self.work, task))
        if renewed != plan:
            write_text(self.work / PLAN_FILE, renewed.model_dump_json(indent=1) + "\n")
        return renewed

    def existing_plan(self) -> Plan:
        """Returns the plan that `plan` made, for the present input. Raises DataError when there is none."""
        plan = load_plan(self.config, self.work)
        if plan is None:
            raise DataError(f"{self.work}: has no plan; run --plan, or --tasks N --task I, first")
        return self._renewed(plan)

    def pending(self, parts: int) -> list[int] | None:
        """Returns which of `parts` shares (share i: tasks i, i + parts, …) have unfinished tasks; None without plan."""
        plan = load_plan(self.config, self.work)
        if plan is None:
            return None
        plan = self._renewed(plan)
        unfinished = {n % parts for n in range(len(plan.tasks)) if load_result(self.work, plan, n) is None}
        return sorted(unfinished)

    def run_tasks(self, plan: Plan, numbers: Sequence[int], pool: Pool | None = None) -> None:
        """Runs the tasks that are not finished.

        As long as there is a task for each process of the pool, each process runs one. The remaining tasks run one
        after another, each on all processes.
        """
        pending = [number for number in numbers if load_result(self.work, plan, number) is None]
        done = len(numbers) - len(pending)
        if done:
            self.console.print(f"{self.work}: {done} of {len(numbers)} tasks were finished before")
        pending.sort(key=lambda number: -plan.tasks[number].bytes)
        side_by_side = len(pending) // pool.size * pool.size if pool is not None else 0
        total = sum(plan.tasks[number].bytes for number in pending)
        with ByteProgress(self.console, "tokenizing", total) as advance:
            if pool is not None:
                common = (self.config, self.cache, self.work, plan)
                futures = {pool.submit(run_task, *common, n, None, _ignore): n for n in pending[:side_by_side]}
                for future in as_completed(futures):
                    future.result()
                    advance(plan.tasks[futures[future]].bytes)
            for number in pending[side_by_side:]:
                run_task(self.config, self.cache, self.work, plan, number, pool, advance)

    def merge(self, plan: Plan) -> Manifest:
        """Makes the folder from the finished tasks, and prints a summary."""
        manifest = merge(self.config, self.work, plan, self.folder, self.console)
        print_summary(self.console, manifest, self.folder)
        if self.config.valid_fraction and not any(shard.split == "valid" for shard in manifest.shards):
            self.console.print(
                f"no document was held out: raise data.prepare.valid_fraction above {self.config.valid_fraction:g} and "
                "prepare again, or set it to 0 to train without evaluation"
            )
        return manifest

    def drop_if_nothing_is_done(self) -> None:
        """Removes `work` after a failure, unless it has finished tasks, which a later run can use."""
        tasks = self.work / "tasks"
        finished = [path for path in tasks.glob("*") if not path.name.startswith(".")] if tasks.is_dir() else []
        if finished:
            self.console.print(f"{self.work} keeps {len(finished)} finished tasks; run again to continue, or delete it")
        else:
            shutil.rmtree(self.work, ignore_errors=True)

    def open_pool(self, stack: ExitStack) -> Pool | None:
        return stack.enter_context(Pool(self._workers)) if self._workers > 1 else None


def _ignore(count: int) -> None:
    pass


def prepare(
    config: PrepareConfig, folder: Path | str, console: Console | None = None, cache: CacheConfig | None = None
) -> Manifest:
    """Makes `folder` with shards, tokenizer and manifest.json, unless it exists with these settings; returns the last.

    The work is done in FOLDER.work, which becomes the folder at the end. After a kill the next call continues it and
    repeats no finished task. With more than one worker, a script that calls this function needs an
    `if __name__ == "__main__":`, because workers are new processes that import it.

    Args:
        console: where progress and the summary are printed; None: standard error.
        cache: where copies of remote input are kept.

    Raises:
        DataError: a source, document, tokenizer or folder is unusable, or no document is left.
    """
    preparation = Preparation(config, folder, console, cache)
    finished = preparation.finished()
    if finished is not None:
        preparation.console.print(
            f"{preparation.folder} is already prepared with these settings: {len(finished.shards)} shards"
        )
        return finished
    try:
        with ExitStack() as stack:
            pool = preparation.open_pool(stack)
            plan = preparation.plan(pool)
            preparation.run_tasks(plan, range(len(plan.tasks)), pool)
            again = preparation.plan(pool)  # includes files that were added or changed meanwhile
            if again != plan:
                preparation.run_tasks(again, range(len(again.tasks)), pool)
        return preparation.merge(again)
    except DataError:
        preparation.drop_if_nothing_is_done()
        raise
