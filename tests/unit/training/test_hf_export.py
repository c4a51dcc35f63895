"""An exported folder in Transformers: the same logits, the same texts, and the same weights when it comes back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from model import LanguageModel, ModelError, RopeScaling, build_model
from model.config import ExplicitConfig
from model.explicit import References, write
from model.generation import Sampling, generate
from model.hf.bundle import PACKAGES, source_files
from model.memory.none.spec import NoMemoryConfig
from tests.reference.small import DELTA, KINDS, LM2, NONE, RMT, SEGMENT, awake, random_ids, tiny
from tests.reference.small import one_thread as one_thread
from tests.unit.training.exported import trained
from training.errors import ConfigError, TrainingError
from training.huggingface.export import export
from training.huggingface.logits import load_in_transformers
from training.huggingface.weights import check_folder, load_folder

pytestmark = pytest.mark.usefixtures("code_cache")
PROMPT, WRITTEN = 11, 14  # tokens: begins inside the third segment, ends in the seventh
SCALED = RopeScaling(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=64)


def greedy(net: LanguageModel, ids: Tensor, count: int = WRITTEN) -> Tensor:
    return torch.stack(list(generate(net, ids, count, Sampling(0.0))), dim=1)


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    """A model of each kind, and the same one through a folder, with this project's code in it."""
    net = awake(build_model(tiny(KINDS[request.param]), seed=3)).eval()
    folder = tmp_path_factory.mktemp("out") / request.param.replace("-", "_")
    done = export(trained(net), folder, None, form="memtrain")
    assert done.difference <= 1e-4 and done.parameters == sum(p.numel() for p in net.parameters())
    return net, load_in_transformers(folder, runs_its_code=True), folder


def test_generate_writes_what_ours_writes(pair):
    net, theirs, _ = pair
    ids = random_ids(0, 2, PROMPT)
    written = theirs.generate(ids, max_new_tokens=WRITTEN, do_sample=False)[:, PROMPT:]
    assert torch.equal(written, greedy(net, ids))


def test_rows_padded_on_the_left_are_as_if_alone(pair):
    net, theirs, _ = pair
    ids, mask = random_ids(1, 4, PROMPT), torch.ones(4, PROMPT, dtype=torch.int64)
    for row, padding in enumerate((0, 5, 10, 5)):
        mask[row, :padding] = 0
    arguments = {"attention_mask": mask, "max_new_tokens": WRITTEN, "do_sample": False}
    written = theirs.generate(ids, **arguments)[:, PROMPT:]
    for row in range(4):
        alone = greedy(net, ids[row : row + 1, mask[row].bool()])
        assert torch.equal(written[row], alone[0]), row
    assert torch.equal(theirs.generate(ids, use_cache=False, **arguments)[:, PROMPT:], written)
    beams = [theirs.generate(ids, num_beams=3, use_cache=cached, **arguments) for cached in (True, False)]
    assert torch.equal(*beams)


def test_the_cache_goes_from_one_generate_to_the_next(pair):
    _, theirs, _ = pair
    ids = random_ids(2, 2, PROMPT)
    first = theirs.generate(ids, max_new_tokens=5, do_sample=False, return_dict_in_generate=True)
    second = theirs.generate(first.sequences, past_key_values=first.past_key_values, max_new_tokens=5, do_sample=False)
    assert torch.equal(second, theirs.generate(ids, max_new_tokens=10, do_sample=False))


