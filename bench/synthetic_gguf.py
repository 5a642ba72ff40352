"""Writes a GGUF file of LLaMA's shape with random Q4_0 weights: something to measure speed on, at sizes that no model in
this repository has. Standard library only.

Norms are F32 ones, the embedding, which is the head too, is Q8_0 or Q4_0. There is no tokenizer ("no_vocab"): speed is measured
on random ids. The weights repeat after a few megabytes, which no kernel can make use of; their scale keeps activations near
one.
"""

import os
import random
import struct
from pathlib import Path

# hidden, FFN, layers, heads, KV heads, vocabulary, rope base
SHAPES = {
    "llama-3.2-1b": (2048, 8192, 16, 32, 8, 128256, 500000.0),
    "tiny": (256, 512, 2, 4, 2, 1024, 10000.0),
}
F32, Q4_0, Q8_0 = 0, 2, 8
BLOCK = {F32: (1, 4), Q4_0: (32, 18), Q8_0: (32, 34)}  # weights, bytes
ALIGNMENT = 32
CONTEXT = 4096
PERIOD = 40009  # blocks after which the weights repeat; prime, so that rows differ


def tensor_list(shape, embedding_type):
    """(name, dimensions as GGUF has them: innermost first, type) of every tensor."""
    hidden, intermediate, layers, heads, kv_heads, vocabulary, _ = shape
    kv = hidden // heads * kv_heads
    tensors = [("token_embd.weight", (hidden, vocabulary), embedding_type), ("output_norm.weight", (hidden,), F32)]
    for i in range(layers):
        tensors += [(f"blk.{i}.{name}.weight", dimensions, kind) for name, dimensions, kind in (
            ("attn_norm", (hidden,), F32), ("attn_q", (hidden, hidden), Q4_0), ("attn_k", (hidden, kv), Q4_0),
            ("attn_v", (hidden, kv), Q4_0), ("attn_output", (hidden, hidden), Q4_0), ("ffn_norm", (hidden,), F32),
            ("ffn_gate", (hidden, intermediate), Q4_0), ("ffn_up", (hidden, intermediate), Q4_0),
            ("ffn_down", (intermediate, hidden), Q4_0))]
    return tensors


def byte_count(dimensions, kind):
    weights, size = BLOCK[kind]
    count = 1
    for dimension in dimensions:
        count *= dimension
    return count // weights * size


def text(value):
    encoded = value.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def metadata(name, shape):
    hidden, intermediate, layers, heads, kv_heads, vocabulary, rope_base = shape
    uint, real, string = (4, "<I"), (6, "<f"), (8, None)
    entries = [("general.architecture", string, "llama"), ("general.name", string, f"random {name}"),
               ("llama.block_count", uint, layers), ("llama.context_length", uint, CONTEXT),
               ("llama.embedding_length", uint, hidden), ("llama.feed_forward_length", uint, intermediate),
               ("llama.attention.head_count", uint, heads), ("llama.attention.head_count_kv", uint, kv_heads),
               ("llama.attention.layer_norm_rms_epsilon", real, 1e-5), ("llama.rope.freq_base", real, rope_base),
               ("llama.vocab_size", uint, vocabulary), ("general.file_type", uint, 2),
               ("tokenizer.ggml.model", string, "no_vocab")]
    packed = b""
    for key, (kind, code), value in entries:
        packed += text(key) + struct.pack("<I", kind) + (text(value) if code is None else struct.pack(code, value))
    return len(entries), packed


def random_blocks(kind, columns, rng):
    """PERIOD blocks whose weights have a deviation of about 1 / sqrt(columns)."""
    weights, size = BLOCK[kind]
    largest = 8 if kind == Q4_0 else 127
    scale = struct.pack("<e", 3 ** 0.5 / largest / columns ** 0.5)
    return b"".join(scale + rng.randbytes(size - 2) for _ in range(PERIOD))


def write_model(path, name, embedding_type=Q8_0):
    """Writes SHAPES[name] to `path`; it appears whole or not at all."""
    shape = SHAPES[name]
    tensors = tensor_list(shape, embedding_type)
    rng = random.Random(1)
    unfinished = Path(path).with_suffix(".tmp")
    with open(unfinished, "wb") as file:
        count, packed = metadata(name, shape)
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), count) + packed)
        offset = 0
        for tensor, dimensions, kind in tensors:
            file.write(text(tensor) + struct.pack("<I", len(dimensions)) + struct.pack(f"<{len(dimensions)}Q", *dimensions) +
                       struct.pack("<IQ", kind, offset))
            offset += -(-byte_count(dimensions, kind) // ALIGNMENT) * ALIGNMENT
        file.write(b"\0" * (-file.tell() % ALIGNMENT))
        periods = {}
        for _, dimensions, kind in tensors:
            left = byte_count(dimensions, kind)
            padding = -left % ALIGNMENT
            if kind == F32:
                file.write(struct.pack("<f", 1.0) * (left // 4))
                left = 0
            elif (kind, dimensions[0]) not in periods:
                periods[kind, dimensions[0]] = random_blocks(kind, dimensions[0], rng)
            while left > 0:
                left -= file.write(periods[kind, dimensions[0]][:left])
            file.write(b"\0" * padding)
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(path)
