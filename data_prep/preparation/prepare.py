"""`prepare`: a folder of token shards out of a configuration, in tasks that a kill does not undo."""

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
    """The steps of preparing one folder: plan, tasks, merge. Each leaves its result in the folder `work`.

    Every step can be repeated, on any machine that sees the folder: what is finished is not done again, and the
    result is byte for byte the same for every number of processes and every interruption.
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
        """The manifest when `folder` is the result of the configuration; None when there is nothing yet."""
        folder = self.folder
        if folder.exists() and not folder.is_dir():
            raise DataError(f"{folder}: is a file; choose another folder")
        if not folder.exists() or not any(folder.iterdir()):
            return None
        if not (folder / MANIFEST_FILE).is_file():
            raise DataError(f"{folder}: exists and is no prepared folder (no {MANIFEST_FILE}); choose another folder")
        manifest = Manifest.load(folder)
        if manifest.config_hash != self.config.hash:
            raise DataError(
                f"{folder}: was prepared with other settings (hash {manifest.config_hash}, now {self.config.hash}); "
                "choose another folder, or delete that one"
            )
        check_inputs(self.folder, self.config.sources, self.console)
        shutil.rmtree(self.work, ignore_errors=True)  # left by a merge that was killed at its very end
        return manifest

    def plan(self, pool: Pool | None = None) -> Plan:
        """Lists the input and makes the tokenizer, or reads what an earlier call wrote."""
        found = load_plan(self.config, self.work)
        if found is not None:
            return self._renewed(found, pool)
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
        """The plan for the input as it is now, written when it is another."""
        with self._planner(pool) as planner:
            found = planner.renew(plan, lambda task: made_of(self.work, task))
        if found != plan:
            write_text(self.work / PLAN_FILE, found.model_dump_json(indent=1) + "\n")
        return found

    def existing_plan(self) -> Plan:
        """The plan that `plan` made, for the input as it is now. Raises DataError when there is none."""
        found = load_plan(self.config, self.work)
        if found is None:
            raise DataError(f"{self.work}: nothing has been begun here; run --plan, or --tasks N --task I, first")
        return self._renewed(found)

    def pending(self, parts: int) -> list[int] | None:
        """Which of `parts` equal shares (share i: tasks i, i + parts, …) have unfinished tasks; None without a plan."""
        plan = load_plan(self.config, self.work)
        if plan is None:
            return None
        plan = self._renewed(plan)
        unfinished = {n % parts for n in range(len(plan.tasks)) if load_result(self.work, plan, n) is None}
        return sorted(unfinished)

    def run_tasks(self, plan: Plan, numbers: Sequence[int], pool: Pool | None = None) -> None:
        """Does those of the tasks that are not finished: side by side while there is one for each process of the
        pool, then one after another with all processes at each."""
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
        """Makes the folder out of the finished tasks."""
        manifest = merge(self.config, self.work, plan, self.folder, self.console)
        print_summary(self.console, manifest, self.folder)
        return manifest

    def drop_if_nothing_is_done(self) -> None:
        """After a failure: what no later run could use is removed, finished tasks are kept."""
        tasks = self.work / "tasks"
        finished = [path for path in tasks.glob("*") if not path.name.startswith(".")] if tasks.is_dir() else []
        if finished:
            self.console.print(f"{self.work} keeps {len(finished)} finished tasks; run again to go on, or delete it")
        else:
            shutil.rmtree(self.work, ignore_errors=True)

    def open_pool(self, stack: ExitStack) -> Pool | None:
        return stack.enter_context(Pool(self._workers)) if self._workers > 1 else None


def _ignore(count: int) -> None:
    pass


def prepare(
    config: PrepareConfig, folder: Path | str, console: Console | None = None, cache: CacheConfig | None = None
) -> Manifest:
    """Makes `folder`: shards, tokenizer, manifest.json. Returns at once when it was made with these settings.

    Work goes into FOLDER.work, which becomes the folder at the end: a run that was killed is continued by the
    next call, and no finished task is repeated. With more than one worker, a script that calls this needs an
    `if __name__ == "__main__":`, as workers are new processes that import it.

    Args:
        console: where progress and the summary go; None is the terminal's standard error.
        cache: where copies of remote input lie.

    Raises:
        DataError: unusable source, document, tokenizer or folder; no document left.
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
            again = preparation.plan(pool)  # what was added or edited meanwhile
            if again != plan:
                preparation.run_tasks(again, range(len(again.tasks)), pool)
        return preparation.merge(again)
    except DataError:
        preparation.drop_if_nothing_is_done()
        raise
