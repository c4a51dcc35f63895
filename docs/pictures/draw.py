"""Draw the pictures of the README and of the documentation: `python docs/pictures/draw.py` writes the SVG files."""

import sys
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from svg import AMBER, BLUE, GREEN, GREY, INK, LINE, PALE, ROSE, Picture

HERE = Path(__file__).resolve().parent


def block() -> Picture:
    """A decoder block over three segments: attention stays inside, the memory goes on."""
    p = Picture(860, 400, "A decoder block with its memory, and three segments of a text")
    width, step = 200, 290
    p.text(24, 30, "One decoder block over a text; every block has a memory of its own", at="start", bold=True, size=15)
    for s in range(3):
        x = 40 + s * step
        p.box(x - 14, 48, width + 28, 286, colour=("#ffffff", "#e2e8f0"))
        p.box(x, 62, width, 34, "sum, to the next block")
        p.box(x, 124, width - 50, 40, "feed-forward", GREEN)
        p.box(x + 50, 196, width - 50, 44, "memory\nread, then written", AMBER, 13)
        p.box(x, 276, width, 40, "attention, this segment", BLUE)
        p.arrow((x + 25, 276), (x + 25, 166))
        p.arrow((x + 125, 276), (x + 125, 242))
        p.arrow((x + 75, 124), (x + 75, 98))
        p.arrow((x + 175, 196), (x + 175, 98))
        for token in range(8):
            p.box(x + 2 + token * 25, 348, 21, 21, colour=BLUE)
        p.arrow((x + width / 2, 348), (x + width / 2, 318))
        p.text(x + width / 2, 388, f"segment {s + 1}: T tokens", size=13, colour=PALE)
    for s in range(2):
        x = 40 + s * step
        for row in range(4):
            p.box(x + 231, 194 + row * 12, 28, 12, colour=AMBER)
        p.text(x + 245, 184, f"M{'₁₂'[s]}", size=15, bold=True)
        p.arrow((x + width, 218), (x + 230, 218), colour=AMBER[1], width=2.4)
        p.arrow((x + 259, 218), (x + step + 49, 218), colour=AMBER[1], width=2.4)
    return p


Corners = list[list[tuple[float, float]]]  # of block b in segment s, lowest block first


def _grid(p: Picture, x: float, y: float, name: str, note: str) -> Corners:
    """Three blocks over three segments, under a heading."""
    p.text(x, y, name, at="start", bold=True, size=15)
    p.text(x, y + 20, note, at="start", size=12, colour=PALE)
    corners: Corners = [[(x + 10 + s * 140, y + 120 - b * 42) for s in range(3)] for b in range(3)]
    for b, row in enumerate(corners):
        for left, top in row:
            p.box(left, top, 96, 28, f"block {b + 1}", GREY, 12)
    for s in range(3):
        p.text(x + 58 + s * 140, y + 168, f"segment {s + 1}", size=12, colour=PALE)
    return corners


def _through_time(p: Picture, grid: Corners, carried: str) -> None:
    """Every block gives its own memory to the same block of the next segment."""
    for row in grid:
        for (left, top), (following, _) in pairwise(row):
            p.arrow((left + 96, top + 14), (following, top + 14), colour=AMBER[1], width=2)
            p.text(left + 116, top + 9, carried, size=9, colour=AMBER[1])


def _through_depth(p: Picture, grid: Corners, between_blocks: str) -> None:
    """What leaves the last block of a segment enters the first block of the next one."""
    for s in range(3):
        for lower, upper in pairwise(grid):
            p.arrow((lower[s][0] + 48, lower[s][1]), (upper[s][0] + 48, upper[s][1] + 28), colour=between_blocks)
    for s in range(2):
        (a, top), (b, low) = grid[2][s], grid[0][s + 1]
        p.arrow((a + 96, top + 14), (a + 118, top + 14), (a + 118, low + 14), (b, low + 14), colour=AMBER[1], width=2)


def memories() -> Picture:
    """Which way a memory goes through blocks (rows) and segments (columns)."""
    p = Picture(920, 470, "How each kind of memory passes through blocks and segments")
    slots = _grid(p, 24, 34, "lm2, flow: time", "a bank of slots per block; all segments are computed at once")
    _through_time(p, slots, "N×d")
    matrix = _grid(p, 490, 34, "delta", "a matrix per head and block, written by the delta rule; all at once")
    _through_time(p, matrix, "d×d")
    bank = _grid(p, 24, 260, "lm2, flow: depth (as published)", "one bank through the blocks, then to the next segment")
    _through_depth(p, bank, AMBER[1])
    vectors = _grid(p, 490, 260, "rmt", "memory vectors among the tokens; the last go to the next segment")
    _through_depth(p, vectors, LINE)
    p.text(24, 456, "Amber: what is carried. Its size does not depend on the number of segments.", at="start", size=13)
    return p


