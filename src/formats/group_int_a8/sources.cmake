list(APPEND NIBBLE_FORMAT_SOURCES
  group_int_a8/format.cc group_int_a8/layout.cc group_int_a8/reference.cc group_int_a8/strips.cc
  group_int_a8/vector_op.cc group_int_a8/cuda/few_tokens_layout.cc)
nibble_format_isa(group_int_a8/kernels.isa.cc avx2 avxvnni avx512vnni)
