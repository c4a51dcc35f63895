"""A Hugging Face folder as the start of a phase: refused from headers and config.json alone, or the same logits."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from model import ModelConfig, ModelError, build_model
from model.llama_config import from_llama, to_llama
from tests.e2e.commands import ROOT, Done, run_warm, tree
from tests.reference.small import DELTA, LM2, NONE, awake, tiny
from tests.reference.small import one_thread as one_thread
from tests.unit.training.exported import trained
from training.errors import ConfigError
from training.huggingface.export import export
from training.huggingface.import_config import model_section, prove, section_text
from training.huggingface.weights import check_folder, load_folder

pytestmark = pytest.mark.usefixtures("code_cache")
WHERE = "phases.0.init_from"
IMPORT = ROOT / "launchers" / "import_hf.py"


def save(folder: Path, config: ModelConfig = tiny(NONE)) -> Path:  # noqa: B008  # frozen
    folder.mkdir(exist_ok=True)
    save_file({k: v.contiguous() for k, v in build_model(config).to_hf().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(to_llama(config, 64, "float32")))
    return folder


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def change(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture(scope="module")
def llama_1b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama-3.2-1B's configuration, an eighth as wide and a quarter as deep, with random weights, in shards."""
    config = LlamaConfig(
        vocab_size=2004,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=32,
        hidden_act="silu",
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,  # so that 256 tokens reach the stretched part
        },
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="4MB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def command(*arguments: str) -> Done:
    return run_warm(IMPORT, *arguments, cwd=ROOT)


def test_the_section_of_a_llama_gives_its_logits(llama_1b: Path) -> None:
    section = model_section(llama_1b, 64, "lm2")
    config = ModelConfig(**section)
    assert config.num_kv_heads == 2 and config.tie_embeddings and config.memory.kind == "lm2"
    assert config.rope_scaling is not None and config.rope_scaling.original_max_position == 128
    check_folder(llama_1b, config, WHERE)
    assert prove(llama_1b, 256) < 1e-4


def test_the_command_prints_the_difference_and_fails_above_the_tolerance(llama_1b: Path) -> None:
    done = command(str(llama_1b), "--prove", "--length", "64", "--tolerance", "-1")
    assert done.code == 1 and "largest logit difference to Transformers' Llama" in done.out and "above -1" in done.err
    done = command(str(llama_1b), "--segment-length", "0")
    assert done.code == 2 and done.err.startswith("error: model.segment_length: ")


def test_the_section_is_yaml_that_a_run_takes(llama_1b: Path) -> None:
    text = section_text(model_section(llama_1b, 64, "delta"), llama_1b)
    assert f"init_from: hf:{llama_1b}" in text
    config = ModelConfig(**yaml.safe_load(text)["model"])
    assert (config.memory.kind, config.segment_length, config.hidden_size) == ("delta", 64, 256)
    with pytest.raises(ConfigError, match=r"holds no \*\.safetensors"):
        model_section(llama_1b / "nowhere")