def phases() -> Picture:
    """A warmup without memory, then the memory phase, with the learning rate above."""
    p = Picture(920, 270, "The phases of a run over its tokens")
    p.text(
        24,
        32,
        "A run is a list of phases; position, learning rate and phase follow from the step alone.",
        at="start",
        size=14,
    )
    p.arrow((40, 132), (40, 52))
    p.text(48, 62, "learning rate", at="start", size=12, colour=PALE)
    for points in (((40, 130), (90, 70), (430, 70)), ((432, 130), (480, 70), (720, 70), (880, 124))):
        path = " ".join(f"{'M' if i == 0 else 'L'}{x} {y}" for i, (x, y) in enumerate(points))
        p.parts.append(f'<path d="{path}" fill="none" stroke="{INK}" stroke-width="2"/>')
    p.box(40, 144, 390, 44, "warmup, memory: off — a plain Llama", GREY)
    p.box(432, 144, 448, 44, "memory, memory: on — memories are computed and trained", AMBER)
    p.arrow((431, 230), (431, 192), colour=ROSE[1])
    p.text(431, 246, "a phase begins from the checkpoint at the boundary: weights by name, engine built anew,", size=13)
    p.text(431, 263, "memory parameters added; a fresh memory changes no logit, so the loss does not jump", size=13)
    p.text(880, 136, "tokens", size=12, colour=PALE, at="end")
    return p


def parallelism() -> Picture:
    """Eight ranks: tensor 2, pipeline 2, data 2, and what passes between them."""
    p = Picture(920, 330, "Eight ranks: tensor 2 × pipeline 2 × data 2")
    p.text(
        24,
        32,
        "8 ranks with parallel.tensor=2 and parallel.pipeline=2; what is left is data parallel 2",
        at="start",
        size=14,
    )
    for d in range(2):
        for stage in range(2):
            x, y = 150 + stage * 380, 60 + d * 124
            p.box(x, y, 300, 92, colour=("#ffffff", "#cbd5e1"))
            p.text(
                x + 10,
                y + 18,
                f"stage {stage + 1}: layers {'1 to n/2' if stage == 0 else 'n/2 + 1 to n'}",
                at="start",
                size=12,
                colour=PALE,
            )
            for t in range(2):
                rank = stage * 4 + d * 2 + t
                p.box(x + 12 + t * 142, y + 28, 134, 52, f"rank {rank}\nhalf of heads, neurons", BLUE, 11)
        p.text(136, 60 + d * 124 + 50, f"samples {d + 1}", at="end", size=13)
        y = 60 + d * 124 + 46
        p.arrow((450, y), (530, y), colour=GREEN[1], width=2.2)
        p.text(490, y - 8, "[B, L, D]", size=11, colour=GREEN[1])
    for stage in range(2):
        x = 300 + stage * 380
        p.arrow((x, 152), (x, 184), colour=ROSE[1], width=2.2)
        p.arrow((x, 184), (x, 152), colour=ROSE[1], width=2.2)
        p.text(x + 12, 173, "gradients, once a step", at="start", size=12, colour=ROSE[1])
    p.text(
        24,
        306,
        "Inside a stage two all-reduces a layer; lm2 through time and delta add none. With parallel.segment, ranks",
        at="start",
        size=12,
        colour=PALE,
    )
    p.text(
        24,
        322,
        "that own later segments of the same sample receive one bank a layer from the ranks before them.",
        at="start",
        size=12,
        colour=PALE,
    )
    return p


