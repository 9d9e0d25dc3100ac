"""The vocabulary file of an -hf model."""

import base64
import json


def write_vocab_json(folder, ranks):
    """As the script of the conversions does; the characters that stand for bytes are GPT-2's."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    characters = {byte: chr(byte) for byte in plain}
    characters |= {byte: chr(256 + i) for i, byte in enumerate(rest)}
    words = {}
    for line in ranks.splitlines():
        token, rank = line.split()
        words["".join(characters[byte] for byte in base64.b64decode(token))] = int(rank)
    (folder / "vocab.json").write_text(json.dumps(words), encoding="utf-8")
