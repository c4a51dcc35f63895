"""README.md of an exported folder: what it is, how to load it, what it can do."""

from typing import TYPE_CHECKING

from training.checkpoint.trained_model import LoadedModel

if TYPE_CHECKING:
    from training.huggingface.export import Exported

_LLAMA = """\
A plain `LlamaForCausalLM`: no code comes with it.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```

It was trained with attention over {exact:,} tokens at most; up to there its logits are those of the checkpoint.
"""

_MEMTRAIN = """\
The model's code is in this folder and runs when you say so; it needs {packages}.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)
inputs = tokenizer(["Once upon a time"], return_tensors="pt")
print(tokenizer.batch_decode(model.generate(**inputs, max_new_tokens=50))[0])
```

The text is read in segments of {segment:,} tokens; the memory is carried in `past_key_values`, whose size does not
depend on what has been read, so there is no longest text. Supported: greedy, sampling, beam search, batches padded on
the left, `past_key_values` from one `generate` to the next. Refused: padding on the right with a cache, assisted
generation, static caches, `inputs_embeds`, other vocabularies.
"""

_EXPLICIT = """
It has explicit memory, too. `generate` reads no references; a call of the network inside does:
`model.net(ids, references=model.write_references(tokens, lengths))`. Banks of memtrain hold what these weights wrote:
there, `launchers/generate.py --bank` retrieves and reads while it generates.
"""


def model_card(trained: LoadedModel, exported: "Exported", dtype: str, name: str) -> str:
    """Markdown."""
    config, memory = trained.net.config, trained.net.config.memory
    kind = memory.kind + (f", flow {memory.flow or 'time'}" if memory.kind == "lm2" else "")
    facts = {
        "parameters": f"{exported.parameters:,}",
        "memory": kind if exported.form == "memtrain" and trained.net.memory_on else "none",
        "trained on": f"{trained.state.tokens:,} tokens, phase {trained.state.phase}",
        "weights": dtype,
        "largest logit difference to the checkpoint, fp32": f"{exported.difference:.2g}",
    }
    if exported.rounding:
        facts[f"what rounding to {dtype} changes of a logit, at most"] = f"{exported.rounding:.2g}"
    if exported.form == "memtrain":
        from model.hf.bundle import PACKAGES

        text = _MEMTRAIN.format(name=name, segment=config.segment_length, packages=", ".join(PACKAGES))
        if trained.net.explicit is not None:
            text += _EXPLICIT
    else:
        text = _LLAMA.format(name=name, exact=exported.exact_tokens)
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    return f"---\nlibrary_name: transformers\n---\n# {name}\n\n| | |\n|---|---|\n{rows}\n\n{text}"
