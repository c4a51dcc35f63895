"""Tokenizers: SentencePiece (load, train) and Hugging Face tokenizer.json (load), behind one interface."""

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

# SentencePiece writes the thread count into the model file. A fixed one keeps the fingerprint the same on
# every machine; merging pairs is serial anyway, and the threads above the core count cost nothing.
_TRAIN_THREADS = 16
_TRAIN_CHARACTERS = 2000
# SentencePiece stands this character for a space, and would decode a real one to a space.
_SPACE_MARK = "\u2581"
_HF_SPECIALS = [
    ("<|begin_of_text|>", "<|end_of_text|>"),
    ("<s>", "</s>"),
    ("<bos>", "<eos>"),
    ("<|endoftext|>", "<|endoftext|>"),
]
_WITH_PREFIX = re.compile(rb'"continuing_subword_prefix"\s*:\s*"[^"]')
_NO_PIECE = "\ufffd"  # shown for an id that the vocabulary does not have
_RARE = "\u0378\U0010fffd\x00"  # what small vocabularies do not have


class Tokenizer(Protocol):
    """Text to ids and back.

    `vocab_size` is one more than the largest id, `fingerprint` the xxh3 (hex) of the model file's bytes.
    """

    kind: str
    path: Path
    vocab_size: int
    bos_id: int
    eos_id: int
    fingerprint: str

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, no bos or eos added; text that looks like a special token is ordinary text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; an id without a piece, as of the rows that pad a model's vocabulary, becomes U+FFFD."""
        ...

    def piece(self, id: int) -> str:
        """The vocabulary's own spelling of one id; U+FFFD for an id without a piece."""
        ...


class SentencePieceTokenizer:
    """A SentencePiece `.model`. Raises DataError when the file is none or has no bos and eos."""

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

    bos and eos are taken from its special tokens alone. Raises DataError when the file is none, has no bos and eos that
    are known, or makes one of its special tokens of a text.
    """

    kind = "hf"

    def __init__(self, path: Path) -> None:
        self.path = path
        model = _read(path)
        _check_prefix(model, path)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(model)
        except BaseException as error:
            raise _explained(error, f"{path}: is no Hugging Face tokenizer.json", "give a file they wrote") from error
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
        """Ids of bos and eos."""
        for bos, eos in _HF_SPECIALS:
            if bos in specials and eos in specials:
                return specials[bos], specials[eos]
        known = ", ".join(f"{bos} {eos}" for bos, eos in _HF_SPECIALS)
        ordinary = [token for pair in _HF_SPECIALS for token in dict.fromkeys(pair) if token in vocabulary]
        which = f"; {', '.join(ordinary)} are ordinary tokens, which a text may hold" if ordinary else ""
        raise DataError(
            f"{self.path}: has no bos and eos token that is known ({known}) among its special tokens{which}; add one "
            'of these pairs to added_tokens with "special": true'
        )

    def _check_text_is_text(self, specials: dict[str, int]) -> None:
        """Raises DataError when the text that spells a special token, or an unknown character, becomes a special id."""
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
    """Raises DataError for merges that lack the prefix of continued words: the library ends the process over them."""
    if not _WITH_PREFIX.search(model):  # nearly all: large files are not read twice
        return
    try:
        content = parse_json(model.decode())["model"]
        prefix, merges = str(content["continuing_subword_prefix"]), content.get("merges", ())
        rights = [merge.split(" ")[-1] if isinstance(merge, str) else merge[-1] for merge in merges]
    except (ValueError, LookupError, TypeError, AttributeError):  # which the library says better
        return
    if wrong := [right for right in rights if not str(right).startswith(prefix)]:
        raise DataError(
            f"{path}: model.merges: {wrong[0]!r} continues a word, but does not begin with continuing_subword_prefix "
            f"{prefix!r}; set that to null, or give the file as it was written"
        )


def _explained(error: BaseException, what: str, way_out: str) -> BaseException:
    """A DataError for what the library tokenizers raises: bare Exception, and a panic, which is none. Else `error`."""
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
        return DataError(f"{what} ({str(error)[:200]}); {way_out}")
    return error


def _decode(ids: Sequence[int], known: Container[int], decode: Callable[[list[int]], str]) -> str:
    """The text of ids of which some have no piece."""
    whole = list(map(int, ids))
    if all(id in known for id in whole):
        return decode(whole)
    groups = ((has, list(group)) for has, group in itertools.groupby(whole, key=lambda id: id in known))
    return "".join(decode(group) if has else _NO_PIECE * len(group) for has, group in groups)


def load_tokenizer(path: Path) -> Tokenizer:
    """Loads `*.model` as SentencePiece and `*.json` as Hugging Face. Raises DataError."""
    path = Path(path).expanduser()
    if path.suffix == ".model":
        return SentencePieceTokenizer(path)
    if path.suffix == ".json":
        return HFTokenizer(path)
    raise DataError(f"{path}: is no tokenizer by its name; give a SentencePiece *.model or a Hugging Face *.json")


def train_sentencepiece(texts: Iterable[str], vocab_size: int, out_path: Path) -> None:
    """Trains BPE with byte fallback on `texts` and writes `out_path`, the same bytes for the same texts.

    decode(encode(x)) == x for every text: nothing is normalised, unknown characters become bytes, newlines
    and tabs are pieces of their own, runs of spaces are learned. Ids: unk 0, bos 1, eos 2.

    Raises:
        DataError: no text, or a corpus too small (or too varied) for `vocab_size`.
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
    """What is wrong with the vocabulary's size and what to do, from the trainer's words, which name its own options."""
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
    # The trainer drops sentences above max_sentence_length bytes (at most 4 a character) without a word.
    for text in texts:
        for start in range(0, len(text), _TRAIN_CHARACTERS):
            yield text[start : start + _TRAIN_CHARACTERS]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot read the tokenizer ({error.strerror}); check tokenizer.path") from error
