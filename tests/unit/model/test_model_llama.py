"""Memory off is Llama: Hugging Face's logits and names; configurations that are refused; initial weights."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from model import LanguageModel, MemoryConfig, ModelConfig, ModelError, RopeScaling, build_model
from tests.reference import llama
from tests.reference.small import LM2, NONE, SEGMENT, VOCAB, awake, random_ids, tiny
from tests.reference.small import one_thread as one_thread

SCALED = RopeScaling(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=64)
SHAPES: dict[str, dict[str, Any]] = {
    "grouped queries": {},
    "one key head": {"num_kv_heads": 1},
    "all key heads": {"num_kv_heads": 4},
    "tied": {"tie_embeddings": True},
    "head_dim": {"head_dim": 10},
    "rope_theta and eps": {"rope_theta": 100.0, "norm_eps": 1e-2},
    "rope scaling": {"rope_scaling": SCALED, "head_dim": 16, "rope_theta": 1000.0},
}


def hugging_face(config: ModelConfig, seed: int = 0) -> LlamaForCausalLM:
    """Hugging Face's Llama of the same shape, with random weights, the norms' too."""
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling:
        rope |= {
            "rope_type": "llama3",
            "factor": config.rope_scaling.factor,
            "low_freq_factor": config.rope_scaling.low_freq_factor,
            "high_freq_factor": config.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": config.rope_scaling.original_max_position,
        }
    theirs = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.ffn_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_width,
        rms_norm_eps=config.norm_eps,
        tie_word_embeddings=config.tie_embeddings,
        rope_parameters=rope,
        max_position_embeddings=256,
        attn_implementation="eager",
    )
    net = LlamaForCausalLM(theirs).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in net.named_parameters():
        torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.3, generator=generator)
    return net


def loaded(config: ModelConfig, theirs: LlamaForCausalLM) -> LanguageModel:
    net = build_model(config, seed=1)
    net.load_hf(theirs.state_dict())
    return net


@torch.no_grad()
def assert_same_logits(net: LanguageModel, theirs: LlamaForCausalLM, ids: Tensor) -> None:
    torch.testing.assert_close(net(ids).logits, theirs(ids).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_hugging_face(shape):
    config = tiny(segment_length=48, **SHAPES[shape])
    theirs = hugging_face(config)
    assert_same_logits(loaded(config, theirs), theirs, random_ids(1, 2, 48))


@pytest.mark.parametrize(("segment", "span", "length"), [(16, 3, 48), (16, 3, 41), (5, 8, 37), (64, 1, 37)])
def test_segments_within_the_span_are_full_attention(segment, span, length):
    config = tiny(segment_length=segment, attention_span=span)
    theirs = hugging_face(config)
    assert_same_logits(loaded(config, theirs), theirs, random_ids(1, 2, length))


def test_logits_equal_hugging_face_with_the_memory_built_in():
    config = tiny(LM2, segment_length=16, attention_span=3)
    theirs = hugging_face(config)
    assert_same_logits(loaded(config, theirs), theirs, random_ids(1, 2, 48))


def test_the_tested_rope_scaling_changes_slow_middle_and_fast_frequencies_differently():
    config = tiny(**SHAPES["rope scaling"])
    plain = config.model_copy(update={"rope_scaling": None})
    slower = [llama.frequency(plain, i) / llama.frequency(config, i) for i in range(config.head_width // 2)]
    assert min(slower) == 1
    assert max(slower) == 32
    assert any(1.1 < x < 31 for x in slower)
    ids = random_ids(1, 1, 48)
    assert (build_model(config)(ids).logits - build_model(plain)(ids).logits).abs().max() > 1e-2


@pytest.mark.parametrize("span", [1, 2, 3])
@pytest.mark.parametrize("documents", [None, [0, 0, 0, 1, 1, 1, 2, 3, 3, 3, 3, 3, 3, 4, 4]])
@pytest.mark.parametrize("scaling", [None, SCALED])
def test_segment_local_attention_equals_the_loops(span, documents, scaling):
    net = build_model(tiny(attention_span=span, rope_scaling=scaling), seed=1)
    ids = random_ids(2, 1, 15)
    documents = None if documents is None else torch.tensor([documents])
    torch.testing.assert_close(
        net(ids, documents).logits, llama.forward(net, ids, documents).float(), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_export_is_the_inverse_of_import(shape):
    config = tiny(**SHAPES[shape])
    given = hugging_face(config).state_dict()
    net = build_model(config, seed=1)
    net.load_hf(given)
    exported = net.to_hf()
    assert exported.keys() == given.keys() - ({"lm_head.weight"} if config.tie_embeddings else set())
    for name, tensor in exported.items():
        assert torch.equal(tensor, given[name]), name


@pytest.mark.parametrize("shape", SHAPES)
def test_hugging_face_takes_every_exported_weight(shape):
    config = tiny(segment_length=48, **SHAPES[shape])
    net, theirs = build_model(config, seed=1), hugging_face(config)
    exported = net.to_hf()
    if config.tie_embeddings:
        exported["lm_head.weight"] = exported["model.embed_tokens.weight"]
    theirs.load_state_dict(exported, strict=True)
    assert_same_logits(net, theirs, random_ids(1, 2, 48))


def test_export_holds_copies():
    net = build_model(tiny())
    before = net.to_hf()
    for tensor in net.to_hf().values():
        tensor.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.to_hf().items())


def test_import_leaves_the_memory_as_it_is():
    net = awake(build_model(tiny(LM2)))
    before = {name: p.detach().clone() for name, p in net.memory_parameters()}
    net.load_hf(hugging_face(tiny()).state_dict())
    assert before
    assert all(torch.equal(p, before[name]) for name, p in net.memory_parameters())


def test_import_takes_half_precision_and_the_constant_of_old_checkpoints():
    given = {name: tensor.bfloat16() for name, tensor in build_model(tiny()).to_hf().items()}
    net = build_model(tiny(), seed=1)
    net.load_hf(given | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)})
    assert all(torch.equal(tensor, given[name].float()) for name, tensor in net.to_hf().items())


SPOILT = {"a.bias": torch.ones(1), "model.layers.1.mlp.up_proj.weight": torch.ones(16, 24)}


def without(given: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in given.items() if key != name}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda g: without(g, "lm_head.weight"), ["missing lm_head.weight"]),
        (lambda g: g | {"model.layers.2.extra": torch.ones(1)}, ["unexpected model.layers.2.extra"]),
        (
            lambda g: g | {"model.norm.weight": torch.ones(17)},
            ["model.norm.weight has shape [17]", "[16]"],
        ),
        (
            lambda g: (
                without(g, "model.norm.weight")
                | {"a.bias": torch.ones(1), "model.layers.1.mlp.up_proj.weight": torch.ones(16, 24)}
            ),
            ["missing model.norm.weight", "unexpected a.bias", "up_proj.weight has shape [16, 24]", "[24, 16]"],
        ),
        (lambda g: {}, ["missing lm_head.weight", "missing model.embed_tokens.weight", "and 15 more"]),
    ],
)
def test_weights_that_do_not_fit_are_named_and_change_nothing(spoil, said):
    net = build_model(tiny(), seed=1)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    with pytest.raises(ModelError) as error:
        net.load_hf(spoil(hugging_face(tiny()).state_dict()))
    assert all(words in str(error.value) for words in said), str(error.value)
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vocab_size": 0}, ["vocab_size", "0"]),
        ({"hidden_size": -16}, ["hidden_size", "-16"]),
        ({"num_layers": 0}, ["num_layers", "0"]),
        ({"num_heads": 0}, ["num_heads", "0"]),
        ({"num_kv_heads": 0}, ["num_kv_heads", "0"]),
        ({"ffn_size": 1.5}, ["ffn_size", "1.5"]),
        ({"segment_length": 0}, ["segment_length", "0"]),
        ({"attention_span": 0}, ["attention_span", "0"]),
        ({"head_dim": 0}, ["head_dim", "0"]),
        ({"rope_theta": 0.0}, ["rope_theta", "0.0"]),
        ({"norm_eps": 0.0}, ["norm_eps", "0.0"]),
        ({"init_std": -0.02}, ["init_std", "-0.02"]),
        ({"hidden": 16}, ["hidden", "16"]),
        ({"num_heads": 6, "num_kv_heads": 3}, ["hidden_size 16", "num_heads 6", "head_dim"]),
        ({"num_heads": 16, "num_kv_heads": 4}, ["head width 1", "even", "head_dim"]),
        ({"head_dim": 3}, ["head width 3", "even", "head_dim"]),
        ({"num_kv_heads": 3}, ["num_heads 4", "num_kv_heads 3"]),
        ({"rope_scaling": {"factor": 1.0}}, ["rope_scaling.factor", "1.0"]),
        ({"rope_scaling": {"factor": 2.0, "low_freq_factor": 0.0}}, ["rope_scaling.low_freq_factor", "0.0"]),
        (
            {"rope_scaling": {"factor": 2.0, "low_freq_factor": 4.0, "high_freq_factor": 3.0}},
            ["rope_scaling", "low_freq_factor 4.0", "high_freq_factor 3.0"],
        ),
        ({"rope_scaling": {"factor": 2.0, "original_max_position": 0}}, ["original_max_position", "0"]),
        ({"memory": {"kind": "lm3"}}, ["memory.kind", "lm3"]),
        ({"memory": {"kind": "lm2", "flow": "space"}}, ["memory.flow", "space"]),
        ({"memory": {"kind": "none", "flow": "time"}}, ["memory", "flow 'time'", "kind 'none'"]),
        ({"memory": {"kind": "lm2", "slots": 0}}, ["memory.slots", "0"]),
        ({"memory": {"kind": "lm2", "heads": 0}}, ["memory.heads", "0"]),
        ({"memory": {"kind": "lm2", "heads": 3}}, ["memory.heads 3", "hidden_size 16"]),
        ({"memory": {"kind": "lm2", "layers": 0}}, ["memory.layers", "0"]),
        ({"memory": {"kind": "lm2", "layers": "some"}}, ["memory.layers", "some"]),
        ({"memory": {"kind": "lm2", "layers": 5}}, ["memory.layers 5", "[2, 3, 4]", "num_layers is 2"]),
        ({"memory": {"kind": "lm2", "layers": [0, 7]}}, ["memory.layers", "[7]", "num_layers is 2"]),
        ({"memory": {"kind": "lm2", "layers": [-1]}}, ["memory.layers", "[-1]", "num_layers is 2"]),
        (
            {"num_kv_heads": 3, "memory": {"kind": "lm2", "heads": 5, "layers": 3}},
            ["num_kv_heads 3", "memory.heads 5", "memory.layers 3"],
        ),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_with_field_and_value(changes, said):
    valid = tiny().model_dump()
    with pytest.raises(ValueError) as error:
        ModelConfig(**valid | changes)
    assert all(words in str(error.value) for words in said), str(error.value)


def test_a_configuration_is_what_it_was_made_of():
    config = tiny(LM2)
    assert ModelConfig(**config.model_dump()) == config
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config
    with pytest.raises(ValueError, match="frozen"):
        config.num_layers = 3  # type: ignore[misc]
    assert tiny().memory == MemoryConfig(kind="none")


@pytest.mark.parametrize(
    ("ids", "documents", "said"),
    [
        (torch.zeros(4, dtype=torch.int64), None, ["input_ids", "[4]"]),
        (torch.zeros(1, 4, dtype=torch.int32), None, ["input_ids", "int32"]),
        (torch.zeros(1, 0, dtype=torch.int64), None, ["input_ids", "[1, 0]"]),
        (torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 5, dtype=torch.int64), ["document_ids", "[2, 5]"]),
    ],
)
def test_inputs_that_do_not_fit_are_refused(ids, documents, said):
    with pytest.raises(ModelError) as error:
        build_model(tiny())(ids, documents)
    assert all(words in str(error.value) for words in said), str(error.value)


FRESH = """
import torch
from model import MemoryConfig, ModelConfig, build_model
config = ModelConfig(vocab_size=8, hidden_size=8, num_layers=1, num_heads=2, num_kv_heads=1, ffn_size=8,
                     segment_length=4, memory=MemoryConfig(kind="lm2", slots=2, heads=2))
