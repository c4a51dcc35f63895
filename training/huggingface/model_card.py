"""The README.md of an exported folder: what the model is, how to load it, what is supported."""

from typing import TYPE_CHECKING

from training.checkpoint.trained_model import LoadedModel

if TYPE_CHECKING:
    from training.huggingface.export import Exported

_LLAMA = """\
A plain `LlamaForCausalLM`; the folder contains no code.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```

It was trained with attention over at most {exact:,} tokens; up to this length its logits are those of the checkpoint.
"""

_MEMTRAIN = """\
The model's code is in this folder and runs only with `trust_remote_code=True`; it needs {packages}.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)
inputs = tokenizer(["Once upon a time"], return_tensors="pt")
print(tokenizer.batch_decode(model.generate(**inputs, max_new_tokens=50))[0])
```

The model reads text in segments of {segment:,} tokens and carries its memory in `past_key_values`, whose size does not
depend on the length of the text, so the length is not limited. Supported: greedy decoding, sampling, beam search,
batches padded on the left, passing `past_key_values` from one `generate` to the next. Refused: padding on the right
with a cache, assisted generation, static caches, `inputs_embeds`, other vocabularies.
"""

_EXPLICIT = """
It also has explicit memory. `generate` reads no references; a call of the inner network does:
`model.net(ids, references=model.write_references(tokens, lengths))`. A bank of memtrain contains memories that these
weights have written; `launchers/generate.py --bank` of memtrain retrieves and reads them while it generates.
"""


def model_card(trained: LoadedModel, exported: "Exported", dtype: str, name: str) -> str:
    """Return the text of README.md in Markdown.  dtype: of the exported weights; name: of the folder."""
    config, memory = trained.net.config, trained.net.config.memory
    facts = {
        "parameters": f"{exported.parameters:,}",
        "memory": memory.title if exported.form == "memtrain" and trained.net.memory_on else "none",
        "trained on": f"{trained.state.tokens:,} tokens, phase {trained.state.phase}",
        "weights": dtype,
        "largest logit difference to the checkpoint, fp32": f"{exported.difference:.2g}",
    }
    if exported.rounding:
        facts[f"largest logit difference through rounding to {dtype}"] = f"{exported.rounding:.2g}"
    if exported.form == "memtrain":
        from model.hf.bundle import PACKAGES

        text = _MEMTRAIN.format(name=name, segment=config.segment_length, packages=", ".join(PACKAGES))
        if trained.net.explicit is not None:
            text += _EXPLICIT
    else:
        text = _LLAMA.format(name=name, exact=exported.exact_tokens)
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    return f"---\nlibrary_name: transformers\n---\n# {name}\n\n| | |\n|---|---|\n{rows}\n\n{text}"
