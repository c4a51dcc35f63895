"""From a run to a Hugging Face folder and back into a run, by the commands."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers.dynamic_module_utils as dynamic
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.e2e.attempts import Site, through
from tests.e2e.commands import GENERATE, ROOT, Done, run_warm
from training.checkpoint.folder import latest_checkpoint
from training.checkpoint.trained_model import load_model

pytestmark = pytest.mark.usefixtures("code_cache")
EXPORT, IMPORT = ROOT / "launchers" / "export.py", ROOT / "launchers" / "import_hf.py"
STEPS = 8
PROMPT = "def main():\n    return self.path\n"  # more than a segment


@pytest.fixture(scope="module")
def site(prepared_data: Path, empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Run `whole` has its memory trained and is recorded in MLflow; run `early` ends before the memory joins."""
    made = Site.make(tmp_path_factory.mktemp("export"), prepared_data, STEPS)
    (made.folder / "runs").mkdir()
    shutil.copy(empty_store, made.folder / "runs" / "mlflow.db")
    assert through(made, "whole", "tracking.enabled=true", ranks=1).codes == [0]
    assert through(made, "early", "training.stop_after_steps=4", ranks=1).codes == [75]
    return made


def command(site: Site, script: Path, *arguments: str, code: int = 0) -> Done:
    # a child inherits the path to this process's cache of code: it must be its own cache, too
    done = run_warm(script, *arguments, cwd=site.folder, extra={"HF_MODULES_CACHE": dynamic.HF_MODULES_CACHE})
    assert done.code == code, done.err + done.out
    return done


def last(site: Site, name: str) -> Path:
    found = latest_checkpoint(site.run(name) / "checkpoints")
    assert found is not None
    return found


def test_the_memory_goes_out_writes_the_same_text_and_comes_back(site: Site) -> None:
    folder = site.folder / "exported"
    done = command(site, EXPORT, "runs/whole", str(folder), "--register", "tiny")
    assert "largest logit difference" in done.out and "registered: models:/tiny/1" in done.out
    assert "| memory | lm2 flow: time |" in (folder / "README.md").read_text()

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    net = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    ids = tokenizer(PROMPT, return_tensors="pt")
    written = net.generate(**ids, max_new_tokens=60, do_sample=False)[0]
    arguments = ("--prompt", PROMPT, "--max-tokens", "60", "--temperature", "0")
    ours = command(site, GENERATE, "--checkpoint", "runs/whole", *arguments).out.removesuffix("\n")
    own = load_model(last(site, "whole")).tokenizer()
    assert ours == own.decode([id for id in written.tolist() if id not in (own.bos_id, own.eos_id)])

    # back into a run of one step that moves nothing: backbone and memory are the exported ones
    still = ("phases.1.lr.peak=1e-12", "phases.0.lr.peak=1e-12", "training.weight_decay=0", "phases.0.memory=true")
    begun = through(site, "back", f"phases.0.init_from=hf:{folder}", "training.stop_after_steps=1", *still, ranks=1)
    assert begun.codes == [75], begun.text()
    before, after = (dict(load_model(last(site, n)).net.named_parameters()) for n in ("whole", "back"))
    assert before.keys() == after.keys() and any(".memory." in name for name in before)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=1e-8, rtol=1e-6, msg=name)

    refused = through(site, "plain", f"phases.0.init_from=hf:{folder}", ranks=1)
    assert refused.codes == [2] and "a phase with memory: off would drop" in refused.text()
    assert not site.run("plain").exists()


def test_a_run_without_memory_goes_out_as_a_llama_and_comes_back(site: Site) -> None:
    folder = site.folder / "llama"
    done = command(site, EXPORT, "runs/early", str(folder), "--dtype", "bfloat16")
    assert "rounding to bfloat16 changes a logit by" in done.out and "for texts of up to 8 tokens" in done.out
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    proof = command(site, IMPORT, str(folder), "--prove", "--length", "8").out
    assert "largest logit difference to Transformers' Llama" in proof
    begun = through(site, "grown", f"phases.0.init_from=hf:{folder}", "training.stop_after_steps=1", ranks=2)
    assert begun.codes == [75, 75], begun.text()


def test_what_cannot_be_exported_is_said_and_leaves_nothing(site: Site, tmp_path: Path) -> None:
    assert "no checkpoint" in command(site, EXPORT, "runs/nowhere", str(tmp_path / "x"), code=2).err
    said = command(site, EXPORT, "runs/early", str(tmp_path / "x"), "--register", "tiny", code=2).err
    assert "belongs to no MLflow run" in said
    failed = command(site, EXPORT, "runs/whole", str(tmp_path / "x"), "--tolerance", "-1", code=1)
    assert "the largest logit difference is" in failed.err
    assert list(tmp_path.iterdir()) == []