@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling"])
def test_both_spellings_of_rope(llama_1b: Path, spelling: str) -> None:
    given = json.loads((llama_1b / "config.json").read_text())
    rope = given.pop("rope_parameters")
    if spelling == "rope_scaling":
        given |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    else:
        given["rope_parameters"] = rope
    config = ModelConfig(**from_llama(given), segment_length=8)
    assert (config.rope_theta, config.rope_scaling and config.rope_scaling.factor) == (500000.0, 32.0)
    assert from_llama(to_llama(config, 64, "float32")) == from_llama(given)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model_type": "qwen2"}, "model_type is 'qwen2'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope scaling is 'yarn'"),
        ({"hidden_size": None}, "hidden_size is None; it must be a whole number"),
        ({"vocab_size": "128"}, "vocab_size is '128'; it must be a whole number of at least 1, without quotes"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"num_key_value_heads": 2.0}, r"num_key_value_heads is 2\.0"),
        ({"head_dim": []}, r"head_dim is \[\]"),
        ({"rms_norm_eps": None}, "rms_norm_eps is None; it must be a number above 0"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5'"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false'; it must be true or false"),
        ({"rope_scaling": "llama3"}, "rope_scaling is 'llama3'; it must be an object or null"),
        ({"rope_parameters": [10000]}, r"rope_parameters is \[10000\]"),
        ({"rope_theta": None}, "rope_theta is None; it must be a number above 0"),
        ({"rope_theta": "1e4"}, "rope_theta is '1e4'"),
        ({"rope_parameters": {"rope_theta": float("nan")}}, r"rope_parameters\.rope_theta is nan"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": "8"}}, r"rope_scaling\.factor is '8'"),
        (
            {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": None}},
            r"original_max_position_embeddings is N",
        ),
        ({"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 0.5}}, "original_max_position"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 0.5}}, "high_freq_factor 0.5 must be above low_freq_factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, r"llama3 lacks rope_scaling\.low_freq_factor"),
        ({"num_attention_heads": 3, "hidden_size": 16, "head_dim": None}, "no such Llama can be built"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "weights are quantised"),
    ],
)
def test_a_model_that_our_layers_are_not_is_named(tmp_path: Path, values: dict[str, object], said: str) -> None:
    change(save(tmp_path), **values)
    with pytest.raises(ModelError, match=said):
        check_folder(tmp_path, tiny(NONE), WHERE)
    with pytest.raises(ValueError, match=r"head|multiple|divis" if "built" in said else said):
        model_section(tmp_path)


@pytest.mark.parametrize(
    "values", [{"hidden_act": "swish"}, {"attention_bias": None}, {"rope_scaling": LLAMA3 | {"factor": 1.0}}]
)
def test_other_spellings_of_what_our_layers_are(tmp_path: Path, values: dict[str, object]) -> None:
    change(save(tmp_path), **values)
    assert model_section(tmp_path) == model_section(save(tmp_path / "plain"))
    check_folder(tmp_path, tiny(NONE), WHERE)


def store(folder: Path, **weights: torch.Tensor) -> None:
    """Replaces weights; dots of their names are two underscores."""
    stored = load_file(folder / "model.safetensors")
    save_file(stored | {k.replace("__", "."): v for k, v in weights.items()}, folder / "model.safetensors")


def test_a_stored_head_that_is_not_the_embedding_is_not_dropped(tmp_path: Path) -> None:
    config = tiny(NONE, tie_embeddings=True)
    embedding = build_model(config).to_hf()["model.embed_tokens.weight"]
    store(save(tmp_path, config), lm_head__weight=embedding.clone())
    check_folder(tmp_path, config, WHERE)  # the same values twice
    last = embedding.clone()
    last[-1, -1] += 1e-3
    for head in (last, embedding * 2, torch.full_like(embedding, float("nan")), embedding[:-1], embedding[0]):
        store(tmp_path, lm_head__weight=head.contiguous())
        for refuses in (lambda: check_folder(tmp_path, config, WHERE), lambda: model_section(tmp_path)):
            with pytest.raises(ModelError, match=r"lm_head\.weight differs .* set tie_word_embeddings: false"):
                refuses()


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_weights_that_are_codes_are_refused_whatever_config_json_says(tmp_path: Path, kind: torch.dtype) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    weight = load_file(save(tmp_path) / "model.safetensors")[name]
    store(tmp_path, **{name.replace(".", "__"): weight.to(kind)})
    for refuses in (lambda: check_folder(tmp_path, tiny(NONE), WHERE), lambda: model_section(tmp_path)):
        with pytest.raises(ModelError, match=rf"weights are quantised \({name} is "):
            refuses()


def test_a_longest_context_that_is_no_number(tmp_path: Path) -> None:
    change(save(tmp_path), max_position_embeddings="64")
    with pytest.raises(ConfigError, match="max_position_embeddings is '64'"):
        model_section(tmp_path)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rope_theta": 10000.0}, r"model.rope_theta is 500000.0, the folder's config.json gives 10000.0"),
        ({"rms_norm_eps": 1e-6}, "model.norm_eps is 1e-05"),
        ({"num_attention_heads": 2, "num_key_value_heads": 1}, "model.num_heads is 4"),
    ],
)
def test_what_shapes_cannot_tell_is_compared(tmp_path: Path, values: dict[str, object], said: str) -> None:
    change(save(tmp_path), **values)
    with pytest.raises(ConfigError, match=said):
        check_folder(tmp_path, tiny(NONE), WHERE)