def test_the_loss_is_that_of_the_next_tokens(pair):
    net, theirs, _ = pair
    ids = random_ids(3, 2, PROMPT)
    expected = torch.nn.functional.cross_entropy(net(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    loss = theirs(ids, labels=ids).loss
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(parameter.grad is not None for parameter in theirs.net.parameters())


def test_import_of_an_export_is_the_identity(pair, tmp_path):
    net, _, folder = pair
    check_folder(folder, net.config, "phases.0.init_from")
    again = build_model(net.config, seed=8)
    read_into(again, folder)
    assert all(torch.equal(p, dict(net.named_parameters())[name]) for name, p in again.named_parameters())
    export(trained(again), tmp_path / "again", None, form="memtrain")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_explicit_memory_goes_out_with_what_writes_and_reads_it(tmp_path):
    explicit = ExplicitConfig(bos=(1, 5), reference_length=5, tokens=2, references=1)
    net = awake(build_model(tiny(LM2, explicit=explicit, segment_length=64), seed=3)).eval()
    done = export(trained(net, sequence_length=64), tmp_path / "explicit_out", None)
    assert done.form == "memtrain" and done.difference <= 1e-4
    theirs = load_in_transformers(tmp_path / "explicit_out", runs_its_code=True)
    ids, texts, lengths = random_ids(0, 1, 72), random_ids(1, 2, 5), torch.tensor([5, 3])
    assert torch.equal(theirs.generate(ids, max_new_tokens=WRITTEN, do_sample=False)[:, 72:], greedy(net, ids))

    with torch.no_grad():
        there = theirs.write_references(texts, lengths)
        memories = write(net, texts, lengths)
        torch.testing.assert_close(there.memories[0], memories, atol=1e-6, rtol=0)
        found = References(lengths.unsqueeze(0), memories=memories.unsqueeze(0), window=2)
        logits = net(ids, references=found).logits
        torch.testing.assert_close(theirs.net(ids, references=there).logits, logits, atol=1e-5, rtol=0)
    assert not torch.allclose(logits, net(ids).logits, atol=1e-3)  # what is read matters


def read_into(net: LanguageModel, folder: Path) -> None:
    own = dict(net.named_parameters())

    def write(values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in values.items():
                own[name].copy_(value)

    load_folder(own, folder, net.config, net.tp, write)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ({"attention_mask": torch.tensor([[1, 1, 0]]), "use_cache": True}, "padding_side='left'"),
        ({"attention_mask": torch.tensor([[0, 1, 0]])}, "all come before its tokens, or all after them"),
        ({"attention_mask": torch.tensor([[0, 0, 0]])}, "a token in each row"),
        ({"output_attentions": True}, "output_attentions"),
    ],
)
def test_what_a_memory_cannot_do_is_refused(pair, call, said):
    with pytest.raises(ValueError, match=said):
        pair[1](random_ids(0, 1, 3), **call)


def test_rows_padded_on_the_right_are_scored_without_a_cache(pair):
    net, theirs, _ = pair
    ids, mask = random_ids(4, 2, PROMPT), torch.ones(2, PROMPT, dtype=torch.int64)
    mask[1, 6:] = 0
    with torch.no_grad():
        out = theirs(ids, attention_mask=mask)
        torch.testing.assert_close(out.logits[1, :6], net(ids[1:, :6]).logits[0], atol=1e-5, rtol=0)
    assert out.past_key_values is None


def test_another_batch_and_padding_in_what_goes_on_are_refused(pair):
    theirs = pair[1]
    cache = theirs(random_ids(0, 2, 3)).past_key_values
    with pytest.raises(ValueError, match="2 rows, but input_ids have 1"):
        theirs(random_ids(0, 1, 1), past_key_values=cache)
    with pytest.raises(ValueError, match="cannot be padded"):
        theirs(random_ids(0, 2, 2), past_key_values=cache, attention_mask=torch.tensor([[1] * 5, [1, 1, 1, 0, 1]]))
    with pytest.raises(ValueError, match="cannot be removed from a memory"):
        cache.crop(2)


@pytest.mark.parametrize(
    "changes", [{"tie_embeddings": True}, {"rope_scaling": SCALED, "head_dim": 6, "num_kv_heads": 1}]
)
def test_a_model_without_memory_is_a_plain_llama(changes, tmp_path):
    net = build_model(tiny(NONE, segment_length=32, **changes), seed=1)
    done = export(trained(net, sequence_length=32), tmp_path / "llama", None)
    assert (done.form, done.exact_tokens, done.left_out) == ("llama", 32, 0)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "llama")
    assert type(theirs) is LlamaForCausalLM and theirs.config.max_position_embeddings == 32
    ids = random_ids(0, 2, PROMPT)
    assert torch.equal(theirs.generate(ids, max_new_tokens=WRITTEN, do_sample=False)[:, PROMPT:], greedy(net, ids))
    check_folder(tmp_path / "llama", net.config, "phases.0.init_from")
    again = build_model(net.config, seed=8)
    read_into(again, tmp_path / "llama")
    assert all(torch.equal(p, dict(net.named_parameters())[name]) for name, p in again.named_parameters())
    assert not list((tmp_path / "llama").glob("*.py"))


def test_the_backbone_of_a_memory_can_be_a_plain_llama(tmp_path):
    net = awake(build_model(tiny(LM2), seed=3))
    done = export(trained(net), tmp_path / "llama", None, form="llama")
    assert done.left_out == sum(p.numel() for _, p in net.memory_parameters()) > 0
    assert done.exact_tokens == SEGMENT


