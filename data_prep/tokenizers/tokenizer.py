"""Tokenizers with one interface: SentencePiece (load, train) and Hugging Face tokenizer.json (load)."""

import io
import itertools
import re
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import sentencepiece
import tokenizers
import xxhash

from data_prep.errors import DataError
from data_prep.files import parse_json, replacing

# SentencePiece writes the number of threads into the model file. A fixed number gives the same fingerprint on every
# machine. Merging pairs is serial, and more threads than cores cost nothing.
_TRAIN_THREADS = 16
_TRAIN_CHARACTERS = 2000
# SentencePiece represents a space by this character, and would decode a text's own to a space.
_SPACE_MARK = "\u2581"
_HF_SPECIALS = [
    ("<|begin_of_text|>", "<|end_of_text|>"),
    ("<s>", "</s>"),
    ("<bos>", "<eos>"),
    ("<|endoftext|>", "<|endoftext|>"),
]
_WITH_PREFIX = re.compile(rb'"continuing_subword_prefix"\s*:\s*"[^"]')
_NO_PIECE = "\ufffd"  # for an id that the vocabulary lacks
_RARE = "\u0378\U0010fffd\x00"  # characters that small vocabularies lack


class Tokenizer(Protocol):
    """Converts text to ids and back.

    `vocab_size` is one more than the largest id, `fingerprint` the xxh3 (hex) of the model file's bytes.
    """

    kind: str
    path: Path
    vocab_size: int
    bos_id: int
    eos_id: int
    fingerprint: str

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`, without bos and eos; text that spells a special token is ordinary text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of `ids`; an id without a piece, such as padding of a model's vocabulary, becomes U+FFFD."""
        ...

    def piece(self, id: int) -> str:
        """Returns the vocabulary's piece of one id, or U+FFFD for an id without a piece."""
        ...


class SentencePieceTokenizer:
    """A SentencePiece `.model`. Raises DataError when the file is not one, or has no bos and eos."""

    kind = "sentencepiece"

    def __init__(self, path: Path) -> None:
        self.path = path
        model = _read(path)
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, TypeError) as error:
            raise DataError(
                f"{path}: is no SentencePiece model; give a .model file that SentencePiece wrote"
            ) from error
        self.vocab_size = int(self._processor.vocab_size())
        self.bos_id = int(self._processor.bos_id())
        self.eos_id = int(self._processor.eos_id())
        self.fingerprint = xxhash.xxh3_64_hexdigest(model)
        if self.bos_id < 0 or self.eos_id < 0:
            raise DataError(
                f"{path}: bos id is {self.bos_id}, eos id is {self.eos_id}; documents are delimited by both: "
                "use a model trained with them"
            )
        mark_bytes = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE_MARK.encode()]
        has_bytes = all(self._processor.is_byte(id) for id in mark_bytes)
        self._space_mark_ids: list[int] | None = mark_bytes if has_bytes else None

    def encode(self, text: str) -> list[int]:
        if self._space_mark_ids is None or _SPACE_MARK not in text:
            return list(self._processor.encode(text))
        ids: list[int] = []
        for number, part in enumerate(text.split(_SPACE_MARK)):
            ids += (self._space_mark_ids if number else []) + list(self._processor.encode(part))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return _decode(ids, range(self.vocab_size), lambda known: str(self._processor.decode(known)))

    def piece(self, id: int) -> str:
        return str(self._processor.id_to_piece(int(id))) if 0 <= id < self.vocab_size else _NO_PIECE


class HFTokenizer:
    """A Hugging Face `tokenizer.json`.

    Only its special tokens can be bos and eos. Raises DataError when the file is not one, has no known bos and eos, or
    encodes some text as a special token.
    """

    kind = "hf"

    def __init__(self, path: Path) -> None:
        self.path = path
        model = _read(path)
        _check_prefix(model, path)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(model)
        except BaseException as error:
            raise _explained(
                error, f"{path}: is not a Hugging Face tokenizer.json", "give a file that the library wrote"
            ) from error
        # A document that spells "<|end_of_text|>" must not end the document.
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise DataError(f"{path}: its vocabulary is empty; give the tokenizer.json of a trained tokenizer")
        self._ids = frozenset(vocabulary.values())
        self.vocab_size = max(self._ids) + 1
        self.fingerprint = xxhash.xxh3_64_hexdigest(model)
        added = self._tokenizer.get_added_tokens_decoder()
        specials = {token.content: int(id) for id, token in added.items() if token.special}
        self.bos_id, self.eos_id = self._delimiters(specials, vocabulary)
        self._check_text_is_text(specials)

    def _delimiters(self, specials: dict[str, int], vocabulary: Container[str]) -> tuple[int, int]:
        """Returns the ids of bos and eos. Raises DataError when the special tokens have no known pair."""
        for bos, eos in _HF_SPECIALS:
            if bos in specials and eos in specials:
                return specials[bos], specials[eos]
        known = ", ".join(f"{bos} {eos}" for bos, eos in _HF_SPECIALS)
        ordinary = [token for pair in _HF_SPECIALS for token in dict.fromkeys(pair) if token in vocabulary]
        which = f"; {', '.join(ordinary)} are ordinary tokens, which a text may have" if ordinary else ""
        raise DataError(
            f"{self.path}: has no known pair of bos and eos ({known}) among its special tokens{which}; add one of "
            'these pairs to added_tokens with "special": true'
        )

    def _check_text_is_text(self, specials: dict[str, int]) -> None:
        """Raises DataError when text that spells a special token, or an unknown character, gets the id of one."""
        unknown = str(getattr(self._tokenizer.model, "unk_token", None))
        control = {id for token, id in specials.items() if token != unknown} | {self.bos_id, self.eos_id}
        for token in [*specials, _RARE]:
            for text in (token, f"a {token}", f"a{token}b"):
                if found := control & set(self.encode(text)):
                    raise DataError(
                        f"{self.path}: the text {text!r} becomes the special token {self.piece(min(found))!r} (id "
                        f"{min(found)}), so a document could end or begin anywhere; use a vocabulary whose model does "
                        "not have its special tokens as pieces, and whose unknown token is neither bos nor eos"
                    )

    def encode(self, text: str) -> list[int]:
        try:
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        except BaseException as error:
            what = f"{self.path}: has no ids for the text {text[:40]!r}"
            raise _explained(error, what, "use a vocabulary that covers every text") from error

    def decode(self, ids: Sequence[int]) -> str:
        decode = self._tokenizer.decode
        return _decode(ids, self._ids, lambda known: str(decode(known, skip_special_tokens=False)))

    def piece(self, id: int) -> str:
        return str(self._tokenizer.id_to_token(int(id))) if id in self._ids else _NO_PIECE


def _check_prefix(model: bytes, path: Path) -> None:
    """Raises DataError for merges without the prefix of continued words, which make the library end the process."""
    if not _WITH_PREFIX.search(model):  # true of nearly all files, so that large ones are not parsed twice
        return
    try:
        content = parse_json(model.decode())["model"]
        prefix, merges = str(content["continuing_subword_prefix"]), content.get("merges", ())
        rights = [merge.split(" ")[-1] if isinstance(merge, str) else merge[-1] for merge in merges]
    except (ValueError, LookupError, TypeError, AttributeError):  # the library reports these
        return
    if wrong := [right for right in rights if not str(right).startswith(prefix)]:
        raise DataError(
            f"{path}: model.merges: {wrong[0]!r} continues a word, but does not begin with continuing_subword_prefix "
            f"{prefix!r}; set that to null, or give the file as it was written"
        )


def _explained(error: BaseException, what: str, way_out: str) -> BaseException:
    """Returns a DataError for an error of the library tokenizers (Exception, or PanicException, which is not one).

    Any other error, such as KeyboardInterrupt, is returned as it is.
    """
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
        return DataError(f"{what} ({str(error)[:200]}); {way_out}")
    return error


def _decode(ids: Sequence[int], known: Container[int], decode: Callable[[list[int]], str]) -> str:
    """Returns the text of ids, some of which may have no piece."""
    whole = list(map(int, ids))
    if all(id in known for id in whole):
        return decode(whole)
    groups = ((has, list(group)) for has, group in itertools.groupby(whole, key=lambda id: id in known))
    return "".join(decode(group) if has else _NO_PIECE * len(group) for has, group in groups)


def load_tokenizer(path: Path) -> Tokenizer:
    """Loads `*.model` as SentencePiece and `*.json` as Hugging Face. Raises DataError when that fails."""
    path = Path(path).expanduser()
    if path.suffix == ".model":
        return SentencePieceTokenizer(path)
    if path.suffix == ".json":
        return HFTokenizer(path)
    raise DataError(f"{path}: does not end as a tokenizer; give a SentencePiece *.model or a Hugging Face *.json")


def train_sentencepiece(texts: Iterable[str], vocab_size: int, out_path: Path) -> None:
    """Trains BPE with byte fallback on `texts` and writes `out_path`; equal texts give equal bytes.

    decode(encode(x)) == x for every text: nothing is normalised, unknown characters become bytes, newlines and tabs are
    pieces of their own, and runs of spaces are learned. Ids: unk 0, bos 1, eos 2.

    Raises:
        DataError: no text, or text that is too short (or too varied) for `vocab_size`.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            user_defined_symbols=["\n", "\t"],
            max_sentence_length=8 * _TRAIN_CHARACTERS,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            num_threads=_TRAIN_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(f"tokenizer.vocab_size is {vocab_size}{_why_not(str(error))}") from error
    with replacing(out_path) as temporary:
        temporary.write_bytes(model.getvalue())


def _why_not(said: str) -> str:
    """Returns what is wrong with the vocabulary's size and the way out, from the trainer's message."""
    if match := re.search(r"too high \(\d+\).* <= (\d+)", said):
        return (
            f", more than the {match[1]} pieces that this text has; change vocab_size to {match[1]} or less, or add "
            "text (sources, max_bytes, tokenizer.train_bytes)"
        )
    if match := re.search(r"smaller than required_chars\. \d+ vs (\d+)", said):
        return f", too few for the bytes and the characters of this text; change vocab_size to {match[1]} or more"
    reason = said.rpartition("] ")[2].strip() or "there is no text"
    way = "change vocab_size, or add text (sources, max_bytes, tokenizer.train_bytes)"
    return f", and the text cannot fill it ({reason}); {way}"


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    # The trainer drops sentences above max_sentence_length bytes (at most 4 a character) without a message.
    for text in texts:
        for start in range(0, len(text), _TRAIN_CHARACTERS):
            yield text[start : start + _TRAIN_CHARACTERS]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot read the tokenizer ({error.strerror}); check tokenizer.path") from error
