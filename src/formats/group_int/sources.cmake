list(APPEND NIBBLE_FORMAT_SOURCES group_int/cpu.cc group_int/format.cc group_int/layout.cc group_int/reference.cc group_int/cuda/decode_layout.cc)
nibble_format_isa(group_int/cpu_kernels.isa.cc avx2 avx512vnni)
nibble_format_isa(group_int/integer_kernels.isa.cc avx512vbmi)
nibble_format_isa(group_int/tile_kernels.isa.cc amx)