def test_a_fitting_folder_passes(tmp_path: Path) -> None:
    check_folder(save(tmp_path), tiny(LM2), WHERE)
    (tmp_path / "config.json").unlink()  # then only the weights are compared
    check_folder(tmp_path, tiny(NONE, rope_theta=1e4), WHERE)
    with pytest.raises(ModelError, match=r"mlp\.gate_proj\.weight"):
        check_folder(tmp_path, tiny(NONE, ffn_size=32), WHERE)


def test_another_shape_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"mlp.gate_proj.weight has shape \[24, 16\], the configuration gives \[32, 16\]"
    ):
        check_folder(save(tmp_path), tiny(NONE, ffn_size=32), WHERE)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00not json")
    with pytest.raises(ConfigError, match=r"phases.0.init_from: .*model.safetensors is not a readable"):
        check_folder(tmp_path, tiny(NONE), WHERE)


def test_other_files_beside_the_model_are_left_alone(tmp_path: Path) -> None:
    (save(tmp_path) / "consolidated.safetensors").write_bytes(b"no tensors: reading it would raise")
    before = tree(tmp_path)
    check_folder(tmp_path, tiny(NONE), WHERE)
    assert tree(tmp_path) == before


def test_an_index_that_leads_out_or_to_nothing_is_refused(tmp_path: Path) -> None:
    folder, index = save(tmp_path), tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "../model.safetensors"}}))
    with pytest.raises(ConfigError, match="names no files of its folder"):
        check_folder(folder, tiny(NONE), WHERE)
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "model-00002.safetensors"}}))
    with pytest.raises(ConfigError, match=r"lacks model-00002\.safetensors"):
        check_folder(folder, tiny(NONE), WHERE)
    index.write_text("[]")
    with pytest.raises(ConfigError, match="is not a JSON object"):
        check_folder(folder, tiny(NONE), WHERE)


def test_nothing_in_the_folder_is_executed(tmp_path: Path) -> None:
    folder = save(tmp_path / "llama")
    change(folder, auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'touched')!r}, 'w')\n")
    check_folder(folder, tiny(NONE), WHERE)
    assert prove(folder, 4) < 1e-4
    export(trained(awake(build_model(tiny(LM2)))), tmp_path / "ours", None)
    (tmp_path / "ours" / "modeling_memtrain.py").write_text(f"open({str(tmp_path / 'touched')!r}, 'w')\n")
    check_folder(tmp_path / "ours", tiny(LM2), WHERE)
    with pytest.raises(ConfigError, match=r"written by launchers/export\.py"):
        prove(tmp_path / "ours", 4)
    assert not (tmp_path / "touched").exists()


def test_the_memory_of_an_export_must_be_the_run_s(tmp_path: Path) -> None:
    export(trained(awake(build_model(tiny(LM2)))), tmp_path / "ours", None)
    check_folder(tmp_path / "ours", tiny(LM2), WHERE, memory=True)
    with pytest.raises(ModelError, match="a phase with memory: off would drop"):
        check_folder(tmp_path / "ours", tiny(LM2), WHERE, memory=False)
    with pytest.raises(ModelError, match="do not fit the model configuration"):
        check_folder(tmp_path / "ours", tiny(DELTA), WHERE)
    with pytest.raises(ConfigError, match=r"model\.segment_length is 8, the folder's config\.json gives 4"):
        check_folder(tmp_path / "ours", tiny(LM2, segment_length=8), WHERE)


def test_weights_are_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.huggingface.weights._AT_ONCE", 2000)
    net, parts = build_model(tiny(NONE), seed=5), []
    load_folder(dict(net.named_parameters()), save(tmp_path), net.config, net.tp, lambda part: parts.append(dict(part)))
    assert len(parts) > 3
    assert all(sum(t.nbytes for t in part.values()) <= 2000 + max(t.nbytes for t in part.values()) for part in parts)
    again = {name: value for part in parts for name, value in part.items()}
    expected = build_model(tiny(NONE))
    assert all(torch.equal(again[name], p) for name, p in expected.named_parameters())
    assert load_file(tmp_path / "model.safetensors").keys() == expected.to_hf().keys()
