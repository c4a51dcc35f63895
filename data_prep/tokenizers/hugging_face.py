"""Write a tokenizer as the files that Transformers' `AutoTokenizer` loads, with the same ids.

A SentencePiece model becomes a byte-fallback BPE of the `tokenizers` library over the same pieces. Spaces in pieces are
written as spaces, not as SentencePiece's mark U+2581. So a U+2581 in a text becomes bytes, as in our tokenizer, and
texts need no replacement of spaces.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
from sentencepiece import sentencepiece_model_pb2 as pb
from tokenizers import decoders, models, normalizers, processors

from data_prep.errors import DataError
from data_prep.tokenizers.tokenizer import Tokenizer

_MARK = "\u2581"
_WAY_OUT = "export without it: --no-tokenizer"


def write_hf_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` (and the SentencePiece file itself) into `folder`.

    The written tokenizer puts bos before a text, as training does before every document, and pads a batch on the left.
    Raises DataError for a SentencePiece model that cannot be converted.
    """
    if tokenizer.kind == "sentencepiece":
        _from_sentencepiece(tokenizer).save(str(folder / "tokenizer.json"))
        shutil.copyfile(tokenizer.path, folder / "tokenizer.model")
    else:
        _with_bos(tokenizer).save(str(folder / "tokenizer.json"))
    bos, eos = tokenizer.piece(tokenizer.bos_id), tokenizer.piece(tokenizer.eos_id)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "pad_token": eos,
        "padding_side": "left",
        "split_special_tokens": True,  # text that spells a special token stays text, as in training
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(1e30),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _from_sentencepiece(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    proto = pb.ModelProto.FromString(tokenizer.path.read_bytes())
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    if trainer.model_type != trainer.BPE or normalizer.precompiled_charsmap or normalizer.remove_extra_whitespaces:
        raise DataError(
            f"{tokenizer.path}: only a BPE model that does not change the text has a tokenizer.json with the same ids "
            f"(this one: model_type {trainer.model_type}, normalization {normalizer.name!r}, remove_extra_whitespaces "
            f"{normalizer.remove_extra_whitespaces}); {_WAY_OUT}"
        )
    pieces, kinds = list(proto.pieces), pb.ModelProto.SentencePiece
    result = tokenizers.Tokenizer(
        models.BPE(
            vocab={_spelled(piece): id for id, piece in enumerate(pieces)},
            merges=_merges(pieces, kinds.NORMAL),
            unk_token=pieces[trainer.unk_id].piece,
            fuse_unk=True,
            byte_fallback=trainer.byte_fallback,
        )
    )
    result.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    if normalizer.add_dummy_prefix:
        result.normalizer = normalizers.Prepend(" ")
        result.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    result.add_special_tokens([p.piece for p in pieces if p.type == kinds.CONTROL])
    whole = [_spelled(p) for p in pieces if p.type == kinds.USER_DEFINED]  # never merged into another piece
    result.add_tokens([tokenizers.AddedToken(text, normalized=False, special=False) for text in whole])
    result.post_processor = _bos_before_text(tokenizer)
    return result


def _bos_before_text(tokenizer: Tokenizer) -> processors.TemplateProcessing:
    bos = tokenizer.piece(tokenizer.bos_id)
    return processors.TemplateProcessing(
        single=[bos, "$A"], pair=[bos, "$A", f"{bos}:1", "$B:1"], special_tokens=[(bos, tokenizer.bos_id)]
    )


def _with_bos(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """Returns a tokenizer.json that puts only bos before a text, and neither truncates nor pads it, as in training."""
    result = tokenizers.Tokenizer.from_buffer(tokenizer.path.read_bytes())
    result.no_truncation()
    result.no_padding()
    if result.encode("a b").ids != [tokenizer.bos_id, *tokenizer.encode("a b")]:
        result.post_processor = _bos_before_text(tokenizer)
    return result


def _spelled(piece: Any) -> str:
    """Returns the text of a piece, with spaces instead of SentencePiece's mark."""
    return str(piece.piece).replace(_MARK, " ")


def _merges(pieces: Sequence[Any], normal: int) -> list[tuple[str, str]]:
    """Returns every pair of pieces that makes a third one, in SentencePiece's order of merging: by the third's score.

    Of equal scores SentencePiece merges the leftmost pair, so that the longer left piece comes first.
    """
    scores = {_spelled(piece): piece.score for piece in pieces if piece.type == normal}
    merges = [
        (-score, -cut, cut - len(text), text[:cut], text[cut:])
        for text, score in scores.items()
        for cut in range(1, len(text))
        if text[:cut] in scores and text[cut:] in scores
    ]
    return [(left, right) for *_, left, right in sorted(merges)]
