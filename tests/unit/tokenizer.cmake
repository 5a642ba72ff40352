nibble_test(tokenizer_test
  SOURCES tokenizer_bad_test.cc tokenizer_fixture_test.cc tokenizer_gguf_test.cc tokenizer_parts_test.cc
          tokenizer_regex_test.cc tokenizer_stream_test.cc
  LINKS nibble_tokenizers)
