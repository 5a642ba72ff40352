list(APPEND NIBBLE_FORMAT_SOURCES mixed_2_4_16/cpu.cc mixed_2_4_16/format.cc mixed_2_4_16/layout.cc mixed_2_4_16/reference.cc)
nibble_format_isa(mixed_2_4_16/cpu_kernels.isa.cc avx2 avxvnni avx512vnni)
