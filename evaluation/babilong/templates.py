"""Prompts for pretrained models in BABILong's layout: instruction, examples, form of the answer, text, question.

The words are our own. Layout and content of each part follow the benchmark, so that numbers can be compared.
"""

from dataclasses import dataclass

from evaluation.babilong.generator import Sample

PROMPT_LAYOUT = (
    "{instruction}\n\n{examples}\n\n{answer_form}\n\n<context>\n{context}\n</context>\n\nQuestion: {question}"
)
FINETUNED_LAYOUT = "{context}\n{question}\n"  # data_prep's default for exercises


@dataclass(frozen=True)
class Prompt:
    """A task's prompt; examples: (facts, question, answer) of each."""

    instruction: str
    examples: tuple[tuple[str, str, str], ...]
    answer_form: str

    def text(self, sample: Sample) -> str:
        examples = "\n".join(
            f"<example>\n{facts} {question}\nAnswer: {answer}\n</example>" for facts, question, answer in self.examples
        )
        parts = {"instruction": self.instruction, "examples": examples, "answer_form": self.answer_form}
        return fill(PROMPT_LAYOUT, sample.context, sample.question, **parts).strip()


def fill(layout: str, context: str, question: str, **parts: str) -> str:
    """Return the layout with its places filled; braces inside the inserted texts stay as they are."""
    for name, text in parts.items():
        layout = layout.replace(f"{{{name}}}", text)
    before, place, after = layout.partition("{context}")
    if not place:
        return layout.replace("{question}", question)
    return before.replace("{question}", question) + context + after.replace("{question}", question)


_HIDDEN = (
    "Somewhere in the long text below there are short facts about {}. Answer the question at its end from these facts "
    "alone; everything else in the text is of no importance."
)
_LATEST = " People move about: what counts is the last place a person went to."
_THINGS = " A thing that somebody took goes along wherever this person goes, and stays where the person puts it down."
_ONE_WORD = "Answer with a single word: {}. Add nothing to it and explain nothing."

PROMPTS = {
    "qa1": Prompt(
        _HIDDEN.format("where people are") + _LATEST,
        (
            (
                "Ruth travelled to the cellar. Oscar went to the porch. Ruth moved to the library.",
                "Where is Ruth?",
                "The most recent location of Ruth is library.",
            ),
            (
                "Oscar journeyed to the cellar. Ruth went back to the porch. Nina moved to the attic.",
                "Where is Oscar?",
                "The most recent location of Oscar is cellar.",
            ),
        ),
        "Answer in this form: The most recent location of ’person’ is ’location’. Write nothing after it.",
    ),
    "qa2": Prompt(
        _HIDDEN.format("where people are and what they do") + _THINGS,
        (
            (
                "Ruth went to the cellar. Ruth took the lamp there. Ruth moved to the porch.",
                "Where is the lamp?",
                "The lamp is in the porch.",
            ),
            (
                "Oscar got the rope there. Oscar went to the attic. Oscar dropped the rope. Oscar went to the porch.",
                "Where is the rope?",
                "The rope is in the attic.",
            ),
        ),
        "Answer in this form: The ’item’ is in ’location’. Write nothing after it.",
    ),
    "qa3": Prompt(
        _HIDDEN.format("where people are and what they do") + _THINGS,
        (
            (
                "Ruth went to the cellar. Ruth took the lamp. Ruth moved to the porch. Ruth went to the attic.",
                "Where was the lamp before the attic?",
                "Before the attic the lamp was in the porch.",
            ),
            (
                "Oscar moved to the library. Oscar got the rope. Nina went to the cellar. Oscar went to the porch.",
                "Where was the rope before the porch?",
                "Before the porch the rope was in the library.",
            ),
        ),
        "Answer in this form: Before the ’location_1’ the ’item’ was in the ’location_2’. Write nothing after it.",
    ),
    "qa4": Prompt(
        _HIDDEN.format("how places lie to each other"),
        (
            (
                "The cellar is north of the porch. The attic is north of the cellar.",
                "What is the cellar north of?",
                "porch",
            ),
            (
                "The library is east of the attic. The attic is east of the porch.",
                "What is east of the attic?",
                "library",
            ),
        ),
        _ONE_WORD.format("the place"),
    ),
    "qa5": Prompt(
        _HIDDEN.format("people who give things to each other"),
        (
            (
                "Ruth took the lamp there. Ruth handed the lamp to Oscar. Oscar went to the attic.",
                "Who did Ruth give the lamp to?",
                "Oscar",
            ),
            (
                "Nina picked up the rope there. Nina passed the rope to Ruth. Oscar moved to the porch.",
                "Who gave the rope?",
                "Nina",
            ),
            (
                "Oscar got the lamp there. Oscar gave the lamp to Nina. Nina dropped the lamp.",
                "What did Oscar give to Nina?",
                "lamp",
            ),
        ),
        _ONE_WORD.format("the person or the thing"),
    ),
    "qa6": Prompt(
        _HIDDEN.format("where people are") + _LATEST,
        (
            ("Ruth moved to the cellar. Ruth went to the porch.", "Is Ruth in the porch?", "yes"),
            (
                "Oscar went to the attic. Nina went to the cellar. Oscar moved to the library.",
                "Is Oscar in the attic?",
                "no",
            ),
        ),
        _ONE_WORD.format("yes or no"),
    ),
    "qa7": Prompt(
        _HIDDEN.format("people and the things they carry"),
        (
            ("Ruth went to the cellar. Ruth took the lamp there.", "How many objects is Ruth carrying?", "one"),
            ("Oscar got the rope there. Oscar gave the rope to Nina.", "How many objects is Oscar carrying?", "none"),
            (
                "Nina picked up the rope there. Nina took the lamp there. Ruth went to the attic.",
                "How many objects is Nina carrying?",
                "two",
            ),
        ),
        _ONE_WORD.format("none, or the number written out"),
    ),
    "qa8": Prompt(
        _HIDDEN.format("people and the things they carry"),
        (
            ("Ruth went to the cellar. Ruth took the lamp there.", "What is Ruth carrying?", "lamp"),
            (
                "Oscar got the rope there. Nina went to the porch. Oscar dropped the rope.",
                "What is Oscar carrying?",
                "nothing",
            ),
            (
                "Nina picked up the rope there. Nina went to the attic. Nina took the lamp there.",
                "What is Nina carrying?",
                "rope,lamp",
            ),
        ),
        "Answer with one word, nothing or the thing, or with several things divided by commas. Add nothing to it.",
    ),
    "qa9": Prompt(
        _HIDDEN.format("where people are and where they are not") + _LATEST,
        (
            ("Ruth is not in the cellar. Oscar is in the porch.", "Is Ruth in the cellar?", "no"),
            ("Nina journeyed to the attic. Ruth is no longer in the library.", "Is Nina in the attic?", "yes"),
        ),
        _ONE_WORD.format("yes or no"),
    ),
    "qa10": Prompt(
        _HIDDEN.format("where people are, or may be") + _LATEST,
        (
            ("Ruth is in the cellar. Oscar is either in the porch or the attic.", "Is Ruth in the porch?", "no"),
            ("Oscar is either in the porch or the attic. Nina went to the cellar.", "Is Oscar in the attic?", "maybe"),
            ("Nina is either in the porch or the cellar. Ruth moved to the attic.", "Is Ruth in the attic?", "yes"),
        ),
        _ONE_WORD.format("yes, no or maybe"),
    ),
}