def checkpoints() -> Picture:
    """A checkpoint is written beside training and believed once its manifest confirms every byte."""
    p = Picture(920, 250, "How a checkpoint is written beside training")
    p.text(24, 50, "training", at="start", bold=True)
    p.text(24, 140, "writer thread", at="start", bold=True)
    for i, (name, colour) in enumerate(
        (
            ("step n\nupdate", GREY),
            ("step n+1\nforward, backward", BLUE),
            ("update", GREY),
            ("step n+2\nforward, backward", BLUE),
            ("update", GREY),
        )
    ):
        x, w = ((150, 90), (250, 170), (430, 90), (530, 170), (710, 90))[i]
        p.box(x, 26, w, 44, name, colour, 12)
    p.arrow((245, 72), (265, 112), colour=AMBER[1], width=2)
    p.box(250, 114, 150, 44, "copy this rank's\nranges", AMBER, 12)
    p.arrow((400, 114), (432, 72), colour=AMBER[1], width=2, dashed=True)
    p.text(424, 104, "the next update waits for the copies alone", at="start", size=12, colour=PALE)
    steps = ("files, with\nchecksums", "manifest", "rename\nthe folder", "pointer\nlatest")
    x = 420.0
    for name in steps:
        p.arrow((x - 20, 136), (x - 2, 136))
        p.box(x, 114, 100, 44, name, GREEN, 12)
        x += 120
    p.text(
        24,
        196,
        "Killed at any point, the run continues from the newest checkpoint whose manifest agrees with every file.",
        at="start",
        size=13,
    )
    p.text(
        24,
        216,
        "Files hold boxes of whole tensors under the model's own names, so any number of ranks and any topology",
        at="start",
        size=13,
    )
    p.text(24, 236, "reads them, and a phase with a memory starts from a checkpoint without one.", at="start", size=13)
    return p


def rooms() -> Picture:
    """The packages, and which imports which: the importing one is drawn above."""
    p = Picture(920, 384, "The packages, and which imports which")
    p.text(24, 30, "An arrow means: imports. Every arrow points down.", at="start", size=14)
    places = (
        ("launchers", "the commands that people type", 60, 52, GREY),
        ("experiments", "models trained to be compared", 500, 52, GREY),
        ("evaluation", "BABILong, MMLU, perplexity, reports", 280, 142, ROSE),
        ("training", "configuration, engine, trainer, checkpoints", 280, 232, BLUE),
        ("data_prep", "documents to token shards, shards to batches", 60, 322, GREEN),
        ("model", "decoder layers and their memories", 500, 322, AMBER),
    )
    for name, what, x, y, colour in places:
        p.box(x, y, 360, 46, f"{name}\n{what}", colour, 14)
    for x, inwards in ((240, 1), (680, -1)):
        p.arrow((x, 98), (x + inwards * 80, 140))  # launchers and experiments to evaluation
        p.arrow((x - inwards * 140, 98), (x - inwards * 140, 320))  # and to data_prep and model
        p.arrow((x + inwards * 120, 278), (x, 320))  # training to data_prep and model
    p.arrow((460, 188), (460, 230))
    return p


def token() -> Picture:
    """The way of a token from a file to the loss, with the files that do the work and the shapes between them."""
    p = Picture(920, 486, "The way of a token from a file to the loss")
    rows = (
        (
            "once: prepare_data",
            "rows of uint16 or uint32 tokens, a document a row",
            GREEN,
            (
                ("read documents", "data_prep/sources/"),
                ("keep or leave out", "data_prep/sources/filters.py"),
                ("text to token ids", "data_prep/tokenizers/"),
                ("Arrow shards, manifest", "data_prep/shards/"),
            ),
        ),
        (
            "each step, in a thread",
            "ids, labels, weights [B, L], documents [B, 1 + L]",
            GREEN,
            (
                ("this rank's samples", "training/batches.py"),
                ("source of sample g", "data_prep/stream/mixing.py"),
                ("window of the source", "data_prep/stream/windows.py"),
                ("micro-batches of B rows", "training/batches.py"),
            ),
        ),
        (
            "each micro-batch: forward",
            "hidden [B, L, D]",
            AMBER,
            (
                ("cut into segments", "model/segments.py"),
                ("embedding", "model/network.py"),
                ("n decoder layers", "model/decoder.py"),
                ("final norm", "model/network.py"),
            ),
        ),
        (
            "then: loss and update",
            "",
            BLUE,
            (
                ("head, cross entropy", "model/loss.py"),
                ("backward", "training/engine/zero.py"),
                ("clip, AdamW", "training/engine/base.py"),
                ("report, evaluate, save", "training/trainer.py"),
            ),
        ),
    )
    for number, (when, between, colour, steps) in enumerate(rows):
        y = 40 + number * 116
        p.text(54, y - 12, when, at="start", bold=True, size=14)
        for i, (what, file) in enumerate(steps):
            x = 18 + i * 226
            p.box(x, y, 206, 50, f"{what}\n{file}", colour, 13)
            if i:
                p.arrow((x - 20, y + 25), (x - 2, y + 25))
        if between:
            p.arrow((800, y + 50), (800, y + 70), (40, y + 70), (40, y + 114))
            p.text(461, y + 64, between, size=13, colour=PALE)
    return p


PICTURES = {p.__name__: p for p in (block, memories, phases, parallelism, checkpoints, rooms, token)}


def main() -> None:
    for name, draw in PICTURES.items():
        (HERE / f"{name}.svg").write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