net = build_model(config)
out = net(torch.zeros(1, 6, dtype=torch.int64))
assert out.logits.shape == (1, 6, 8) and out.logits.dtype == torch.float32
assert all(p.dtype == torch.float32 and p.device.type == "cpu" for p in net.parameters())
assert not torch.distributed.is_initialized() and not torch.cuda.is_initialized()
print("built")
"""


def test_a_model_needs_nothing_initialised_and_initialises_nothing():
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-W", "error", "-c", FRESH], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "built\n", "")


def weights(config: ModelConfig, **arguments) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in build_model(config, **arguments).named_parameters()}


def test_the_same_seed_gives_the_same_weights_whatever_was_drawn_before():
    first = weights(tiny(LM2), seed=5)
    torch.manual_seed(123)
    torch.rand(7)
    second = weights(tiny(LM2), seed=5)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_building_draws_nothing_from_the_global_generator():
    before = torch.get_rng_state()
    build_model(tiny(LM2), seed=5)
    assert torch.equal(torch.get_rng_state(), before)


def test_another_seed_gives_other_weights():
    first, second = weights(tiny(LM2), seed=5), weights(tiny(LM2), seed=6)
    drawn = [name for name, w in first.items() if w.unique().numel() > 2]
    assert len(drawn) == 2 + 2 * (4 + 6)  # embedding, head; per layer four of the backbone and six of the memory
    assert not any(torch.equal(first[name], second[name]) for name in drawn)


def test_no_two_weights_are_drawn_alike():
    drawn = weights(tiny(LM2, num_layers=3))
    of_a_size = [w for w in drawn.values() if w.shape == (16, 16) and w.any()]
    assert len(of_a_size) == 3 * (1 + 3)
    assert all(not torch.equal(a, b) for i, a in enumerate(of_a_size) for b in of_a_size[:i])
    # but for one pair a layer: what is asked begins like what is written under
    for i in range(3):
        assert torch.equal(drawn[f"layers.{i}.memory.query.weight"], drawn[f"layers.{i}.memory.key.weight"])


@pytest.mark.parametrize("off", [(tiny(LM2), False), (tiny(NONE), True), (tiny(NONE), False)])
def test_the_backbone_is_drawn_alike_with_and_without_a_memory(off):
    config, memory_on = off
    without_memory, with_memory = weights(config, seed=5, memory_on=memory_on), weights(tiny(LM2), seed=5)
    assert without_memory.keys() < with_memory.keys()
    assert all(torch.equal(w, with_memory[name]) for name, w in without_memory.items())
    assert build_model(config, memory_on=memory_on).memory_parameters() == []


def test_initial_weights_have_the_configured_spread():
    drawn = weights(ModelConfig(**tiny().model_dump() | {"hidden_size": 128, "ffn_size": 512, "init_std": 0.1}))
    assert float(drawn["embedding.weight"].std()) == pytest.approx(0.1, rel=0.05)
    assert float(drawn["layers.1.attention.qkv.weight"].std()) == pytest.approx(0.1, rel=0.05)
    assert float(drawn["layers.1.mlp.down.weight"].std()) == pytest.approx(0.1 / 2, rel=0.05)  # two layers, four adds
    assert torch.equal(drawn["layers.1.mlp_norm.weight"], torch.ones(128))


def test_a_tied_head_is_the_embedding():
    net = build_model(tiny(tie_embeddings=True))
    assert net.head.weight is net.embedding.weight
    assert "head.weight" not in dict(net.named_parameters())
    assert net(random_ids(1, 1, SEGMENT)).logits.shape == (1, SEGMENT, VOCAB)


def test_initial_weights_follow_the_fan_in_when_nothing_is_configured():
    drawn = weights(ModelConfig(**tiny().model_dump() | {"hidden_size": 128, "ffn_size": 512, "init_std": None}))
    assert float(drawn["embedding.weight"].std()) == pytest.approx(128**-0.5, rel=0.05)
    assert float(drawn["layers.1.attention.qkv.weight"].std()) == pytest.approx(128**-0.5, rel=0.05)
    assert float(drawn["layers.1.mlp.down.weight"].std()) == pytest.approx(512**-0.5 / 2, rel=0.05)
