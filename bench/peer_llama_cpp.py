"""The peer's side of peer_compare.py: llama.cpp through the C API that llama-cpp-python exposes.

Runs under the Python of the peer's virtual environment, one process per call, so that no thread of it is alive while
nibble is measured. Prints one JSON object.

  peer_llama_cpp.py about
  peer_llama_cpp.py quantize IN.gguf OUT.gguf THREADS
  peer_llama_cpp.py bench MODEL.gguf THREADS PROMPT_TOKENS NEW_TOKENS
"""

import ctypes
import json
import random
import sys
import time

import llama_cpp


def silence():
    """llama.cpp logs to standard error by default; only its errors are of interest."""
    @llama_cpp.llama_log_callback
    def log(level, text, _):
        if level == 4:  # GGML_LOG_LEVEL_ERROR
            sys.stderr.write(text.decode(errors="replace"))
    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    return log  # must stay referenced as long as the library may call it


def about():
    features = llama_cpp.llama_print_system_info().decode()
    names = [part.split("=")[0].strip().split(":")[-1].strip() for part in features.split("|") if "= 1" in part]
    return {"binding": llama_cpp.__version__, "features": names}


def quantize(source, target, threads):
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = threads
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    params.allow_requantize = True  # the source may be quantized already
    status = llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params))
    if status != 0:
        sys.exit(f"peer_llama_cpp: llama_model_quantize({source}) returned {status}")
    return {}


def bench(path, threads, prompt_tokens, new_tokens):
    """As llama-bench measures: batch 512, empty context, random tokens, logits of the last token only, one warm-up."""
    model_params = llama_cpp.llama_model_default_params()
    model_params.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(path.encode(), model_params)
    if not model:
        sys.exit(f"peer_llama_cpp: {path} cannot be loaded")
    context_params = llama_cpp.llama_context_default_params()
    context_params.n_ctx = max(prompt_tokens, new_tokens)
    context_params.n_batch = context_params.n_ubatch = 512
    context_params.n_threads = context_params.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(model, context_params)
    if not context:
        sys.exit(f"peer_llama_cpp: no context for {path}")
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    rng = random.Random(1)
    tokens = [rng.randrange(vocabulary) for _ in range(max(prompt_tokens, new_tokens))]

    def decode(ids):
        array = (llama_cpp.llama_token * len(ids))(*ids)
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(ids))) != 0:
            sys.exit("peer_llama_cpp: llama_decode failed")

    def prompt():
        for first in range(0, prompt_tokens, 512):
            decode(tokens[first:min(first + 512, prompt_tokens)])

    def generate(count):
        for token in tokens[:count]:
            decode([token])
            llama_cpp.llama_synchronize(context)

    def timed(work):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        started = time.perf_counter()
        work()
        llama_cpp.llama_synchronize(context)
        return time.perf_counter() - started

    timed(prompt)
    prompt_seconds = timed(prompt)
    timed(lambda: generate(min(8, new_tokens)))
    decode_seconds = timed(lambda: generate(new_tokens))
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return {"prompt_tokens_per_second": prompt_tokens / prompt_seconds,
            "decode_tokens_per_second": new_tokens / decode_seconds}


def main():
    log = silence()
    llama_cpp.llama_backend_init()
    command, *arguments = sys.argv[1:]
    if command == "about":
        result = about()
    elif command == "quantize":
        result = quantize(arguments[0], arguments[1], int(arguments[2]))
    elif command == "bench":
        result = bench(arguments[0], *(int(argument) for argument in arguments[1:]))
    else:
        sys.exit(f"peer_llama_cpp: unknown command {command}")
    print(json.dumps(result))
    del log


main()