def test_a_memory_is_added_to_an_imported_llama_without_a_jump(tmp_path):
    net = build_model(tiny(NONE, segment_length=16), seed=1)
    export(trained(net), tmp_path / "llama", None)
    for memory in (LM2, DELTA, RMT):
        config = tiny(memory, segment_length=16)
        check_folder(tmp_path / "llama", config, "phases.0.init_from")
        grown = build_model(config, seed=5)
        fresh = {name: p.detach().clone() for name, p in grown.memory_parameters()}
        read_into(grown, tmp_path / "llama")
        ids = random_ids(0, 1, 16)
        torch.testing.assert_close(grown(ids).logits, net(ids).logits, atol=1e-5, rtol=0)
        assert all(torch.equal(p, fresh[name]) for name, p in grown.memory_parameters())


@pytest.mark.parametrize("form", ["llama", "memtrain"])
def test_shards_and_their_index(form, tmp_path):
    net = awake(build_model(tiny(LM2, tie_embeddings=True), seed=3))
    export(trained(net), tmp_path / "out", None, form=form, shard_size="6KB")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2 and {path.name for path in files} == set(index["weight_map"].values())
    check_folder(tmp_path / "out", net.config, "phases.0.init_from")
    again = build_model(net.config, seed=8)
    read_into(again, tmp_path / "out")
    kept = dict(again.named_parameters())
    assert all(
        torch.equal(p, kept[name]) for name, p in net.named_parameters() if form == "memtrain" or ".memory." not in name
    )


@pytest.mark.parametrize("kind", ["none", "delta"])
def test_other_dtypes_are_proven_apart_from_their_rounding(kind, tmp_path):
    net = awake(build_model(tiny(KINDS[kind]), seed=3))
    done = export(trained(net), tmp_path / "half", None, dtype="bfloat16")
    assert done.difference <= 1e-4 < done.rounding
    with safe_open(next((tmp_path / "half").glob("*.safetensors")), framework="pt") as file:
        assert all(file.get_tensor(name).dtype == torch.bfloat16 for name in file.keys())  # noqa: SIM118
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "half", trust_remote_code=True, dtype="auto")
    assert theirs.dtype == torch.bfloat16
    assert theirs.generate(random_ids(0, 1, PROMPT), max_new_tokens=6, do_sample=False).shape == (1, PROMPT + 6)


def test_a_folder_that_is_not_the_model_is_not_left(tmp_path):
    net = awake(build_model(tiny(LM2), seed=3))
    with pytest.raises(TrainingError, match="the largest logit difference is"):
        export(trained(net), tmp_path / "out", None, tolerance=-1.0)
    with pytest.raises(TrainingError, match="nan"):
        spoilt = awake(build_model(tiny(LM2), seed=3))
        spoilt.final_norm.weight.data[0] = float("nan")
        export(trained(spoilt), tmp_path / "out", None)
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        export(trained(net), tmp_path / "there", None)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_folder_that_lacks_a_weight_is_not_filled_up(tmp_path):
    net = awake(build_model(tiny(LM2), seed=3))
    export(trained(net), tmp_path / "out", None)
    from safetensors.torch import load_file, save_file

    path = tmp_path / "out" / "model.safetensors"
    save_file(
        {k: v for k, v in load_file(path).items() if k != "net.layers.1.memory.key.weight"}, path, {"format": "pt"}
    )
    with pytest.raises(ValueError, match="the folder lacks a weight"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    with pytest.raises(ModelError, match=r"missing layers\.1\.memory\.key\.weight"):
        check_folder(tmp_path / "out", net.config, "phases.0.init_from")


ALONE = """
import sys, torch
from transformers import AutoModelForCausalLM
net = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
print(net.generate(torch.arange(9).unsqueeze(0), max_new_tokens=9, do_sample=False)[0].tolist())
assert not {"model", "training", "megatron", "megatron.core", "deepspeed"} & set(sys.modules), sys.modules.keys()
"""


def test_the_folder_needs_nothing_of_this_project(tmp_path):
    net = awake(build_model(tiny(DELTA), seed=3)).eval()
    export(trained(net), tmp_path / "out", None)
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-P", "-c", ALONE, str(tmp_path / "out")]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    ids = torch.arange(9).unsqueeze(0)
    assert done.stdout.strip() == str([*range(9), *greedy(net, ids, 9)[0].tolist()])


def test_the_code_imports_what_its_card_says():
    allowed = {*PACKAGES, *sys.stdlib_module_names}
    for name, text in source_files(NoMemoryConfig).items():
        for line in text.splitlines():
            words = line.split()
            if words[:1] in (["import"], ["from"]) and not words[1].startswith("."):
                assert words[1].split(".")[0] in allowed, f"{name}: {line}"
