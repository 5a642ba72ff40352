list(APPEND NIBBLE_FORMAT_SOURCES
  quik/format.cc quik/layout.cc quik/parts.cc quik/reference.cc quik/strips.cc quik/vector_op.cc
  quik/cuda/few_tokens_layout.cc)
nibble_format_isa(quik/kernels.isa.cc avx2 avxvnni avx512vnni amx)
